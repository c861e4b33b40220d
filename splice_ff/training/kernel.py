"""The kernel distance of outputs to photographs, which Splice does not have (term `kernel`).

Photographs x and outputs y are drawn alike where the squared MMD of their features vanishes (Gretton et al., "A Kernel
Two-Sample Test", JMLR 2012). Up to a factor, its gradient with respect to outputs is that of the witness function

    L_kernel = mean over y of  [mean_j k(y, y_j) - mean_j k(y, x_j)]        k(a, b) = (a . b / C + 1)^3

with the kernel of KID (Binkowski et al., arXiv:1801.01401). x_j and y_j are the last photographs and outputs, whose
features are remembered without gradient: a batch alone would be too small a sample; all processes remember those of
all, so that the loss does not depend on how many they are. Features are means over places of each of a frozen
network's maps, seen from the photographs' mean, in units of their deviation; a term for each map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate.utils import gather
from torch import Tensor, nn

from splice_ff.utils.kernels import polynomial_kernel

MEMORY = 1024
"""Photographs and outputs remembered."""
FEWEST = 128
"""Below so many, there is no loss."""


class KernelDistance(nn.Module):
    """The loss, and what it remembers of earlier steps. With several processes all of them must call it alike.

    Args:
        channels: of the maps.
    """

    photographs: Tensor
    outputs: Tensor
    seen: Tensor

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = list(channels)
        self.register_buffer("photographs", torch.zeros(MEMORY, sum(channels)))
        self.register_buffer("outputs", torch.zeros(MEMORY, sum(channels)))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, photographs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """A scalar, from the feature maps (B, C, h, w) of photographs and, with gradients, of as many outputs.

        Features that are not finite are not remembered: such a step is skipped, and must not spoil the next ones.
        """
        with torch.autocast(outputs[0].device.type, enabled=False):
            theirs, ours = (
                torch.cat([maps.float().mean((2, 3)) for maps in side], 1) for side in (photographs, outputs)
            )
            known = int(self.seen.clamp(max=MEMORY))
            loss = self._witness(ours, known) if known >= FEWEST else 0 * ours.sum()
        self._remember(gather(theirs.detach()), gather(ours.detach()))
        return loss

    def _remember(self, theirs: Tensor, ours: Tensor) -> None:
        finite = torch.cat([theirs, ours], 1).isfinite().all(1, keepdim=True)
        order = finite[:, 0].logical_not().int().argsort(stable=True)  # finite ones first; others change nothing
        places = (torch.arange(len(ours), device=ours.device) + self.seen) % MEMORY
        for memory, features in ((self.photographs, theirs), (self.outputs, ours)):
            memory[places] = torch.where(finite[order], features[order], memory[places])
        self.seen += finite.sum()

    def _witness(self, ours: Tensor, known: int) -> Tensor:
        x, y = self.photographs[:known], self.outputs[:known]
        mean, deviation = x.mean(0), x.std(0) + 1e-6
        x, y, ours = (((features - mean) / deviation) for features in (x, y, ours))
        maps = zip(*(features.split(self.channels, 1) for features in (ours, y, x)), strict=True)
        terms = [polynomial_kernel(now, y).mean() - polynomial_kernel(now, x).mean() for now, y, x in maps]
        return torch.stack(terms).sum()
