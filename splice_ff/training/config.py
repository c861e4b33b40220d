"""What a training run is made from: a YAML file, checked, with values replaced on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from splice_ff.data.pairs import PairMix
from splice_ff.losses.terms import TERMS, check_terms
from splice_ff.networks.amortized import Context
from splice_ff.training.config_sections import BatchSize, OptimizerSection, RunSection
from splice_ff.utils.config_file import Count, Name, Section, Seed, Share, UserPath, read_settings

Weight = Annotated[float, Field(ge=0)]
ALL_TERMS = (*TERMS, "pixels", "kernel", "realism")
"""Names of `loss.terms`."""
Points = Annotated[list[tuple[int, Weight]], Field(min_length=1)]


class DataConfig(Section):
    """Which images, and how they are paired."""

    source: Name
    """A folder, parquet files, WebDataset tars or a hub name; see `splice_ff.data.sources.open_dataset`."""
    split: str = "train"
    held_out: str | None = None
    """Split for validation; none: no validation."""
    labels: list[str] | None = None
    """Only images of these labels."""
    streaming: bool = False
    preload: bool = False
    """Decode all images once into memory, instead of in workers as they are needed."""
    size: int = Field(128, ge=32, le=4096)
    """Side of the square crops in pixels."""
    zoom: float = Field(1.0, gt=0, le=1)
    """Smallest share of a crop that is shown, enlarged: below 1 a run also sees close-ups. Not with `streaming`."""
    color_sharpening: float = Field(0.0, ge=0, le=4)
    """About 1 gives back the contrasts of colors that small JPEG and WebP files have lost; see
    `splice_ff.data.color_sharpening`. A teacher's pairs stay as they are."""
    pairs: PairMix = PairMix()
    mined_pairs: UserPath | None = None
    workers: int = Field(1, ge=0, le=1024)

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.streaming and self.zoom < 1:
            raise ValueError("zoom needs images that can be indexed: set streaming to false, or zoom to 1")
        if self.pairs.mined and self.mined_pairs is None:
            raise ValueError("pairs.mined needs mined_pairs, a file made by `splice-ff pairs`")
        return self


class BackboneConfig(Section):
    """The frozen ViT."""

    name: Name = "vit_s14_robust"
    weights: UserPath | None = None


class GeneratorSettings(Section):
    """Which amortized generator."""

    size: Literal["tiny", "compact", "small", "base", "tiny-grid", "compact-grid", "small-grid", "base-grid"] = "small"
    """Those with a grid read their color maps at the image's own edges."""
    context: Context = "cls"
    start_from: UserPath | None = None
    """Folder of a trained generator whose weights are the first ones."""


class LossConfig(Section):
    """Weights of the losses (the published ones by default), before the backbone's own scales.

    A weight is a number, or a list of [step, value] points with straight lines between them.
    """

    structure: Weight | Points = 1.0
    appearance: Weight | Points = 10.0
    identity: Weight | Points = 1.0
    terms: dict[str, float] = Field(default_factory=dict)
    """Weights of further terms, by name: those of `splice_ff.losses.terms`, and

    pixels: mean fourth power of what the UNet adds to single pixels' logits. A small change is texture and costs next
        to nothing; a large one paints what the structure image does not show, such as a second pair of eyes.
    kernel: kernel distance of outputs to photographs, in features of `realism_network` (`splice_ff.training.kernel`).
    realism: an adversarial loss: a discriminator learns beside the generator to tell outputs from photographs
        (`splice_ff.training.realism`).
    """
    realism_network: Name = "efficientnet_lite2"
    """Frozen network whose feature maps these two look at, as in `distillation.teacher` of a backbone's training. It
    should not be one that judges the outcome."""
    identity_every: Count = 4
    """The identity loss is taken on every so many-th pair of a batch: it costs as much as the other two."""
    vit_size: int = Field(224, ge=32, le=4096)
    """Shorter side, in pixels, of what the ViT sees."""
    views: Literal["crop", "similarity", "independent-similarities"] = "crop"
    """What output and images go through alike before the ViT: a random crop; or a random flip, rotation, zoom and shift
    at random resolution, which no pattern locked to the patch grid survives (`splice_ff.per_pair.augment`). With
    `independent-similarities` the [CLS] that is wanted is that of the appearance image under a similarity of its own, a
    wider one, so that it cannot ask for eyes where that image has them: another forward pass of the ViT."""
    crop: float = Field(0.9, gt=0, le=1)
    """Smallest side of the crop, as a share."""

    @field_validator("terms")
    @classmethod
    def _check_terms(cls, terms: dict[str, float]) -> dict[str, float]:
        check_terms(terms, ALL_TERMS)
        return terms


class DistillConfig(Section):
    """Terms towards a per-pair teacher's images (`splice-ff teach`)."""

    source: UserPath
    """Folder that `splice-ff teach` wrote."""
    share: Share = 0.25
    """Of a batch's size, how many of the teacher's pairs are added to each step."""
    image: float = Field(1.0, ge=0)
    """Weight of the mean absolute difference of the images."""
    features: float = Field(0.0, ge=0)
    """Weight of the mean squared difference of deepest keys."""


class OptimizerConfig(OptimizerSection):
    """AdamW with a linear warm-up, then a cosine to 0."""

    batch_size: BatchSize = 16
    """Pairs a process and forward pass; each is trained in both directions."""
    gradient_accumulation_steps: Count = 1
    learning_rate: float = Field(3e-4, gt=0)
    warmup_steps: int = Field(200, ge=0, le=10**9)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Of the moving average of the weights, which is what is kept and judged."""


class RunConfig(RunSection):
    """Precision, logs and checkpoints."""

    gradient_checkpointing: bool = False
    sample_every: Count = 500
    validate_every: Count = 500
    validation_pairs: Count = 64
    checkpoint_every: Count = 1000


class TrainingConfig(Section):
    """A whole training run."""

    renamed: ClassVar[Mapping[str, str]] = {
        "optimizer.accumulation": "optimizer.gradient_accumulation_steps",
        "optimizer.clip": "optimizer.max_grad_norm",
        "optimizer.ema": "optimizer.ema_decay",
        "optimizer.max_bad_steps": "optimizer.max_skipped_steps",
        "run.keep": "run.checkpoints_total_limit",
        **{f"loss.{name}": f"loss.terms.{name}" for name in ALL_TERMS if name != "polarity"},
    }
    output: UserPath
    seed: Seed = 0
    data: DataConfig
    backbone: BackboneConfig = BackboneConfig()
    generator: GeneratorSettings = GeneratorSettings()
    loss: LossConfig = LossConfig()
    distill: DistillConfig | None = None
    optimizer: OptimizerConfig
    run: RunConfig = RunConfig()


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read a YAML file and check it.

    Args:
        path: the file.
        overrides: `section.key=value` each, the value as YAML; they replace or add to the file's.

    Raises:
        InputError: no such file, not YAML, or wrong values: one line that names each of them.
    """
    return read_settings(TrainingConfig, path, overrides)


def weight_at(weight: float | Sequence[tuple[int, float]], step: int) -> float:
    """A loss weight at a step: a number, or [step, value] points with straight lines between them."""
    if isinstance(weight, int | float):
        return float(weight)
    points = sorted(weight)
    before = [p for p in points if p[0] <= step] or points[:1]
    after = [p for p in points if p[0] > step] or points[-1:]
    (a, x), (b, y) = before[-1], after[0]
    return x if b <= a else x + (y - x) * max(0, step - a) / (b - a)
