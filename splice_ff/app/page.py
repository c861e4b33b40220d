"""The page's layout. Nothing in it needs the network: system fonts, no analytics."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import wraps
from threading import Thread
from time import sleep
from typing import Any

import gradio as gr

from splice_ff.app.work import KEPT, Shown, Work
from splice_ff.data.pair_list import read_pairs
from splice_ff.errors import InputError
from splice_ff.utils.bundled import bundled_dir

SIZES = (128, 160, 192, 224, 256, 320, 384, 512)
MAX_WAITING = 16
"""Visitors who may wait for their turn; others are told to come back."""
MAX_UPLOAD = "24mb"
SWEEP_EVERY = 300
"""Seconds between two looks for images to delete."""
THEME = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}


def make_page(work: Work) -> gr.Blocks:
    """The page with its queue; `launch_page` serves it.

    Args:
        work: what the buttons do.
    """
    with gr.Blocks(title="splice-ff", analytics_enabled=False, delete_cache=(SWEEP_EVERY, KEPT)) as page:
        gr.Markdown("# splice-ff\nThe layout of one image with the look of another.")
        with gr.Row():
            structure = _upload("Structure: its layout stays", "structure")
            appearance = _upload("Appearance: its look is taken", "appearance")
            output = gr.Image(label="Result", format="png", interactive=False, buttons=["fullscreen"], elem_id="output")
        message = gr.Markdown(elem_id="message")
        with gr.Row():
            paint = gr.Button("Paint", variant="primary", elem_id="paint")
            refine = gr.Button("Refine", elem_id="refine")
            stop = gr.Button("Stop", variant="stop", elem_id="stop")
            download = gr.DownloadButton("Download with settings", elem_id="download")
        with gr.Row():
            strength = gr.Slider(0, 1, 1, step=0.05, label="Strength", elem_id="strength")
            size = gr.Dropdown(
                SIZES,
                value=_nearest(work.model.config.size),
                label="Working size in pixels",
                info=f"Refine works at {work.refining_size} or more.",
            )
            steps = gr.Slider(10, 300, 100, step=10, label="Steps of Refine", elem_id="steps")
            seed = gr.Number(0, label="Seed of Refine", precision=0, minimum=0, maximum=2**31 - 1)
        with gr.Accordion("Mix in a second look", open=False), gr.Row():
            second = _upload("Second appearance", "second")
            mix = gr.Slider(0, 1, 0.5, step=0.05, label="Share of the second look", elem_id="mix")
        with gr.Tab("Examples"):
            gr.Examples(_examples(), [structure, appearance], label="Pairs to begin with")
        with gr.Tab("Why does it look like this?"):
            gr.Markdown("What the model finds in both images: matched parts, and its features as colors.")
            explain = gr.Button("Explain", elem_id="explain")
            verdict = gr.Markdown(elem_id="verdict")
            matches = gr.Image(label="Matched parts", interactive=False, elem_id="matches")
            components = gr.Image(label="Features, main components as colors", interactive=False, elem_id="components")
        with gr.Tab("Per-pair"):
            gr.Markdown("The published method: a network trained on this pair alone. Minutes, not a moment.")
            pair_steps = gr.Slider(50, 600, 150, step=50, label="Steps", elem_id="pair-steps")
            optimize = gr.Button("Optimize", elem_id="optimize")

        shown = [output, download, message]
        looks = [structure, appearance, second, mix, strength, size]
        painted = _once(work.paint)
        paint.click(painted, looks, shown)
        for changed in (strength.release, mix.release, size.change):
            changed(_if_ready(painted), looks, shown, show_progress="hidden")
        runs = [
            refine.click(_steps(work.refine), [structure, appearance, steps, size, seed], shown),
            optimize.click(_steps(work.optimize), [structure, appearance, pair_steps, size, seed], shown),
        ]
        stop.click(None, cancels=runs)
        explain.click(_readable(work.explain), [structure, appearance], [matches, components, verdict])
    return page.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)


def _upload(label: str, elem_id: str) -> gr.Image:
    """An image input that hands over the file as it was uploaded: the library's reader opens it, nothing before."""
    image = gr.Image(label=label, elem_id=elem_id, sources=["upload", "clipboard"], buttons=[])
    image.preprocess = lambda payload: payload and payload.path
    return image


def _once(work: Callable[..., Shown]) -> Callable[..., list[Any]]:
    def answer(*values: Any) -> list[Any]:
        return _outputs(work(*values))

    return _readable(answer)


def _if_ready(painted: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """A moved slider repaints only where there is something to paint."""

    def answer(structure: str | None, appearance: str | None, *values: Any) -> list[Any]:
        return painted(structure, appearance, *values) if structure and appearance else [gr.skip()] * 3

    return answer


def _steps(work: Callable[..., Iterator[Shown]]) -> Callable[..., Iterator[list[Any]]]:
    def answer(structure: str | None, appearance: str | None, steps: float, size: int, seed: float) -> Any:
        try:
            for shown in work(structure, appearance, int(steps), size, int(seed or 0)):
                yield _outputs(shown)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return answer


def _readable(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a visitor can mend is shown as one line."""

    @wraps(function)
    def answer(*values: Any) -> Any:
        try:
            return function(*values)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return answer


def _outputs(shown: Shown) -> list[Any]:
    return [shown.file, shown.file, shown.message]


def _examples() -> list[list[str]]:
    """The pairs that come with the project; a wheel brings the images of some only."""
    pairs = [(pair.structure, pair.appearance) for pair in read_pairs(bundled_dir("examples") / "pairs.csv")]
    return [[str(image) for image in pair] for pair in pairs if all(image.is_file() for image in pair)]


def _nearest(size: int) -> int:
    return min(SIZES, key=lambda known: abs(known - size))


def launch_page(work: Work, host: str = "127.0.0.1", port: int = 7860, in_browser: bool = False) -> tuple[Any, str]:
    """Serve the page from a thread.

    Args:
        work: what the buttons do.
        host: address to listen on.
        port: 0 takes a free one.
        in_browser: open it there.

    Returns:
        The page, with `block_thread()` and `close()`, and its address.

    Raises:
        InputError: the port is taken.
    """
    page = make_page(work)
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port or _free_port(host),
            inbrowser=in_browser,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_UPLOAD,
            allowed_paths=[str(work.folder), str(bundled_dir("examples"))],
            theme=gr.themes.Default(**THEME),
            footer_links=[],
            show_error=True,
            enable_monitoring=False,
        )
    except OSError as error:
        raise InputError(f"port {port} of {host} cannot be used ({error}); choose another with --port") from error
    Thread(target=_sweep, args=(work,), daemon=True).start()
    return page, url


def _sweep(work: Work) -> None:
    """Delete old results until their folder is gone; gradio deletes its own copies, and the uploads."""
    while work.folder.exists():
        work.delete_old_images()
        sleep(SWEEP_EVERY)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
