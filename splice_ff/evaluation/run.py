"""An evaluation from its inputs to its report; `splice-ff evaluate` calls nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from splice_ff.data.pair_list import read_pairs
from splice_ff.errors import InputError, printable
from splice_ff.evaluation.bootstrap import MIN_PAIRS
from splice_ff.evaluation.judges import judge_rows, load_judge
from splice_ff.evaluation.methods import Folder, Method, parse_method
from splice_ff.evaluation.metrics import Measurer, metrics_of
from splice_ff.evaluation.perceptual import find_lpips, find_set_distances
from splice_ff.evaluation.report import write_report
from splice_ff.evaluation.rows import claim, make_rows, read_rows, with_domains, with_image_of
from splice_ff.evaluation.summary import distances_of_sets, summarize
from splice_ff.per_pair.optimize import choose_backbone
from splice_ff.per_pair.recipes import make_recipe
from splice_ff.utils import machine
from splice_ff.utils.files import check_place
from splice_ff.utils.run_folder import lock_folder
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.weights import load_backbone

DEFAULT_METHODS = ("copy", "color")


def evaluate(
    pairs: str | Path,
    output: str | Path,
    *,
    methods: Sequence[str | Method] = DEFAULT_METHODS,
    results: Mapping[str, str | Path] | None = None,
    baseline: str | None = None,
    baseline_pairs: bool = False,
    limit: int | None = None,
    model: str = "everyday",
    backbone: str | ViTFeatures | None = None,
    weights: str | Path | None = None,
    also_backbones: Sequence[str] = (),
    judges: Sequence[str] = (),
    device: torch.device | str | None = None,
    quiet: bool = False,
    command: str | None = None,
    on_note: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure methods on pairs and write report.html, summary.md, summary.json and results.parquet.

    An evaluation that was stopped continues where it was when it is called again with the same arguments. Under
    torchrun or `accelerate launch` the processes share the pairs.

    Args:
        pairs: what `splice_ff.data.pair_list.read_pairs` reads.
        output: the folder to write to.
        methods: names, as `splice_ff.evaluation.methods.KNOWN` lists them, or methods of your own.
        results: further methods: folders of images that others made, by name.
        baseline: the method that the others are compared with; by default the first of `results`, else of `methods`.
        baseline_pairs: only use pairs of which the baseline has an image.
        limit: only use the first so many pairs.
        model: of the one-shot methods; what `SpliceFF.from_pretrained` takes.
        backbone: the frozen ViT of the losses, by name or loaded; by default that of the preset `fast`, or the bundled
            one where its weights cannot be had.
        weights: file or folder with its weights.
        also_backbones: names of others, which measure self-sim and [CLS] cosine too.
        judges: names of networks that judge the images: `splice_ff.evaluation.judges.JUDGES`, or timm models.
        device: where to compute; a GPU by default, if there is one.
        quiet: show no progress bar.
        command: what the report names as the way to make it again.
        on_note: called with each thing worth knowing: a stand-in backbone, a pair that could not be measured.

    Returns:
        What `splice_ff.evaluation.summary.summarize` returns, which is also in summary.json. In all processes but the
        main one it is empty.

    Raises:
        InputError: an argument cannot be used, a judge taught a backbone that the images depend on, the folder holds
            another evaluation or is being written by another run, or nothing could be measured.
    """
    from accelerate import PartialState

    output = Path(output)
    check_place(output / "report.html")
    folders = [Folder(name, Path(folder)) for name, folder in (results or {}).items()]
    listed = with_domains(read_pairs(Path(pairs)), Path(pairs))
    device = torch.device(device) if device else machine.default_device()
    state = PartialState(cpu=device.type == "cpu")
    device = state.device if state.num_processes > 1 else device
    if not isinstance(backbone, ViTFeatures):
        backbone, notice = choose_backbone(make_recipe("fast"), backbone, weights)
        if notice and state.is_main_process:
            on_note(notice)
    backbone = backbone.to(device)
    others = [load_backbone(name).to(device) for name in also_backbones]
    lpips, no_lpips = find_lpips(device)
    set_distances, no_sets = find_set_distances(device)
    measurer = Measurer(backbone, others, lpips)
    chosen = [m if isinstance(m, Method) else parse_method(m, backbone, model, device) for m in methods] + folders
    names = [method.name for method in chosen]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"method '{repeated[0]}' is given twice")
    baseline = baseline or (folders or chosen)[0].name
    if baseline not in names:
        raise InputError(f"the baseline '{baseline}' is not among the methods: {', '.join(names)}")
    if baseline_pairs:
        listed = with_image_of(listed, chosen[names.index(baseline)])
    if not (listed := listed[:limit]):
        raise InputError(f"{pairs}: no pairs of which '{baseline}' has an image")
    specs = [vit.spec for vit in (backbone, *(method.backbone for method in chosen)) if vit is not None and vit.spec]
    jury = [load_judge(name, specs) for name in dict.fromkeys(judges)]
    for judge in jury:
        judge.network.to(device)

    measured_with = {
        "backbone": backbone.name,
        "backbone_sha256": backbone.fingerprint,
        "also_backbones": {other.name: other.fingerprint for other in others},
        "lpips": lpips is not None,
    }
    with lock_folder(output) if state.is_main_process else nullcontext():
        with state.main_process_first():
            claim(output, measured_with, chosen)
        make_rows(listed, chosen, measurer, output, quiet)
        if not state.is_main_process:
            return {}
        rows = read_rows(output, listed, chosen)
        not_measured = [reason for reason in (no_lpips, no_sets) if reason]
        also = [other.name for other in others]
        settings = {
            "command": command,
            "machine": machine.describe(device),
            "version": machine.version(),
            "backbone": f"{backbone.name} (SHA-256 {backbone.fingerprint[:12]}…)",
            "other backbones": also,
            "not measured": not_measured,
        }
        sets = distances_of_sets(rows, names, output, set_distances) if set_distances else {}
        kernel_distances = {}
        for judge in jury:
            judgement = judge_rows(judge, rows, baseline, output, quiet)
            if judgement is None:
                not_measured.append(f"{judge.name} (fewer than {MIN_PAIRS} pairs)")
                continue
            for row in rows:
                found = judgement.cosines.get((row["pair"], row["method"]), {})
                row.update({f"judge_{role}@{judge.name}": cosine for role, cosine in found.items()})
            kernel_distances[judge.name] = judgement.distances
        metrics = metrics_of(also, lpips is not None, list(kernel_distances))
        summary = summarize(rows, names, metrics, baseline, settings, sets, kernel_distances)
        write_report(output, summary, sorted(rows, key=lambda row: row["pair"]))
    for error in summary["errors"]:
        on_note(printable(f"{error['pair']}, {error['method']}: {error['error']}"))
    return summary
