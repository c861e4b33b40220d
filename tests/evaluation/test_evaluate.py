"""Methods, rows, going on after a stop, and the command."""

import csv
import errno
import json
from pathlib import Path
from types import SimpleNamespace

import accelerate
import pytest
import torch
from typer.testing import CliRunner

from splice_ff.cli import app
from splice_ff.data.pair_list import read_pairs
from splice_ff.errors import DivergedError, InputError
from splice_ff.evaluation import methods, rows
from splice_ff.evaluation.methods import Color, Copy, Folder, NoImageError, parse_method
from splice_ff.evaluation.metrics import METRICS, Measurer, Reference
from splice_ff.evaluation.rows import claim, make_rows, read_rows, with_domains, with_image_of
from splice_ff.evaluation.run import evaluate
from splice_ff.images import load_image, save_image
from splice_ff.networks.skip_unet import SkipUNet
from splice_ff.utils.color import rgb_to_lab
from splice_ff.utils.run_folder import lock_folder
from splice_ff.vit.weights import load_backbone


def smooth_image(seed, height=72, width=88):
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


@pytest.fixture
def pairs(tmp_path):
    """A folder of three pairs, one of them of another domain."""
    for i, name in enumerate(("one", "two", "three")):
        save_image(tmp_path / f"pairs/{name}/structure.png", smooth_image(2 * i))
        save_image(tmp_path / f"pairs/{name}/appearance.png", smooth_image(2 * i + 1, 80, 72))
    domains = [{"name": "one", "domain": "cat"}, {"name": "two", "domain": "dog"}, {"name": "three", "domain": "cat"}]
    (tmp_path / "pairs/pairs.json").write_text(json.dumps(domains))
    return tmp_path / "pairs"


@pytest.fixture
def listed(pairs):
    return with_domains(read_pairs(pairs), pairs)


class Cheap(Measurer):
    """Measures one thing: these tests are about rows."""

    def reference(self, structure, appearance):
        return Reference(structure, appearance, {})

    def __call__(self, output, reference, identity=None):
        return {"objective": (output - reference.appearance.mean()).abs().mean().item()}


@pytest.fixture
def measurer(tiny_backbone):
    return Cheap(tiny_backbone())


class Counting(Copy):
    """Copies, and remembers of which pairs; the pairs in `broken` diverge."""

    def __init__(self):
        self.seen, self.broken = [], set()

    def __call__(self, pair, structure, appearance):
        self.seen.append(pair)
        if pair in self.broken:
            raise DivergedError("the losses are no longer finite")
        return super().__call__(pair, structure, appearance)


def rows_of(folder):
    return {(row["pair"], row["method"]): row for row in read_rows(folder)}


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
        monkeypatch.setattr(rows, "read_rows", lambda _: [])
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


def test_color_has_the_appearance_images_statistics():
    structure, appearance = smooth_image(0) * 0.4 + 0.3, smooth_image(1) * 0.4 + 0.3
    means = [rgb_to_lab(x).mean((-2, -1)) for x in (Color()("", structure, appearance).image, appearance)]
    assert (means[0] - means[1]).abs().max() < 0.5


def test_one_shot_and_refine():
    backbone = load_backbone("vit_s14_robust")
    structure, appearance = smooth_image(0), smooth_image(1, 80, 72)
    method = parse_method("one-shot", backbone, "everyday")
    assert method.model.backbone is backbone  # not loaded once more
    assert method.settings == {"model": "everyday", "sha256": method.model.fingerprint}
    painted = method("", structure, appearance)
    assert (painted.image - method.model.paint(structure, method.model.embed(appearance))).abs().max() == 0
    assert painted.identity().shape == appearance.shape
    refined = parse_method("one-shot+refine:1", backbone, "everyday")
    assert refined.name == "one-shot+refine:1"
    painted = refined("", structure, appearance)
    assert painted.image.shape == structure.shape and painted.identity().shape == appearance.shape


def test_a_model_of_another_backbone_brings_its_own(tiny_backbone):
    method = parse_method("one-shot", tiny_backbone(), "everyday")
    assert method.model.backbone.name == "vit_s14_robust"


def test_optimize_hands_on_preset_steps_and_backbone(monkeypatch, tiny_backbone):
    asked = {}

    def optimize_pair(structure, appearance, **options):
        asked.update(options)
        return SimpleNamespace(image=structure, generator=SkipUNet("published").eval())

    monkeypatch.setattr(methods, "optimize_pair", optimize_pair)
    backbone = tiny_backbone()
    painted = parse_method("optimize-fast:20", backbone, "everyday")("", smooth_image(0), smooth_image(1, 64, 96))
    assert asked == {"preset": "fast", "steps": 20, "backbone": backbone, "device": "cpu", "output_type": "pt"}
    assert painted.identity().shape == (1, 3, 64, 96)
    method = parse_method("optimize-paper", backbone, "everyday")
    method("", smooth_image(0), smooth_image(1))
    assert method.name == "optimize-paper" and asked["preset"] == "paper" and asked["steps"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cpy", "unknown method 'cpy'"),
        ("optimize-fast:0", "unknown method"),
        ("optimize-fast:-3", "unknown method"),
        ("one-shot+refine", "give steps"),
        ("copy:3", "takes no steps"),
        ("one-shot+refine:0", "unknown method"),
    ],
)
def test_methods_that_cannot_be(text, message, tiny_backbone):
    with pytest.raises(InputError, match=message):
        parse_method(text, tiny_backbone(), "everyday")


def test_results_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no such folder of results"):
        Folder("x", tmp_path / "none")


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


def test_from_python(pairs, tmp_path, tiny_backbone):
    """What the command does, with a loaded backbone and a method of one's own."""
    arguments = {"backbone": tiny_backbone(), "device": "cpu", "limit": 2, "quiet": True}
    summary = evaluate(pairs, tmp_path / "out", methods=["color", Counting()], baseline="copy", **arguments)
    assert list(summary["methods"]) == ["color", "copy"] and summary["pairs"] == 2
    assert json.loads((tmp_path / "out/summary.json").read_text()) == summary
    notes = []
    (pairs / "two/structure.png").write_bytes(b"")
    del arguments["limit"]
    evaluate(pairs, tmp_path / "out", methods=["color"], on_note=notes.append, **arguments)
    assert len(notes) == 1 and notes[0].startswith("two, color: ") and "structure.png" in notes[0]


def test_one_evaluation_at_a_time_in_a_folder(pairs, tmp_path, tiny_backbone):
    out = tmp_path / "out"
    with lock_folder(out), pytest.raises(InputError, match="another run is writing there"):
        evaluate(pairs, out, backbone=tiny_backbone(), device="cpu", quiet=True)
    assert [path.name for path in out.iterdir()] in ([], [".lock"])
    evaluate(pairs, out, backbone=tiny_backbone(), device="cpu", quiet=True, limit=1)
    assert (out / "report.html").exists()


class Interrupted(Copy):
    """Copies one pair, then ctrl-C."""

    def __init__(self):
        self.count = 0

    def __call__(self, pair, structure, appearance):
        if self.count:
            raise KeyboardInterrupt
        self.count += 1
        return super().__call__(pair, structure, appearance)


def test_an_interrupted_evaluation_keeps_its_rows(pairs, tmp_path, tiny_backbone):
    out, arguments = tmp_path / "out", {"backbone": tiny_backbone(), "device": "cpu", "quiet": True}
    with pytest.raises(KeyboardInterrupt):
        evaluate(pairs, out, methods=[Interrupted()], **arguments)
    assert list(rows_of(out)) == [("one", "copy")] and not (out / "report.html").exists()
    method = Counting()
    assert evaluate(pairs, out, methods=[method], **arguments)["pairs"] == 3
    assert method.seen == ["three", "two"]


def test_the_command(pairs, tmp_path):
    save_image(tmp_path / "theirs/one.png", smooth_image(9))
    arguments = ["evaluate", str(pairs), "-o", str(tmp_path / "out"), "--backbone", "vit_mini", "--device", "cpu"]
    arguments += ["--method", "copy", "--results", f"theirs={tmp_path / 'theirs'}", "--also-backbone", "vit_mini"]
    result = CliRunner().invoke(app, [*arguments, "--baseline-pairs"])
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["baseline"] == "theirs" and summary["pairs"] == 1 and summary["domains"] == {"cat": 1}
    means = summary["methods"]["theirs"]["means"]
    assert means["self_sim@vit_mini"]["value"] == pytest.approx(means["self_sim"]["value"])
    result = CliRunner().invoke(app, [*arguments, "--limit", "2", "--quiet", "--baseline", "copy"])
    assert result.exit_code == 0 and result.output == ""
    assert json.loads((tmp_path / "out/summary.json").read_text())["pairs"] == 2
    for name in ("report.html", "summary.md", "results.parquet", "rows-00.jsonl", "measured_with.json"):
        assert (tmp_path / "out" / name).stat().st_size > 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "paint"], "unknown method 'paint'"),
        (["--method", "copy", "--method", "copy"], "'copy' is given twice"),
        (["--results", "splice"], "results 'splice' are not NAME=FOLDER"),
        (["--results", "=x"], "results '=x' are not NAME=FOLDER"),
        (["--results", "x="], "results 'x=' are not NAME=FOLDER"),
        (["--results", "x=none"], "none: no such folder of results"),
        (["--results", "a=PAIRS", "--results", "a=PAIRS"], "'a' is given twice"),
        (["--results", "copy=PAIRS"], "'copy' is given twice"),
        (["--baseline", "splice"], "the baseline 'splice' is not among the methods: copy, color"),
        (["--results", "a=PAIRS", "--baseline-pairs"], "no pairs of which 'a' has an image"),
        (["--backbone", "no_such_vit"], "unknown backbone"),
        (["--method", "one-shot", "--model", "none"], "no model 'none'"),
    ],
)
def test_the_command_refuses(pairs, tmp_path, arguments, message):
    arguments = [a.replace("PAIRS", str(pairs)) for a in arguments]
    backbone = [] if "--backbone" in arguments else ["--backbone", "vit_mini"]
    result = CliRunner().invoke(app, ["evaluate", str(pairs), "-o", str(tmp_path / "out"), *backbone, *arguments])
    assert result.exit_code == 2
    assert message in result.output and len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_nothing_to_report_where_every_pair_fails(pairs, tmp_path):
    for path in pairs.glob("*/structure.png"):
        path.write_bytes(b"no image")
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["evaluate", str(pairs), "-o", str(out), "--backbone", "vit_mini", "--quiet"])
    assert result.exit_code == 2 and "nothing could be measured" in result.output
    assert not (out / "report.html").exists()
