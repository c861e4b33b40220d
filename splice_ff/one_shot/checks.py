"""What the one-shot mode can work with. Imports no torch, so that commands can check before they wait for it."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from splice_ff import images
from splice_ff.errors import InputError


def check_size(size: int, shape: Sequence[int] | None = None) -> int:
    """The size, as an int, if one can work at a shorter side of as many pixels: of an image (..., H, W), if given.

    Raises:
        InputError: no whole number, too small, or more pixels than can be held.
    """
    size = whole_number("size", size)
    if size < images.MIN_SIDE:
        raise InputError(f"size must be at least {images.MIN_SIDE} pixels, not {size}")
    if shape is None:
        return size
    short, long = min(shape[-2:]), max(shape[-2:])
    if size * size * long / short > images.MAX_PIXELS:
        limit = images.MAX_PIXELS // 1_000_000
        raise InputError(f"a size of {size} makes {shape[-1]}x{shape[-2]} more than {limit} megapixels")
    return size


def check_strength(strength: float) -> float:
    """The strength, as a float; InputError unless it is a number from 0 to 1."""
    try:
        if 0 <= strength <= 1:
            return float(strength)
    except (TypeError, ValueError):
        pass
    raise InputError(f"strength must be between 0 and 1, not {strength!r:.60}")


def check_weights(weights: Sequence[float], looks: int) -> list[float]:
    """Shares of as many looks, brought to a sum of 1.

    Raises:
        InputError: no looks, another number of weights, or weights that are negative, all 0, infinite or no numbers.
    """
    try:
        numbers = [float(weight) for weight in weights]
    except (TypeError, ValueError) as error:
        raise InputError(f"weights must be numbers, one for each look, not {weights!r:.60}") from error
    if not looks or len(numbers) != looks:
        raise InputError(f"{looks} looks and {len(numbers)} weights: give one weight for each look")
    total = sum(numbers)
    if not all(weight >= 0 for weight in numbers) or not 0 < total < float("inf"):
        raise InputError(f"weights must not be negative, nor all 0: {', '.join(map(str, numbers))}")
    return [weight / total for weight in numbers]


def whole_number(name: str, value: object, least: int = 0) -> int:
    """An int, from whatever counts as one (numpy's do); InputError for anything else, or a smaller one."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
        if isinstance(value, bool) or number < least:
            raise TypeError
    except TypeError as error:
        raise InputError(f"{name} must be a whole number from {least}, not {value!r:.60}") from error
    return number
