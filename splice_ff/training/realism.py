"""An adversarial loss, which Splice does not have: a discriminator tells photographs from outputs (term `realism`).

It looks at maps of the frozen network that `load_realism_network` gives, as the kernel distance does.

The hinge losses of a discriminator D (arXiv:1705.02894), for a photograph x with its own [CLS] token t(x), and an
output G(s, a) with the token of the appearance image:

    L_D = max(0, 1 - D(x, t(x))) + max(0, 1 + D(G(s, a), t(a)))        L_G = -D(G(s, a), t(a))

means over places, summed over the scales of `splice_ff.networks.discriminator`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from splice_ff.errors import InputError
from splice_ff.networks.discriminator import ProjectedDiscriminator
from splice_ff.networks.teachers import Teacher, load_teacher
from splice_ff.training.config import LossConfig

LEARNING_RATE = 1e-3
"""The discriminator's: constant, as in most adversarial training."""
MAX_GRAD_NORM = 10.0


def load_realism_network(settings: LossConfig, device: torch.device) -> Teacher | None:
    """The frozen network whose maps the discriminator and the kernel distance look at; None if there is neither.

    Raises:
        InputError: it is not to be had.
    """
    if not (settings.terms.get("realism") or settings.terms.get("kernel")):
        return None
    try:
        return load_teacher(settings.realism_network).to(device)
    except InputError as error:
        raise InputError(f"loss.realism_network: {error}") from error


class Realism:
    """The discriminator, trained beside the generator.

    Args:
        channels: of the frozen network's maps, finest first.
        width: D of the backbone's [CLS] tokens.
        accelerator: devices and processes.
    """

    def __init__(self, channels: Sequence[int], width: int, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.discriminator = ProjectedDiscriminator(channels, width).to(accelerator.device)
        trained = [p for p in self.discriminator.parameters() if p.requires_grad]
        adam = torch.optim.AdamW(trained, LEARNING_RATE, betas=(0.0, 0.99), weight_decay=0.0, fused=True)
        self.model, self.adam = accelerator.prepare(self.discriminator, adam)
        self._trained = trained
        self._seen: tuple[int, list[Tensor], Tensor] | None = None

    def __call__(
        self, photographs: Sequence[Tensor], own_cls: Tensor, outputs: Sequence[Tensor], cls: Tensor
    ) -> Tensor:
        """The generator's loss; what the discriminator will learn from is remembered for `step`.

        Args:
            photographs: their maps, (B, C, h, w) each, finest first.
            own_cls: their deepest [CLS] tokens, (B, D).
            outputs: maps of outputs, (B', C, h, w), with gradient.
            cls: deepest [CLS] tokens of the appearance images, (B', D).
        """
        both = [torch.cat([x, y.detach()]) for x, y in zip(photographs, outputs, strict=True)]
        self._seen = len(own_cls), both, torch.cat([own_cls, cls])
        for parameter in self._trained:
            parameter.requires_grad_(False)
        logits = self.discriminator(outputs, cls)  # not the one that exchanges gradients
        for parameter in self._trained:
            parameter.requires_grad_(True)
        return -torch.stack([scale.float().mean() for scale in logits]).sum()

    def step(self) -> Tensor:
        """An update of the discriminator's weights from what the last call saw. Returns its loss, a scalar.

        Gradients that are not finite are left out, in all processes alike.
        """
        assert self._seen is not None
        count, maps, cls = self._seen
        with self.accelerator.autocast():
            logits = self.model(maps, cls)
        hinges = [F.relu(1 - x[:count].float()).mean() + F.relu(1 + x[count:].float()).mean() for x in logits]
        loss = torch.stack(hinges).sum()
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients:
            norm = self.accelerator.clip_grad_norm_(self._trained, MAX_GRAD_NORM)
            if torch.isfinite(norm):
                self.adam.step()
        self.adam.zero_grad()
        self._seen = None
        return loss.detach()
