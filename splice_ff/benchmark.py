"""Speed and memory: the per-pair step beside a naive one, and a one-shot model as it is used, in fresh processes."""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from splice_ff.errors import InputError
from splice_ff.losses import appearance_loss, identity_loss, structure_loss
from splice_ff.networks.skip_unet import CHANNELS, SKIP_CHANNELS
from splice_ff.one_shot.pipeline import SpliceFF
from splice_ff.one_shot.refine import refine
from splice_ff.per_pair.optimizer import PairOptimizer
from splice_ff.per_pair.recipes import MIN_SIZE, PRESETS, make_recipe
from splice_ff.utils import machine
from splice_ff.utils.console import progress_bar
from splice_ff.utils.files import check_place, write_file
from splice_ff.utils.markdown import markdown_table
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.inputs import PUBLISHED
from splice_ff.vit.spec import BACKBONES, VIT_SIZE
from splice_ff.vit.weights import load_backbone

PARTS = ("step", "usage", "memory")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EMULATED = 0.25
"""Share of float32's rate below which bfloat16 is emulated, and not worth the time that measuring it takes."""
STEP_BACKBONES = {"cpu": ("dino_vits16", "dino_vits8"), "gpu": ("dino_vits16", "dino_vits8", "dino_vitb8")}
"""With random weights: speed does not depend on them. On two cores all three would take five minutes."""
IMAGES = ((256, 256), (2160, 3840))
"""Heights and widths of structure images for one shot; the first is refined too."""
APPEARANCE = (384, 512)
REFINED_AT = (160, 224)
REFINING_STEPS = 100
Row = dict[str, Any]


def benchmark(
    parts: Sequence[str] = (),
    *,
    backbones: Sequence[str] = (),
    size: int | None = None,
    repeats: int = 3,
    model: str = "everyday",
    device: torch.device | str | None = None,
    output: Path | None = None,
    quiet: bool = False,
    on_table: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Measure, and say each part's table as soon as it is known.

    Args:
        parts: of `PARTS`; all of them if none is named. step: seconds of a per-pair step; usage: seconds and memory of
            one shot and of refining; memory: of a per-pair step whose ViT sees 360x480 pixels.
        backbones: of step and memory; known names, with random weights, or folders.
        size: side, in pixels, of the images of step and usage; some usual ones if None.
        repeats: rounds, whose medians are shown.
        model: of usage.
        device: where to compute; a GPU by default, if there is one.
        output: a JSON file, written after each part.
        quiet: no progress bars.
        on_table: called with the heading, then with each part as Markdown.

    Returns:
        Machine, version, rates of matrix products, and the rows of each part, for JSON.

    Raises:
        InputError: an unknown part, a backbone, a model, a number or a place that cannot be used.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise InputError(f"unknown part '{unknown[0]}'. Known: {', '.join(PARTS)}")
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, not {repeats}")
    if size is not None and size < MIN_SIZE:
        raise InputError(f"size must be at least {MIN_SIZE} pixels, not {size}")
    if output:
        check_place(output)
    where = torch.device(device) if device else machine.default_device()
    names = backbones or STEP_BACKBONES["cpu" if where.type == "cpu" else "gpu"]
    for name in names:
        if not isinstance(make_backbone(name).vit, timm.models.VisionTransformer):
            raise InputError(f"{name}: the naive step is written for plain ViTs")
    rates = measure_rates(where)
    found: dict[str, Any] = {
        "machine": machine.describe(where), "version": machine.version(), "operations_per_second": rates, "parts": {},
    }  # fmt: skip
    shown = ", ".join(f"{rate / 1e9:.3g} GFLOP/s {name}" for name, rate in rates.items())
    on_table(f"{found['machine']}; splice-ff {found['version']}\nmatrix products: {shown}\n")
    works: dict[str, Callable[[], Iterator[Row]]] = {
        "step": lambda: _steps(names, size or 256, rates, repeats, where, quiet),
        "usage": lambda: _usage(model, [(size, size)] if size else IMAGES, repeats, where, quiet),
        "memory": lambda: _memory(names[-1:], where, quiet),
    }
    for part in parts or PARTS:
        rows = list(works[part]())
        found["parts"][part] = rows
        on_table(f"### {TITLES[part].format(repeats=repeats)}\n\n{_table(rows)}\n")
        if output:
            write_file(output, json.dumps(found, indent=1).encode())
    return found


TITLES = {
    "step": "Per-pair step: seconds, medians of {repeats}; naive/this are medians of the ratios, round by round",
    "usage": "As used: seconds a pair, one shot medians of {repeats}; GiB of fresh processes",
    "memory": "A `paper` step whose ViT sees all of 360x480 pixels: GiB of a fresh process",
}


def _table(rows: Sequence[Row]) -> str:
    shown = [{k: v for k, v in row.items() if not isinstance(v, list)} for row in rows]
    cells = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in shown]
    return markdown_table(tuple(shown[0]), cells, numbers_from=1, is_padded=True)


# -- the per-pair step beside a naive one -------------------------------------------------------------------------


def _steps(
    names: Sequence[str], size: int, rates: Mapping[str, float], repeats: int, device: torch.device, quiet: bool
) -> Iterator[Row]:
    for name in names:
        works = step_works(name, size, list(rates), device)
        operations = {step: count_operations(work) for step, work in works.items()}  # it sets the kernels up, too
        seconds: dict[str, list[float]] = {step: [] for step in works}
        with progress_bar(repeats * len(works), "step", quiet, 0, name) as bar:
            for _ in range(repeats):  # in turn: a drift in the machine's speed meets all alike
                for step, work in works.items():
                    seconds[step].append(seconds_of(work, device))
                    bar.update()
        for step, times in seconds.items():
            median, floor = statistics.median(times), operations[step] / rates[step.split()[1]]
            ratios = [naive / ours for naive, ours in zip(seconds["naive fp32"], times, strict=True)]
            yield {
                "backbone": name, "px": size, "step": step, "seconds": median, "slowest": max(times),
                "naive/this": statistics.median(ratios), "GFLOP": operations[step] / 1e9, "floor": floor,
                "floor/time": floor / median, "all": times,
            }  # fmt: skip


def step_works(
    name: str, size: int, precisions: Sequence[str], device: torch.device
) -> dict[str, Callable[[], object]]:
    """The naive step and ours, by name ("paper bf16"), on random images of size x size."""
    torch.manual_seed(0)
    structure, appearance = torch.rand(2, 1, 3, size, size)
    backbone = make_backbone(name)
    vit = copy.deepcopy(backbone.vit)
    vit.set_input_size((VIT_SIZE, VIT_SIZE))
    naive = naive_step(vit.to(device), backbone.to(device), structure.to(device), appearance.to(device))
    works: dict[str, Callable[[], object]] = {"naive fp32": naive}
    for preset in PRESETS:
        for precision in precisions:
            # Every step alike: without the turns of the whole image, without copying, the identity loss at each.
            recipe = make_recipe(
                preset, precision=precision, copy_steps=0, whole_every=10**9, identity_every=1,
                views=min(PRESETS[preset].views, 2),
            )  # fmt: skip
            run = PairOptimizer(structure, appearance, backbone, replace(recipe, size=None), device=device)
            run.step()  # the first one sees the whole image besides
            works[f"{preset} {precision}"] = run.step
    return works


def make_backbone(name: str) -> ViTFeatures:
    """A known ViT with random weights, or a bundled one or a folder with its own.

    Raises:
        InputError: neither known nor a folder.
    """
    if name not in BACKBONES:
        return load_backbone(name)
    return ViTFeatures(timm.create_model(BACKBONES[name].timm_name, num_classes=0), spec=BACKBONES[name])


class NaiveSkipUNet(nn.Module):
    """The published generator written plainly: BatchNorm over one image, concatenation, default memory layout."""

    def __init__(self) -> None:
        super().__init__()
        self.skips, self.down, self.joins, self.up = (nn.ModuleList() for _ in range(4))
        inputs, below = (3, *CHANNELS[:-1]), (*CHANNELS[1:], CHANNELS[-1])
        for ins, outs, deeper in zip(inputs, CHANNELS, below, strict=True):
            joined = SKIP_CHANNELS + deeper
            self.skips.append(_layer(ins, SKIP_CHANNELS, 1))
            self.down.append(nn.Sequential(_layer(ins, outs, 3, stride=2), _layer(outs, outs, 3)))
            self.joins.append(nn.BatchNorm2d(joined))
            self.up.append(nn.Sequential(_layer(joined, outs, 3), _layer(outs, outs, 1)))
        self.to_rgb = nn.Conv2d(CHANNELS[0], 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(1, 3, H, W) in [0, 1] to the same, in training mode."""
        skipped = []
        for skip, down in zip(self.skips, self.down, strict=True):
            skipped.append(skip(x))
            x = down(x)
        for i in reversed(range(len(self.up))):
            h, w = skipped[i].shape[-2:]
            x = F.interpolate(x, scale_factor=2, mode="bilinear")[..., :h, :w]
            x = self.up[i](self.joins[i](torch.cat([skipped[i], x], 1)))
        return torch.sigmoid(self.to_rgb(x))


def _layer(ins: int, outs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(ins, outs, kernel, stride, kernel // 2)
    return nn.Sequential(convolution, nn.BatchNorm2d(outs), nn.LeakyReLU(0.2, inplace=True))


def naive_step(vit: Any, backbone: ViTFeatures, structure: Tensor, appearance: Tensor) -> Callable[[], None]:
    """A function that takes one step on views (1, 3, H, W) in [0, 1], with one ViT pass per loss term and image.

    As in the original code: every pass runs the whole ViT with attention matrices in memory, its parameters require
    gradients, targets are encoded anew for each term, and images go through alone. `backbone` gives the normalization.
    """
    vit.requires_grad_(True)
    for block in vit.blocks:
        block.attn.fused_attn = False
    generator = NaiveSkipUNet().to(structure.device)
    adam = torch.optim.Adam(generator.parameters(), 2e-3, betas=(0.0, 0.99))

    def features(image: Tensor, module: nn.Module) -> Tensor:
        caught: list[Tensor] = []
        hook = module.register_forward_hook(lambda _module, _input, output: caught.append(output))
        vit((PUBLISHED.resize(image, backbone.patch_size) - backbone.mean) / backbone.std)
        hook.remove()
        return caught[0]

    def keys(image: Tensor) -> Tensor:
        last = vit.blocks[-1].attn
        qkv = features(image, last.qkv)
        return qkv.unflatten(-1, (3, last.num_heads, -1)).permute(2, 0, 3, 1, 4)[1]

    def cls(image: Tensor) -> Tensor:
        return features(image, vit.blocks[-1])[:, 0]

    def step() -> None:
        output, identity = generator(structure), generator(appearance)
        total = structure_loss(keys(output), keys(structure).detach())
        total = total + 10 * appearance_loss(cls(output), cls(appearance).detach())
        total = total + identity_loss(keys(identity), keys(appearance).detach())
        adam.zero_grad()
        total.backward()
        adam.step()

    return step


# -- as used, in fresh processes ----------------------------------------------------------------------------------


def _usage(
    model: str, images: Sequence[tuple[int, int]], repeats: int, device: torch.device, quiet: bool
) -> Iterator[Row]:
    SpliceFF.from_pretrained(model)  # a model that cannot be used is said before long work
    works = [("one shot", image, None, 0) for image in images]
    works += [(f"{REFINING_STEPS} refining steps", images[0], size, REFINING_STEPS) for size in REFINED_AT]  # type: ignore[misc]
    with progress_bar(len(works), "run", quiet) as bar:
        for what, (height, width), size, steps in works:
            found = in_fresh_process(use, model, height, width, size, steps, repeats, str(device))
            bar.update()
            yield {"what": what, "image": f"{width}x{height}"} | found


def use(model: str, height: int, width: int, size: int | None, steps: int, repeats: int, device: str) -> Row:
    """Seconds and bytes of one shot, or of refining, on images in memory, in this process."""
    splice = SpliceFF.from_pretrained(model, device=device)
    small = torch.rand(1, 3, 9, 16, generator=torch.Generator().manual_seed(0))  # as smooth as a photograph
    structure, appearance = (F.interpolate(small, shape, mode="bilinear") for shape in ((height, width), APPEARANCE))
    before = machine.peak_memory(splice.device)

    def work() -> None:
        if steps:
            refine(splice, structure, appearance, steps=steps, size=size)
        else:
            splice(structure, appearance, size=size, output_type="pt")

    seconds = [seconds_of(work, splice.device) for _ in range(1 if steps else repeats + 1)]
    seconds = seconds if steps else seconds[1:]
    return {
        "working size": size or splice.config.size, "seconds": statistics.median(seconds), "slowest": max(seconds),
        "GiB before": before / 2**30, "GiB at the peak": machine.peak_memory(splice.device) / 2**30, "all": seconds,
    }  # fmt: skip


def _memory(names: Sequence[str], device: torch.device, quiet: bool) -> Iterator[Row]:
    with progress_bar(len(names), "run", quiet) as bar:
        for name in names:
            found = in_fresh_process(memory_of_a_step, name, 360, str(device))
            bar.update()
            yield {"backbone": name} | found


def memory_of_a_step(backbone: str, size: int, device: str) -> Row:
    """Bytes before and at the peak of a per-pair step in this process, the ViT seeing all of size x 4/3 size pixels."""
    torch.manual_seed(0)
    whole = replace(PUBLISHED, size=size)
    recipe = replace(make_recipe("paper"), whole_every=1, cls_warmup=0, vit_input=whole)
    structure, appearance = torch.rand(2, 1, 3, size, size * 4 // 3)
    run = PairOptimizer(structure, appearance, make_backbone(backbone), recipe, device=device)
    before = machine.peak_memory(run.device)
    run.step()
    return {"GiB before": before / 2**30, "GiB at the peak": machine.peak_memory(run.device) / 2**30}


def in_fresh_process(work: Callable[..., Row], *arguments: Any) -> Row:
    """Call a function of a module in a new process: memory is a process's own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


# -- the floor ----------------------------------------------------------------------------------------------------


def measure_rates(device: torch.device) -> dict[str, float]:
    """Operations a second of large matrix products, by precision, without an emulated bfloat16."""
    rates = {name: machine.matmul_rate(device, dtype, 256) for name, dtype in DTYPES.items()}
    sensible = [name for name, rate in rates.items() if rate >= EMULATED * rates["fp32"]]
    return {name: max(machine.matmul_rate(device, DTYPES[name]) for _ in range(3)) for name in sensible}


def count_operations(work: Callable[[], object]) -> int:
    """Do the work once and count the floating-point operations (an addition and a multiplication are two).

    Matrix products, convolutions and attention count, forward and, where the work calls it, backward; what is done
    element by element (norms, activations, resizing, the optimizer) does not.
    """
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        work()
        return counter.get_total_flops()


# Older versions of torch count attention on GPUs only.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: (
        sdpa_backward_flop_count(grad, q, k, v)
    ),
}


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that it takes, until the device is done."""
    machine.synchronize(device)
    start = time.perf_counter()
    work()
    machine.synchronize(device)
    return time.perf_counter() - start
