"""The page that paints in the browser computes what the runner does, without a server and without the network."""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.chromium import chromium, outside
from support.one_shot_model import random_image

from splice_ff.images import save_image

pytestmark = pytest.mark.timeout(900)  # tracing takes minutes on a slow machine
WEB = Path(__file__).parents[2] / "web"
ORT = WEB / "node_modules" / "onnxruntime-web" / "dist"
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


class Silent(SimpleHTTPRequestHandler):
    """A plain file server."""

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(params=["exported", "grid_exported"])
def folder(request):
    """A plain model, and one with a grid, as the bundled one is."""
    if not ORT.is_dir():  # before anything is exported
        pytest.skip("needs onnxruntime-web: npm install --prefix web")
    return request.getfixturevalue(request.param)


@pytest.fixture
def url(folder, tmp_path):
    site = tmp_path / "site"
    shutil.copytree(folder, site / "model")
    (site / "ort").mkdir()
    for file in [WEB / name for name in ("index.html", "style.css", "page.js", "model.js", "cutout.js")]:
        shutil.copy(file, site)
    for name in FILES:
        shutil.copy(ORT / name, site / "ort")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_it_paints_in_the_browser(folder, url, tmp_path):
    structure, appearance = (save_image(tmp_path / f"{i}.png", random_image(i, 90, 70)) for i in range(2))
    (tmp_path / "fake.png").write_text("no image")
    with chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(90_000)
        asked = outside(page)
        page.goto(url)
        status = page.locator("#status")
        page.wait_for_function("document.querySelector('#status').innerText.startsWith('Choose')")
        page.set_input_files("#structure input", tmp_path / "fake.png")
        page.wait_for_function("document.querySelector('#status').classList.contains('error')")
        assert status.inner_text() == "fake.png: not an image that this browser can read"
        page.set_input_files("#structure input", structure)
        page.set_input_files("#appearance input", appearance)
        # the link is made after the message
        painted = """document.querySelector('#status').innerText.startsWith('Painted 70x90 px')
            && document.querySelector('#download').href.startsWith('blob:')"""
        page.wait_for_function(painted)
        made = {1.0: downloaded(page)}
        page.evaluate("document.querySelector('#download').href = ''")
        page.locator("#strength").fill("0.4")
        page.wait_for_function(painted)
        made[0.4] = downloaded(page)
    assert not asked
    from splice_ff.onnx.runner import OnnxSpliceFF

    for strength, image in made.items():
        expected = np.asarray(OnnxSpliceFF(folder)(structure, appearance, strength=strength), np.float32)
        assert np.abs(image - expected).max() <= 1
    assert np.abs(made[1.0] - made[0.4]).max() > 5


def test_hidden_pixels_of_a_cut_out_are_no_part_of_it(folder, url, tmp_path):
    """Nor is a small image enlarged and reduced again."""
    files = []
    for name, (h, w), seen in (("structure", (50, 41), slice(9, 30)), ("appearance", (90, 70), slice(20, 60))):
        alpha = torch.zeros(1, 1, h, w)
        alpha[..., seen, 5:-7] = 1
        files.append(save_image(tmp_path / f"{name}.png", random_image(len(name), h, w), alpha=alpha))
    save_image(tmp_path / "hidden.png", random_image(1), alpha=torch.zeros(1, 1, 64, 64))
    with chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(90_000)
        page.goto(url)
        page.wait_for_function("document.querySelector('#status').innerText.startsWith('Choose')")
        page.set_input_files("#structure input", tmp_path / "hidden.png")
        page.wait_for_function(
            "document.querySelector('#status').innerText.startsWith('hidden.png: no pixel is visible')"
        )
        for role, file in zip(("structure", "appearance"), files, strict=True):
            page.set_input_files(f"#{role} input", file)
        page.wait_for_function("""document.querySelector('#status').innerText.startsWith('Painted 41x50 px')
            && document.querySelector('#download').href.startsWith('blob:')""")
        image = downloaded(page, "RGBA")
    from splice_ff.onnx.runner import OnnxSpliceFF

    expected = np.asarray(OnnxSpliceFF(folder)(*files), np.float32)
    assert (image[..., 3] == expected[..., 3]).all() and 0 < expected[..., 3].mean() < 255
    visible = expected[..., 3] > 0  # a canvas keeps no others
    assert np.abs(image - expected)[visible].max() <= 1


def downloaded(page, mode="RGB"):
    """The image behind the page's link."""
    png = page.evaluate("""async () => {
        const blob = await (await fetch(document.querySelector('#download').href)).arrayBuffer();
        return Array.from(new Uint8Array(blob));
    }""")
    return np.asarray(Image.open(BytesIO(bytes(png))).convert(mode), np.float32)
