"""One row for each pair and method: painted, measured and kept at once, so that a stopped evaluation can continue."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from splice_ff.data.pair_list import PairFiles
from splice_ff.errors import DivergedError, InputError
from splice_ff.evaluation.methods import Folder, Method
from splice_ff.evaluation.metrics import Measurer, Reference
from splice_ff.images import load_image, save_image
from splice_ff.utils.console import progress_bar
from splice_ff.utils.files import file_digest, reason
from splice_ff.utils.machine import is_out_of_memory, synchronize
from splice_ff.utils.run_folder import claim_folder

Row = dict[str, Any]
"""One method on one pair: `pair`, `domain`, `method`, the paths `structure_file`, `appearance_file` and `image`,
`inputs`, digests of the files that it depends on; `seconds` (None where the image was only read),
`error` (None where all went well), and the metrics by name."""


def with_domains(pairs: Sequence[PairFiles], source: Path) -> list[PairFiles]:
    """Pairs of a folder with the domains that its `pairs.json` gives them: a list of objects with `name` and `domain`.

    Raises:
        InputError: pairs.json is damaged.
    """
    file = source / "pairs.json"
    if not file.is_file():
        return list(pairs)
    try:
        domains = {str(entry["name"]): str(entry["domain"]) for entry in json.loads(file.read_text(encoding="utf-8"))}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{file}: not a list of objects with name and domain") from error
    return [replace(pair, domain=domains.get(pair.name, pair.domain)) for pair in pairs]


def with_image_of(pairs: Iterable[PairFiles], method: Method) -> list[PairFiles]:
    """The pairs of which a folder of results has an image; all of them for a method that paints."""
    return [pair for pair in pairs if not isinstance(method, Folder) or method.find(pair.name)]


def claim(folder: Path, measured_with: Mapping[str, Any], methods: Iterable[Method]) -> None:
    """Record how the rows of a folder are made; refuse to mix them with rows made otherwise.

    Methods may be added from one run to the next, so each has a record of its own.

    Raises:
        InputError: the rows in the folder were measured otherwise, or belong to another method of the same name.
    """
    claim_folder(folder / "measured_with.json", measured_with, holds="rows")
    for method in methods:
        record = folder / f"method-{_as_file_name(method.name)}.json"
        claim_folder(record, {"name": method.name, **method.settings}, holds=f"rows of '{method.name}'")


def make_rows(
    pairs: Sequence[PairFiles], methods: Sequence[Method], measurer: Measurer, folder: Path, quiet: bool
) -> None:
    """Paint and measure what `folder` lacks; this process takes its share of the pairs (accelerate).

    Rows are appended to `rows-RANK.jsonl`, each as soon as it is known; painted images go to `images/METHOD/PAIR.png`.
    A pair that cannot be used gets a row with its error, and is tried again the next time; one whose files have changed
    is measured again.

    Raises:
        InputError: the folder takes no file.
    """
    from accelerate import PartialState

    state = PartialState()
    rows = read_rows(folder, pairs, methods)
    done = {(row["pair"], row["method"]) for row in rows if not row["error"]}
    todo = [pair for pair in pairs if any(_is_open(pair, method, done) for method in methods)]
    state.wait_for_everyone()  # nobody writes before all have read
    is_quiet = quiet or not state.is_main_process
    path = folder / f"rows-{state.process_index:02d}.jsonl"
    with state.split_between_processes(todo) as share, progress_bar(len(share), "pair", is_quiet) as bar:
        for pair in share:
            for row in _rows_of(pair, [m for m in methods if _is_open(pair, m, done)], measurer, folder):
                _append(path, row)
            bar.update()
    state.wait_for_everyone()


def _append(path: Path, row: Row) -> None:
    line = json.dumps(row) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            if file.tell() and path.read_bytes()[-1:] != b"\n":
                line = "\n" + line  # after one that was cut short by a kill or a full disk
            file.write(line.encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({reason(error)}); the rows before are kept") from error


def read_rows(folder: Path, pairs: Sequence[PairFiles], methods: Sequence[Method]) -> list[Row]:
    """Rows of these pairs and methods in a folder, the latest of each that was made from their files as they are now.

    Raises:
        InputError: a file of rows cannot be read.
    """
    places = {pair.name: _files(pair) for pair in pairs}  # the same files may have moved
    wanted = {(pair.name, method.name): _inputs(pair, method) for pair in pairs for method in methods}
    rows: dict[tuple[str, str], Row] = {}
    for row in all_rows(folder):
        key = row["pair"], row["method"]
        if key not in wanted or row["inputs"] != wanted[key]:
            continue
        if key not in rows or rows[key]["error"] or not row["error"]:  # an error never hides a result
            rows[key] = row | places[row["pair"]]
    return list(rows.values())


def all_rows(folder: Path) -> Iterator[Row]:
    """All rows of a folder, the files of the processes in the order of their last changes; without damaged lines.

    Raises:
        InputError: a file of rows cannot be read.
    """
    for path in sorted(folder.glob("rows-*.jsonl"), key=lambda path: path.stat().st_mtime):
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({reason(error)}); remove it, or choose another folder"
            ) from error
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and {"pair", "method", "inputs", "error"} <= row.keys():
                yield row


def _as_file_name(method: str) -> str:
    return re.sub(r"[^\w.+-]", "-", method)


def _files(pair: PairFiles) -> dict[str, str]:
    return {f"{role}_file": str(getattr(pair, role).resolve()) for role in ("structure", "appearance")}


def _inputs(pair: PairFiles, method: Method) -> list[str | None]:
    """Digests of the files that a row depends on: structure, appearance, and the image where a folder has it."""
    image = method.find(pair.name) if isinstance(method, Folder) else None
    return [_digest(file) for file in (pair.structure, pair.appearance, image)]


def _digest(file: Path | None) -> str | None:
    try:
        return file_digest(file) if file else None
    except OSError:  # its row gets the error when the image is read
        return None


def _is_open(pair: PairFiles, method: Method, done: set[tuple[str, str]]) -> bool:
    if isinstance(method, Folder) and method.find(pair.name) is None:
        return False
    return (pair.name, method.name) not in done


def _rows_of(pair: PairFiles, methods: Sequence[Method], measurer: Measurer, folder: Path) -> Iterator[Row]:
    base: Row = {
        "pair": pair.name, "domain": pair.domain, "method": "", "image": None, "seconds": None, "error": None,
        **_files(pair),
    }  # fmt: skip
    try:
        device = measurer.loss.backbone.mean.device
        images = [load_image(path).rgb.to(device) for path in (pair.structure, pair.appearance)]
        reference = measurer.reference(*images)
    except InputError as error:
        yield from (
            base | {"method": method.name, "inputs": _inputs(pair, method), "error": str(error)} for method in methods
        )
        return
    for method in methods:
        row = base | {"method": method.name, "inputs": _inputs(pair, method)}
        try:
            row |= _paint_and_measure(method, pair.name, reference, measurer, folder)
        except (InputError, DivergedError) as error:
            row["error"] = str(error)
        except Exception as error:  # torch's and Python's classes differ
            if not is_out_of_memory(error):
                raise
            row["error"] = "out of memory"
        yield row


def _paint_and_measure(method: Method, pair: str, reference: Reference, measurer: Measurer, folder: Path) -> Row:
    structure, appearance = reference.structure, reference.appearance
    start = time.perf_counter()
    painted = method(pair, structure, appearance)
    synchronize(structure.device)
    seconds = time.perf_counter() - start
    row: Row = {}
    if isinstance(method, Folder):
        row["image"] = str(method.find(pair))
    else:
        path = folder / "images" / _as_file_name(method.name) / f"{pair}.png"
        save_image(path, painted.image, settings={"method": method.name} | method.settings)
        row |= {"image": str(path.relative_to(folder)), "seconds": seconds}
    identity = painted.identity().to(structure.device) if painted.identity else None
    return row | measurer(painted.image.to(structure.device), reference, identity)
