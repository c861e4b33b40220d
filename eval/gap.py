"""How much of the gap between copying and per-pair optimisation the one-shot answer closes, and a few steps from it.

    python -m eval.gap run ROWS.jsonl ../shared/data/pairs --method fast --limit 40
    python -m eval.gap run ROWS.jsonl ../shared/data/pairs --method one-shot --method refine:100 --limit 40
    python -m eval.gap table ROWS.jsonl

    gap closed = (total of copying - total of the method) / (total of copying - total of `fast`), of means over pairs

Losses are those of the whole pictures, without augmentation, at one working size for all methods. Seconds are CPU
seconds of one thread, so that runs can share a machine. Pairs are taken from the domains in turn, those with a
published result first; rows that are there are not made again.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from eval.convergence import read
from splice_ff.backbone import ViTFeatures
from splice_ff.evaluation.statistics import gap_closed
from splice_ff.images import load_image, save_image
from splice_ff.losses import SpliceLoss
from splice_ff.pair import make_recipe
from splice_ff.pair_optimizer import PairOptimizer, working_size
from splice_ff.pipeline import SpliceFF
from splice_ff.refine import refiner

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
Found = tuple[dict[str, float], Tensor]


@app.command()
def run(
    rows: Path,
    pairs: Path,
    method: Annotated[list[str], typer.Option(help="copy, fast, one-shot, refine:STEPS.")],
    model: str = "pets-tiny",
    domain: Annotated[list[str] | None, typer.Option(help="Of pairs.json.")] = None,
    limit: int = 40,
    size: int = 128,
    backbone: str = "vit_mini",
) -> None:
    """Append a row for each pair and method; pictures lie beside the rows."""
    torch.set_num_threads(1)
    done = {(row["pair"], row["method"]) for row in read(rows)} if rows.exists() else set()
    one_shot = SpliceFF.from_pretrained(model) if {"copy", "fast"} - {*method} and method != ["fast"] else None
    vit = one_shot.backbone if one_shot else ViTFeatures.from_name(backbone)
    for name, kind in _choose(pairs, domain or ["cat", "dog", "cross"], limit):
        structure, appearance = (
            load_image(next((pairs / name).glob(f"{k}.*"))).rgb for k in ("structure", "appearance")
        )
        for how in method:
            if (name, how) in done:
                continue
            start = time.process_time()
            losses, picture = _methods(how, vit, one_shot, size)(structure, appearance)
            row = {
                "pair": name,
                "domain": kind,
                "method": how,
                "seconds": time.process_time() - start,
                "losses": losses,
            }
            save_image(rows.parent / f"{name}-{how.replace(':', '-')}.png", picture)
            with rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            typer.echo(f"{name} {how}: {losses['total']:.4f} in {row['seconds']:.1f} s")


@app.command()
def table(rows: Path) -> None:
    """Mean totals, gap closed (with a bootstrap interval) and seconds, over the pairs that every method has."""
    by_method: dict[str, dict[str, dict[str, Any]]] = {}
    for row in read(rows):
        by_method.setdefault(row["method"], {})[row["pair"]] = row
    common = sorted(set.intersection(*(set(found) for found in by_method.values())))
    totals = {m: {pair: found[pair]["losses"]["total"] for pair in common} for m, found in by_method.items()}
    domains = sorted({by_method["fast"][pair]["domain"] for pair in common})
    typer.echo(f"{len(common)} pairs: mean total; gap closed in all (95 % interval) and by domain; median CPU seconds")
    for method, found in by_method.items():

        def closed(pairs: list[str], ours: dict[str, float] = totals[method]) -> str:
            gap = gap_closed({p: ours[p] for p in pairs}, totals["copy"], totals["fast"])
            return "-" if gap is None else f"{gap.value:.2f} ({gap.low:.2f} to {gap.high:.2f})"

        by_domain = (f"{d} {closed([p for p in common if found[p]['domain'] == d])}" for d in domains)
        seconds = statistics.median(found[pair]["seconds"] for pair in common)
        total = statistics.fmean(totals[method].values())
        typer.echo(f"{method:12} {total:.4f}  {closed(common)}  {'  '.join(by_domain)}  {seconds:.1f} s")


def _methods(how: str, vit: ViTFeatures, model: SpliceFF | None, size: int) -> Callable[[Tensor, Tensor], Found]:
    def copy(structure: Tensor, appearance: Tensor) -> Found:
        loss = SpliceLoss(vit)
        small = [working_size(x, size) for x in (structure, appearance)]
        with torch.no_grad():
            target, look = loss.targets(*small)
            return loss(small[0], target, look, small[1]).floats(), structure

    def optimized(optimizer: PairOptimizer) -> Found:
        while not optimizer.done:
            optimizer.step()
        result = optimizer.result()
        return result.losses, result.image

    def fast(structure: Tensor, appearance: Tensor) -> Found:
        return optimized(PairOptimizer(structure, appearance, vit, make_recipe("fast", size=size, precision="fp32")))

    def one_shot(structure: Tensor, appearance: Tensor) -> Found:
        assert model is not None
        small = [working_size(x, size) for x in (structure, appearance)]
        loss = SpliceLoss(vit)
        output, identity = model(*small), model(small[1], small[1])
        with torch.no_grad():
            target, look = loss.targets(*small)
            return loss(output, target, look, identity).floats(), output

    def refined(structure: Tensor, appearance: Tensor) -> Found:
        assert model is not None
        return optimized(refiner(model, structure, appearance, steps=int(how.partition(":")[2]), size=size))

    return {"copy": copy, "fast": fast, "one-shot": one_shot}.get(how, refined)


def _choose(pairs: Path, domains: list[str], limit: int) -> Iterator[tuple[str, str]]:
    known = json.loads((pairs / "pairs.json").read_text())
    known.sort(key=lambda pair: "splice" not in pair.get("results", {}))
    each = [[(p["name"], p["domain"]) for p in known if p["domain"] == domain] for domain in domains]
    in_turn = chain.from_iterable(zip_longest(*each))
    return (pair for pair, _ in zip((p for p in in_turn if p), range(limit), strict=False))


if __name__ == "__main__":
    app()
