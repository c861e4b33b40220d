"""Methods over pairs: images and rows, on one process or many, to be stopped and gone on with at any time."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from splice_ff.data.pair_list import PairFiles
from splice_ff.errors import DivergedError, InputError
from splice_ff.evaluation.measure import Measurer, Reference
from splice_ff.evaluation.methods import Folder, Method
from splice_ff.images import load_image, save_image
from splice_ff.utils.console import progress_bar
from splice_ff.utils.files import atomic_write

Row = dict[str, Any]
"""One method on one pair: `pair`, `domain`, `method`, paths of `structure`, `appearance` and `picture`, `seconds` (None
where the images were only read), `error` (None where it went well), and the metrics by name."""


@dataclass(frozen=True)
class Task:
    """A pair and the domain that it counts to."""

    pair: PairFiles
    domain: str


def read_domains(source: Path, pairs: Sequence[PairFiles]) -> list[Task]:
    """The pairs with their domains.

    A domain is the `domain` of the pair in `pairs.json` (a list of objects with `name` and `domain`) in a folder of
    pairs, or in the `domain` column of a .csv or .jsonl, whose rows are the pairs in their order. "all" without one.

    Raises:
        InputError: pairs.json is damaged.
    """
    names = [pair.name for pair in pairs]
    found: dict[str, str] = {}
    if source.is_dir() and (source / "pairs.json").is_file():
        try:
            found = {e["name"]: e["domain"] for e in json.loads((source / "pairs.json").read_text())}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{source / 'pairs.json'}: not a list of objects with name and domain") from error
    elif source.is_file():
        with source.open(newline="", encoding="utf-8-sig") as file:
            rows: Iterable[dict[str, Any]] = (
                list(csv.DictReader(file))
                if source.suffix.lower() == ".csv"
                else [json.loads(line) for line in file if line.strip()]
            )
        found = {name: row["domain"] for name, row in zip(names, rows, strict=True) if row.get("domain")}
    return [Task(pair, found.get(pair.name, "all")) for pair in pairs]


def with_picture_of(tasks: Iterable[Task], method: Method) -> list[Task]:
    """The pairs of which a folder of results has an image; all of them for a method that paints."""
    return [task for task in tasks if not isinstance(method, Folder) or method.find(task.pair.name)]


def check_settings(folder: Path, measuring: Mapping[str, Any], methods: Iterable[Method]) -> None:
    """Note in `run.json` what a folder's rows are made with; refuse to mix them with others.

    Raises:
        InputError: the folder's rows were measured otherwise, or a method of the same name was another.
    """
    path = folder / "run.json"
    known: dict[str, Any] = {"measuring": dict(measuring), "methods": {}}
    if path.exists():
        try:
            known = json.loads(path.read_text())
            known["measuring"], known["methods"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: damaged; give another folder with -o") from error
    if known["measuring"] != dict(measuring):
        changed = [k for k in {**measuring, **known["measuring"]} if measuring.get(k) != known["measuring"].get(k)]
        raise InputError(f"{folder} holds rows measured otherwise ({', '.join(changed)}); give another folder with -o")
    for method in methods:
        if known["methods"].setdefault(method.name, method.settings) != method.settings:
            raise InputError(f"{folder} holds rows of another '{method.name}'; give another folder with -o")
    atomic_write(path, lambda file: file.write_text(json.dumps(known, indent=1)))


def run(tasks: Sequence[Task], methods: Sequence[Method], measurer: Measurer, folder: Path, quiet: bool) -> None:
    """Paint and measure what `folder` does not hold yet; this process takes its share of the pairs (accelerate).

    Rows go to `rows-RANK.jsonl`, one line at a time; images that were computed to `pictures/METHOD/PAIR.png`. A pair
    that cannot be used gets a row with its error, and is tried again the next time.
    """
    from accelerate import PartialState

    state = PartialState()
    done = {(row["pair"], row["method"]) for row in read_rows(folder) if not row["error"]}
    todo = [task for task in tasks if any(_is_open(task, method, done) for method in methods)]
    state.wait_for_everyone()  # nobody writes before all have read
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rows-{state.process_index:02d}.jsonl"
    with state.split_between_processes(todo) as share, path.open("a", encoding="utf-8") as file:
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            file.write("\n")  # a line cut short by a kill
        with progress_bar(len(share), "pair", quiet or not state.is_main_process) as bar:
            for task in share:
                for row in _rows_of(task, [m for m in methods if _is_open(task, m, done)], measurer, folder):
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                bar.update()
    state.wait_for_everyone()


def read_rows(folder: Path) -> list[Row]:
    """All rows of a folder, one for each pair and method, the latest; lines cut short are left out."""
    rows: dict[tuple[str, str], Row] = {}
    for path in sorted(folder.glob("rows-*.jsonl"), key=lambda path: path.stat().st_mtime):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            key = row["pair"], row["method"]
            if key not in rows or rows[key]["error"] or not row["error"]:  # an error never hides a result
                rows[key] = row
    return list(rows.values())


def _is_open(task: Task, method: Method, done: set[tuple[str, str]]) -> bool:
    if isinstance(method, Folder) and method.find(task.pair.name) is None:
        return False
    return (task.pair.name, method.name) not in done


def _rows_of(task: Task, methods: Sequence[Method], measurer: Measurer, folder: Path) -> Iterator[Row]:
    pair = task.pair
    base: Row = {
        "pair": pair.name, "domain": task.domain, "method": "", "picture": None, "seconds": None, "error": None,
        "structure_file": str(pair.structure.resolve()), "appearance_file": str(pair.appearance.resolve()),
    }  # fmt: skip
    try:
        device = measurer.loss.backbone.mean.device
        images = [load_image(path).rgb.to(device) for path in (pair.structure, pair.appearance)]
        reference = measurer.reference(*images)
    except InputError as error:
        yield from (base | {"method": method.name, "error": str(error)} for method in methods)
        return
    for method in methods:
        row = base | {"method": method.name}
        try:
            row |= _paint_and_measure(method, pair.name, reference, measurer, folder)
        except (InputError, DivergedError) as error:
            row["error"] = str(error)
        yield row


def _paint_and_measure(method: Method, pair: str, reference: Reference, measurer: Measurer, folder: Path) -> Row:
    structure, appearance = reference.structure, reference.appearance
    start = time.perf_counter()
    painted = method(pair, structure, appearance)
    if structure.is_cuda:
        torch.cuda.synchronize(structure.device)
    seconds = time.perf_counter() - start
    row: Row = {}
    if isinstance(method, Folder):
        row["picture"] = str(method.find(pair))
    else:
        path = folder / "pictures" / method.name.replace(":", "-") / f"{pair}.png"
        save_image(path, painted.image, settings={"method": method.name} | method.settings)
        row |= {"picture": str(path.relative_to(folder)), "seconds": seconds}
    identity = painted.identity().to(structure.device) if painted.identity else None
    return row | measurer(painted.image.to(structure.device), reference, identity)
