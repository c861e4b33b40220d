"""The metrics: what each means, as data; those in a ViT's features; and all of them measured for one output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from splice_ff.errors import InputError
from splice_ff.evaluation import image_metrics
from splice_ff.evaluation.perceptual import Lpips
from splice_ff.losses import Losses, SpliceLoss, Target, appearance_loss, identity_loss, structure_loss
from splice_ff.vit.features import ViTFeatures, self_similarity

MIN_SIDE = image_metrics.TILE + 2
"""Smallest side, in pixels, of an image that can be measured."""


@dataclass(frozen=True)
class Metric:
    """What a number means, for tables."""

    name: str
    label: str
    better: Literal["lower", "higher"]
    about: Literal["losses", "layout", "look", "artifacts"]
    meaning: str

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.better == "higher" else -1


METRICS = (
    Metric(
        "objective", "objective", "lower", "losses", "structure loss + 10 x appearance loss, with the backbone's scales"
    ),
    Metric("structure", "structure loss", "lower", "losses", "MSE of the keys' self-similarities to the structure's"),
    Metric("appearance", "appearance loss", "lower", "losses", "MSE of the deepest [CLS] token to the appearance's"),
    Metric("identity", "identity loss", "lower", "losses", "MSE of keys when the method repaints the appearance image"),
    Metric("self_sim", "self-sim", "lower", "layout", "mean absolute difference of the keys' self-similarities"),
    Metric(
        "cls_cosine", "CLS cosine", "higher", "look", "cosine of [CLS] to the appearance's (DINO-I if it is DINO's)"
    ),
    Metric("edges", "edge agreement", "higher", "layout", "cosine of the edge fields of output and structure image"),
    Metric("color", "color distance", "lower", "look", "sliced Wasserstein distance of Lab colors to the appearance"),
    Metric("texture", "texture distance", "lower", "look", "sliced Wasserstein distance of 7x7 patches, two scales"),
    Metric("checkerboard", "checkerboard", "lower", "artifacts", "amplitude in L* of what repeats every 8 pixels"),
    Metric("high_frequency", "HF excess", "lower", "artifacts", "fine detail beyond that of both inputs, dB"),
)


LPIPS = Metric("lpips", "LPIPS", "lower", "layout", "LPIPS (AlexNet) of output and structure image")


def metrics_of(also: Sequence[str] = (), with_lpips: bool = False, judges: Sequence[str] = ()) -> tuple[Metric, ...]:
    """The metrics measured with further backbones of these names, with LPIPS or without, and by judges."""
    by_name = {metric.name: metric for metric in METRICS}
    others = []
    for backbone in also:
        for base in (by_name["self_sim"], by_name["cls_cosine"]):
            label, meaning = (
                f"{base.label}, {backbone}",
                f"{base.meaning.split(' (')[0]}, in the features of {backbone}",
            )
            others.append(Metric(f"{base.name}@{backbone}", label, base.better, base.about, meaning))
    for judge in judges:
        others += [
            Metric(
                f"judge_appearance@{judge}", f"{judge}: appearance", "higher", "look",
                f"centered cosine of {judge}'s pooled features with the appearance image's",
            ),
            Metric(
                f"judge_structure@{judge}", f"{judge}: structure", "lower", "look",
                "the same with the structure image's: what is left of its look; 1 for a copy. Read it beside the edges",
            ),
        ]  # fmt: skip
    return METRICS + tuple(others) + ((LPIPS,) if with_lpips else ())


@dataclass(frozen=True)
class Reference:
    """A pair's images, (1, 3, H, W) in [0, 1], and their features by backbone, shared by all methods' outputs."""

    structure: Tensor
    appearance: Tensor
    targets: dict[str, tuple[Target, Target]]


class Measurer:
    """Measures outputs with one backbone's losses, and in the features of others.

    Args:
        backbone: the one that the losses are taken with.
        also: others, whose self-sim and [CLS] cosine are measured too.
        lpips: measures LPIPS, if it is to be measured.
    """

    def __init__(self, backbone: ViTFeatures, also: Sequence[ViTFeatures] = (), lpips: Lpips | None = None) -> None:
        self.lpips = lpips
        self.loss = SpliceLoss(backbone)
        self.also = {other.name: SpliceLoss(other) for other in also}

    def reference(self, structure: Tensor, appearance: Tensor) -> Reference:
        """Encode a pair.

        Raises:
            InputError: a side is under `MIN_SIDE`.
        """
        _check(structure, "the structure image")
        _check(appearance, "the appearance image")
        targets = {}
        for name, loss in {"": self.loss, **self.also}.items():
            first, second = loss.targets(structure, appearance)
            targets[name] = (first, second)
        return Reference(structure, appearance, targets)

    def __call__(self, output: Tensor, reference: Reference, identity: Tensor | None = None) -> dict[str, float]:
        """All metrics of an output (1, 3, H, W); `identity`: what the method makes of the appearance image.

        An output of another size than the structure image's is resized to it, save for `checkerboard`.

        Raises:
            InputError: a side is under `MIN_SIDE`, or values are not finite.
        """
        _check(output, "the output")
        found = {"checkerboard": image_metrics.checkerboard(output)}
        size = list(reference.structure.shape[-2:])
        if list(output.shape[-2:]) != size:
            output = TF.resize(output, size, interpolation=InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        structure, appearance = reference.targets[""]
        ours, *same = self.loss.targets(*([output] if identity is None else [output, identity]))
        structural = structure_loss(ours.keys, structure.keys)
        visual = appearance_loss(ours.cls, appearance.cls)
        found["objective"] = Losses.weighed(self.loss.weights, structural, visual, torch.zeros(())).total.item()
        found["structure"], found["appearance"] = structural.item(), visual.item()
        if same:
            found["identity"] = identity_loss(same[0].keys, appearance.keys).item()
        found |= _in_features(ours, structure, appearance)
        for name, loss in self.also.items():
            [encoded] = loss.targets(output)
            found |= {f"{k}@{name}": v for k, v in _in_features(encoded, *reference.targets[name]).items()}
        found["edges"] = image_metrics.edge_agreement(output, reference.structure)
        found["color"] = image_metrics.color_distance(output, reference.appearance)
        found["texture"] = image_metrics.texture_distance(output, reference.appearance)
        found["high_frequency"] = image_metrics.high_frequency_excess(output, reference.structure, reference.appearance)
        if self.lpips:
            found["lpips"] = self.lpips(output, reference.structure)
        return found


def self_sim(output_keys: Tensor, structure_keys: Tensor) -> float:
    """Mean absolute difference of the self-similarities of keys (1, heads, T, d), in [0, 2]: 0 for the same layout.

    Published comparisons of appearance transfer report it as "self-sim", there with DINO ViT-B/8 (the descriptor is
    that of the paper's section 3.2). Values of different backbones cannot be compared.
    """
    return (self_similarity(output_keys) - self_similarity(structure_keys)).abs().mean().item()


def cls_cosine(output_cls: Tensor, appearance_cls: Tensor) -> float:
    """Cosine of [CLS] tokens (1, D), in [-1, 1]: 1 for the same look.

    Published as "DINO-I" (Ruiz et al., DreamBooth, arXiv 2208.12242, section 4), a name for DINO backbones only.
    """
    return F.cosine_similarity(output_cls.float(), appearance_cls.float()).mean().item()


def _in_features(output: Target, structure: Target, appearance: Target) -> dict[str, float]:
    return {
        "self_sim": self_sim(output.keys, structure.keys),
        "cls_cosine": cls_cosine(output.cls, appearance.cls),
    }


def _check(image: Tensor, what: str) -> None:
    height, width = image.shape[-2:]
    if min(height, width) < MIN_SIDE:
        raise InputError(f"{what} of {width}x{height} pixels is too small to be measured ({MIN_SIDE} a side at least)")
    if not torch.isfinite(image).all():
        raise InputError(f"{what} has values that are not finite")
