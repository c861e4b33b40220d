"""How far each preset brings the losses, and in what time.

    python -m eval.convergence run ROWS.jsonl --preset paper --steps 2000 PAIR_FOLDER...
    python -m eval.convergence run ROWS.jsonl --preset fast PAIR_FOLDER...
    python -m eval.convergence table ROWS.jsonl

A pair folder holds structure.* and appearance.*. Losses are those of the whole images, without augmentation, in
float32, weighted as published. Seconds are CPU seconds of one thread, so that runs can share a machine.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from splice_ff.images import load_image, save_image
from splice_ff.losses import Losses
from splice_ff.per_pair.optimizer import EVALUATE_EVERY, PairOptimizer, PairResult
from splice_ff.per_pair.recipes import Recipe, make_recipe
from splice_ff.vit.weights import load_backbone

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def run(
    rows: Path,
    pairs: list[Path],
    preset: str = "fast",
    steps: int | None = None,
    generator: str | None = None,
    backbone: str = "vit_mini",
    size: int = 192,
    seed: int = 0,
) -> None:
    """Optimize pairs and append a row each, but for pairs that have one. Writes the images beside the rows."""
    torch.set_num_threads(1)
    recipe = make_recipe(preset, steps=steps, size=size, generator=generator, precision="fp32")
    recipe = replace(recipe, structure_weight=1.0)  # all presets minimize one sum, and their totals can be compared
    label = f"{preset}-{recipe.generator}-{recipe.steps}-{size}-{seed}"
    done = {(row["pair"], row["label"]) for row in read(rows)} if rows.exists() else set()
    for folder in pairs:
        if (folder.name, label) in done:
            continue
        structure, appearance = (load_image(next(folder.glob(f"{k}.*"))).rgb for k in ("structure", "appearance"))
        result, seconds, curve = _optimize(structure, appearance, backbone, recipe, seed)
        row = {
            "pair": folder.name, "label": label, "preset": preset, "steps": recipe.steps,
            "seconds": seconds, "losses": result.losses, "curve": curve,
        }  # fmt: skip
        save_image(rows.parent / f"{folder.name}-{label}.png", result.image)
        with rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        typer.echo(f"{folder.name} {label}: {seconds:.0f} s, {result.losses}")


def _optimize(
    structure: Tensor, appearance: Tensor, backbone: str, recipe: Recipe, seed: int
) -> tuple[PairResult[Tensor], float, list[tuple[int, float, float]]]:
    """The result, its CPU seconds, and step, seconds and best total at every evaluation."""
    start = time.process_time()
    curve = []

    def note(run: PairOptimizer, _: Losses) -> None:
        if run.step_count % EVALUATE_EVERY == 0:
            curve.append((run.step_count, time.process_time() - start, run.best_losses["total"]))

    optimizer = PairOptimizer(structure, appearance, load_backbone(backbone), recipe, seed=seed)
    optimizer.run(note)
    return optimizer.result(), time.process_time() - start, curve


@app.command()
def table(rows: Annotated[Path, typer.Argument()], reference: str = "paper") -> None:
    """Best total of the reference preset, and when each other run fell below it."""
    every = read(rows)
    for base in (row for row in every if row["preset"] == reference):
        goal = base["losses"]["total"]
        typer.echo(f"{base['pair']}: {base['label']} {goal:.4f} in {base['seconds']:.0f} s {_terms(base)}")
        for row in (r for r in every if r["pair"] == base["pair"] and r is not base):
            reached = next((seconds for _, seconds, total in row["curve"] if total <= goal), None)
            when = (
                f"there after {reached:.0f} s, {reached / base['seconds']:.2f} of the time" if reached else "not there"
            )
            typer.echo(
                f"    {row['label']}: {row['losses']['total']:.4f} in {row['seconds']:.0f} s {_terms(row)}; {when}"
            )


def read(rows: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]


def _terms(row: dict[str, Any]) -> str:
    return "({structure:.4f} {appearance:.4f} {identity:.4f})".format(**row["losses"])


if __name__ == "__main__":
    app()
