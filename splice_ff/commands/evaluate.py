"""`splice-ff evaluate`: methods over pairs, with figures, tables and images."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from splice_ff.commands._options import Backbone, Debug, Device, Folder, Quiet, Weights, errors, find_device, say
from splice_ff.commands.transfer import DEFAULT_MODEL
from splice_ff.errors import InputError


def evaluate(
    pairs: Annotated[
        Path,
        typer.Argument(help="Folder of pair folders, or .csv or .jsonl of structure, appearance, name, domain."),
    ],
    output: Folder = Path("evaluation"),
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="copy, color, one-shot, one-shot+refine:STEPS, optimize-fast[:STEPS] or optimize-paper[:STEPS]; "
            "repeat for several. By default copy and color."
        ),
    ] = None,
    results: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER of images FOLDER/PAIR.* or FOLDER/PAIR/NAME.*; repeat for several."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Method that the others are compared with. By default the first results.")
    ] = None,
    baseline_pairs: Annotated[
        bool, typer.Option("--baseline-pairs", help="Only pairs of which the baseline has an image.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pairs.")] = None,
    model: Annotated[
        str, typer.Option(help="Of the one-shot methods: bundled, a folder, or a hub id.")
    ] = DEFAULT_MODEL,
    backbone: Backbone = None,
    weights: Weights = None,
    also_backbone: Annotated[
        list[str] | None, typer.Option(help="Also measure self-sim and CLS cosine with this one; repeat for several.")
    ] = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure methods on pairs: report.html with images, summary.md, summary.json, results.parquet.

    Stopped and started again, it goes on. On several GPUs: `accelerate launch --multi_gpu -m eval.evaluate` with the
    same arguments; in several processes on CPUs: `torchrun --nproc_per_node 2 -m eval.evaluate`.

    Example: `splice-ff evaluate pairs -o evaluation --method copy --method one-shot --results theirs=pictures`
    """  # fmt: skip
    from accelerate import PartialState

    from splice_ff.data.pair_list import read_pairs
    from splice_ff.evaluation import report, run
    from splice_ff.evaluation.measure import Measurer, metrics_of
    from splice_ff.evaluation.methods import parse_method, parse_results
    from splice_ff.evaluation.perceptual import find_lpips, find_set_distances
    from splice_ff.evaluation.summary import distances_of_sets, summarize
    from splice_ff.per_pair.optimize import choose_backbone, make_recipe
    from splice_ff.utils import machine
    from splice_ff.utils.files import check_place
    from splice_ff.vit.weights import load_backbone

    with errors(debug):
        check_place(output / "report.html")
        folders = [parse_results(text) for text in results or []]
        tasks = run.read_domains(pairs, read_pairs(pairs))
        where = find_device(device)
        state = PartialState(cpu=where.type == "cpu")
        where = state.device if state.num_processes > 1 else where
        vit, notice = choose_backbone(make_recipe("fast"), backbone, weights)
        if notice and state.is_main_process:
            say(f"note: {notice}")
        vit = vit.to(where)
        others = [load_backbone(name).to(where) for name in also_backbone or []]
        lpips, no_lpips = find_lpips(where)
        set_distances, no_sets = find_set_distances(where)
        measurer = Measurer(vit, others, lpips)
        methods = [parse_method(text, vit, model, where) for text in method or ["copy", "color"]] + folders
        names = [m.name for m in methods]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"method '{repeated[0]}' is given twice")
        baseline = baseline or (folders[0].name if folders else names[0])
        if baseline not in names:
            raise InputError(f"the baseline '{baseline}' is not among the methods: {', '.join(names)}")
        tasks = (run.with_picture_of(tasks, methods[names.index(baseline)]) if baseline_pairs else tasks)[:limit]
        if not tasks:
            raise InputError(f"{pairs}: no pairs of which '{baseline}' has an image")

        also = [other.name for other in others]
        measuring = {"backbone": vit.name, "backbone_sha256": vit.fingerprint}
        measuring |= {f"also {other.name}": other.fingerprint for other in others}
        measuring["lpips"] = "no" if lpips is None else "alex"
        with state.main_process_first():
            run.check_settings(output, measuring, methods)
        run.run(tasks, methods, measurer, output, quiet)
        if not state.is_main_process:
            return
        wanted = {task.pair.name for task in tasks}
        rows = [row for row in run.read_rows(output) if row["pair"] in wanted and row["method"] in names]
        settings = {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "machine": machine.describe(where),
            "version": machine.version(),
            "backbone": f"{vit.name} (SHA-256 {vit.fingerprint[:12]}…)",
            "other backbones": also,
            "not measured": [reason for reason in (no_lpips, no_sets) if reason],
        }
        sets = distances_of_sets(rows, names, output, set_distances) if set_distances else {}
        summary = summarize(rows, names, metrics_of(also, lpips is not None), baseline, settings, sets)
        path = report.write_report(output, summary, sorted(rows, key=lambda row: row["pair"]))
        for error in summary["errors"]:
            say(f"note: {error['pair']}, {error['method']}: {error['error']}")
        if not quiet:
            say(f"{path}: {summary['pairs']} pairs, {len(names)} methods")
