"""The loss terms that Splice does not have, by name: what `loss.terms` of a training and `terms` of a recipe choose.

    L = L_Splice + sum over terms k of  w_k L_k

A term is a function of `Painted`. To add one, write it in a file of this room and enter it here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from splice_ff.errors import InputError
from splice_ff.losses.color import color_loss
from splice_ff.losses.edges import edge_loss
from splice_ff.losses.polarity import polarity_loss
from splice_ff.losses.splice import Target
from splice_ff.losses.style import style_loss
from splice_ff.losses.texture import texture_loss


@dataclass(frozen=True)
class Painted:
    """A batch of outputs and what they were made from: all that a term may look at."""

    output: Tensor
    """(B, 3, H, W) in [0, 1], as `structure`."""
    structure: Tensor
    appearance: Tensor
    """(B, 3, H', W') in [0, 1]."""
    seen: Target
    """Features of the output, with gradients."""
    look: Target
    """Features of the appearance images."""


def _style(painted: Painted) -> Tensor:
    assert painted.seen.statistics is not None and painted.look.statistics is not None
    return style_loss(painted.seen.statistics, painted.look.statistics)


TERMS: Mapping[str, Callable[[Painted], Tensor]] = {
    "style": _style,
    "color": lambda x: color_loss(x.output, x.appearance),
    "texture": lambda x: texture_loss(x.output, x.appearance),
    "edges": lambda x: edge_loss(x.output, x.structure, x.appearance),
    "polarity": lambda x: polarity_loss(x.output, x.structure),
}
"""Scalars, at least 0, each a mean over the batch; formulas in the files of this room."""


def check_terms(weights: Mapping[str, float], known: tuple[str, ...] = tuple(TERMS)) -> None:
    """Raise InputError unless every name is known and every weight is at least 0 and finite."""
    for name, weight in weights.items():
        if name not in known:
            raise InputError(f"unknown term '{name}'. Known: {', '.join(known)}")
        if not 0 <= weight < float("inf"):
            raise InputError(f"the weight of {name} must be at least 0, not {weight}")


def weighted_terms(weights: Mapping[str, float], painted: Painted) -> dict[str, Tensor]:
    """The terms with a weight above 0, times their weights, by name."""
    return {name: weights[name] * term(painted) for name, term in TERMS.items() if weights.get(name)}
