"""What tests of evaluation share: small images, a cheap measurer, and a method that remembers."""

import torch

from splice_ff.errors import DivergedError
from splice_ff.evaluation.methods import Copy
from splice_ff.evaluation.metrics import Measurer, Reference
from splice_ff.evaluation.rows import all_rows


def smooth_image(seed, height=72, width=88):
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


class Cheap(Measurer):
    """Measures one thing: these tests are about rows."""

    def reference(self, structure, appearance):
        return Reference(structure, appearance, {})

    def __call__(self, output, reference, identity=None):
        return {"objective": (output - reference.appearance.mean()).abs().mean().item()}


class Counting(Copy):
    """Copies, and remembers of which pairs; the pairs in `broken` diverge."""

    def __init__(self):
        self.seen, self.broken = [], set()

    def __call__(self, pair, structure, appearance):
        self.seen.append(pair)
        if pair in self.broken:
            raise DivergedError("the losses are no longer finite")
        return super().__call__(pair, structure, appearance)


def rows_of(folder):
    return {(row["pair"], row["method"]): row for row in all_rows(folder)}
