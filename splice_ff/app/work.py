"""What the page does for a visitor: each call has its own images and files, which are kept for an hour at most."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import splice_ff
from splice_ff.analysis.correspondence import match, match_strength
from splice_ff.analysis.figures import figure_image, matches_figure, pca_figure
from splice_ff.analysis.pca import pca
from splice_ff.errors import DivergedError, InputError
from splice_ff.images import LoadedImage, load_image, save_image
from splice_ff.one_shot.pipeline import SpliceFF
from splice_ff.one_shot.refine import refiner, refining_size
from splice_ff.per_pair.optimizer import PairOptimizer
from splice_ff.per_pair.recipes import make_recipe

MAX_PIXELS = 16_000_000
"""Of an upload: below the library's own limit, because several visitors share the machine."""
MAX_SECONDS = 300.0
"""Longest run of refining or of per-pair steps; it ends with the best image so far."""
KEPT = 3600
"""Seconds after which uploads and results are deleted."""
SHOW_EVERY = 10
"""Steps between two images of a run."""
MADE = "made-"
"""Folders of results begin so."""


@dataclass(frozen=True)
class Shown:
    """An image for the page and what to say about it."""

    file: str
    message: str


class Work:
    """The model behind the page.

    Args:
        model: on its device, in eval mode.
        folder: for the images that the page shows; the caller removes it.
    """

    def __init__(self, model: SpliceFF, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.refining_size = refining_size(model)

    def paint(
        self,
        structure: str | None,
        appearance: str | None,
        second: str | None,
        mix: float,
        strength: float,
        size: int,
    ) -> Shown:
        """One-shot.

        Args:
            structure, appearance: files of the images.
            second: file of a second appearance image, or None.
            mix: share of the second look, in [0, 1].
            strength: see `SpliceFF.paint`, in [0, 1].
            size: working size, in pixels.

        Raises:
            InputError: an image is missing, not an image, or too large.
        """
        start = time.perf_counter()
        image, looks = _read(structure, "structure"), [_read(appearance, "appearance")]
        weights = [1.0]
        if second and mix:
            looks.append(_read(second, "second appearance"))
            weights = [1 - mix, mix]
        tokens = self.model.mix([self.model.embed(look.rgb) for look in looks], weights)
        output = self.model.paint(image.rgb, tokens, size=size, strength=strength)
        seconds = time.perf_counter() - start
        settings = {"size": str(size), "strength": f"{strength:g}", "weights": ", ".join(f"{w:g}" for w in weights)}
        message = f"Painted in {seconds:.1f} s."
        return Shown(self._save(output, image, settings), message)

    def refine(
        self, structure: str | None, appearance: str | None, steps: int, size: int, seed: int
    ) -> Iterator[Shown]:
        """Per-pair steps from the one-shot answer; the image as it improves, every `SHOW_EVERY` steps.

        They work at `refining_size` at least: at the size of one shot, refining has too few pixels.

        Raises:
            InputError: as `paint`.
        """
        image, look = _read(structure, "structure"), _read(appearance, "appearance")
        size = max(size, self.refining_size)
        run = refiner(self.model, image.rgb, look.rgb, steps=steps, size=size, seed=seed)
        yield from self._watch(run, image, {"refine": str(steps), "size": str(size), "seed": str(seed)})

    def optimize(
        self, structure: str | None, appearance: str | None, steps: int, size: int, seed: int
    ) -> Iterator[Shown]:
        """The per-pair method from nothing, with the model's own backbone.

        Raises:
            InputError: as `paint`.
        """
        image, look = _read(structure, "structure"), _read(appearance, "appearance")
        recipe = make_recipe("fast", steps=steps, size=size)
        run = PairOptimizer(image.rgb, look.rgb, self.model.backbone, recipe, seed=seed, device=self.model.device)
        yield from self._watch(
            run, image, {"preset": "fast", "steps": str(steps), "size": str(size), "seed": str(seed)}
        )

    def explain(self, structure: str | None, appearance: str | None) -> tuple[str, str, str]:
        """What the two images share: a figure of matched parts, one of their features' main components, a verdict.

        Raises:
            InputError: as `paint`.
        """
        image, look = _read(structure, "structure"), _read(appearance, "appearance")
        backbone = self.model.backbone
        strength = match_strength(backbone, image.rgb, look.rgb)
        matches = match(backbone, image.rgb, look.rgb)
        parts = matches_figure(image.rgb[0], look.rgb[0], matches, ("structure", "appearance"))
        maps = pca(backbone, [image.rgb, look.rgb], ["keys"], joint=True)
        components = pca_figure([image.rgb[0], look.rgb[0]], {backbone.name: maps})
        return self._save(figure_image(parts)), self._save(figure_image(components)), strength.text

    def delete_old_images(self) -> None:
        """Delete the images that were made more than `KEPT` seconds ago."""
        for folder in self.folder.glob(f"{MADE}*"):
            with suppress(FileNotFoundError):  # the page is being closed
                if time.time() - folder.stat().st_mtime > KEPT:
                    shutil.rmtree(folder)

    def _watch(self, run: PairOptimizer, image: LoadedImage, settings: dict[str, str]) -> Iterator[Shown]:
        start = time.monotonic()

        def pause(run: PairOptimizer, _: Any) -> None:
            if run.step_count % SHOW_EVERY == 0:
                run.stop()

        reason = ""
        while not run.done and not reason:
            try:
                run.run(pause)
            except DivergedError as error:
                reason = f" {error}; this is the best image before."
            if time.monotonic() - start > MAX_SECONDS:
                reason = f" Stopped after {MAX_SECONDS:.0f} s, as long as this page works on one image."
            yield Shown(self._save(run.preview(), image, settings), f"Step {run.step_count} of {run.steps}.")
        result = run.result()
        total = result.losses["total"]
        message = f"Best image: step {result.step} of {run.step_count}, total loss {total:.4f}.{reason}"
        yield Shown(self._save(result.image, image, settings), message)

    def _save(self, output: Any, image: LoadedImage | None = None, settings: dict[str, str] | None = None) -> str:
        """A file of its own for each image, whose name nobody can guess."""
        file = Path(tempfile.mkdtemp(prefix=MADE, dir=self.folder)) / "splice-ff.png"
        facts = {"splice_ff": splice_ff.__version__, "model_sha256": self.model.fingerprint, **(settings or {})}
        save_image(file, output, alpha=image.alpha if image else None, settings=facts)
        return str(file)


def _read(file: str | None, name: str) -> LoadedImage:
    """An upload, through the library's own reader.

    Raises:
        InputError: there is none, it cannot be read, or it has too many pixels.
    """
    if not file:
        raise InputError(f"give the {name} image first")
    try:
        image = load_image(file)
    except InputError as error:
        raise InputError(f"the {name} image: {str(error).removeprefix(f'{file}: ')}") from error
    height, width = image.size
    if height * width > MAX_PIXELS:
        raise InputError(f"the {name} image: {width}x{height} is more than {MAX_PIXELS // 10**6} megapixels")
    return image
