"""What the amortized generator is trained with: Splice's losses in both directions, and a teacher's images."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from splice_ff.losses.splice import Losses, Target, compare, encode, scaled_weights
from splice_ff.losses.style import style_layers
from splice_ff.losses.terms import Painted, weighted_terms
from splice_ff.networks.amortized import AmortizedGenerator, ImageEncoding
from splice_ff.networks.teachers import Teacher
from splice_ff.per_pair.augment import random_resolution, same_similarity
from splice_ff.training.batches import Batch, TeacherBatch
from splice_ff.training.config import TrainingConfig, weight_at
from splice_ff.training.kernel import KernelDistance
from splice_ff.training.realism import Realism
from splice_ff.utils.seeding import seeded_generator
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.inputs import ViTInput
from splice_ff.vit.spec import LossWeights

Model = Callable[..., Tensor]
"""The generator as accelerate wraps it."""
LEAST_APPEARANCE_ZOOM = 0.65
"""Of the view that gives the [CLS] wanted: things in it stand up to a sixth of the image from where they were."""


class PairLosses:
    """Losses of a batch of pairs.

    Every pair is painted in both directions: one ViT pass over its two images serves as encoding and as target of
    both. On some images the identity loss is taken too.

    Args:
        config: of the run.
        generator: whose encoding of images is wanted.
        backbone: the frozen ViT.
        network: whose maps the next two look at.
        realism: the discriminator, where there is one.
        kernel: the distance to photographs, where it is taken.
    """

    def __init__(
        self,
        config: TrainingConfig,
        generator: AmortizedGenerator,
        backbone: ViTFeatures,
        network: Teacher | None = None,
        realism: Realism | None = None,
        kernel: KernelDistance | None = None,
    ) -> None:
        self.config, self.generator, self.backbone = config, generator, backbone
        self.network, self.realism, self.kernel = network, realism, kernel
        self.vit_input = ViTInput(config.loss.vit_size)
        self.style_layers = style_layers(backbone.depth) if config.loss.terms.get("style") else []

    def weights(self, step: int) -> LossWeights:
        """Of Splice's losses at a step, times the scales of the backbone."""
        points = (getattr(self.config.loss, name) for name in ("structure", "appearance", "identity"))
        return scaled_weights(self.backbone, LossWeights(*(weight_at(p, step) for p in points)))

    def encode(self, *batches: Tensor, vit_input: ViTInput | None = None) -> list[Target]:
        """Features of several batches of images, each (B, 3, H, W) in [0, 1]; see `splice_ff.losses.splice.encode`."""
        return encode(self.backbone, vit_input or self.vit_input, batches, self.style_layers)

    def resize(self, images: Tensor, vit_input: ViTInput | None = None) -> Tensor:
        """(B, 3, H, W) as the ViT sees them."""
        return (vit_input or self.vit_input).resize(images, self.backbone.patch_size)

    @torch.no_grad()
    def encode_images(self, images: Tensor, vit_input: ViTInput | None = None) -> tuple[ImageEncoding, Target]:
        """One ViT pass over (B, 3, H, W): what the generator takes of the images, and what losses compare with."""
        prefix = self.backbone.prefix_tokens
        features = self.generator.features(self.backbone, self.resize(images, vit_input), self.style_layers)
        encoding = ImageEncoding.from_features(features, prefix, self.generator.config.context)
        return encoding, Target.from_features(features, prefix, self.style_layers)

    def __call__(self, model: Model, batch: Batch, step: int) -> tuple[Losses, dict[str, Tensor]]:
        """Splice's losses, and the terms of `loss.terms` and of a teacher, weighted, by name. All with gradients."""
        count = len(batch.first)
        images = torch.cat([batch.first, batch.second])
        again = batch.identity
        encoding, target = self.encode_images(images)
        painted, pixels = model(*_both_ways(images, encoding, again), with_pixels=True)
        output, same = painted[: 2 * count], painted[2 * count :]
        vit_input, (output_view, same_view, image_view) = self.views(step, output, same, images)
        if image_view is not images:
            _, target = self.encode_images(image_view, vit_input)
        look = target
        if self.config.loss.views == "independent-similarities":
            _, look = self.encode_images(self.appearance_view(step, images), vit_input)
        look = look.roll(count)
        seen = self.encode(output_view, *([same_view] if len(same) else []), vit_input=vit_input)
        own = Target(target.keys[again], target.cls[again])
        losses = compare(self.weights(step), seen, target, look, own)
        kept = batch.identity_weight * losses.identity
        losses = Losses.weighed(self.weights(step), losses.structure, losses.appearance, kept)

        weights = self.config.loss.terms
        terms = weighted_terms(weights, Painted(output, images, images.roll(count, 0), seen[0], look))
        if weights.get("pixels"):
            terms["pixels"] = weights["pixels"] * pixels[: 2 * count].pow(4).mean()
        if self.network:
            photographs, outputs = self.network(images), self.network.maps(output)
            if self.realism:
                cls = encoding.cls[:, -1]
                terms["realism"] = weights["realism"] * self.realism(photographs, cls, outputs, cls.roll(count, 0))
            if self.kernel:
                terms["kernel"] = weights["kernel"] * self.kernel(photographs, outputs)
        if batch.teacher:
            terms["teacher"] = self._distilled(model, batch.teacher)
        return losses, terms

    def views(self, step: int, *batches: Tensor) -> tuple[ViTInput, list[Tensor]]:
        """A step's view of all batches (B, 3, S, S), and how the ViT is to see it.

        The same in all processes, and in a run that was resumed. Batches that are seen whole come back as they are.
        """
        settings, random = self.config.loss, seeded_generator(self.config.seed, step)
        if settings.views != "crop":
            vit_input = random_resolution(self.vit_input, random)
            return vit_input, same_similarity(list(batches), random)
        if settings.crop == 1:
            return self.vit_input, list(batches)
        side = batches[0].shape[-1]
        share = settings.crop + (1 - settings.crop) * torch.rand((), generator=random).item()
        size = round(side * share)
        top, left = torch.randint(side - size + 1, (2,), generator=random).tolist()
        return self.vit_input, [images[..., top : top + size, left : left + size] for images in batches]

    def appearance_view(self, step: int, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) under a similarity of their own: how they look, wherever things stand in them."""
        random = seeded_generator(self.config.seed, step, 1)
        return same_similarity([images], random, LEAST_APPEARANCE_ZOOM)[0]

    def _distilled(self, model: Model, teacher: TeacherBatch) -> Tensor:
        """Towards the per-pair teacher's images: by pixels, and by deepest keys."""
        settings = self.config.distill
        assert settings is not None
        (structure, _), (appearance, _) = self.encode_images(teacher.structure), self.encode_images(teacher.appearance)
        output = model(teacher.structure, structure.structure_features, appearance.cls, appearance.patches)
        term = settings.image * F.l1_loss(output, teacher.output)
        if settings.features:
            made, wanted = (
                self.backbone(self.resize(x), keys=[-1]).keys[self.backbone.depth - 1] for x in (output, teacher.output)
            )
            term = term + settings.features * F.mse_loss(made.float(), wanted.float())
        return teacher.weight * term


def _both_ways(images: Tensor, encoding: ImageEncoding, again: slice) -> list[Tensor | None]:
    """What the generator takes to paint every image with its partner's look, then those of `again` with their own."""
    half = len(images) // 2

    def appearances(tokens: Tensor | None) -> Tensor | None:
        return None if tokens is None else torch.cat([tokens.roll(half, 0), tokens[again]])

    def structures(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor[again]])

    return [
        structures(images),
        structures(encoding.structure_features),
        appearances(encoding.cls),
        appearances(encoding.patches),
    ]
