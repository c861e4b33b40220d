"""`splice-ff app`: the page."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from splice_ff.commands._one_shot import DEFAULT_MODEL, Backbone, BackboneWeights, Model, load_model
from splice_ff.commands._options import Debug, Device, Quiet, check_backbones, errors, say


def app(
    model: Model = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other computers in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    backbone: Backbone = None,
    backbone_weights: BackboneWeights = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Serve a page to try it on: two images in, the result out.

    Example: `splice-ff app --open`
    """
    with errors(debug):
        from splice_ff.utils.extras import need

        need("gradio", extra="app")
        check_backbones([backbone], backbone_weights)
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read where gradio is imported
        from splice_ff.app.page import launch_page
        from splice_ff.app.work import Work

        splice = load_model(model, backbone, backbone_weights, device)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ctrl-C: the visitors' images are deleted
        with TemporaryDirectory(prefix="splice-ff-app-") as folder:
            page, url = launch_page(Work(splice, Path(folder)), host, port, open_browser)
            if not quiet:
                say(f"the page is at {url}; ctrl-C ends it")
            page.block_thread()
