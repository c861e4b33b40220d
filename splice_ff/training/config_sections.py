"""Sections of settings that both kinds of training share: generators and backbones."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from splice_ff.utils.config_file import Count, Section

BatchSize = Annotated[int, Field(ge=1, le=65536)]


class OptimizerSection(Section):
    """AdamW: linear warm-up, then a cosine to 0."""

    steps: Count
    batch_size: BatchSize
    """Of a process and forward pass."""
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    """Larger gradients are scaled down to this norm."""
    max_grad_ratio: float | None = Field(None, gt=0)
    """If given, takes the place of `max_grad_norm`: gradients are divided by the usual norm of the run so far, and then
    clipped at this one, so that nothing depends on the scale of a backbone's features and of the losses (AutoClip,
    arXiv 2007.14469, takes a percentile of the norms so far)."""
    max_skipped_steps: Count = 10
    """So many steps in a row with NaN or infinite gradients, which are skipped, end the run."""


class RunSection(Section):
    """Precision, logs and checkpoints."""

    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    log_every: Count = 20
    checkpoint_minutes: float = Field(15.0, gt=0)
    checkpoints_total_limit: Count = 2
    """Newest checkpoints that are kept; besides them, one from which to leave a divergence."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Names that accelerate knows: tensorboard, wandb, …"""
