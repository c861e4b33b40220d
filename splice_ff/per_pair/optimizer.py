"""The optimization of one pair, step by step (paper, section 3.3)."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splice_ff.errors import DivergedError
from splice_ff.images import check_images
from splice_ff.losses.splice import Losses, Target, compare, encode, scaled_weights
from splice_ff.losses.style import style_layers
from splice_ff.losses.terms import Painted, check_terms, weighted_terms
from splice_ff.networks.skip_unet import SkipUNet
from splice_ff.per_pair.augment import appearance_views, random_resolution, same_similarity, structure_views
from splice_ff.per_pair.recipes import Recipe, check_image_size
from splice_ff.utils.averaging import move_average, ramped_decay
from splice_ff.utils.machine import fastest_dtype
from splice_ff.utils.resize import resize_shorter_side, to_full_size
from splice_ff.utils.schedules import cosine
from splice_ff.utils.seeding import check_seed
from splice_ff.utils.steps import SteppedRun
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.inputs import ViTInput
from splice_ff.vit.spec import LossWeights

EVALUATE_EVERY = 25
"""Steps between looks at the whole image without augmentation, which choose the best so far."""
MIN_GAIN = 0.01
"""Share by which the best total must fall for an evaluation to count as progress."""


ImageT = TypeVar("ImageT")


@dataclass(frozen=True)
class PairResult(Generic[ImageT]):
    """The best image of a run."""

    image: ImageT
    """Of the structure image's size: a tensor (1, 3, H, W) in [0, 1], or what `optimize_pair` was asked for."""
    losses: dict[str, float]
    """Total, structure, appearance and identity of the whole image, without augmentation; identity 0 where the recipe
    never takes it."""
    step: int
    """The step at which it was made."""
    generator: nn.Module
    """What made it, on the CPU: a `SkipUNet`, or a copy of the generator that the run was given."""
    settings: dict[str, str]
    """What made it: recipe, backbone, seed."""


@dataclass(frozen=True)
class _View:
    images: Tensor
    """(B, 3, H, W) in [0, 1]."""
    target: Target
    """Their features."""


@dataclass(frozen=True)
class _Best:
    image: Tensor
    """At working size, on the CPU."""
    losses: dict[str, float]
    objective: float
    """Total of the losses and the recipe's other terms: what chooses."""
    step: int
    weights: dict[str, Tensor]


@runtime_checkable
class FullSizeGenerator(Protocol):
    """A generator with a way of its own to paint images that are larger than the working size."""

    def at_full_size(self, structure: Tensor, full_structure: Tensor) -> Tensor:
        """Paint structure images (B, 3, h, w) at the size of `full_structure`, (B, 3, H, W): the same, not reduced."""


class PairOptimizer(SteppedRun[Losses]):
    """Optimizes a generator on one pair, step by step.

    Args:
        structure, appearance: (1, 3, H, W) in [0, 1].
        backbone: the frozen ViT.
        recipe: see `splice_ff.per_pair.recipes`.
        seed: of the generator's initial weights and of the augmentations.
        compile: torch.compile the generator and the ViT.
        device: where to compute.
        generator: images (B, 3, H, W) in [0, 1] to images of their shape and range, to be optimized in place of a new
            SkipUNet. Its first image counts: the result is never worse, by what is minimized. A `FullSizeGenerator`
            says how it paints at the structure image's size; what others paint is enlarged along its edges.

    Raises:
        InputError: images too small for the generator or too large at the recipe's size, or a negative seed.
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
        self.recipe, self.seed, self.device = recipe, check_seed(seed), torch.device(device)
        self.steps = recipe.steps
        self.full_structure = structure
        for name, image in (("structure", structure), ("appearance", appearance)):
            check_images(image, name)
            check_image_size(image.shape[-2], image.shape[-1], recipe.size, name)
        self.structure = working_size(structure.to(self.device), recipe.size)
        self.appearance = working_size(appearance.to(self.device), recipe.size)
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
        self.dtype = dtypes.get(recipe.precision) or fastest_dtype(self.device)
        self.backbone_name, self.fingerprint = backbone.name, backbone.fingerprint
        backbone = backbone.to(self.device)
        backbone = backbone.with_matmuls_in(self.dtype) if self._is_mixed else backbone
        check_terms(recipe.terms)
        self.backbone = backbone
        self.weights = scaled_weights(backbone, LossWeights(structure=recipe.structure_weight))
        self.style_layers = style_layers(backbone.depth) if recipe.terms.get("style") else []

        self.is_new = generator is None
        self.generator = (self._new_generator() if generator is None else generator).to(self.device)
        self.averaged = copy.deepcopy(self.generator).requires_grad_(False) if recipe.ema_decay else self.generator
        self.generate: Callable[[Tensor], Tensor] = self.generator
        if compile:
            self.generate = torch.compile(self.generator)
            self.backbone.compile()
        self.adam = torch.optim.Adam(self.generator.parameters(), betas=(recipe.beta1, 0.99), fused=True)
        self.random = torch.Generator().manual_seed(self.seed)
        self.evaluations_without_gain = 0
        self.last_identity = torch.zeros((), device=self.device)
        self._best: _Best | None = None

        self.whole_structure, self.whole_appearance = self._encode(self.structure, self.appearance)
        self.appearance_bank = [self._encode(self._draw_appearance())[0] for _ in range(recipe.views)]

    # -- one step -----------------------------------------------------------------------------------------------

    def step(self) -> Losses:
        """Take one step.

        Returns:
            The losses of the views that it used, before the step; identity as of the last time it was taken.

        Raises:
            DivergedError: a loss is NaN or infinite; the weights are those of before the step.
        """
        if self.step_count == 0:
            self._begin()
        self.adam.param_groups[0]["lr"] = self._learning_rate()
        structure, appearance = self._draw_views()
        losses, objective = self._objective(structure, appearance)
        if not torch.isfinite(objective):
            raise DivergedError(f"the losses are no longer finite at step {self.step_count + 1}")
        objective.backward()
        self.adam.step()
        self.adam.zero_grad()
        self.step_count += 1
        if self.recipe.ema_decay:
            move_average(self.averaged, self.generator, ramped_decay(self.recipe.ema_decay, self.step_count))
        if self.step_count % EVALUATE_EVERY == 0 or self.step_count == self.steps:
            self._evaluate()
        return losses

    def _objective(self, structure: _View, appearance: _View) -> tuple[Losses, Tensor]:
        """The losses of this step's views, and what is minimized: their total and the recipe's terms."""
        recipe, step, weights = self.recipe, self.step_count, self.weights
        takes_identity = recipe.identity_every > 0 and step % recipe.identity_every == 0
        with self._precision():
            output = self.generate(structure.images)
            identity = [self.generate(appearance.images)] if takes_identity else []
            losses, seen = self._compare(output, structure, appearance, identity)
            if step < recipe.cls_warmup:
                objective = weights.appearance * losses.appearance
            else:  # where identity is taken at every n-th step, it weighs n times as much
                objective = losses.total + (recipe.identity_every - 1) * weights.identity * losses.identity
                objective = objective + self._terms(output, structure.images, seen, appearance.target)
            if recipe.whole_every and step % recipe.whole_every == 0:
                whole = self.whole_structure
                seen_whole = self._see(self.generate(whole.images))
                objective = objective + compare(weights, seen_whole, whole.target, appearance.target).total
        if takes_identity:
            self.last_identity = losses.identity.detach()
        shown = Losses.weighed(weights, losses.structure.detach(), losses.appearance.detach(), self.last_identity)
        return shown, objective

    def _compare(
        self, output: Tensor, structure: _View, appearance: _View, identity: list[Tensor]
    ) -> tuple[Losses, Target]:
        """The losses of an output (1, 3, H, W), under a similarity if the recipe says so; and what the ViT saw of it.

        `identity` holds the generator's image of the appearance image, or nothing.
        """
        if not self.recipe.similarity:
            seen = self._see(output, *identity)
            return compare(self.weights, seen, structure.target, appearance.target), seen[0]
        coarser = random_resolution(self.recipe.vit_input, self.random)
        output_view, structure_view = same_similarity([output, structure.images], self.random)
        with torch.no_grad():
            (target,) = self._see(structure_view, vit_input=coarser)
        seen = [*self._see(output_view, vit_input=coarser), *self._see(*identity)]
        return compare(self.weights, seen, target, appearance.target), seen[0]

    def _see(self, *batches: Tensor, vit_input: ViTInput | None = None) -> list[Target]:
        return encode(self.backbone, vit_input or self.recipe.vit_input, batches, self.style_layers)

    def _terms(self, output: Tensor, structure: Tensor, seen: Target, look: Target) -> Tensor:
        """The sum of the recipe's terms, weighted."""
        terms = weighted_terms(self.recipe.terms, Painted(output, structure, self.appearance, seen, look))
        return sum(terms.values(), output.new_zeros(()))

    def _draw_views(self) -> list[_View]:
        """What this step sees of the structure and of the appearance image."""
        if not self.recipe.views:
            structure = structure_views(self.structure, self.random, self.recipe.jitter_in_8_bits)
            return self._encode(structure, self._draw_appearance())
        i = int(torch.randint(self.recipe.views, (), generator=self.random))
        return [self.whole_structure, self.appearance_bank[i]]

    def _draw_appearance(self) -> Tensor:
        return appearance_views(self.appearance, self.random)

    def _encode(self, *batches: Tensor) -> list[_View]:
        with self._precision(), torch.no_grad():
            return [_View(images, target) for images, target in zip(batches, self._see(*batches), strict=True)]

    def _learning_rate(self) -> float:
        peak = self.recipe.learning_rate
        return cosine(peak, 0.0, self.step_count, self.steps) if self.recipe.cosine else peak

    def _precision(self) -> contextlib.AbstractContextManager[None]:
        torch.clear_autocast_cache()  # inside a caller's autocast nothing else empties it, and weights have changed
        return torch.autocast(self.device.type, self.dtype, enabled=self._is_mixed)

    @property
    def _is_mixed(self) -> bool:
        return self.dtype != torch.float32

    # -- before the first step ----------------------------------------------------------------------------------

    def _new_generator(self) -> nn.Module:
        with torch.random.fork_rng():  # a library must not reseed its caller
            torch.manual_seed(self.seed)
            return SkipUNet(self.recipe.generator)

    def _begin(self) -> None:
        if self.is_new:
            self._learn_to_copy()
        else:
            self._evaluate()

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

    # -- the best image -----------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """All steps are taken, or the losses have stalled."""
        return super().done or 0 < self.recipe.patience <= self.evaluations_without_gain

    @property
    def best_losses(self) -> dict[str, float]:
        """Losses of the best whole image so far; empty before the first evaluation."""
        return self._best.losses if self._best else {}

    @property
    def side(self) -> int:
        """Shorter side, in pixels, of the structure image at working size."""
        return min(self.structure.shape[-2:])

    def is_sound(self) -> bool:
        """Whether the losses of the whole image are finite now."""
        return math.isfinite(self._whole_image()[1]["total"])

    def result(self) -> PairResult[Tensor]:
        """The best image so far, by what is minimized, of the whole image.

        Raises:
            DivergedError: no losses were ever finite.
        """
        if self._best is None:
            self._evaluate()
        if (best := self._best) is None:
            raise DivergedError("the losses were never finite: there is no image")
        generator = copy.deepcopy(self.averaged)
        generator.load_state_dict(best.weights)
        image = self._at_full_size(generator, best.image.to(self.device))
        return PairResult(image, best.losses, best.step, generator.cpu(), self.settings())

    @torch.no_grad()
    def preview(self) -> Tensor:
        """The present image, (1, 3, H, W) in [0, 1], of the structure image's size."""
        return self._at_full_size(self.averaged)

    @torch.no_grad()
    def _whole_image(self) -> tuple[Tensor, dict[str, float], float]:
        """The present image at working size, its losses without augmentation, and the objective."""
        batches = [self.averaged(self.structure)]
        if self.recipe.identity_every:
            batches.append(self.averaged(self.appearance))
        look = self.whole_appearance.target
        with self._precision():
            seen = self._see(*batches)
            losses = compare(self.weights, seen, self.whole_structure.target, look)
            objective = losses.total + self._terms(batches[0], self.structure, seen[0], look)
        return batches[0], losses.floats(), objective.item()

    def _evaluate(self) -> None:
        """Look at the whole image; keep it if it is the best."""
        image, losses, objective = self._whole_image()
        best = self._best.objective if self._best else math.inf
        if objective < best:
            weights = {k: t.detach().cpu().clone() for k, t in self.averaged.state_dict().items()}
            self._best = _Best(image.cpu(), losses, objective, self.step_count, weights)
        has_gained = objective < (1 - MIN_GAIN) * best
        self.evaluations_without_gain = 0 if has_gained else self.evaluations_without_gain + 1

    @torch.no_grad()
    def _at_full_size(self, generator: nn.Module, image: Tensor | None = None) -> Tensor:
        """What a generator paints, at the structure image's size; `image` is the same at working size, if known."""
        full = self.full_structure.to(self.device)
        if isinstance(generator, FullSizeGenerator):
            return generator.at_full_size(self.structure, full).cpu()
        return to_full_size(generator(self.structure) if image is None else image, self.structure, full).cpu()

    # -- the state ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Weights, their average, the optimizer, the random numbers and the best image."""
        return {
            "generator": self.generator.state_dict(),
            "averaged": self.averaged.state_dict(),
            "adam": self.adam.state_dict(),
            "random": self.random.get_state(),
            "last_identity": self.last_identity,
            "steps": self.steps,
            "evaluations_without_gain": self.evaluations_without_gain,
            "best": self._best and vars(self._best),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave. A run that had stalled goes on if it is given more steps."""
        self.generator.load_state_dict(state["generator"])
        self.averaged.load_state_dict(state["averaged"])
        self.adam.load_state_dict(state["adam"])
        self.random.set_state(state["random"].cpu())
        self.last_identity = state["last_identity"].to(self.device)
        self.evaluations_without_gain = 0 if state["steps"] < self.steps else state["evaluations_without_gain"]
        self._best = _Best(**state["best"]) if state["best"] else None

    def identity(self) -> dict[str, str]:
        """Images, recipe, seed and backbone."""
        pixels = hashlib.sha256()
        for image in (self.structure, self.appearance):
            pixels.update(image.cpu().numpy().tobytes())
        settings = {k: v for k, v in self.settings().items() if k != "steps"}
        return settings | {"images": pixels.hexdigest()}

    def settings(self) -> dict[str, str]:
        """What makes the image, for its file."""
        recipe = {k: str(v) for k, v in asdict(self.recipe).items() if k not in ("backbone", "precision")}
        return recipe | {
            "backbone": self.backbone_name,
            "backbone_sha256": self.fingerprint,
            "precision": str(self.dtype).removeprefix("torch."),
            "seed": str(self.seed),
        }


def working_size(image: Tensor, size: int | None) -> Tensor:
    """(1, 3, H, W) with a shorter side of `size`, or its own if None."""
    return image if size is None else resize_shorter_side(image, size)
