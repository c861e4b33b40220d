"""What a run will take, from its settings alone: no image is opened, no weights are loaded, no memory is filled."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from splice_ff.networks.amortized import AmortizedGenerator, GeneratorConfig
from splice_ff.networks.cross_attention_unet import SIZES
from splice_ff.training.batches import Batch
from splice_ff.training.config import TrainingConfig
from splice_ff.training.losses import PairLosses
from splice_ff.vit.features import store_matrices_in
from splice_ff.vit.weights import backbone_without_weights

GIB = 2**30
ATTENTION = {  # of which the counter knows the GPU's kernels only; it passes shapes
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: (
        sdpa_backward_flop_count(grad, q, k, v)
    ),
}


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
    """

    steps: int
    images: int
    generator_parameters: int
    backbone_parameters: int
    gmacs: float
    peak_memory: int

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
            f"time at the least    {seconds:.2f} s a step, {seconds * self.steps / 3600:.1f} h in all, at the rate of "
            "this device's matrix products",
        ]

    def to_dict(self) -> dict[str, float]:
        """By name."""
        return asdict(self)


class _WholeImages(PairLosses):
    """With the largest crop instead of a random one."""

    def crop_box(self, side: int, step: int) -> tuple[int, int, int]:
        """All of the image."""
        return 0, 0, side


class _PeakMemory(TorchDispatchMode):
    """Bytes of all storages that are alive at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._held: dict[int, weakref.ref[Any]] = {}

    def hold(self, tensors: Iterable[Any]) -> None:
        """Count the storages of tensors, until they are freed."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if (known := self._held.get(id(storage))) is None or known() is not storage:
                self.now += storage.nbytes()
                self._held[id(storage)] = weakref.ref(storage)
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.now)

    def _free(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.hold(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result


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
    if is_mixed:
        store_matrices_in(backbone, torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in (backbone, generator, average):
            module.to_empty(device="cpu")
        adam = torch.optim.AdamW(generator.parameters())
        first, second = torch.rand(2, count, 3, side, side).unbind()
        identity = slice(0, count, config.loss.identity_every)
        batch = Batch(first, second, 0, identity, 1.0)
        losses = _WholeImages(config, generator, backbone)

        memory, work = _PeakMemory(), FlopCounterMode(display=False, custom_mapping=ATTENTION)
        memory.hold(tensor for module in (generator, average, backbone) for tensor in module.state_dict().values())
        with memory:
            for _ in range(2):  # the optimizer's state comes with the first
                with work:  # counts anew
                    with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
                        total = losses(generator, batch, 0)[0].total
                    total.backward()
                del total
                adam.step()
                adam.zero_grad()
    batches = settings.gradient_accumulation_steps
    return Estimate(
        steps=settings.steps,
        images=2 * count * batches * settings.steps,
        generator_parameters=sum(p.numel() for p in generator.parameters()),
        backbone_parameters=sum(p.numel() for p in backbone.parameters()),
        gmacs=work.get_total_flops() / 2 / 1e9 * batches,
        peak_memory=memory.peak,
    )
