"""The page's layout. Nothing in it needs the network: system fonts, no analytics."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from time import sleep
from typing import Any

import gradio as gr

from splice_ff.app.upload import Upload
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
THEME = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"], "primary_hue": "blue"}
CSS = """
:root, .dark { --body-text-color-subdued: var(--neutral-600); --block-info-text-color: var(--neutral-600);
  --block-label-text-color: var(--neutral-700); --block-title-text-color: var(--neutral-700); }
.dark { --body-text-color-subdued: var(--neutral-300); --block-info-text-color: var(--neutral-300);
  --block-label-text-color: var(--neutral-200); --block-title-text-color: var(--neutral-200); }
.or, .min_value, .max_value { color: var(--body-text-color-subdued) !important; }
button.primary { background: var(--primary-700) !important; color: white !important; }
button[role=tab].selected { color: var(--primary-700) !important; }
.dark button[role=tab].selected { color: var(--primary-300) !important; }
"""
"""Contrasts of at least 4.5 to 1, which gradio's own colors lack."""
HEAD = """<script>
new MutationObserver(() => document.querySelectorAll("div[aria-label]:not([role])").forEach(
  empty => empty.setAttribute("role", "img"))).observe(document, {childList: true, subtree: true});
</script>"""
"""Gradio names its empty images without a role, which screen readers may pass over."""


def make_page(work: Work) -> gr.Blocks:
    """The page with its queue; `launch_page` serves it.

    Args:
        work: what the buttons do.
    """
    with gr.Blocks(title="splice-ff", analytics_enabled=False, delete_cache=(SWEEP_EVERY, KEPT)) as page:
        gr.Markdown("# splice-ff\nThe layout of one image with the look of another.")
        with gr.Row():
            with gr.Column():
                with gr.Row():
                    structure = _upload("Structure: its layout stays", "structure")
                    appearance = _upload("Appearance: its look is taken", "appearance")
                with gr.Row():
                    paint = gr.Button("Paint", variant="primary", elem_id="paint", min_width=90)
                    refine = gr.Button("Refine", elem_id="refine", min_width=90)
                    stop = gr.Button("Stop", interactive=False, elem_id="stop", min_width=90)
            with gr.Column():
                output = _shown_image("Result", "output")
                message = gr.Markdown(elem_id="message")
                download = gr.DownloadButton("Download with settings", interactive=False, elem_id="download")
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
            gr.Examples(_examples(), [structure, appearance], label="Pairs to begin with", api_visibility="private")
        with gr.Tab("Why does it look like this?"):
            gr.Markdown("What the model finds in both images: matched parts, and its features as colors.")
            explain = gr.Button("Explain", elem_id="explain")
            verdict = gr.Markdown(elem_id="verdict")
            matches = _shown_image("Matched parts", "matches")
            components = _shown_image("Features, main components as colors", "components")
        with gr.Tab("Per-pair"):
            gr.Markdown("The published method: a network trained on this pair alone. Minutes, not a moment.")
            pair_steps = gr.Slider(50, 600, 150, step=50, label="Steps", elem_id="pair-steps")
            optimize = gr.Button("Optimize", elem_id="optimize")

        shown, hidden = [output, download, message], {"api_visibility": "private"}
        call = _Endpoints(work)
        looks = [structure, appearance, second, mix, strength, size]
        paint.click(call.transfer, looks, shown, api_name="transfer", scroll_to_output=True)
        for changed in (strength.release, mix.release, size.change):
            changed(call.transfer_if_ready, looks, shown, show_progress="hidden", **hidden)
        pair = [structure, appearance]
        refining = refine.click(
            call.refine, [*pair, steps, size, seed], shown, api_name="refine", scroll_to_output=True
        )  # fmt: skip
        optimizing = optimize.click(
            call.optimize, [*pair, pair_steps, size, seed], shown, api_name="optimize", scroll_to_output=True
        )  # fmt: skip
        runs = [refining, optimizing]
        for button, run in zip((refine, optimize), runs, strict=True):
            button.click(lambda: gr.Button(interactive=True), None, stop, queue=False, **hidden)
            run.then(lambda: gr.Button(interactive=False), None, stop, queue=False, **hidden)
        stop.click(
            lambda: (gr.Button(interactive=False), "Stopped. The image is the last one shown."), None, [stop, message],
            cancels=runs, queue=False, **hidden,
        )  # fmt: skip
        explain.click(call.explain, pair, [matches, components, verdict], api_name="explain")
    for function in page.fns.values():
        if function.api_visibility == "private":
            function.api_name = None  # a name could be called, private or not
    return page.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)


def _upload(label: str, elem_id: str) -> Upload:
    return Upload(
        label=label, elem_id=elem_id, sources=["upload", "clipboard"], buttons=[], min_width=120, alt_text=label
    )  # fmt: skip


def _shown_image(label: str, elem_id: str) -> gr.Image:
    return gr.Image(
        label=label, format="png", interactive=False, buttons=["fullscreen"], elem_id=elem_id, alt_text=label
    )  # fmt: skip


class _Endpoints:
    """What the page's buttons and its API call; names and defaults are those of a caller's."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def transfer(
        self,
        structure: str,
        appearance: str,
        second: str | None = None,
        share: float = 0.5,
        strength: float = 1.0,
        size: int = SIZES[1],
    ) -> list[Any]:
        """Paint the structure image with the look of the appearance image; `share` is that of a second look."""
        with _readable():
            return _outputs(self.work.paint(structure, appearance, second, share, strength, size))

    def transfer_if_ready(self, structure: str | None, appearance: str | None, *values: Any) -> list[Any]:
        """A moved slider repaints only where there is something to paint."""
        return self.transfer(structure, appearance, *values) if structure and appearance else [gr.skip()] * 3

    def refine(
        self, structure: str, appearance: str, steps: int = 100, size: int = SIZES[1], seed: int = 0
    ) -> Iterator[list[Any]]:
        """Take per-pair steps from the one-shot image on; the image as it improves."""
        with _readable():
            yield from map(_outputs, self.work.refine(structure, appearance, int(steps), size, int(seed or 0)))

    def optimize(
        self, structure: str, appearance: str, steps: int = 150, size: int = SIZES[1], seed: int = 0
    ) -> Iterator[list[Any]]:
        """Train a network on this pair alone; the image as it improves."""
        with _readable():
            yield from map(_outputs, self.work.optimize(structure, appearance, int(steps), size, int(seed or 0)))

    def explain(self, structure: str, appearance: str) -> tuple[str, str, str]:
        """Matched parts, features as colors, and a sentence on how much the images share."""
        with _readable():
            return self.work.explain(structure, appearance)


@contextmanager
def _readable() -> Iterator[None]:
    """What a visitor can mend is shown as one line."""
    try:
        yield
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _outputs(shown: Shown) -> list[Any]:
    return [shown.file, gr.DownloadButton(value=shown.file, interactive=True), shown.message]


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
            css=CSS,
            head=HEAD,
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
