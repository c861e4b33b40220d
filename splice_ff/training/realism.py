"""An adversarial loss, which Splice does not have: a discriminator tells photographs from outputs (`loss.realism`).

The hinge losses of a discriminator D (arXiv:1705.02894), for a photograph x with its own [CLS] token t(x), and an
output G(s, a) with the token of the appearance image:

    L_D = max(0, 1 - D(x, t(x))) + max(0, 1 + D(G(s, a), t(a)))        L_G = -D(G(s, a), t(a))

means over places, summed over the scales of `splice_ff.networks.discriminator`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from splice_ff.errors import InputError
from splice_ff.networks.discriminator import ProjectedDiscriminator
from splice_ff.networks.teachers import load_teacher
from splice_ff.training.config import LossConfig

LEARNING_RATE = 1e-3
"""The discriminator's: constant, as in most adversarial training."""
MAX_GRAD_NORM = 10.0


class Realism:
    """The discriminator, trained beside the generator.

    Args:
        settings: `realism` and `realism_network`.
        width: D of the backbone's [CLS] tokens.
        accelerator: devices and processes.

    Raises:
        InputError: a frozen network that is not to be had.
    """

    def __init__(self, settings: LossConfig, width: int, accelerator: Accelerator) -> None:
        self.weight, self.accelerator = settings.realism, accelerator
        try:
            self.network = load_teacher(settings.realism_network).to(accelerator.device)
        except InputError as error:
            raise InputError(f"loss.realism_network: {error}") from error
        self.discriminator = ProjectedDiscriminator(self.network.channels, width).to(accelerator.device)
        trained = [p for p in self.discriminator.parameters() if p.requires_grad]
        adam = torch.optim.AdamW(trained, LEARNING_RATE, betas=(0.0, 0.99), weight_decay=0.0, fused=True)
        self.model, self.adam = accelerator.prepare(self.discriminator, adam)
        self._trained = trained
        self._seen: tuple[Tensor, Tensor, list[Tensor], Tensor] | None = None

    def __call__(self, photographs: Tensor, own_cls: Tensor, outputs: Tensor, cls: Tensor) -> Tensor:
        """The generator's loss, weighted; what the discriminator will learn from is remembered for `step`.

        Args:
            photographs: (B, 3, S, S) in [0, 1].
            own_cls: their deepest [CLS] tokens, (B, D).
            outputs: (B', 3, S, S) in [0, 1], with gradient.
            cls: deepest [CLS] tokens of the appearance images, (B', D).
        """
        maps = self.network.maps(outputs)
        self._seen = photographs, own_cls, [scale.detach() for scale in maps], cls
        for parameter in self._trained:
            parameter.requires_grad_(False)
        logits = self.discriminator(maps, cls)  # not the one that exchanges gradients
        for parameter in self._trained:
            parameter.requires_grad_(True)
        return -self.weight * torch.stack([scale.float().mean() for scale in logits]).sum()

    def step(self) -> Tensor:
        """An update of the discriminator's weights from what the last call saw. Returns its loss, a scalar.

        Gradients that are not finite are left out, in all processes alike.
        """
        assert self._seen is not None
        photographs, own_cls, output_maps, cls = self._seen
        count = len(photographs)
        with self.accelerator.autocast():
            maps = [torch.cat(pair) for pair in zip(self.network(photographs), output_maps, strict=True)]
            logits = self.model(maps, torch.cat([own_cls, cls]))
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
