"""A whole evaluation, from Python and by the command."""

import json

import pytest
from support.evaluation import Counting, rows_of, smooth_image
from typer.testing import CliRunner

from splice_ff.cli import app
from splice_ff.errors import InputError
from splice_ff.evaluation.methods import Copy
from splice_ff.evaluation.run import evaluate
from splice_ff.images import save_image
from splice_ff.utils.run_folder import lock_folder


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
