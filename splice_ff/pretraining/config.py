"""What a backbone is trained from: which images, which ViT, which of the two stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from splice_ff.training.config_sections import BatchSize, OptimizerSection, RunSection
from splice_ff.utils.config_file import Count, Name, Section, Seed, Share, UserPath

Decay = Annotated[float, Field(ge=0)]
Area = tuple[Share, Share]
"""Smallest and largest share of an image's area."""


class ImagesConfig(Section):
    """Which images, held decoded in memory."""

    source: Name
    """A folder, parquet files, WebDataset tars or a hub name; see `splice_ff.data.sources.open_dataset`."""
    split: str = "train"
    side: int = Field(160, ge=32, le=4096)
    """Pixels of the squares that are held: 3 * side**2 bytes an image."""
    hold_on: Literal["device", "host"] = "device"
    """Where they are held: a GPU crops its own memory fastest; host memory is larger."""
    workers: int = Field(0, ge=0, le=1024)
    """Processes that decode, once, before the first step."""


class StudentConfig(Section):
    """The ViT that is trained: its shape, or whose weights and shape it starts with."""

    image_size: int = Field(128, ge=16, le=4096)
    """Pixels of the crops it is trained on, for which its position embeddings are made."""
    patch_size: Count = 16
    width: int = Field(384, ge=1, le=65536)
    depth: int = Field(12, ge=2, le=1000)
    heads: Count = 6
    start_from: Name | None = None
    """A backbone's name or folder, as `load_backbone` takes it; no shape can be given then."""
    start_weights: UserPath | None = None
    """A file with the weights of `start_from`."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth; DINO uses 0.1."""

    @model_validator(mode="after")
    def _check(self) -> StudentConfig:
        shape = self.model_fields_set & {"image_size", "patch_size", "width", "depth", "heads"}
        if self.start_from is not None and shape:
            raise ValueError(f"start_from brings its own shape: leave out {', '.join(sorted(shape))}")
        if self.start_weights is not None and self.start_from is None:
            raise ValueError("start_weights needs start_from, the backbone they belong to")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class ViewsConfig(Section):
    """Random changes to every crop, mild ones: [CLS] has to know the colors. No grayscale, no solarisation."""

    jitter: float = Field(0.1, ge=0, lt=1)
    """Brightness, contrast and saturation change by factors of up to 1 +- this."""
    blur: Share = 0.1
    """Share of the crops that are blurred."""


class OptimizerConfig(OptimizerSection):
    """AdamW: linear warm-up, then a cosine to 0; weight decay follows a cosine as well."""

    batch_size: BatchSize = 256
    """Images a process and step."""
    learning_rate: float = Field(5e-4, gt=0)
    warmup_steps: int = Field(500, ge=0, le=10**9)
    weight_decay: tuple[Decay, Decay] = (0.04, 0.04)
    """At the first and last step; not on biases and norms."""
    max_grad_norm: float = Field(3.0, gt=0)


class AdversaryConfig(Section):
    """What the student sees is moved up the loss, while the targets stay those of the crop as it was."""

    norm: Literal["linf", "l2"] = "linf"
    """In which every crop moves at most `epsilon`: the largest change of a value, or the crop's Euclidean norm."""
    epsilon: tuple[float, float] = (1.0, 4.0)
    """In units of 1/255, at the first step and after the rise."""
    rise: Share = 0.3
    """Share of the steps in which it rises."""
    steps: Count = 1
    """Gradient steps from a random start; each costs a forward and a backward pass."""

    @field_validator("epsilon")
    @classmethod
    def _check_epsilon(cls, epsilon: tuple[float, float]) -> tuple[float, float]:
        if min(epsilon) <= 0:
            raise ValueError(f"{list(epsilon)} should be above 0; leave the section out to do without")
        return epsilon


class DistillationConfig(Section):
    """First stage: the student's tokens learn to say what a CNN's feature maps hold."""

    teacher: str
    """`open_nsfw`, `efficientnet_lite1`, `efficientnet_lite2`, or a timm model that gives feature maps."""
    weights: UserPath | None = None
    """A file with the timm model's weights, instead of the hub's."""
    teacher_size: int | None = Field(None, ge=32, le=4096)
    """Pixels to which crops are enlarged for the teacher."""
    area: Area = (0.25, 1.0)
    sizes: tuple[int, ...] = ()
    """Pixels of the crops, another of these at every step; the student's own size if none are given."""
    patches: float = Field(1.0, ge=0)
    """Weight of the feature maps, for the patch tokens."""
    cls: float = Field(1.0, ge=0)
    """Weight of the shallower maps' means and spreads, for [CLS]."""
    deepest: float = Field(1.0, ge=0)
    """Weight of the deepest map's mean and spread, for [CLS]: what is there."""
    statistics: float = Field(1.0, ge=0)
    """Weight of the crop's color and texture, for [CLS]: how it looks."""
    relations: float = Field(0.0, ge=0)
    """Weight of the resemblance between crops, for the plain distances of the deepest [CLS]: see
    `splice_ff.pretraining.relations`. The start's [CLS] is not kept then."""
    keys: float = Field(0.0, ge=0)
    """Weight of the self-similarity of the deepest keys, towards that of the deepest maps, or of the start's keys if
    those are kept."""
    keep: float = Field(0.0, ge=0)
    """Weight of what `student.start_from` made of the crops before training: its deepest keys and tokens (Schlarmann et
    al., "Robust CLIP", arXiv 2402.12336, keep a robust encoder near its start in this way)."""
    adversary: AdversaryConfig | None = None
    """Makes the student robust; see `splice_ff.pretraining.adversary`."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay of the moving average of the weights that is kept; 0: the weights themselves."""
    optimizer: OptimizerConfig


class DinoConfig(Section):
    """Second stage: self-distillation without labels. Defaults are the paper's, but for views and head size."""

    global_area: Area = (0.4, 1.0)
    local_area: Area = (0.05, 0.4)
    local_views: int = Field(6, ge=0, le=1000)
    local_size: int = Field(64, ge=16, le=4096)
    """Pixels of the small crops, a multiple of the patch."""
    prototypes: int = Field(8192, ge=1, le=2**20)
    """Outputs of the head (the paper: 65 536, for 1.3 million images)."""
    hidden: int = Field(2048, ge=1, le=65536)
    bottleneck: int = Field(256, ge=1, le=65536)
    student_temperature: float = Field(0.1, gt=0)
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    """At the first step and after the warm-up."""
    temperature_warmup: Share = 0.3
    """Share of the steps in which the teacher's temperature rises."""
    momentum: float = Field(0.996, ge=0, lt=1)
    """Of the teacher's moving average at the first step; it rises to 1."""
    center_momentum: float = Field(0.9, ge=0, lt=1)
    freeze_last_layer: Share = 0.01
    """Share of the steps in which the prototypes stay as they are."""
    statistics: float = Field(1.0, ge=0)
    """Weight of color and texture statistics, for [CLS]."""
    optimizer: OptimizerConfig


class ProbeConfig(Section):
    """Images on which [CLS] is measured now and then: k-NN of labels, colors read linearly."""

    split: str
    every: Count = 1000


class RunConfig(RunSection):
    """Precision, logs and checkpoints."""

    save_every: Count = 1000
    """Steps after which the backbone so far is written as a folder to use."""
    checkpoint_minutes: float = Field(10.0, gt=0)


class PretrainingConfig(Section):
    """A whole run: one of the stages, or both."""

    renamed: ClassVar[Mapping[str, str]] = {
        "pictures": "images",
        "distillation.optimizer.clip": "distillation.optimizer.max_grad_norm",
        "dino.optimizer.clip": "dino.optimizer.max_grad_norm",
        "run.keep": "run.checkpoints_total_limit",
    }
    output: UserPath
    seed: Seed = 0
    images: ImagesConfig
    student: StudentConfig = StudentConfig()
    views: ViewsConfig = ViewsConfig()
    distillation: DistillationConfig | None = None
    dino: DinoConfig | None = None
    probe: ProbeConfig | None = None
    run: RunConfig = RunConfig()

    @field_validator("distillation", "dino")
    @classmethod
    def _check_areas(cls, stage: DistillationConfig | DinoConfig | None) -> DistillationConfig | DinoConfig | None:
        for name, area in (stage.model_dump() if stage else {}).items():
            if name.endswith("area") and not 0 < area[0] <= area[1]:
                raise ValueError(f"{name}: {list(area)} should be two rising shares above 0")
        return stage

    @model_validator(mode="after")
    def _check(self) -> PretrainingConfig:
        taught = self.distillation
        for name in ("keys", "relations"):
            if taught is not None and getattr(taught, name) and taught.optimizer.batch_size < 2:
                raise ValueError(
                    f"distillation.{name} compares images of a batch: set distillation.optimizer.batch_size above 1"
                )
        if self.distillation is not None and self.distillation.keep and self.student.start_from is None:
            raise ValueError("distillation.keep needs student.start_from, whose features it keeps")
        if self.distillation is None and self.dino is None:
            raise ValueError("nothing to do: give a section 'distillation' or 'dino'")
        return self
