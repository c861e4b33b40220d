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
    """If given, takes the place of `max_grad_norm`: larger gradients are scaled down to so many times the usual norm of
    the run so far, so that no default depends on the scale of a backbone's features and of the losses (as AutoClip,
    arXiv 2007.14469, does with a percentile)."""
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
