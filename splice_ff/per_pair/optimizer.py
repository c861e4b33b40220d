"""The optimization of one pair, step by step (paper, section 3.3)."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splice_ff.errors import DivergedError, ImageError, InputError
from splice_ff.losses import Losses, SpliceLoss, Target
from splice_ff.networks.skip_unet import SkipUNet
from splice_ff.per_pair.augment import appearance_views, structure_views
from splice_ff.per_pair.recipes import MIN_SIZE, Recipe
from splice_ff.utils.files import atomic_write
from splice_ff.utils.machine import fastest_dtype
from splice_ff.utils.resize import resize_shorter_side, to_full_size
from splice_ff.vit.features import ViTFeatures

EVALUATE_EVERY = 25
"""Steps between looks at the whole image without augmentation, which choose the best so far."""
MIN_GAIN = 0.01
"""Share by which the best total must fall for an evaluation to count as progress."""


@dataclass(frozen=True)
class PairResult:
    """The best image of a run."""

    image: Tensor
    """(1, 3, H, W) in [0, 1], of the structure image's size."""
    losses: dict[str, float]
    """Total, structure, appearance and identity of the whole image, without augmentation."""
    step: int
    """The step at which it was made."""
    generator: nn.Module
    """What made it, on the CPU: a `SkipUNet`, or a copy of the generator that the run was given."""
    settings: dict[str, str]
    """What made it: recipe, backbone, seed."""


@dataclass(frozen=True)
class _View:
    images: Tensor
    target: Target


class PairOptimizer:
    """Optimizes a generator on one pair, step by step.

    Args:
        structure, appearance: (1, 3, H, W) in [0, 1].
        backbone: the frozen ViT.
        recipe: see `splice_ff.per_pair.recipes`.
        seed: of the generator's initial weights and of the augmentations.
        compile: torch.compile the generator and the ViT.
        device: where to compute.
        generator: images (B, 3, H, W) in [0, 1] to images of their shape and range, to be optimized in place of a new
            SkipUNet. Its first image counts: the result is never worse, by the total loss.

    Raises:
        ImageError: images too small for the generator.
    """

    def __init__(
        self,
        structure: Tensor,
        appearance: Tensor,
        backbone: ViTFeatures,
        recipe: Recipe,
        *,
        seed: int = 0,
        compile: bool = False,
        device: torch.device | str = "cpu",
        generator: nn.Module | None = None,
    ) -> None:
        self.recipe, self.seed, self.device = recipe, seed, torch.device(device)
        self.full_structure = structure
        self.structure = working_size(structure.to(self.device), recipe.size)
        self.appearance = working_size(appearance.to(self.device), recipe.size)
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
        self.dtype = dtypes.get(recipe.precision) or fastest_dtype(self.device)
        self.backbone_name, self.fingerprint = backbone.name, backbone.fingerprint
        backbone = backbone.to(self.device)
        backbone = backbone.with_matmuls_in(self.dtype) if self._is_mixed else backbone
        self.loss = SpliceLoss(backbone, vit_input=recipe.vit_input)

        self.is_new = generator is None
        self.generator = (self._new_generator() if generator is None else generator).to(self.device)
        self.averaged = copy.deepcopy(self.generator).requires_grad_(False) if recipe.average else self.generator
        self.generate: Callable[[Tensor], Tensor] = self.generator
        if compile:
            self.generate = torch.compile(self.generator)
            self.loss.backbone.compile()
        self.adam = torch.optim.Adam(self.generator.parameters(), betas=(recipe.beta1, 0.99), fused=True)
        self.random = torch.Generator().manual_seed(seed)
        self.step_count = 0
        self.evaluations_without_gain = 0
        self.last_identity = torch.zeros((), device=self.device)
        self._best: dict[str, Any] | None = None  # image, losses, step, weights

        self.whole_structure, self.whole_appearance = self._encode(self.structure, self.appearance)
        self.appearance_bank = [self._encode(self._draw_appearance())[0] for _ in range(recipe.views)]

    @property
    def _is_mixed(self) -> bool:
        return self.dtype != torch.float32

    @property
    def done(self) -> bool:
        """All steps are taken, or the losses have stalled."""
        return self.step_count >= self.recipe.steps or 0 < self.recipe.patience <= self.evaluations_without_gain

    @property
    def best_losses(self) -> dict[str, float]:
        """Losses of the best whole image so far; empty before the first evaluation."""
        return self._best["losses"] if self._best else {}

    def step(self) -> Losses:
        """Take one step.

        Returns:
            The losses of the views that it used, before the step; identity as of the last time it was taken.

        Raises:
            DivergedError: a loss is NaN or infinite; the weights are those of before the step.
        """
        recipe = self.recipe
        if self.step_count == 0:
            if self.is_new:
                self._learn_to_copy()
            else:
                self._evaluate()
        falling = 0.5 * (1 + math.cos(math.pi * self.step_count / recipe.steps))
        self.adam.param_groups[0]["lr"] = recipe.learning_rate * (falling if recipe.cosine else 1.0)
        structure, appearance = self._draw()
        with self._precision():
            has_identity = self.step_count % recipe.identity_every == 0
            identity = self.generate(appearance.images) if has_identity else None
            losses = self.loss(self.generate(structure.images), structure.target, appearance.target, identity)
            total = losses.total + (recipe.identity_every - 1) * self.loss.weights.identity * losses.identity
            if not recipe.views and self.step_count % recipe.whole_every == 0:
                whole = self.whole_structure
                total = total + self.loss(self.generate(whole.images), whole.target, appearance.target).total
        if not torch.isfinite(total):
            raise DivergedError(f"the losses are no longer finite at step {self.step_count + 1}")
        total.backward()
        self.adam.step()
        self.adam.zero_grad()
        self.step_count += 1
        self._average()
        if self.step_count % EVALUATE_EVERY == 0 or self.step_count == recipe.steps:
            self._evaluate()
        if has_identity:
            self.last_identity = losses.identity.detach()
        return self.loss.weigh(losses.structure.detach(), losses.appearance.detach(), self.last_identity)

    def result(self) -> PairResult:
        """The best image so far, by the total loss of the whole image.

        Raises:
            DivergedError: no losses were ever finite.
        """
        if self._best is None:
            self._evaluate()
        if (best := self._best) is None:
            raise DivergedError("the losses were never finite: there is no image")
        generator = copy.deepcopy(self.averaged).cpu()
        generator.load_state_dict(best["weights"])
        image = self._at_full_size(best["picture"].to(self.device))
        return PairResult(image, best["losses"], best["step"], generator, self.settings())

    @torch.no_grad()
    def preview(self) -> Tensor:
        """The present image, (1, 3, H, W) in [0, 1], of the structure image's size."""
        return self._at_full_size(self.averaged(self.structure))

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on as if the run had not stopped."""
        return {
            "run": self._run_identity(),
            "generator": self.generator.state_dict(),
            "averaged": self.averaged.state_dict(),
            "adam": self.adam.state_dict(),
            "random": self.random.get_state(),
            "step_count": self.step_count,
            "last_identity": self.last_identity,
            "evaluations_without_gain": self.evaluations_without_gain,
            "best": self._best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            InputError: the state belongs to another run: other images, recipe, seed or backbone.
        """
        ours, theirs = self._run_identity(), state.get("run", {})
        if ours != theirs:
            changed = ", ".join(k for k in ours if ours[k] != theirs.get(k))
            raise InputError(f"the saved state belongs to another run (different: {changed})")
        self.generator.load_state_dict(state["generator"])
        self.averaged.load_state_dict(state["averaged"])
        self.adam.load_state_dict(state["adam"])
        self.random.set_state(state["random"].cpu())
        self.step_count = state["step_count"]
        self.last_identity = state["last_identity"].to(self.device)
        self.evaluations_without_gain = state["evaluations_without_gain"]
        self._best = state["best"]

    def _run_identity(self) -> dict[str, str]:
        pixels = hashlib.sha256()
        for image in (self.structure, self.appearance):
            pixels.update(image.cpu().numpy().tobytes())
        return self.settings() | {"images": pixels.hexdigest()}

    def settings(self) -> dict[str, str]:
        """What makes the image, for its file."""
        recipe = {k: str(v) for k, v in asdict(self.recipe).items() if k not in ("backbone", "precision")}
        return recipe | {
            "backbone": self.backbone_name,
            "backbone_sha256": self.fingerprint,
            "precision": str(self.dtype).removeprefix("torch."),
            "seed": str(self.seed),
        }

    def _precision(self) -> contextlib.AbstractContextManager[None]:
        return torch.autocast(self.device.type, self.dtype, enabled=self._is_mixed)

    def _encode(self, *batches: Tensor) -> list[_View]:
        with self._precision():
            return [_View(images, target) for images, target in zip(batches, self.loss.targets(*batches), strict=True)]

    def _draw_appearance(self) -> Tensor:
        return appearance_views(self.appearance, self.random)

    def _draw(self) -> list[_View]:
        """What this step sees of the structure and of the appearance image."""
        if not self.recipe.views:
            return self._encode(structure_views(self.structure, self.random), self._draw_appearance())
        i = int(torch.randint(self.recipe.views, (), generator=self.random))
        return [self.whole_structure, self.appearance_bank[i]]

    def _new_generator(self) -> nn.Module:
        with torch.random.fork_rng():  # a library must not reseed its caller
            torch.manual_seed(self.seed)
            return SkipUNet(self.recipe.generator)

    def _learn_to_copy(self) -> None:
        """Teach the generator to return its input: cheap without a ViT, and most of the way to two of the losses."""
        adam = torch.optim.Adam(self.generator.parameters(), 3e-3, fused=True)
        for i in range(self.recipe.copy_steps):
            image = self.structure if i % 2 == 0 else self.appearance
            with self._precision():
                loss = F.mse_loss(self.generate(image), image)
            loss.backward()
            adam.step()
            adam.zero_grad()

    @torch.no_grad()
    def _average(self) -> None:
        if not self.recipe.average:
            return
        # Over fewer steps at first: the initial weights should not linger.
        decay = min(self.recipe.average, self.step_count / (self.step_count + 10))
        for mean, now in zip(self.averaged.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Look at the whole image; keep it if it is the best."""
        picture, identity = self.averaged(self.structure), self.averaged(self.appearance)
        with self._precision():
            losses = self.loss(picture, self.whole_structure.target, self.whole_appearance.target, identity).floats()
        best_total = self.best_losses.get("total", math.inf)
        if losses["total"] < best_total:
            weights = {k: t.detach().cpu().clone() for k, t in self.averaged.state_dict().items()}
            self._best = {"picture": picture.cpu(), "losses": losses, "step": self.step_count, "weights": weights}
        has_gained = losses["total"] < (1 - MIN_GAIN) * best_total
        self.evaluations_without_gain = 0 if has_gained else self.evaluations_without_gain + 1

    def _at_full_size(self, picture: Tensor) -> Tensor:
        return to_full_size(picture, self.structure, self.full_structure.to(self.device)).cpu()


class Resumable(Protocol):
    """A run that can go on from its state."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from it, or raise InputError if it is another run's."""


def save_state(run: Resumable, path: Path) -> None:
    """Write the run's state, whole or not at all."""
    atomic_write(path, lambda file: torch.save(run.state_dict(), file))


def load_state(run: Resumable, path: Path) -> None:
    """Go on from a state that `save_state` wrote.

    Raises:
        InputError: the file is damaged, or belongs to another run.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its unpickler trips over
        raise InputError(f"{path}: not a saved state of a run") from error
    try:
        run.load_state_dict(state)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def working_size(image: Tensor, size: int | None) -> Tensor:
    """(1, 3, H, W) with a shorter side of `size`, or its own if None; ImageError if that is too small."""
    if size is not None:
        image = resize_shorter_side(image, size)
    if min(image.shape[-2:]) < MIN_SIZE:
        raise ImageError(
            f"an image of {image.shape[-2]}x{image.shape[-1]} pixels is too small to be optimized at its own size "
            f"(at least {MIN_SIZE}): give a size"
        )
    return image
