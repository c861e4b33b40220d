import argparse
import contextlib
import http.server
import json
import os
import pickle
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
from hashlib import sha256
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from splice_ff import weights
from splice_ff.backbone import ViTFeatures
from splice_ff.losses import LossWeights
from splice_ff.weights import BACKBONES, HubError, WeightsError, load_backbone, load_default_backbone, read_state

ROOT = Path(__file__).parents[1]
TINY = {"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 6, "num_classes": 0}
CONFIG = {"architecture": "timm.models.VisionTransformer", "mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1]} | TINY
KEY = "blocks.1.attn.qkv.weight"


@pytest.fixture
def state(tiny_vit):
    """Tensors of a random ViT with the architecture of `CONFIG`."""
    return tiny_vit(depth=2).state_dict()


@pytest.fixture
def fingerprint(tiny_vit):
    """Of those weights."""
    return ViTFeatures(tiny_vit(depth=2)).fingerprint


@pytest.fixture
def folder(tmp_path, state):
    """A checkpoint folder with them."""
    return checkpoint_folder(tmp_path / "tiny", CONFIG, state)


@pytest.fixture
def blank(tmp_path, tiny_vit):
    """A checkpoint folder with other weights, for `--weights FILE` to replace."""
    return checkpoint_folder(tmp_path / "blank", CONFIG, tiny_vit(seed=9, depth=2).state_dict())


def checkpoint_folder(path, config, state):
    path.mkdir()
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    save_file(state, path / "model.safetensors")
    return path


def prefixed(prefix, state):
    return {prefix + key: tensor for key, tensor in state.items()}


# ----------------------------------------------------------------------------------------------- what is bundled


def test_the_bundled_backbone():
    backbone = load_backbone("vit_mini")
    assert re.fullmatch("[0-9a-f]{64}", backbone.fingerprint)
    assert backbone.name == "vit_mini"
    config = json.loads((ROOT / "checkpoints" / "vit_mini" / "config.json").read_text())
    assert "loss_scales" in config
    defaults = {"structure": 1.0, "appearance": 1.0, "identity": 1.0}
    assert backbone.spec.loss_scales == LossWeights(**defaults | config["loss_scales"])
    found = backbone(torch.rand(1, 3, 64, 48), cls=True, keys=[-1])
    assert found.cls.shape == (1, config["depth"], config["embed_dim"])
    stored = load_file(ROOT / "checkpoints" / "vit_mini" / "model.safetensors")
    digest = sha256()
    for key in sorted(backbone.vit.state_dict()):
        digest.update(f"{key}{tuple(stored[key].shape)}".encode() + stored[key].float().numpy().tobytes())
    assert backbone.fingerprint == digest.hexdigest()
    assert ViTFeatures.from_name("vit_mini").fingerprint == backbone.fingerprint


@pytest.mark.parametrize("name", BACKBONES)
def test_every_known_name_has_weights_on_the_hub(name):
    spec = BACKBONES[name]
    assert spec.name == name and timm.is_model(spec.timm_name)
    assert timm.get_pretrained_cfg(spec.timm_name).hf_hub_id == f"timm/{spec.timm_name}"
    if name in ("dino_vits16", "dino_vits8", "dino_vitb16", "dino_vitb8"):
        assert spec.loss_scales == LossWeights(1, 1, 1)


# ---------------------------------------------------------------------------------------- folders and their configs


def test_a_folder_says_all(folder, fingerprint):
    config = CONFIG | {"loss_scales": {"structure": 3.0, "identity": 0.5}}
    (folder / "config.json").write_text(json.dumps(config))
    backbone = load_backbone(str(folder))
    assert backbone.fingerprint == fingerprint
    assert backbone.name == "tiny" and backbone.depth == 2
    assert backbone.spec.loss_scales == LossWeights(3.0, 1.0, 0.5)
    assert backbone.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert backbone.std.flatten().tolist() == pytest.approx([0.3, 0.2, 0.1])
    assert not any(p.requires_grad for p in backbone.parameters())


def test_scales_are_one_unless_said(folder):
    assert load_backbone(str(folder)).spec.loss_scales == LossWeights(1, 1, 1)


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[1, 2]",
        "null",
        {key: value for key, value in CONFIG.items() if key != "mean"},
        {key: value for key, value in CONFIG.items() if key != "architecture"},
        CONFIG | {"architecture": "timm.models.ResNet"},
        CONFIG | {"embed_dim": 50},
        CONFIG | {"embed_dim": "wide"},
        CONFIG | {"num_heads": 0},
        CONFIG | {"depth": "three"},
        CONFIG | {"unknown": 1},
        CONFIG | {"loss_scales": {"apearance": 1.0}},
        CONFIG | {"loss_scales": [1, 2, 3]},
        CONFIG | {"mean": [0.5, 0.5]},
        CONFIG | {"std": "small"},
    ],
    ids=lambda config: str(config)[-40:],
)
def test_configs_that_describe_no_backbone(folder, config):
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(WeightsError, match=re.escape(str(folder / "config.json"))):
        load_backbone(str(folder))


def test_a_config_that_is_not_text(folder):
    (folder / "config.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(WeightsError, match=re.escape(str(folder / "config.json"))):
        load_backbone(str(folder))


# ------------------------------------------------------------------------------------------ files that fit: --weights


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(blank, tmp_path, state, fingerprint, prefix, suffix):
    assert load_backbone(str(blank)).fingerprint != fingerprint
    file = tmp_path / f"mine{suffix}"
    extra = {"head.mlp.0.weight": torch.ones(3)}  # DINO's projection head, in some files
    content = prefixed(prefix, state) | extra
    save_file(content, file) if suffix == ".safetensors" else torch.save(content, file)
    backbone = load_backbone(str(blank), file)
    assert backbone.fingerprint == fingerprint
    assert load_backbone(str(blank), str(file)).fingerprint == fingerprint
    assert backbone.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])  # all else is the folder's


def test_weights_from_a_folder(blank, folder, fingerprint):
    assert load_backbone(str(blank), folder).fingerprint == fingerprint


def test_weights_for_a_timm_name(tmp_path, randomized):
    """Needs no network; mean and standard deviation are timm's for the name."""
    vit = randomized(timm.create_model("test_vit", num_classes=0))
    save_file(vit.state_dict(), tmp_path / "weights.safetensors")
    backbone = load_backbone("test_vit.r160_in1k", tmp_path / "weights.safetensors")
    assert backbone.fingerprint == ViTFeatures(vit).fingerprint
    assert backbone.name == "test_vit.r160_in1k" and backbone.spec.loss_scales == LossWeights(1, 1, 1)
    assert backbone.mean.flatten().tolist() == backbone.std.flatten().tolist() == [0.5, 0.5, 0.5]


def test_weights_in_half_precision(blank, tmp_path, state):
    halves = {key: tensor.half() for key, tensor in state.items()}
    save_file(halves, tmp_path / "half.safetensors")
    backbone = load_backbone(str(blank), tmp_path / "half.safetensors")
    for key, tensor in backbone.vit.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, halves[key].float())


def full_checkpoint(teacher, student):
    """What DINO's training program saves: both networks, optimizer, epoch and the program's arguments."""
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    head = {"head.mlp.0.weight": torch.ones(4, 4), "head.last_layer.weight_g": torch.ones(4, 1)}
    return {
        "student": prefixed("module.backbone.", student) | prefixed("module.", head),
        "teacher": prefixed("backbone.", teacher) | head,
        "optimizer": optimizer.state_dict(),
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", patch_size=8, lr=0.0005, local_crops_scale=(0.05, 0.25)),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }


def test_full_dino_checkpoint_gives_the_teacher(blank, tmp_path, state, fingerprint, tiny_vit):
    torch.save(full_checkpoint(state, tiny_vit(seed=5, depth=2).state_dict()), tmp_path / "dino.pth")
    assert load_backbone(str(blank), tmp_path / "dino.pth").fingerprint == fingerprint


def test_full_checkpoint_of_distributed_training(blank, tmp_path, state, fingerprint):
    student = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    content = {"student": prefixed("module.", student), "teacher": prefixed("module.backbone.", state)}
    torch.save(content | {"extra": 1}, tmp_path / "dino.pth")
    assert load_backbone(str(blank), tmp_path / "dino.pth").fingerprint == fingerprint


@pytest.mark.parametrize("key", ["teacher", "state_dict", "model"])
def test_weights_under_a_usual_key(tmp_path, state, key):
    torch.save({key: prefixed("module.", state), "epoch": 3}, tmp_path / "file.pth")
    assert read_state(tmp_path / "file.pth").keys() == state.keys()


def dinov2_layout(vit):
    """Tensors of a ViT with registers as DINOv2's authors publish them: [CLS] has a position of its own."""
    state = dict(vit.state_dict())
    position = torch.randn(1, 1, vit.embed_dim)
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    state["cls_token"] = state["cls_token"] - position
    state["mask_token"] = torch.zeros(1, vit.embed_dim)
    return state


@pytest.fixture
def registers(tmp_path, tiny_vit):
    """A folder for a ViT with registers, and the ViT whose weights shall go there."""
    changes = {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5, "depth": 2}
    path = checkpoint_folder(tmp_path / "registers", CONFIG | changes, tiny_vit(seed=3, **changes).state_dict())
    return path, tiny_vit(**changes)


def test_dinov2s_own_layout(registers, tmp_path):
    folder, vit = registers
    torch.save(dinov2_layout(vit), tmp_path / "dinov2.pth")
    backbone, expected = load_backbone(str(folder), tmp_path / "dinov2.pth"), ViTFeatures(vit)
    for key, tensor in backbone.vit.state_dict().items():
        assert torch.allclose(tensor, vit.state_dict()[key], atol=1e-6), key
    assert backbone.fingerprint != load_backbone(str(folder)).fingerprint
    images = torch.rand(1, 3, 48, 48)
    backbone.mean, backbone.std = expected.mean, expected.std
    assert torch.allclose(backbone(images, cls=True).cls, expected(images, cls=True).cls, atol=1e-4)


def test_dinov2s_own_layout_without_registers(blank, tmp_path, state, fingerprint):
    save_file(state | {"mask_token": torch.zeros(1, 48)}, tmp_path / "dinov2.safetensors")
    assert load_backbone(str(blank), tmp_path / "dinov2.safetensors").fingerprint == fingerprint


# ------------------------------------------------------------------------------------------- files that do not fit


def refusal(name, file):
    """The one line that the user gets, which must name the file."""
    with pytest.raises(WeightsError) as caught:
        load_backbone(str(name), file)
    message = str(caught.value)
    assert str(file) in message and "\n" not in message
    assert not isinstance(caught.value, HubError)
    return message


@pytest.mark.parametrize("key", [KEY, "pos_embed", "cls_token", "norm.bias"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_missing_tensor(blank, tmp_path, state, key, suffix):
    file = tmp_path / f"file{suffix}"
    del state[key]
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    assert f"'{key}'" in refusal(blank, file)


@pytest.mark.parametrize("key", ["register_tokens", "cls_token", "pos_embed", KEY])
def test_a_missing_tensor_in_dinov2s_layout(registers, tmp_path, key):
    folder, vit = registers
    state = dinov2_layout(vit)
    del state[key]
    torch.save(state, tmp_path / "file.pth")
    timms_name = {"register_tokens": "reg_token"}.get(key, key)
    assert f"'{timms_name}'" in refusal(folder, tmp_path / "file.pth")


def test_dinov2s_layout_of_another_width(registers, tmp_path):
    folder, vit = registers
    state = dinov2_layout(vit)
    state["cls_token"] = torch.ones(1, 1, 40)
    torch.save(state, tmp_path / "file.pth")
    refusal(folder, tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("key", "shape"), [(KEY, (144, 40)), ("pos_embed", (1, 50, 48)), ("patch_embed.proj.weight", (48, 3, 16, 16))]
)
def test_a_tensor_of_another_shape(blank, tmp_path, state, key, shape):
    state[key] = torch.ones(shape)
    save_file(state, tmp_path / "file.safetensors")
    message = refusal(blank, tmp_path / "file.safetensors")
    assert (
        f"'{key}'" in message
        and str(shape) in message
        and str(tuple(load_file(blank / "model.safetensors")[key].shape)) in message
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers(blank, tmp_path, state, value):
    state[KEY][3, 5] = value
    save_file(state, tmp_path / "file.safetensors")
    assert f"'{KEY}'" in refusal(blank, tmp_path / "file.safetensors")


def test_a_model_of_another_depth(blank, tmp_path, tiny_vit):
    save_file(tiny_vit(depth=1).state_dict(), tmp_path / "file.safetensors")
    assert "'blocks.1." in refusal(blank, tmp_path / "file.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0, 1, 5, 100, 1000, 0.5, 0.9, -1])
def test_a_truncated_file(blank, tmp_path, state, suffix, kept):
    file = tmp_path / f"file{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    refusal(blank, file)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_a_damaged_pth(tmp_path, is_zip):
    """Every truncation is seen; a changed byte is, or is one of a tensor's."""
    file = tmp_path / "file.pth"
    torch.save({"a": torch.ones(3), "b": torch.ones(2)}, file, _use_new_zipfile_serialization=is_zip)
    content = file.read_bytes()
    for length in range(0, len(content), 7):
        file.write_bytes(content[:length])
        with pytest.raises(WeightsError, match=r"file\.pth"):
            read_state(file)
    for i in range(0, len(content), 3):
        file.write_bytes(content[:i] + bytes([content[i] ^ 0x55]) + content[i + 1 :])
        with contextlib.suppress(WeightsError):
            read_state(file)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin", ""])
@pytest.mark.parametrize(
    "content",
    [
        b"<html>404 Not Found</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        bytes(999),
        b"I1\n.",
    ],
    ids=["html", "git-lfs pointer", "zeros", "pickled number"],
)
def test_a_file_of_something_else(blank, tmp_path, suffix, content):
    file = tmp_path / f"file{suffix}"
    file.write_bytes(content)
    refusal(blank, file)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"teacher": {}},
        {"epoch": 3},
        [torch.ones(2)],
        torch.ones(2),
        {0: torch.ones(2)},
        {"a": torch.ones(2), 1: torch.ones(2)},
        {"teacher": {"a": torch.ones(2), "b": "c"}},
        None,
    ],
    ids=str,
)
def test_a_pth_without_a_dictionary_of_tensors(blank, tmp_path, content):
    torch.save(content, tmp_path / "file.pth")
    refusal(blank, tmp_path / "file.pth")


def test_no_such_file(blank, tmp_path):
    assert "no such" in refusal(blank, tmp_path / "absent.pth")
    assert "no such" in refusal("test_vit", tmp_path / "absent.pth")


def test_a_folder_without_weights(blank, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "model.safetensors" in refusal(blank, tmp_path / "empty")
    (blank / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=re.escape(str(blank / "model.safetensors"))):
        load_backbone(str(blank))


class Harmful:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda content, file: file.write_bytes(pickle.dumps(content, 2))])
def test_pickled_code_is_refused_and_not_run(blank, tmp_path, state, save):
    mark, file = tmp_path / "it ran", tmp_path / "file.pth"
    save({"teacher": state | {"harmful": Harmful(mark)}}, file)
    refusal(blank, file)
    assert not mark.exists()
    torch.load(file, weights_only=False) if save is torch.save else pickle.loads(file.read_bytes())
    assert mark.exists()  # so it would have


def test_a_whole_pickled_model_is_refused(blank, tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "file.pth")
    refusal(blank, tmp_path / "file.pth")


# ------------------------------------------------------------------------------------------------------------ names


def test_an_unknown_name_lists_the_known(tmp_path):
    for file in (None, tmp_path / "some.pth"):
        with pytest.raises(WeightsError, match="dino_vitx9") as caught:
            load_backbone("dino_vitx9", file)
        assert all(name in str(caught.value) for name in ("vit_mini", *BACKBONES))
        assert not isinstance(caught.value, HubError)  # the bundled one would hide a typing error
    with pytest.raises(WeightsError):
        load_default_backbone("dino_vitx9")


@pytest.mark.parametrize("name", ["resnet10t", "deit_tiny_distilled_patch16_224"])
def test_a_model_that_is_no_plain_vit(tmp_path, state, name):
    save_file(state, tmp_path / "file.safetensors")
    with pytest.raises(WeightsError, match=name):
        load_backbone(name, tmp_path / "file.safetensors")


# -------------------------------------------------------------------------------------------------------- the hub


class FakeHub:
    """A hub on this machine that answers for a few repositories, as well as its `mode` lets it.

    Modes: serve; hang (accepts, never answers); drip (a byte of headers now and then); garbage (not HTTP); broken
    (status 503); missing (404); cut (closes the first download halfway); stall (sends half of it, then nothing).
    """

    def __init__(self, files):
        self.files, self.mode, self.requests, self.cuts, self.over = files, "serve", [], 0, threading.Event()
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
        self.server = None

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
        elif mode == "missing" or request.path not in self.files:
            request.send_error(404)
        else:
            self.send(request, self.files[request.path], mode)

    def send(self, request, content, mode):
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("ETag", f'"{sha256(content).hexdigest()}"')
        request.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
        request.send_header("Connection", "close")
        request.end_headers()
        if request.command == "HEAD":
            return
        if mode == "stall" or (mode == "cut" and self.cuts == 0):
            self.cuts += 1
            request.wfile.write(content[: len(content) // 2])
            if mode == "stall":
                self.over.wait(60)
        else:
            request.wfile.write(content)


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
from splice_ff import weights

weights.HUB_TIMEOUT = 1.0
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


NAMES = ["test_vit", "test_vit2", "test_vit3"]


@pytest.fixture(scope="module")
def hub_files(tmp_path_factory):
    """Files of three small timm ViTs with random weights, and the fingerprints to expect."""
    from conftest import randomize

    files, fingerprints, path = {}, {}, tmp_path_factory.mktemp("files") / "model.safetensors"
    for name in NAMES:
        save_file(randomize(timm.create_model(name, num_classes=0)).state_dict(), path)
        files[f"/timm/{name}.r160_in1k/resolve/main/model.safetensors"] = path.read_bytes()
        fingerprints[f"{name}.r160_in1k"] = load_backbone(f"{name}.r160_in1k", path).fingerprint
    return files, fingerprints


@pytest.fixture(scope="module")
def module_hub(hub_files):
    hub = FakeHub(hub_files[0])
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture(scope="module")
def client(module_hub, tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("the client of these tests forks")
    client = Client(tmp_path_factory.mktemp("cache"), f"http://127.0.0.1:{module_hub.port}")
    yield client
    if client.process.poll() is None:
        client.close()


@pytest.fixture
def hub(module_hub):
    """The hub, in mode "serve"."""
    module_hub.mode = "serve"
    module_hub.requests.clear()
    return module_hub


def assert_stand_in(answer, name):
    """load_default_backbone fell back and said so."""
    assert answer["name"] == "vit_mini", answer
    assert name in answer["notice"] and "vit_mini" in answer["notice"] and "not DINO" in answer["notice"]
    assert "--weights" in answer["notice"]


def assert_hub_error(answer, name):
    assert answer["error"] == "HubError", answer
    assert name in answer["message"] and "--weights" in answer["message"] and "vit_mini" in answer["message"]
    assert "\n" not in answer["message"]


def test_download_then_cache(hub, client, hub_files):
    name = "test_vit.r160_in1k"
    answer = client.ask("load_backbone", name)
    assert answer["fingerprint"] == hub_files[1][name], answer
    assert ("GET", f"/timm/{name}/resolve/main/model.safetensors") in hub.requests
    hub.requests.clear()
    assert client.ask("load_default_backbone", name)["fingerprint"] == hub_files[1][name]
    assert hub.requests == []
    hub.stop()
    try:
        answer = client.ask("load_default_backbone", name)
    finally:
        hub.start()
    assert answer["fingerprint"] == hub_files[1][name] and answer["notice"] is None


def test_a_cut_download_is_not_taken_for_whole(hub, client, hub_files):
    """Recent versions of huggingface_hub try again by themselves, older ones give up."""
    name = "test_vit2.r160_in1k"
    hub.mode, hub.cuts = "cut", 0
    answer = client.ask("load_backbone", name)
    assert hub.cuts == 1
    if "error" in answer:
        assert_hub_error(answer, name)
        answer = client.ask("load_backbone", name)
    assert answer["fingerprint"] == hub_files[1][name], answer


@pytest.mark.parametrize("mode", ["hang", "drip", "garbage", "broken", "missing"])
def test_a_hub_that_does_not_answer_well(hub, client, mode):
    """The error comes within HUB_TIMEOUT, here 1 s, and some for loading the stand-in."""
    hub.mode = mode
    answer = client.ask("load_backbone", "dino_vitb8")
    assert_hub_error(answer, "dino_vitb8")
    assert answer["seconds"] < 2
    answer = client.ask("load_default_backbone", "dino_vitb8")
    assert_stand_in(answer, "dino_vitb8")
    assert answer["seconds"] < 3
    assert hub.requests


def test_no_hub(hub, client):
    hub.stop()
    try:
        error, stand_in = (client.ask(f"load_{which}backbone", "dino_vits16") for which in ("", "default_"))
    finally:
        hub.start()
    assert_hub_error(error, "dino_vits16")
    assert_stand_in(stand_in, "dino_vits16")
    assert error["seconds"] < 1 and stand_in["seconds"] < 2


def test_a_download_that_stalls_ends(hub, client, hub_files):
    """huggingface_hub tries six times, with HF_HUB_DOWNLOAD_TIMEOUT each; what it raises then is a hub error too."""
    name = "test_vit3.r160_in1k"
    hub.mode, hub.cuts = "stall", 0
    assert_stand_in(client.ask("load_default_backbone", name), name)
    assert hub.cuts == 6
    hub.mode = "serve"  # and nothing half was kept as if it were whole
    assert client.ask("load_backbone", name)["fingerprint"] == hub_files[1][name]


def test_offline_mode(hub, client, hub_files):
    """HF_HUB_OFFLINE=1: nobody is asked, and what is cached is used."""
    cached = "test_vit.r160_in1k"
    client.ask("load_backbone", cached)
    hub.requests.clear()
    assert client.ask("load_backbone", cached, offline=True)["fingerprint"] == hub_files[1][cached]
    error, stand_in = (client.ask(f"load_{which}backbone", "dino_vitb8", offline=True) for which in ("", "default_"))
    assert_hub_error(error, "dino_vitb8")
    assert_stand_in(stand_in, "dino_vitb8")
    assert error["seconds"] < 1 and stand_in["seconds"] < 2
    assert hub.requests == []


def test_a_name_without_weights_on_the_hub():
    names = timm.list_models("vit_*")
    without = next(n for n in names if not (timm.get_pretrained_cfg(n) and timm.get_pretrained_cfg(n).hf_hub_id))
    with pytest.raises(WeightsError, match=f"{without}.*no weights on the hub.*--weights"):
        load_backbone(without)


def test_hub_timeout_is_short():
    assert 0 < weights.HUB_TIMEOUT <= 30
