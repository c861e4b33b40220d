"""What a run will take, from its settings alone: no image is opened, no weights are loaded, no memory is filled."""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from splice_ff.networks.amortized import AmortizedGenerator, GeneratorConfig
from splice_ff.networks.cross_attention_unet import SIZES
from splice_ff.training.batches import Batch
from splice_ff.training.config import TrainingConfig
from splice_ff.training.losses import PairLosses
from splice_ff.utils.attention import fused_attention
from splice_ff.vit.features import ViTFeatures, store_matrices_in
from splice_ff.vit.inputs import ViTInput
from splice_ff.vit.weights import backbone_without_weights

GIB = 2**30
ATTENTION = {  # of which the counter knows the GPU's kernels only; it passes shapes
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: (
        sdpa_backward_flop_count(grad, q, k, v)
    ),
}
REST, BACKWARD, OPTIMIZER = "images, features and losses", "gradients", "AdamW's state"


@dataclass(frozen=True)
class Estimate:
    """Of a run, for one process.

    Attributes:
        steps: updates of the weights.
        images: seen in all of them, with repetitions.
        generator_parameters, backbone_parameters: trained, and frozen.
        gmacs: billions of multiplications and additions of a step, all of its batches, forward and backward.
        peak_memory: bytes at most, in weights, gradients, optimizer and activations of a batch; a GPU needs 1 to 2 GiB
            more, for the allocator, cuDNN and the driver.
        memory_by_part: of these, what each part of the step has made: bytes by name, largest first.
    """

    steps: int
    images: int
    generator_parameters: int
    backbone_parameters: int
    gmacs: float
    peak_memory: int
    memory_by_part: Mapping[str, int]

    def lines(self, operations_per_second: float) -> list[str]:
        """For people; the rate is that of matrix products on the device, in the run's precision."""
        seconds = 2e9 * self.gmacs / operations_per_second
        return [
            f"steps                {self.steps}",
            f"images               {self.images} seen by each process",
            f"parameters           {self.generator_parameters / 1e6:.1f} M trained, "
            f"{self.backbone_parameters / 1e6:.1f} M frozen",
            f"work of a step       {self.gmacs:.0f} GMACs, forward and backward",
            f"peak memory          {self.peak_memory / GIB:.1f} GiB of tensors (simulated); a GPU needs 1 to 2 more",
            *(f"  {part:<28}{size / GIB:.2f}" for part, size in self.memory_by_part.items() if size > GIB / 200),
            f"time at the least    {seconds:.2f} s a step, {seconds * self.steps / 3600:.1f} h in all, at the rate of "
            "this device's matrix products",
        ]

    def to_dict(self) -> dict[str, Any]:
        """By name."""
        return asdict(self)


class _WholeImages(PairLosses):
    """With the largest view instead of a random one."""

    def views(self, step: int, *batches: Tensor) -> tuple[ViTInput, list[Tensor]]:
        """All of the images at full resolution; other tensors than before, as views are."""
        if self.config.loss.views == "crop" and self.config.loss.crop == 1:
            return super().views(step, *batches)
        return self.vit_input, [images[...] for images in batches]

    def appearance_view(self, step: int, images: torch.Tensor) -> torch.Tensor:
        """Likewise."""
        return images[...]


class _PeakMemory(TorchDispatchMode):
    """Bytes of all storages that are alive at once, at most, and which part of the step made them.

    Args:
        parts: modules, with the name that what they make is counted under; those inside others come after them.
    """

    def __init__(self, parts: Iterable[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self.part = REST
        self.now, self.at_peak = Counter[str](), Counter[str]()
        self._held: dict[int, weakref.ref[Any]] = {}
        self._outer: list[str] = []
        for name, module in parts:
            module.register_forward_pre_hook(partial(self._enter, name))
            module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, name: str, *_: Any) -> None:
        self._outer.append(self.part)
        if self.part != BACKWARD:  # where activations are computed again, they are
            self.part = name

    def _leave(self, *_: Any) -> None:
        self.part = self._outer.pop()

    def hold(self, tensors: Iterable[Any], part: str | None = None) -> None:
        """Count the storages of tensors, until they are freed."""
        part = part or self.part
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if (known := self._held.get(id(storage))) is None or known() is not storage:
                self.now[part] += storage.nbytes()
                self._held[id(storage)] = weakref.ref(storage)
                weakref.finalize(storage, self._free, part, storage.nbytes())
        if self.now.total() > self.at_peak.total():
            self.at_peak = self.now.copy()

    def _free(self, part: str, size: int) -> None:
        self.now[part] -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.hold(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result


def _parts_of(generator: AmortizedGenerator, backbone: ViTFeatures) -> list[tuple[str, nn.Module]]:
    """What is told apart in the table of memory."""
    down, up = generator.unet.down, reversed(generator.unet.up)
    stages = [(f"UNet at 1/{2 ** (i + 1)}", stage) for i, stage in enumerate(down)]
    stages += [(f"UNet at 1/{2**i}", stage) for i, stage in enumerate(up)]
    return [("ViT", backbone), ("UNet between its scales", generator.unet), *stages, ("encoder", generator.encoder)]


def dry_run(config: TrainingConfig) -> Estimate:
    """Take a step of a run on tensors that have shapes but no numbers (`FakeTensorMode`).

    Raises:
        InputError: an unknown backbone.
    """
    settings, data = config.optimizer, config.data
    count, side = settings.batch_size, data.size
    is_mixed = config.run.precision == "bf16"
    backbone = backbone_without_weights(config.backbone.name)
    shape = GeneratorConfig(backbone.depth, backbone.width, SIZES[config.generator.size], config.generator.context)
    with torch.device("meta"):
        generator = AmortizedGenerator(shape)
    generator.unet.checkpointing = config.run.gradient_checkpointing
    average = copy.deepcopy(generator).requires_grad_(False)
    held: dict[str, nn.Module] = {
        "generator's weights": generator, "its average": average, "ViT's weights": backbone,
    }  # fmt: skip
    if is_mixed:  # checkpoints are written with the weights as they were, which the trainer keeps beside these
        held["ViT's weights in float32"] = copy.deepcopy(backbone)
        store_matrices_in(backbone, torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for network in held.values():
            network.to_empty(device="cpu")
        adam = torch.optim.AdamW(generator.parameters())
        first, second = torch.rand(2, count, 3, side, side).unbind()
        identity = slice(0, count, config.loss.identity_every)
        batch = Batch(first, second, 0, identity, 1.0)
        losses = _WholeImages(config, generator, backbone)

        memory = _PeakMemory(_parts_of(generator, backbone))
        work = FlopCounterMode(display=False, custom_mapping=ATTENTION)
        for part, module in held.items():
            memory.hold(module.state_dict().values(), part)
        with memory, fused_attention():
            for _ in range(2):  # the optimizer's state comes with the first
                with work:  # counts anew
                    with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
                        splice, terms = losses(generator, batch, 0)
                        total = splice.total + sum(terms.values())
                    memory.part = BACKWARD
                    total.backward()
                del total, splice, terms
                memory.part = OPTIMIZER
                adam.step()
                adam.zero_grad()
                memory.part = REST
    batches = settings.gradient_accumulation_steps
    return Estimate(
        steps=settings.steps,
        images=2 * count * batches * settings.steps,
        generator_parameters=sum(p.numel() for p in generator.parameters()),
        backbone_parameters=sum(p.numel() for p in backbone.parameters()),
        gmacs=work.get_total_flops() / 2 / 1e9 * batches,
        peak_memory=memory.at_peak.total(),
        memory_by_part=dict(memory.at_peak.most_common()),
    )
