"""Feature inversion: which images have these features? (paper, section 3.2 and figures 3 to 5)

From noise, an image is optimized until its features in the frozen ViT equal those of a given image. What comes
back is what the feature holds; what differs from run to run is what it leaves open.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from splice_ff.analysis.patches import prepare
from splice_ff.analysis.recipes import InversionRecipe
from splice_ff.errors import DivergedError, InputError
from splice_ff.networks.skip_unet import MIN_SIDE, SkipUNet
from splice_ff.utils.machine import plain_torch
from splice_ff.utils.schedules import cosine
from splice_ff.utils.steps import SteppedRun
from splice_ff.vit.features import ViTFeatures, self_similarity

NOISE_CHANNELS = 32
"""Of the generator's input, as published."""
NOISE_SCHEDULE = ((0.5, 10.0), (0.75, 2.0), (1.0, 0.5))
"""Up to which share of the steps noise of which standard deviation is added to the generator's input."""
PIXEL_START = 0.1
"""Standard deviation of the noise, around mid-gray, from which pixels are optimized (before the sigmoid)."""


def noise_std(step: int, steps: int) -> float:
    """Standard deviation of the noise added at a step (counted from 0) when `cls` is inverted."""
    return next(std for share, std in NOISE_SCHEDULE if step < share * steps)


@dataclass(frozen=True)
class Inversion:
    """One image of a run."""

    layer: int
    seed: int
    image: Tensor
    """(3, H, W) in [0, 1]."""
    start: float
    """Mean squared difference of its feature from the target before the first step."""
    distance: float
    """The same for this image."""


@plain_torch()
def invert(
    backbone: ViTFeatures,
    image: Tensor,
    recipe: InversionRecipe | None = None,
    *,
    layers: Sequence[int] = (-1,),
    seeds: Sequence[int] = (0,),
    on_step: Callable[[FeatureInversion, Tensor], object] | None = None,
) -> list[Inversion]:
    """Invert a feature of an image from start to end; for the arguments and errors see `FeatureInversion`.

    Args:
        on_step: called after every step with the run and its (runs,) distances.

    Returns:
        Layer by layer, seed by seed.
    """
    run = FeatureInversion(backbone, image, recipe, layers=layers, seeds=seeds)
    run.run(on_step)
    return run.result()


class FeatureInversion(SteppedRun[Tensor]):
    """Inverts a feature of one image at several layers, several times each, together.

    The target is encoded once. Every step is one ViT pass over all images, which stops at the deepest layer asked
    for. Runs do not influence each other: a (layer, seed) gives the same image alone, up to rounding.

    Args:
        backbone: the frozen ViT; its device is where all is computed.
        image: (1, 3, H, W) in [0, 1].
        recipe: what to invert, and how.
        layers: from 0, or negative from the end.
        seeds: of the repeated runs.

    Raises:
        IndexError: a layer that the ViT does not have.
        InputError: `cls` from a ViT without a [CLS] token, or an image that is too small at the size asked for.
    """

    def __init__(
        self,
        backbone: ViTFeatures,
        image: Tensor,
        recipe: InversionRecipe | None = None,
        *,
        layers: Sequence[int] = (-1,),
        seeds: Sequence[int] = (0,),
    ) -> None:
        self.backbone, self.recipe, self.device = backbone, recipe or InversionRecipe(), backbone.mean.device
        if self.recipe.feature == "cls" and backbone.vit.cls_token is None:
            raise InputError(f"{backbone.name} has no [CLS] token to invert")
        self.image = prepare(backbone, image, "image", self.recipe.size)
        if min(self.image.shape[-2:]) < MIN_SIDE:
            raise InputError(
                f"at {self.image.shape[-1]}x{self.image.shape[-2]} pixels the image is too small to be painted "
                f"(at least {MIN_SIDE}): give a larger size"
            )
        with torch.no_grad():
            self.targets = self._features(self.image, layers)
        self.runs = [(layer, seed) for layer in self.targets for seed in seeds]
        self.random = [torch.Generator().manual_seed(seed) for _, seed in self.runs]
        sides = self.image.shape[-2:]
        if self.recipe.prior == "pixels":
            start = [PIXEL_START * torch.randn(1, 3, *sides, generator=random) for random in self.random]
            self.pixels = nn.ParameterList(nn.Parameter(s.to(self.device)) for s in start)
            self.generators = nn.ModuleList()
        else:
            self.inputs = [torch.randn(1, NOISE_CHANNELS, *sides, generator=random) for random in self.random]
            self.pixels = nn.ParameterList()
            self.generators = nn.ModuleList(self._generator(seed) for _, seed in self.runs)
        self.parameters = nn.ModuleList([self.pixels, self.generators])
        # One optimizer for all is one for each: Adam treats every number alone.
        self.adam = torch.optim.Adam(self.parameters.parameters(), self.recipe.learning_rate, fused=True)
        self.steps = self.recipe.steps
        with torch.no_grad():
            self.start = self._distances(self._paint()).tolist()

    def step(self) -> Tensor:
        """Take one step of every run.

        Returns:
            (runs,) mean squared differences of features before the step, with the step's noise.

        Raises:
            DivergedError: one is NaN or infinite; nothing was changed.
        """
        peak = self.recipe.learning_rate
        self.adam.param_groups[0]["lr"] = cosine(peak, peak / 10, self.step_count, self.steps)
        noisy = self.recipe.feature == "cls" and self.recipe.prior == "cnn"
        distances = self._distances(self._paint(noise_std(self.step_count, self.recipe.steps) if noisy else 0.0))
        if not torch.isfinite(distances).all():
            raise DivergedError(f"the distances are no longer finite at step {self.step_count + 1}")
        distances.sum().backward()
        self.adam.step()
        self.adam.zero_grad()
        self.step_count += 1
        return distances.detach()

    @torch.no_grad()
    def result(self) -> list[Inversion]:
        """The present images, painted from the fixed input without noise; layer by layer, seed by seed."""
        images = self._paint()
        distances = self._distances(images).tolist()
        rows = zip(self.runs, images.cpu(), self.start, distances, strict=True)
        return [Inversion(layer, seed, image, start, now) for (layer, seed), image, start, now in rows]

    @property
    def side(self) -> int:
        """Shorter side, in pixels, of the images."""
        return min(self.image.shape[-2:])

    @torch.no_grad()
    def is_sound(self) -> bool:
        """Whether all distances are finite now."""
        return bool(self._distances(self._paint()).isfinite().all())

    def settings(self) -> dict[str, str]:
        """What makes the images, for their files."""
        facts = {k: str(v) for k, v in asdict(self.recipe).items()}
        return facts | {"backbone": self.backbone.name, "backbone_sha256": self.backbone.fingerprint}

    def state_dict(self) -> dict[str, Any]:
        """Weights or pixels, the optimizer and the random numbers."""
        return {
            "parameters": self.parameters.state_dict(),
            "adam": self.adam.state_dict(),
            "random": [random.get_state() for random in self.random],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.parameters.load_state_dict(state["parameters"])
        self.adam.load_state_dict(state["adam"])
        for random, saved in zip(self.random, state["random"], strict=True):
            random.set_state(saved.cpu())

    def identity(self) -> dict[str, str]:
        """Recipe, backbone, layers, seeds and image."""
        pixels = hashlib.sha256(self.image.cpu().numpy().tobytes()).hexdigest()
        settings = {k: v for k, v in self.settings().items() if k != "steps"}
        return settings | {"layers and seeds": str(self.runs), "image": pixels}

    def _generator(self, seed: int) -> SkipUNet:
        with torch.random.fork_rng():  # a library must not reseed its caller
            torch.manual_seed(seed)
            return SkipUNet(in_channels=NOISE_CHANNELS).to(self.device)

    def _paint(self, noise: float = 0.0) -> Tensor:
        """All images, (runs, 3, H, W) in [0, 1]."""
        if self.pixels:
            return torch.cat([logits.sigmoid() for logits in self.pixels])
        inputs = self.inputs
        if noise:
            inputs = [
                x + noise * torch.randn(x.shape, generator=random)
                for x, random in zip(inputs, self.random, strict=True)
            ]
        # In turn: on a CPU twice as fast as all at once by grouped convolutions.
        return torch.cat([net(x.to(self.device)) for net, x in zip(self.generators, inputs, strict=True)])

    def _features(self, images: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """The feature of images (B, 3, H, W) at each layer, in order of depth: (B, ...)."""
        if self.recipe.feature == "cls":
            tokens = self.backbone(images, tokens=layers).tokens
            return {layer: tokens[layer][:, 0].float() for layer in sorted(tokens)}
        keys = self.backbone(images, keys=layers).keys
        if self.recipe.feature == "keys":
            return {layer: rearrange(keys[layer], "b heads t d -> b t (heads d)").float() for layer in sorted(keys)}
        return {layer: self_similarity(keys[layer]) for layer in sorted(keys)}

    def _distances(self, images: Tensor) -> Tensor:
        """(runs,) mean squared differences from the targets, each run at its own layer."""
        features = self._features(images, list(self.targets))
        rows = [F.mse_loss(features[layer][i], self.targets[layer][0]) for i, (layer, _) in enumerate(self.runs)]
        return torch.stack(rows)
