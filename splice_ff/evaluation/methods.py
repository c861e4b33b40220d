"""The methods that are compared: trivial ones, one-shot, per-pair, and folders of images that others made."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from splice_ff.errors import InputError
from splice_ff.images import SUFFIXES, load_image
from splice_ff.one_shot.checks import check_size
from splice_ff.one_shot.model_files import find_model, read_config
from splice_ff.one_shot.pipeline import SpliceFF
from splice_ff.one_shot.refine import LEARNED, refine, refining_size
from splice_ff.per_pair.optimize import apply_generator, optimize_pair
from splice_ff.per_pair.recipes import PRESETS, REFINE
from splice_ff.utils.color import match_colors
from splice_ff.vit.features import ViTFeatures

KNOWN = "copy, color, one-shot[@SIZE][+refine:STEPS], optimize-fast[:STEPS], optimize-paper[:STEPS]"

METHOD = re.compile(
    r"copy|color|one-shot(?:@(?P<size>[1-9]\d*))?(?:\+refine:(?P<refining>[1-9]\d*))?"
    r"|optimize-(?P<preset>fast|paper)(?::(?P<steps>[1-9]\d*))?"
)


class NoImageError(InputError):
    """A folder of results has no image of this pair."""


@dataclass(frozen=True)
class Painted:
    """What a method makes of a pair."""

    image: Tensor
    """(1, 3, H, W) in [0, 1]."""
    identity: Callable[[], Tensor] | None = None
    """Makes its image of the appearance image with its own look, (1, 3, H', W'), where the method can."""


class Method(ABC):
    """A way to paint a pair. `name` is shown; `settings` tell it from another of the same name."""

    name: str
    backbone: ViTFeatures | None = None
    """The frozen ViT that its images depend on, if any."""

    @property
    def settings(self) -> dict[str, str]:
        """What its images depend on besides the pair."""
        return {}

    @abstractmethod
    def __call__(self, pair: str, structure: Tensor, appearance: Tensor) -> Painted:
        """Paint structure and appearance images (1, 3, H, W) in [0, 1]; `pair` is the pair's name."""


class Copy(Method):
    """The structure image as it is: what doing nothing scores."""

    name = "copy"

    def __call__(self, pair: str, structure: Tensor, appearance: Tensor) -> Painted:
        """The structure image."""
        return Painted(structure, lambda: appearance)


class Color(Method):
    """Reinhard's transfer of color statistics: what colors alone score."""

    name = "color"

    def __call__(self, pair: str, structure: Tensor, appearance: Tensor) -> Painted:
        """The structure image with the appearance image's color statistics."""
        return Painted(match_colors(structure, appearance), lambda: match_colors(appearance, appearance))


class OneShot(Method):
    """The amortized generator in one pass, or with per-pair steps from there on.

    Args:
        model: what `SpliceFF.from_pretrained` takes.
        steps: of refinement; 0 for none.
        backbone: a loaded one, used if it is the model's; else the model's is loaded by its name.
        device: where to compute.
        size: shorter side, in pixels, at which the generator works; if None the model's default, or `refining_size`.

    Raises:
        InputError: a size at which the generator cannot work, or cannot be refined.
        splice_ff.utils.files.CheckpointError: the model cannot be used.
    """

    def __init__(
        self,
        model: str,
        steps: int,
        backbone: ViTFeatures,
        device: torch.device | str = "cpu",
        size: int | None = None,
    ) -> None:
        self.name = "one-shot" + (f"@{size}" if size else "") + (f"+refine:{steps}" if steps else "")
        self.source, self.steps, self.size = model, steps, size
        if size is not None:
            check_size(size)
        if steps:
            replace(REFINE, steps=steps, size=size)  # a recipe refuses what cannot work
        is_its_own = read_config(find_model(model)).backbone_fingerprint == backbone.fingerprint
        self.model = SpliceFF.from_pretrained(model, backbone=backbone if is_its_own else None).to(device)
        self.backbone = self.model.backbone

    @property
    def settings(self) -> dict[str, str]:
        """The model by name and by what it holds, as a folder that is changed keeps its name; and how it is refined."""
        how = {"refining": f"{REFINE}, of {LEARNED}, at {self._refining_size} px"} if self.steps else {}
        return {"model": self.source, **self.model.identity, **how}

    def __call__(self, pair: str, structure: Tensor, appearance: Tensor) -> Painted:
        """The model's image, and of the appearance image by itself."""
        if not self.steps:
            return Painted(self._paint(structure, appearance), lambda: self._paint(appearance, appearance))
        result = refine(self.model, structure, appearance, steps=self.steps, size=self._refining_size)
        return Painted(result.image, lambda: apply_generator(result.generator, appearance, self._refining_size))

    @property
    def _refining_size(self) -> int:
        return self.size or refining_size(self.model)

    @torch.no_grad()
    def _paint(self, structure: Tensor, appearance: Tensor) -> Tensor:
        return self.model.paint(structure, self.model.embed(appearance), size=self.size)


class Optimize(Method):
    """A generator trained on the pair, by a preset.

    Args:
        preset: "fast" or "paper".
        steps: instead of the preset's.
        backbone: the frozen ViT.
        device: where to compute.
    """

    backbone: ViTFeatures

    def __init__(
        self, preset: str, steps: int | None, backbone: ViTFeatures, device: torch.device | str = "cpu"
    ) -> None:
        self.name = f"optimize-{preset}" + (f":{steps}" if steps else "")
        self.preset, self.steps, self.backbone, self.device = preset, steps, backbone, device

    @property
    def settings(self) -> dict[str, str]:
        """The backbone."""
        return {"backbone": self.backbone.name, "backbone_sha256": self.backbone.fingerprint}

    def __call__(self, pair: str, structure: Tensor, appearance: Tensor) -> Painted:
        """The best image of the run; its generator paints the appearance image too."""
        result = optimize_pair(
            structure,
            appearance,
            preset=self.preset,
            steps=self.steps,
            backbone=self.backbone,
            device=self.device,
            output_type="pt",
        )
        size = PRESETS[self.preset].size
        return Painted(result.image, lambda: apply_generator(result.generator, appearance, size))


class Folder(Method):
    """Images that lie in a folder: `FOLDER/PAIR.*`, or `FOLDER/PAIR/NAME.*` as in a folder of pairs.

    Raises:
        InputError: there is no such folder.
    """

    def __init__(self, name: str, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder of results")
        self.name, self.folder = name, folder

    @property
    def settings(self) -> dict[str, str]:
        """The folder."""
        return {"folder": str(self.folder.resolve())}

    def find(self, pair: str) -> Path | None:
        """The image of a pair, if there is one."""
        for stem in (self.folder / pair, self.folder / pair / self.name):
            for suffix in SUFFIXES:
                path = stem.with_name(stem.name + suffix)  # not with_suffix: names may hold dots
                if path.is_file():
                    return path
        return None

    def __call__(self, pair: str, structure: Tensor, appearance: Tensor) -> Painted:
        """The image of that pair.

        Raises:
            NoImageError: there is none.
        """
        path = self.find(pair)
        if path is None:
            raise NoImageError(f"{self.name} has no image of {pair}")
        return Painted(load_image(path).rgb.to(structure.device))


def parse_method(text: str, backbone: ViTFeatures, model: str, device: torch.device | str = "cpu") -> Method:
    """A method by its name, as `KNOWN` lists them.

    Args:
        text: the name.
        backbone: with which the per-pair methods optimize.
        model: of the one-shot methods.
        device: where they compute.

    Raises:
        InputError: an unknown name, or a size that cannot be.
        splice_ff.utils.files.CheckpointError: the model cannot be used.
    """
    match = METHOD.fullmatch(text)
    if not match:
        raise InputError(f"unknown method '{text}'. Known: {KNOWN}")
    if text in ("copy", "color"):
        return Copy() if text == "copy" else Color()
    size, refining, steps = (int(match[name]) if match[name] else None for name in ("size", "refining", "steps"))
    if match["preset"]:
        return Optimize(match["preset"], steps, backbone, device)
    return OneShot(model, refining or 0, backbone, device, size)
