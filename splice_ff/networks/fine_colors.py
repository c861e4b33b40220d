"""Fine contrasts of colors stay the structure image's; what is finer in the change is of brightness alone.

Eyes, JPEG and WebP take fine detail from brightness and little of it from colors. A generator trained on such files has
seen few fine contrasts of colors, and what it adds takes those of the structure image away: its images then differ from
photographs in that. So they are taken out of what is added to the logits of colors, D, at the working size:

    D' = D - (D_c - B D_c),    D_c = D - mean of D over red, green and blue,

in which B is a mean over 3 x 3 pixels, taken twice (nearly a Gaussian with a deviation of 1.2 pixels).
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
