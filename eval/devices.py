"""Whether a device computes what the CPU does: losses of one pair, and their gradients with respect to the output.

    python -m eval.devices --device cuda

Relative distances from float32 on the CPU, in float32 (convolutions as torch sets them: in TF32 on a GPU) and bfloat16;
of gradients, of their Euclidean norm. The images are smooth noise of 224 px. Backbones of DINO's names have random
weights here.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from splice_ff.benchmark import make_backbone
from splice_ff.commands._options import Device, errors, find_device
from splice_ff.losses import SpliceLoss
from splice_ff.utils.markdown import markdown_table
from splice_ff.vit.features import ViTFeatures

SIZE = 224
HEADER = ("backbone", "where", "loss", "gradient")


def main(
    device: Device = None,
    backbone: Annotated[list[str] | None, typer.Option(help="By default vit_s14_robust and dino_vits8.")] = None,
    debug: bool = False,
) -> None:
    """Compare losses and gradients across devices and precisions."""
    with errors(debug):
        where = find_device(device)
        rows = []
        for name in backbone or ["vit_s14_robust", "dino_vits8"]:
            torch.manual_seed(0)
            vit = make_backbone(name)
            loss, gradient = loss_and_gradient(vit, torch.device("cpu"), torch.float32)
            for dtype in (torch.float32, torch.bfloat16):
                there, gradient_there = loss_and_gradient(vit, where, dtype)
                apart = (gradient_there - gradient).norm() / gradient.norm()
                label = f"{where.type} {str(dtype).removeprefix('torch.')}"
                rows.append((name, label, f"{abs(there / loss - 1):.1e}", f"{apart.item():.1e}"))
        typer.echo(markdown_table(HEADER, rows, numbers_from=2))


def loss_and_gradient(vit: ViTFeatures, device: torch.device, dtype: torch.dtype) -> tuple[float, Tensor]:
    """The weighted sum of structure and appearance loss, and its gradient (1, 3, S, S), on the CPU."""
    random = torch.Generator().manual_seed(0)
    small = torch.rand(3, 3, 7, 7, generator=random)
    smooth = F.interpolate(small, (SIZE, SIZE), mode="bicubic", align_corners=False).clamp(0, 1).to(device)
    output = smooth[:1].clone().requires_grad_(True)
    loss = SpliceLoss(vit.to(device))
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        structure, appearance = loss.targets(smooth[1:2], smooth[2:])
        total = loss(output, structure, appearance).total
    (gradient,) = torch.autograd.grad(total, output)
    return total.item(), gradient.float().cpu()


if __name__ == "__main__":
    typer.run(main)
