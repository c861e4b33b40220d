"""Rows: measured once, kept, shared among processes, and gone on with after a stop."""

import csv
import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import accelerate
import pytest
import torch
from support.evaluation import Counting, rows_of, smooth_image

from splice_ff.data.pair_list import read_pairs
from splice_ff.errors import InputError
from splice_ff.evaluation import rows
from splice_ff.evaluation.methods import Color, Copy, Folder, NoImageError
from splice_ff.evaluation.metrics import METRICS, Measurer
from splice_ff.evaluation.rows import claim, make_rows, read_rows, with_domains, with_image_of
from splice_ff.images import load_image, save_image


def test_rows_and_images(listed, tiny_backbone, tmp_path):
    make_rows(listed[1:], [Copy(), Color()], Measurer(tiny_backbone()), tmp_path / "out", quiet=True)
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 4
    row = rows["two", "copy"]
    assert row["domain"] == "dog" and row["error"] is None and row["seconds"] >= 0
    assert row.keys() >= {metric.name for metric in METRICS}
    assert row["self_sim"] == row["structure"] == row["identity"] == row["high_frequency"] == 0
    assert row["edges"] == pytest.approx(1)
    assert rows["two", "color"]["color"] < row["color"]
    kept = load_image(tmp_path / "out" / row["image"])
    assert (kept.rgb - load_image(row["structure_file"]).rgb).abs().max() == 0


def test_going_on_does_nothing_twice(listed, measurer, tmp_path):
    method = Counting()
    make_rows(listed[:1], [method], measurer, tmp_path / "out", quiet=True)
    make_rows(listed, [method], measurer, tmp_path / "out", quiet=True)
    assert method.seen == ["one", "three", "two"]
    make_rows(listed, [method, Color()], measurer, tmp_path / "out", quiet=True)
    assert len(method.seen) == 3 and len(rows_of(tmp_path / "out")) == 6


def test_a_line_cut_short_is_measured_again(listed, measurer, tmp_path):
    method = Counting()
    make_rows(listed[:2], [method], measurer, tmp_path / "out", quiet=True)
    [file] = (tmp_path / "out").glob("rows-*.jsonl")
    file.write_text(file.read_text()[:-40])
    assert len(rows_of(tmp_path / "out")) == 1
    make_rows(listed, [method], measurer, tmp_path / "out", quiet=True)
    assert method.seen == ["one", "three", "three", "two"]
    assert len(rows_of(tmp_path / "out")) == 3


def test_pairs_whose_files_have_changed_are_measured_again(listed, measurer, tmp_path):
    for pair in listed:
        save_image(tmp_path / f"theirs/{pair.name}.png", smooth_image(20))
    out, method, theirs = tmp_path / "out", Counting(), Folder("theirs", tmp_path / "theirs")
    make_rows(listed, [method, theirs], measurer, out, quiet=True)
    before = rows_of(out)
    save_image(listed[0].appearance, smooth_image(21) / 3)
    save_image(tmp_path / "theirs/two.png", smooth_image(22) / 3)
    kept = {(row["pair"], row["method"]) for row in read_rows(out, listed, [method, theirs])}
    assert kept == {("two", "copy"), ("three", "copy"), ("three", "theirs")}
    make_rows(listed, [method, theirs], measurer, out, quiet=True)
    assert method.seen == ["one", "three", "two", "one"]
    after = {(row["pair"], row["method"]): row for row in read_rows(out, listed, [method, theirs])}
    changed = {key for key, row in after.items() if row["objective"] != before[key]["objective"]}
    assert len(after) == 6 and changed == {("one", "copy"), ("one", "theirs"), ("two", "theirs")}
    elsewhere = read_pairs(shutil.copytree(listed[0].structure.parents[1], tmp_path / "elsewhere"))
    moved = read_rows(out, elsewhere, [method, theirs])
    assert len(moved) == 6 and all("elsewhere" in row["structure_file"] for row in moved)


def test_one_bad_pair_does_not_stop_the_rest_and_is_tried_again(listed, measurer, tmp_path):
    bad = listed[0].structure
    whole = bad.read_bytes()
    bad.write_bytes(whole[:100])
    method = Counting()
    method.broken = {"two"}
    make_rows(listed, [method], measurer, tmp_path / "out", quiet=True)
    rows = rows_of(tmp_path / "out")
    assert "structure.png" in rows["one", "copy"]["error"] and "finite" in rows["two", "copy"]["error"]
    assert rows["three", "copy"]["error"] is None
    bad.write_bytes(whole)
    method.broken = set()
    make_rows(listed, [method], measurer, tmp_path / "out", quiet=True)
    assert [row["error"] for row in rows_of(tmp_path / "out").values()] == [None] * 3
    assert method.seen == ["three", "two", "one", "two"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_pair_too_large_for_the_memory_does_not_stop_the_rest(listed, measurer, tmp_path, error):
    class Greedy(Counting):
        def __call__(self, pair, structure, appearance):
            if pair == "three":
                raise error
            return super().__call__(pair, structure, appearance)

    make_rows(listed, [Greedy()], measurer, tmp_path / "out", quiet=True)
    errors = {pair: row["error"] for (pair, _), row in rows_of(tmp_path / "out").items()}
    assert errors == {"one": None, "two": None, "three": "out of memory"}


def test_damaged_rows_are_measured_again(listed, measurer, tmp_path):
    out = tmp_path / "out"
    make_rows(listed[:1], [Copy()], measurer, out, quiet=True)
    [file] = out.glob("rows-*.jsonl")
    file.write_bytes(b'\xff\xfe\n[1]\n{"pair": "two"}\n' + b"[" * 100_000 + b"\n" + file.read_bytes())
    assert list(rows_of(out)) == [("one", "copy")]
    make_rows(listed, [Copy()], measurer, out, quiet=True)
    assert len(rows_of(out)) == 3


def test_a_folder_in_the_place_of_rows_is_named(listed, measurer, tmp_path):
    (tmp_path / "out/rows-00.jsonl").mkdir(parents=True)
    with pytest.raises(InputError, match=r"rows-00\.jsonl: cannot be read"):
        make_rows(listed, [Copy()], measurer, tmp_path / "out", quiet=True)


def test_a_full_disk_is_one_line_and_rows_before_are_kept(listed, measurer, tmp_path, monkeypatch):
    out = tmp_path / "out"
    make_rows(listed[:1], [Copy()], measurer, out, quiet=True)
    opened = Path.open

    def fill(path, *arguments, **options):
        if path.name.startswith("rows-") and "a+b" in arguments:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", fill)
    with pytest.raises(InputError, match=r"rows-00\.jsonl: cannot be written \(No space left on device\)"):
        make_rows(listed, [Copy()], measurer, out, quiet=True)
    monkeypatch.undo()
    assert list(rows_of(out)) == [("one", "copy")]


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_pairs(listed, measurer, tmp_path, monkeypatch, count):
    method = Counting()
    for rank in range(count):
        state = accelerate.PartialState()
        fake = SimpleNamespace(
            process_index=rank, is_main_process=rank == 0, wait_for_everyone=lambda: None, num_processes=count
        )
        fake.split_between_processes = lambda todo, rank=rank: _share(todo, count, rank)
        monkeypatch.setattr(accelerate, "PartialState", lambda fake=fake: fake)
        # every process sees what there was before any of them began
        monkeypatch.setattr(rows, "read_rows", lambda *_: [])
        make_rows(listed, [method], measurer, tmp_path / "out", quiet=True)
        monkeypatch.undo()
        assert accelerate.PartialState().num_processes == state.num_processes
    assert sorted(method.seen) == ["one", "three", "two"]
    assert len(rows_of(tmp_path / "out")) == 3


class _share:
    def __init__(self, todo, count, rank):
        size = -(-len(todo) // count)
        self.part = todo[rank * size : (rank + 1) * size]

    def __enter__(self):
        return self.part

    def __exit__(self, *_):
        return None


def test_folders_of_results(listed, measurer, tmp_path):
    theirs = tmp_path / "v1.0"
    save_image(theirs / "one.png", smooth_image(9))
    save_image(theirs / "two/theirs.webp", smooth_image(9, 36 * 2, 44 * 2))
    folder = Folder("theirs", theirs)
    make_rows(listed, [folder], measurer, tmp_path / "out", quiet=True)
    rows = rows_of(tmp_path / "out")
    assert {pair for pair, _ in rows} == {"one", "two"}
    assert rows["one", "theirs"]["seconds"] is None
    assert rows["two", "theirs"]["image"] == str(theirs / "two/theirs.webp")
    assert not (tmp_path / "out/images").exists()
    assert [pair.name for pair in with_image_of(listed, folder)] == ["one", "two"]
    with pytest.raises(NoImageError, match="theirs has no image of three"):
        folder("three", smooth_image(0), smooth_image(1))


def test_domains(pairs, tmp_path):
    assert {pair.name: pair.domain for pair in with_domains(read_pairs(pairs), pairs)} == {
        "one": "cat", "two": "dog", "three": "cat"
    }  # fmt: skip
    (pairs / "pairs.json").write_text("[1]")
    with pytest.raises(InputError, match="not a list of objects"):
        with_domains(read_pairs(pairs), pairs)
    (pairs / "pairs.json").unlink()
    assert {pair.domain for pair in with_domains(read_pairs(pairs), pairs)} == {"all"}
    rows = [
        {"structure": f"pairs/{x}/structure.png", "appearance": f"pairs/{x}/appearance.png"} for x in ("one", "two")
    ]
    rows[0]["domain"] = "cat"
    (tmp_path / "list.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    with (tmp_path / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["structure", "appearance", "domain"])
        writer.writeheader()
        writer.writerows(rows)
    for name in ("list.jsonl", "list.csv"):
        assert [pair.domain for pair in read_pairs(tmp_path / name)] == ["cat", "all"]


def test_rows_of_different_measurements_are_not_mixed(tmp_path):
    folder = tmp_path / "out"
    theirs = Folder("theirs", tmp_path)
    measured_with = {"backbone": "a", "also_backbones": {"b": "1"}}
    claim(folder, measured_with, [theirs])
    claim(folder, measured_with, [theirs, Copy()])
    claim(folder, measured_with, [])
    for changed in ({"backbone": "b"}, {"also_backbones": {}}):
        with pytest.raises(InputError, match=rf"holds rows made with other settings \({next(iter(changed))}:"):
            claim(folder, measured_with | changed, [])
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match=r"holds rows of 'theirs' made with other settings \(folder:"):
        claim(folder, measured_with, [Folder("theirs", tmp_path / "other")])
    (folder / "measured_with.json").write_text("{")
    with pytest.raises(InputError, match=r"measured_with\.json: damaged"):
        claim(folder, measured_with, [])
