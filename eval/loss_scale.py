"""Whether training's defaults depend on the scale of a backbone's losses: short runs on random weights, side by side.

    python -m eval.loss_scale photos/ -o runs/loss-scale

Features that are s times as large make the appearance and identity losses s^2 times as large, and the gradients of the
generator with them (its inputs are normalized). AdamW is blind to a constant factor but for its epsilon; clipping
at a fixed norm is not.
Each run starts from the same weights and sees the same pairs. Published weights and settings of a config apply, but for
sizes. The table gives the gradients' norms before clipping, how many steps were clipped, the held-out loss as a share
of copying's, and memory and speed.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import save_file

from splice_ff.training.config import TrainingConfig, load_config
from splice_ff.training.runtime import next_usual_norm
from splice_ff.training.trainer import Trainer
from splice_ff.utils.config_file import find_config
from splice_ff.utils.markdown import markdown_table
from splice_ff.vit.spec import LossWeights
from splice_ff.vit.weights import backbone_without_weights

CLIPPING = {"norm 1": "optimizer.max_grad_ratio=null", "ratio 2": "optimizer.max_grad_ratio=2"}
HEADER = ("clipped at", "losses times", "norm, median", "largest", "steps clipped", "of copying", "peak GiB", "pairs/s")


def main(
    source: Annotated[str, typer.Argument(help="Images, as `data.source` names them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the runs.")] = Path("runs/loss-scale"),
    config: Annotated[str, typer.Option(help="Whose settings.")] = "dino-8gb",
    steps: Annotated[int, typer.Option(help="Of each of the four runs.")] = 60,
    factor: Annotated[float, typer.Option(help="Of all losses, in two of them.")] = 1e-4,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, in all of them.")] = None,
) -> None:
    """Train four short runs and print a table."""
    weights, rows = output / "random.safetensors", []
    for clipping, override in CLIPPING.items():
        for times in (1.0, factor):
            own = [
                f"data.source={source}", f"output={output / clipping.replace(' ', '-')}-{times:g}", override,
                f"backbone.weights={weights}", f"optimizer.steps={steps}", f"optimizer.warmup_steps={steps // 10}",
                "run.log_every=1", f"run.validate_every={steps}", "run.trackers=[]",
                *(f"loss.{name}={times * weight}" for name, weight in asdict(LossWeights()).items()),
            ]  # fmt: skip
            settings = load_config(find_config(config), [*SMALL, *(overrides or ()), *own])
            if not weights.exists():
                write_random_weights(settings.backbone.name, weights)
            rows.append([clipping, f"{times:g}", *train(settings)])
    typer.echo(markdown_table(HEADER, rows, 1))


SMALL = (
    "data.size=64", "data.workers=0", "data.preload=true", "loss.vit_size=128", "generator.size=tiny",
    "optimizer.batch_size=4", "optimizer.gradient_accumulation_steps=1", "run.precision=fp32", "run.compile=false",
    "run.validation_pairs=16",
)  # fmt: skip
"""For a CPU."""


def write_random_weights(backbone: str, file: Path) -> None:
    """Weights as a ViT's are initialized, but for biases, all 0 then: a trained one's are not."""
    random = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in backbone_without_weights(backbone).vit.state_dict().items():
        noise = torch.randn(tensor.shape, generator=random)
        is_gain = tensor.ndim == 1 and name.endswith("weight")
        fan = tensor[0].numel() ** -0.5 if tensor.ndim in (2, 4) else 0.02
        state[name] = 1 + 0.02 * noise if is_gain else fan * noise
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, file)


def train(settings: TrainingConfig) -> Sequence[str]:
    """Run it, and read its log: all but the first two cells of a row."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()  # every run has its own
    Trainer(settings).run()
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in (settings.output / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    steps = [line for line in lines if line["kind"] == "train"]
    held_out = [line for line in lines if line["kind"] == "validation"]
    norms = [line["gradient_norm"] for line in steps]
    return [
        f"{statistics.median(norms):.3g}",
        f"{max(norms):.3g}",
        f"{clipped(norms, settings) / len(norms):.0%}",
        f"{held_out[-1]['gap_left']:.4f}" if held_out and "gap_left" in held_out[-1] else "–",
        f"{max(line['memory_gib'] for line in steps):.2f}",
        f"{statistics.median(line['pairs_per_second'] for line in steps):.2f}",
    ]


def clipped(norms: Sequence[float], settings: TrainingConfig) -> int:
    """How many of a run's gradients were scaled down."""
    optimizer = settings.optimizer
    if not optimizer.max_grad_ratio:
        return sum(norm > optimizer.max_grad_norm for norm in norms)
    usual, count = norms[0], 0
    for norm in norms[1:]:
        count += norm > optimizer.max_grad_ratio * usual
        usual = next_usual_norm(usual, norm, optimizer.max_grad_ratio)
    return count


if __name__ == "__main__":
    typer.run(main)
