"""A hub on this machine, and a process that loads backbones from it."""

import http.server
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class FakeHub:
    """A hub on this machine that answers for a few repositories, as well as its `mode` lets it.

    Its address is `endpoint`, a mirror's: a path on the server. As on the real hub, large files are said to lie
    elsewhere: another host, here another name of this one.

    Modes: serve; hang (accepts, never answers); drip (a byte of headers now and then); garbage (not HTTP); broken
    (status 503); missing (404); cut (closes the first download halfway); stall (sends half of it, then nothing);
    slow (sends it in pieces with pauses).

    Args:
        files: contents by path, `/owner/name/resolve/main/file`.
    """

    def __init__(self, files):
        self.files, self.mode, self.over = files, "serve", threading.Event()
        self.forget()
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                hub.answer(self)

            do_GET = do_HEAD

        self.handler = Handler
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}/mirror"
        self.server = None

    def forget(self):
        """Begin the counts anew."""
        self.requests, self.cuts, self.sent = [], 0, []

    def start(self):
        self.over.clear()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), self.handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        """Nobody listens from here on: connections are refused."""
        self.over.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request):
        self.requests.append((request.command, request.path))
        mode, over = self.mode, self.over
        request.close_connection = True
        if mode == "hang":
            over.wait(60)
        elif mode == "garbage":
            request.wfile.write(b"550 no such thing here\r\n\r\n")
        elif mode == "drip":
            while not over.wait(0.2):
                request.wfile.write(b"H")
        elif mode == "broken":
            request.send_error(503)
        elif mode == "missing":
            request.send_error(404)
        elif (path := request.path.removeprefix("/mirror")) in self.files and path != request.path:
            self.point_to(request, path)
        elif (path := request.path.removeprefix("/elsewhere")) in self.files and path != request.path:
            self.send(request, self.files[path], mode)
        else:
            request.send_error(404)

    def point_to(self, request, path):
        """Say which file it is, and that it lies elsewhere."""
        content = self.files[path]
        request.send_response(302)
        request.send_header("Location", f"http://localhost:{self.port}/elsewhere{path}")
        request.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
        request.send_header("X-Linked-ETag", f'"{sha256(content).hexdigest()}"')
        request.send_header("X-Linked-Size", str(len(content)))
        request.send_header("Content-Length", "0")
        request.end_headers()

    def send(self, request, content, mode):
        """The file, or what was asked for of it; `sent` counts the bytes."""
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        content = content[start:]
        request.send_header("Content-Length", str(len(content)))
        request.send_header("Connection", "close")
        request.end_headers()
        if request.command == "HEAD":
            return
        if mode == "stall" or (mode == "cut" and self.cuts == 0):
            self.cuts += 1
            content = content[: len(content) // 2]
        self.sent.append(len(content))
        for piece in range(8):
            request.wfile.write(content[len(content) * piece // 8 : len(content) * (piece + 1) // 8])
            if mode == "slow":
                self.over.wait(0.1)
        if mode == "stall":
            self.over.wait(60)


CLIENT = """
import contextlib, json, os, socket, sys, time
import torch, torchvision.transforms.v2  # slow, so done once, before the fork

assert "huggingface_hub" not in sys.modules
source, sink = sys.stdin, sys.stdout
near, far = (end.makefile("rw", buffering=1) for end in socket.socketpair())
if os.fork() == 0:
    os.environ["HF_HUB_OFFLINE"] = "1"
    source = sink = far
    near.close()

import huggingface_hub
from splice_ff.utils import hub
from splice_ff.vit import weights

hub.HUB_TIMEOUT = 1.0
huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT = 0.3  # between two pieces of a download
sleep = time.sleep
time.sleep = lambda seconds: sleep(seconds / 20)  # huggingface_hub waits ever longer between its attempts
for line in source:
    function, name, offline = json.loads(line)
    if offline and source is not far:
        near.write(line)
        print(near.readline(), end="", file=sink, flush=True)
        continue
    answer, start = {"offline": huggingface_hub.constants.HF_HUB_OFFLINE}, time.perf_counter()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            backbone = getattr(weights, function)(name)
        if isinstance(backbone, tuple):
            backbone, answer["notice"] = backbone
        answer |= {"name": backbone.name, "fingerprint": backbone.fingerprint}
    except BaseException as error:
        answer |= {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer | {"seconds": time.perf_counter() - start}), file=sink, flush=True)
"""


class Client:
    """Another process with its own hub cache, and its twin in offline mode.

    Processes, because huggingface_hub reads its settings where it is imported.
    """

    def __init__(self, cache, endpoint):
        self.cache = cache
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
        clean |= {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT)}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=clean,
        )  # fmt: skip
        self.ask("load_backbone", "vit_mini", patience=120)  # starts

    def ask(self, function, name, offline=False, patience=15):
        self.process.stdin.write(json.dumps([function, name, offline]) + "\n")
        self.process.stdin.flush()
        answered, _, _ = select.select([self.process.stdout], [], [], patience)
        line = self.process.stdout.readline() if answered else ""
        if not line:  # a late answer would be taken for the next one
            self.close()
            pytest.fail(f"{function}({name!r}) hangs or crashed: {self.messages}")
        answer = json.loads(line)
        assert answer["offline"] is offline
        return answer

    def close(self):
        self.process.kill()
        self.process.communicate()
        self.log.seek(0)
        self.messages = self.log.read()
        self.log.close()
