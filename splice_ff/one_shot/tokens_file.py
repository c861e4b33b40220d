"""Looks: appearance tokens in a file, to paint many structure images with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from splice_ff.errors import CheckpointError
from splice_ff.one_shot.model import OneShotModel
from splice_ff.utils.tensor_files import read_tensors, write_tensors

FORMAT = "splice-ff look 2"
SUFFIX = ".safetensors"


def save_look(path: str | Path, model: OneShotModel, tokens: Tensor, facts: Mapping[str, str] | None = None) -> None:
    """Write a look, whole or not at all, with the fingerprint of the model that made it.

    Args:
        path: the .safetensors file.
        model: whose `embed` or `mix` made the tokens.
        tokens: (1, M, C).
        facts: what it was made from; kept in the file.

    Raises:
        CheckpointError: values that are not finite, or a place that takes no file.
        ValueError: another shape.
    """
    if tokens.shape[:1] != (1,) or tokens.ndim != 3:
        raise ValueError(f"one look is (1, M, C), not {tuple(tokens.shape)}")
    metadata = {"format": FORMAT, "model": model.fingerprint, "facts": json.dumps(dict(facts or {}))}
    write_tensors(Path(path), {"tokens": tokens.float()}, metadata)


def load_look(path: str | Path, model: OneShotModel) -> tuple[Tensor, dict[str, str]]:
    """Read what `save_look` wrote.

    Returns:
        Appearance tokens (1, M, C) on the model's device, and the facts.

    Raises:
        CheckpointError: no such file, damaged, not a look, or another model's.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path, "a look", FORMAT)
    ours, theirs = model.fingerprint, metadata.get("model", "unknown")
    if theirs != ours:
        raise CheckpointError(
            f"{path}: made by another model (SHA-256 {theirs[:12]}…, this one's is {ours[:12]}…): a look fits only the "
            "model that made it"
        )
    shape = (1, *model.generator.encoder.queries.shape)
    try:
        facts = dict(json.loads(metadata["facts"]))
        tokens = tensors["tokens"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: a damaged look") from error
    if tuple(tokens.shape) != shape or tokens.dtype != torch.float32:
        raise CheckpointError(f"{path}: a damaged look (tokens of shape {tuple(tokens.shape)}, expected {shape})")
    return tokens.to(model.device), facts
