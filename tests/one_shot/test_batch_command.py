"""`splice-ff batch`: many images, their looks, and runs that go on."""

import json

import numpy as np
import pytest
from PIL import Image
from support.painted import assert_refused, assert_same

from splice_ff.images import load_image
from splice_ff.one_shot.pipeline import SpliceFF


@pytest.fixture
def pairs(place, tmp_path):
    """A list of five pairs, of two sizes, whose third has a missing and whose fourth a damaged image."""
    Image.fromarray(np.full((64, 64, 3), 99, np.uint8)).save(tmp_path / "gray.png")
    (tmp_path / "damaged.png").write_bytes((place / "a.png").read_bytes()[:200])
    rows = [
        ("one", place / "a.png", place / "b.png"),
        ("two", tmp_path / "gray.png", place / "b.png"),
        ("three", place / "a.png", tmp_path / "missing.png"),
        ("four", tmp_path / "damaged.png", place / "b.png"),
        ("five", place / "c.png", place / "a.png"),
    ]
    file = tmp_path / "pairs.csv"
    file.write_text("name,structure,appearance\n" + "".join(f"{n},{s},{a}\n" for n, s, a in rows))
    return file


def test_bad_files_do_not_stop_a_batch(run, pairs, place, model, tmp_path):
    folder = tmp_path / "painted"
    result = run("batch", pairs, "-o", folder, "--quiet")
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 2 and all(line.startswith("error: ") for line in lines)
    assert "three" in lines[0] and "missing.png" in lines[0] and "four" in lines[1] and "damaged.png" in lines[1]
    assert sorted(p.name for p in folder.iterdir()) == [".lock", "batch.json", "five.png", "one.png", "two.png"]
    a, b, c = (load_image(place / f"{name}.png").rgb for name in "abc")
    assert_same(folder / "one.png", model(a, b, output_type="pt"))
    assert_same(folder / "five.png", model(c, a, output_type="pt"))
    assert Image.open(folder / "five.png").text["structure"] == "c.png"


def test_equal_sizes_share_a_pass(run, pairs, tmp_path, monkeypatch):
    sizes = []
    paint = SpliceFF.paint
    monkeypatch.setattr(
        SpliceFF, "paint", lambda self, x, *rest, **more: sizes.append(tuple(x.shape)) or paint(self, x, *rest, **more)
    )
    run("batch", pairs, "-o", tmp_path / "together")
    assert sorted(sizes) == [(1, 3, 64, 64), (2, 3, 72, 96)]
    sizes.clear()
    run("batch", pairs, "-o", tmp_path / "apart", "--batch-size", "1")
    assert sorted(s[0] for s in sizes) == [1, 1, 1]
    sizes.clear()
    monkeypatch.setattr("splice_ff.one_shot.batch.MAX_WAITING", 72 * 96)  # a second one does not wait
    run("batch", pairs, "-o", tmp_path / "bounded")
    assert sizes == [(1, 3, 72, 96), (1, 3, 72, 96), (1, 3, 64, 64)]


def test_a_batch_goes_on_where_it_was(run, pairs, place, tmp_path):
    folder = tmp_path / "painted"
    run("batch", pairs, "-o", folder)
    (folder / "one.png").unlink()
    kept = (folder / "two.png").stat().st_mtime_ns
    pairs.write_text("\n".join(line for line in pairs.read_text().splitlines() if "three" not in line))
    (tmp_path / "damaged.png").write_bytes((place / "a.png").read_bytes())
    result = run("batch", pairs, "-o", folder)
    assert result.exit_code == 0, result.output
    assert "2 images painted, 2 kept, 0 failed" in result.stderr
    assert (folder / "two.png").stat().st_mtime_ns == kept and (folder / "one.png").exists()


def test_an_image_of_other_inputs_is_no_finished_one(run, place, tmp_path):
    for folder, source in (("first", "a"), ("second", "c")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "IMG_1.png").write_bytes((place / f"{source}.png").read_bytes())
    look, output = tmp_path / "look.png", tmp_path / "painted"
    look.write_bytes((place / "b.png").read_bytes())
    paint = "batch", "--look", look, "-o", output
    assert run(*paint, tmp_path / "first").exit_code == 0
    before = (output / "IMG_1.png").read_bytes()
    refused = run(*paint, tmp_path / "second")
    assert refused.exit_code == 2 and "painted from other files than these (IMG_1.png)" in refused.stderr
    assert (output / "IMG_1.png").read_bytes() == before
    (tmp_path / "moved").mkdir()
    (tmp_path / "first/IMG_1.png").rename(tmp_path / "moved/IMG_1.png")
    assert "0 images painted, 1 kept" in run(*paint, tmp_path / "moved").stderr
    (output / "IMG_1.png").write_bytes(b"no image")
    assert run(*paint, tmp_path / "moved").exit_code == 2


def test_a_finished_pair_whose_file_is_gone_does_not_stop_the_others(run, place, tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "painted"
    photos.mkdir()
    for name in "abc":
        (photos / f"{name}.png").write_bytes((place / f"{name}.png").read_bytes())
    rows = [f"{name},photos/a.png,photos/{name}.png" for name in "bc"]
    (tmp_path / "pairs.csv").write_text("\n".join(["name,structure,appearance", *rows]))
    assert run("batch", tmp_path / "pairs.csv", "-o", output).exit_code == 0
    (photos / "c.png").unlink()
    (output / "b.png").unlink()
    result = run("batch", tmp_path / "pairs.csv", "-o", output)
    assert result.exit_code == 0 and "1 images painted, 1 kept" in result.stderr and (output / "b.png").exists()


def test_what_is_done_to_read_an_image_is_said_once(run, place, tmp_path):
    frames = [Image.new("RGB", (80, 70), color) for color in ("red", "blue")]
    for name in ("one", "two", "look"):
        frames[0].save(tmp_path / f"{name}.gif", save_all=True, append_images=frames[1:])
    inputs = [tmp_path / f"{name}.gif" for name in ("one", "two")]
    said = run("batch", *inputs, "--look", tmp_path / "look.gif", "-o", tmp_path / "out").stderr
    assert [said.count(f"{name}.gif: ") for name in ("one", "two", "look")] == [1, 1, 1]
    quiet = run("batch", *inputs, "--look", tmp_path / "look.gif", "-o", tmp_path / "quiet", "--quiet").stderr
    assert "note" not in quiet


def test_a_folder_holds_images_of_one_kind(run, pairs, tmp_path):
    folder = tmp_path / "painted"
    run("batch", pairs, "-o", folder)
    for change, word in [(["--size", "48"], "size"), (["--strength", "0.5"], "strength")]:
        result = run("batch", pairs, "-o", folder, *change)
        assert result.exit_code == 2 and "other settings" in result.stderr and word in result.stderr
    assert json.loads((folder / "batch.json").read_text())["size"] == "64"


def test_a_list_that_is_none(run, tmp_path):
    folder = tmp_path / "painted"
    assert_refused(run("batch", tmp_path / "missing.csv", "-o", folder), folder, "missing.csv")
    (tmp_path / "empty").mkdir()
    assert_refused(run("batch", tmp_path / "empty", "-o", folder), folder, "empty")


def test_a_size_that_one_shape_cannot_have_fails_those_pairs(run, place, tmp_path, monkeypatch):
    monkeypatch.setattr("splice_ff.images.MAX_PIXELS", 1_000_000)
    Image.fromarray(np.zeros((16, 4000, 3), np.uint8)).save(tmp_path / "long.png")
    rows = f"one,{place / 'a.png'},{place / 'b.png'}\nlong,{tmp_path / 'long.png'},{place / 'b.png'}\n"
    (tmp_path / "pairs.csv").write_text("name,structure,appearance\n" + rows)
    result = run("batch", tmp_path / "pairs.csv", "-o", tmp_path / "painted", "--quiet")
    assert result.exit_code == 2 and "long" in result.stderr and "megapixels" in result.stderr
    assert (tmp_path / "painted" / "one.png").exists() and not (tmp_path / "painted" / "long.png").exists()


def test_a_folder_with_one_look(run, place, model, tmp_path):
    """By an image, by a file of its look, from a folder, a pattern, a list and files: the same images."""
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for source, copy in (("a", "a.png"), ("c", "sub/c.png")):
        (photos / copy).write_bytes((place / f"{source}.png").read_bytes())
    (photos / "notes.doc").write_text("no image")
    (tmp_path / "list.txt").write_text("photos/a.png\nphotos/sub/c.png\n")
    assert run("embed", "b", "-o", tmp_path / "b.safetensors").exit_code == 0
    look, file = place / "b.png", tmp_path / "b.safetensors"
    a, b, c = (load_image(place / f"{name}.png").rgb for name in "abc")
    for i, (inputs, given, names) in enumerate(
        [
            ([photos], look, ["a", "sub/c"]),
            ([photos], file, ["a", "sub/c"]),
            ([photos / "**" / "*.png"], look, ["a", "c"]),
            ([tmp_path / "list.txt"], file, ["a", "c"]),
            ([photos / "a.png", photos / "sub" / "c.png"], look, ["a", "c"]),
        ]
    ):
        output = photos / f"out-{i}"  # inside: what is painted must not be painted again
        result = run("batch", *inputs, "--look", given, "-o", output)
        assert result.exit_code == 0, result.output
        assert sorted(str(p.relative_to(output).with_suffix("")) for p in output.rglob("*.png")) == names
        assert_same(output / f"{names[0]}.png", model(a, b, output_type="pt"))
        assert_same(output / f"{names[1]}.png", model(c, b, output_type="pt"))
        assert ("1 × .doc file" in result.stderr) == (inputs == [photos])
    result = run("batch", photos, "--look", place / "c.png", "-o", photos / "out-0")
    assert result.exit_code == 2 and "look" in result.stderr and "other settings" in result.stderr
    assert "0 images painted, 2 kept" in run("batch", photos, "--look", look, "-o", photos / "out-0").stderr


def test_one_structure_with_many_looks(run, place, model, tmp_path):
    result = run("batch", "b", "c", "--structure", place / "a.png", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    a, b, c = (load_image(place / f"{name}.png").rgb for name in "abc")
    assert_same(tmp_path / "out" / "b.png", model(a, b, output_type="pt"))
    assert_same(tmp_path / "out" / "c.png", model(a, c, output_type="pt"))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["a", "--look", "a", "--structure", "b"], "not both"),
        (["a", "b"], "--look"),
        (["a"], "--look"),
        (["missing", "--look", "a"], "missing: no such"),
        (["*.nothing", "--look", "a"], "no image matches"),
        (["a", "--look", "missing.safetensors"], "missing.safetensors: no such"),
        (["a", "--look", "missing.png"], "missing.png: no such"),
        (["a", "--structure", "missing.png"], "missing.png: no such"),
        (["a", "--look", "b", "--strength", "2"], "strength"),
        (["a", "--look", "b", "--precision", "fp8"], "fp8"),
    ],
)
def test_inputs_of_a_batch_that_cannot_be_used(run, tmp_path, monkeypatch, arguments, word):
    monkeypatch.setattr(SpliceFF, "from_pretrained", lambda *_, **__: pytest.fail("loaded a model first"))
    assert_refused(run("batch", *arguments, "-o", tmp_path / "out"), tmp_path / "out", word)


def test_batches_have_a_bound(run, tmp_path):
    result = run("batch", "a", "--look", "b", "-o", tmp_path / "out", "--batch-size", "100000000")
    assert result.exit_code == 2 and "1024" in result.stderr


def test_another_run_in_the_folder(run, tmp_path):
    from splice_ff.utils.run_folder import lock_folder

    with lock_folder(tmp_path / "out"):
        result = run("batch", "a", "--look", "b", "-o", tmp_path / "out")
    assert result.exit_code == 2 and "another run" in result.stderr


def test_a_name_that_is_too_long_does_not_end_a_batch(run, place, tmp_path):
    row = {"structure": str(place / "a.png"), "appearance": str(place / "b.png")}
    rows = [row | {"name": name} for name in ("n" * 400, "tab\there", "plain")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("batch", tmp_path / "pairs.jsonl", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
