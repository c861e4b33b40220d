"""Fine contrasts of colors stay the structure image's: the fine detail of a change is of brightness alone.

JPEG and WebP keep much fine detail of brightness and little of colors. A generator that learned from such files has
seen few fine contrasts of colors, and its change takes away those of the structure image; so its images differ from
photographs. Hence they are removed, at the working size, from D, what is added to the logits of colors:

    D' = D - (D_c - B D_c),    D_c = D - mean of D over red, green and blue,

in which B is a mean over 3 x 3 pixels, taken twice (nearly a Gaussian with a deviation of 1.2 pixels). At full size the
maps are read anew, so colors may still change at the edges of the large image.
"""

from __future__ import annotations

from torch import Tensor

from splice_ff.utils.box_filter import box_filter

PASSES = 2
"""Of the mean over 3 x 3 pixels."""


def fine_colors(added: Tensor) -> Tensor:
    """D_c - B D_c of what is added to the logits of colors, (B, 3, H, W), of the same shape; the border repeats."""
    colors = added - added.mean(1, keepdim=True)
    smooth = colors
    for _ in range(PASSES):
        smooth = box_filter(smooth, radius=1)
    return colors - smooth
