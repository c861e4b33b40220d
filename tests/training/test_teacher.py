"""The teacher: every pair once, whatever happens to some of them, and squares that lie on each other to train on."""

import json
from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from support.checkpoint_files import CONFIG, checkpoint_folder
from support.one_shot_model import make_model
from torchvision.transforms.v2.functional import pil_to_tensor
from typer.testing import CliRunner

from splice_ff.cli import app
from splice_ff.commands import teach as teach_command
from splice_ff.data import teacher_pairs
from splice_ff.data.decoding import load_row
from splice_ff.data.mined_pairs import MinedPairs
from splice_ff.data.pair_list import read_pairs
from splice_ff.data.sources import open_dataset
from splice_ff.data.teacher_pairs import TeacherPairs, read_teacher_pair, write_teacher_pair
from splice_ff.errors import DivergedError, InputError
from splice_ff.one_shot.refine import refine, refining_size
from splice_ff.per_pair.optimizer import PairOptimizer
from splice_ff.per_pair.recipes import PRESETS, REFINE, make_recipe
from splice_ff.training import teacher
from splice_ff.training.teacher import paint_pairs, tasks_of_dataset, tasks_of_files, teach
from splice_ff.utils.run_folder import lock_folder

RECIPE = replace(make_recipe("fast", steps=2, size=64, precision="fp32"), copy_steps=1, views=1)
TINY = {"depth": 2, "patch_size": 24}
CPU = ["--steps", "2", "--size", "64", "--device", "cpu", "--quiet"]


def write_image(path, seed, size=(96, 72)):
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pairs(tmp_path):
    """A folder of three pairs: a, b, c."""
    for i, name in enumerate("abc"):
        write_image(tmp_path / "pairs" / name / "structure.png", 2 * i)
        write_image(tmp_path / "pairs" / name / "appearance.png", 2 * i + 1, (72, 80))
    return tmp_path / "pairs"


@pytest.fixture
def paint(tiny_backbone, tmp_path, pairs):
    """Run `teach` in this process on those pairs: report."""

    def run(folder=tmp_path / "teacher", source=pairs, recipe=RECIPE):
        return teach(source, folder, tiny_backbone(**TINY), recipe, device="cpu", quiet=True)

    return run


def painted(folder):
    return sorted(path.name for path in folder.glob("*.parquet"))


def failures(folder):
    return [json.loads(line) for line in (folder / "failed.jsonl").read_text().splitlines()]


def test_datasets_reads_what_teach_writes(paint, tmp_path, pairs, tiny_backbone):
    paint()
    files = str(tmp_path / "teacher" / "*.parquet")
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["name"] == ["a", "b", "c"]
    row = rows[0]
    assert row["structure"].size == row["output"].size == (85, 64) and row["appearance"].size == (64, 71)
    assert row["steps"] == 2 and row["seconds"] > 0
    settings = json.loads(row["settings"])
    assert settings["size"] == "64" and settings["backbone_sha256"] == tiny_backbone(**TINY).fingerprint

    # The same as the optimizer itself on the images that are kept.
    def tensor(name):
        return torch.from_numpy(np.array(row[name])).permute(2, 0, 1)[None].float() / 255

    run = PairOptimizer(tensor("structure"), tensor("appearance"), tiny_backbone(**TINY), RECIPE)
    run.step(), run.step()
    expected = run.result()
    assert row["losses"] == pytest.approx(expected.losses, rel=1e-3)
    assert (tensor("output") - expected.image).abs().max() < 0.01


def test_structure_and_appearance_are_not_swapped(paint, tmp_path, pairs):
    paint()
    row = read_teacher_pair(tmp_path / "teacher" / "pair-b.parquet")
    for name in ("structure", "appearance"):
        kept = Image.open(BytesIO(row[name]["bytes"]))
        original = Image.open(pairs / "b" / f"{name}.png").resize(kept.size, Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(kept, float) - np.asarray(original, float)).mean() < 3


def test_an_interrupted_run_goes_on(paint, tmp_path, monkeypatch):
    steps = []
    step = PairOptimizer.step

    def interrupted(self):
        steps.append(1)
        if len(steps) == 4:  # at the second pair's second step
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(PairOptimizer, "step", interrupted)
    folder = tmp_path / "teacher"
    with pytest.raises(KeyboardInterrupt):
        paint()
    assert painted(folder) == ["pair-a.parquet"]
    first = (folder / "pair-a.parquet").read_bytes()
    (folder / f".{'0' * 32}.parquet").write_bytes(first[:100])  # what kill -9 in the middle of writing leaves
    report = paint()
    assert (report.painted, report.skipped, report.failed) == (2, 1, 0)
    assert (folder / "pair-a.parquet").read_bytes() == first
    assert len(steps) == 4 + 2 * 2
    assert len(TeacherPairs(folder, 32)) == 3


def test_a_pair_that_cannot_be_read_does_not_stop_the_rest(paint, tmp_path, pairs):
    good = (pairs / "a" / "structure.png").read_bytes()
    (pairs / "a" / "structure.png").write_bytes(good[: len(good) // 2])
    report = paint()
    folder = tmp_path / "teacher"
    assert (report.painted, report.failed) == (2, 1)
    assert painted(folder) == ["pair-b.parquet", "pair-c.parquet"]
    assert [entry["name"] for entry in failures(folder)] == ["a"] and "structure.png" in failures(folder)[0]["error"]

    (pairs / "a" / "structure.png").write_bytes(good)  # mended, it gets its turn
    assert paint().painted == 1
    assert len(painted(folder)) == 3 and not (folder / "failed.jsonl").exists()


def test_a_run_that_diverges_does_not_stop_the_rest(paint, tmp_path, monkeypatch):
    step, runs = PairOptimizer.step, []

    def diverging(self):
        runs.append(self) if self.step_count == 0 else None
        if len(runs) == 2:
            raise DivergedError("the losses are no longer finite")
        return step(self)

    monkeypatch.setattr(PairOptimizer, "step", diverging)
    assert paint().painted == 2
    assert failures(tmp_path / "teacher") == [{"name": "b", "error": "the losses are no longer finite"}]


def test_processes_share_the_pairs(paint, tmp_path, monkeypatch):
    folder = tmp_path / "teacher"

    def as_process(rank, count):
        state = SimpleNamespace(
            process_index=rank, num_processes=count, is_main_process=rank == 0, wait_for_everyone=lambda: None,
            destroy_process_group=lambda: None,
        )  # fmt: skip
        monkeypatch.setattr(teacher, "PartialState", lambda cpu: state)
        return paint()

    assert as_process(0, 2).painted == 2
    assert painted(folder) == ["pair-a.parquet", "pair-c.parquet"]
    assert as_process(1, 2).painted == 1
    assert len(painted(folder)) == 3
    assert as_process(3, 5).skipped == 0  # more processes than pairs


def test_two_runs_do_not_share_a_folder(paint, tmp_path):
    with lock_folder(tmp_path / "teacher"), pytest.raises(InputError, match="another run is writing there"):
        paint()


def test_images_made_otherwise_are_not_mixed(paint, tmp_path, pairs):
    paint()
    with pytest.raises(InputError, match=r"steps: 2 before, 3 now; generator: 'published' before, 'refined' now"):
        paint(recipe=replace(RECIPE, steps=3, generator="refined"))
    with pytest.raises(InputError, match=r"pairs: '.*pairs' before, '.*other' now"):
        paint(source=(pairs.rename(tmp_path / "other")))
    (tmp_path / "teacher" / "teach.json").write_text("{")
    with pytest.raises(InputError, match=r"teach\.json: damaged"):
        paint(source=tmp_path / "other")


def test_pairs_of_a_dataset(tmp_path, tiny_backbone):
    for i in range(4):
        write_image(tmp_path / "photos" / f"{i}.png", i)
    data = open_dataset(str(tmp_path / "photos"))
    mined = MinedPairs(np.array([0, 0, 1, 2, 3]), np.array([1, 2, 3, 0, 1]), np.ones(5, np.float32), {"rows": 4})
    tasks = tasks_of_dataset(mined, data)
    assert sorted(task.name for task in tasks) == ["0-1", "0-2", "1-3", "2-0", "3-1"]
    assert [task.name for task in tasks] != sorted(task.name for task in tasks)
    assert [task.name for task in tasks] == [task.name for task in tasks_of_dataset(mined, data)]
    task = next(task for task in tasks if task.name == "1-3")
    assert task.structure()["image"]["path"] == data[1]["image"]["path"]
    assert task.appearance()["image"]["path"] == data[3]["image"]["path"]
    assert paint_pairs([task], tiny_backbone(**TINY), RECIPE, tmp_path, quiet=True).painted == 1
    with pytest.raises(InputError, match="of 4 images, not 2"):
        tasks_of_dataset(mined, data.select([0, 1]))


@pytest.fixture
def squares(tmp_path):
    """Teacher's pairs whose output is their structure, and whose appearance is its own image."""

    def make(count=6, size=32, **options):
        random = np.random.default_rng(0)
        for i in range(count):
            structure, appearance = torch.from_numpy(random.integers(0, 255, (2, 3, 64, 96), dtype=np.uint8))
            facts = {"name": str(i), "steps": 1, "seconds": 1.0, "settings": "{}"}
            facts["losses"] = dict.fromkeys(("total", "structure", "appearance", "identity"), 0.0)
            images = {"structure": structure, "appearance": appearance, "output": structure}
            write_teacher_pair(tmp_path / f"pair-{i}.parquet", images, facts)
        return TeacherPairs(tmp_path, size, **options)

    return make


def same(item, other):
    return all(torch.equal(item[name], other[name]) for name in item)


def test_structure_and_output_get_the_same_square(squares):
    pairs = squares()
    for item in (pairs[i] for i in range(len(pairs))):
        assert all(item[name].shape == (3, 32, 32) and item[name].dtype == torch.uint8 for name in item)
        assert torch.equal(item["structure"], item["output"])
        assert not torch.equal(item["structure"], item["appearance"])


def test_crops_move_and_are_mirrored(squares, tmp_path):
    pairs = squares(count=1)
    whole = load_row({"image": read_teacher_pair(tmp_path / "pair-0.parquet")["structure"]}, 36)
    corners, mirrored = set(), set()
    for epoch in range(12):
        square = pairs[epoch, 0]["structure"]
        for flip in (False, True):
            windows = (whole.flip(-1) if flip else whole).unfold(1, 32, 1).unfold(2, 32, 1)
            matches = (windows == square[:, None, None]).all(-1).all(-1).all(0).nonzero().tolist()
            corners |= {(*corner, flip) for corner in matches}
            mirrored |= {flip} if matches else set()
    assert mirrored == {False, True} and len(corners) == 12 and len({top for top, _, _ in corners}) > 2


def test_items_depend_on_seed_epoch_and_place_only(squares):
    pairs = squares()
    first = [pairs[i] for i in range(6)]
    assert same(pairs[3], first[3])
    loader = torch.utils.data.DataLoader(pairs, num_workers=2, batch_size=None)
    assert all(map(same, loader, first))
    assert not any(same(pairs[1, i], first[i]) for i in range(6))
    assert not any(same(item, other) for item, other in zip(first, squares(seed=1), strict=True))


def test_every_pair_once_an_epoch_in_another_order(squares, monkeypatch):
    pairs = squares()
    opened = []
    monkeypatch.setattr(teacher_pairs, "read_teacher_pair", lambda path: opened.append(path) or read_teacher_pair(path))
    for epoch in range(2):
        [pairs[epoch, i] for i in range(6)]
    first, second = opened[:6], opened[6:]
    assert sorted(first) == sorted(second) == pairs.files
    assert first != second


def test_a_folder_without_pairs_and_a_damaged_file(squares, tmp_path):
    with pytest.raises(InputError, match="splice-ff teach"):
        TeacherPairs(tmp_path, 32)
    pairs = squares(count=1)
    (tmp_path / "pair-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"pair-0\.parquet: damaged"):
        pairs[0]


@pytest.fixture
def one_shot(tiny_backbone):
    """A one-shot model that works at 64 px."""
    return make_model(tiny_backbone(depth=2))


def test_a_model_is_refined_at_a_size_of_its_own_and_kept_at_the_other(one_shot, tmp_path, pairs):
    recipe = replace(REFINE, steps=2, size=80)
    report = teach(pairs, tmp_path / "made", one_shot.backbone, recipe, model=one_shot, device="cpu", quiet=True)
    assert report.painted == 3
    row = pyarrow.parquet.read_table(tmp_path / "made" / "pair-a.parquet").to_pylist()[0]
    images = [Image.open(BytesIO(row[name]["bytes"])) for name in ("structure", "appearance", "output")]
    assert [min(image.size) for image in images] == [80, 80, 80] and images[0].size == images[2].size
    structure, appearance, output = (pil_to_tensor(image)[None] / 255 for image in images)
    refined = refine(one_shot, structure, appearance, steps=2)
    assert (refined.image - output).abs().max() <= 0.51 / 255
    assert row["losses"]["total"] == pytest.approx(refined.losses["total"], rel=1e-3)
    how = json.loads((tmp_path / "made" / "teach.json").read_text())
    assert (
        how["model_sha256"] == one_shot.fingerprint
        and how["working_size"] == refining_size(one_shot)
        and how["steps"] == 2
    )
    with pytest.raises(InputError, match="teacher's pairs"):  # not mixed with those from random weights
        teach(pairs, tmp_path / "made", one_shot.backbone, recipe, device="cpu", quiet=True)
    unet = replace(one_shot.config.generator.unet, keeps_fine_colors=True)  # nor with another generator's
    one_shot.config = replace(one_shot.config, generator=replace(one_shot.config.generator, unet=unet))
    with pytest.raises(InputError, match=r"teacher's pairs .*\(unet\.keeps_fine_colors: 'False' before, 'True' now"):
        teach(pairs, tmp_path / "made", one_shot.backbone, recipe, model=one_shot, device="cpu", quiet=True)


def test_a_model_goes_to_the_device_of_its_process(one_shot, tmp_path, pairs, monkeypatch):
    seen = []

    def watched(model, *images, **options):
        seen.append(model.device.type)
        raise DivergedError("seen enough")

    monkeypatch.setattr(teacher, "refiner", watched)
    tasks = tasks_of_files(read_pairs(pairs))
    paint_pairs(tasks, one_shot.backbone, RECIPE, tmp_path, model=one_shot, device="meta", quiet=True)
    assert seen == ["meta"] * 3


def test_the_command_refines_a_model(one_shot, tmp_path, pairs, monkeypatch):
    monkeypatch.setattr(teach_command, "load_model", lambda name, *rest: one_shot)
    arguments = ["teach", pairs, "-o", tmp_path / "made", "--model", "mine", "--device", "cpu", "--limit", "1"]
    result = CliRunner().invoke(app, [str(a) for a in [*arguments, "--steps", 1, "--size", 64]])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "made" / "teach.json").read_text())["structure_weight"] == REFINE.structure_weight
    for option in ("--preset", "--backbone"):
        result = CliRunner().invoke(app, [str(a) for a in [*arguments, option, "fast"]])
        assert result.exit_code == 2 and "its own backbone" in result.stderr


@pytest.fixture
def command(tmp_path, tiny_vit, monkeypatch):
    """Run `splice-ff teach` in this process with a tiny backbone."""
    monkeypatch.setitem(PRESETS, "fast", RECIPE)
    backbone = checkpoint_folder(tmp_path / "tiny", CONFIG, tiny_vit(depth=2).state_dict())

    def run(*arguments):
        arguments = ["teach", *arguments, "-o", tmp_path / "made", "--backbone", backbone]
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return run


def test_the_command(command, pairs, tmp_path, monkeypatch):
    (pairs / "b" / "appearance.png").write_bytes(b"no image")
    result = command(pairs, *CPU, "--limit", 2)
    assert result.exit_code == 0 and "pairs left out: 1;" in result.stderr, result.output
    assert painted(tmp_path / "made") == ["pair-a.parquet"]

    monkeypatch.setattr(PairOptimizer, "step", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    result = command(pairs, *CPU)
    assert result.exit_code == 130 and "interrupted" in result.stderr and "Traceback" not in result.output
    assert painted(tmp_path / "made") == ["pair-a.parquet"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "paper"], "--size"),
        (["--data", "photos"], "--data goes with"),
        (["--steps", "0"], "steps"),
    ],
)
def test_the_command_refuses_in_one_line(command, pairs, tmp_path, arguments, words):
    result = command(pairs, *arguments)
    assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1, result.output
    assert not (tmp_path / "made").exists()


def test_mined_pairs_need_their_dataset(command, tmp_path):
    for i in range(2):
        write_image(tmp_path / "photos" / f"{i}.png", i)
    columns = {"structure": [0, 1], "appearance": [1, 0], "similarity": [0.5, 0.5]}
    table = pyarrow.table(columns, metadata={"splice_ff": json.dumps({"rows": 2})})
    pyarrow.parquet.write_table(table, tmp_path / "pairs.parquet")
    result = command(tmp_path / "pairs.parquet", *CPU)
    assert result.exit_code == 2 and "--data" in result.stderr
    result = command(tmp_path / "pairs.parquet", *CPU, "--data", tmp_path / "photos")
    assert result.exit_code == 0, result.output
    assert painted(tmp_path / "made") == ["pair-0-1.parquet", "pair-1-0.parquet"]
    result = command(tmp_path / "pairs.parquet", *CPU, "--data", tmp_path / "photos", "--split", "train[:2]")
    assert result.exit_code == 2 and "split: 'train' before, 'train[:2]' now" in result.stderr


def test_no_pair_at_all_is_an_error(command, pairs, tmp_path):
    for path in pairs.glob("*/structure.png"):
        path.write_bytes(b"no image")
    result = command(pairs, *CPU)
    assert result.exit_code == 2 and "no pair could be painted" in result.stderr
    assert len(failures(tmp_path / "made")) == 3
