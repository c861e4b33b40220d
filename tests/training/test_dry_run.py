"""What a run will take, said before it; the configs that come along; the launch lines in the docs."""

import re
import shlex
from pathlib import Path

import datasets
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from support.training_setup import read_config, write_run
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from splice_ff import InputError
from splice_ff.cli import app
from splice_ff.training.config import load_config
from splice_ff.training.dry_run import ATTENTION, dry_run
from splice_ff.training.trainer import Trainer
from splice_ff.utils.bundled import bundled_dir
from splice_ff.utils.config_file import find_config

GIB = 2**30
CARDS = {"dino-8gb": 8, "dino-24gb": 24, "dino-80gb": 80, "dino-8x80gb": 80}
NAMES = sorted(file.stem for file in Path("train/configs").glob("*.yaml"))
PAGES = ("README.md", "docs/training.md", "train/configs/dino-8x80gb.yaml")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.mark.parametrize("name", NAMES)
def test_configs_are_found_by_name_and_can_be_run(name):
    config = load_config(find_config(name))
    assert not config.distill
    if name in CARDS:
        assert config.backbone.name in ("dino_vits8", "dino_vitb8") and config.run.precision == "bf16"
        assert config.loss.structure == 1 and config.loss.appearance == 10  # as published


@pytest.mark.parametrize("name", NAMES)
def test_every_config_can_be_run_dry(name):
    shown = CliRunner().invoke(app, ["train", name, "--dry-run"])
    assert shown.exit_code == 0 and "peak memory" in shown.output, shown.output


def test_an_unknown_config_names_the_known_ones():
    with pytest.raises(InputError, match=r"dino-12gb: no such file.*cpu, dino-24gb, dino-80gb"):
        find_config("dino-12gb")


@pytest.mark.parametrize("name", ["dino-8gb", "dino-24gb", "dino-80gb"])
def test_configs_fit_their_cards(name):
    estimate = dry_run(load_config(find_config(name)))
    assert 0.25 * CARDS[name] < estimate.peak_memory / GIB + 2 < 0.85 * CARDS[name]
    assert estimate.backbone_parameters in (21_670_272, 85_807_872)


def test_the_work_is_that_of_a_step(tmp_path, vit_state):
    config = read_config(write_run(tmp_path / "job", vit_state), "loss.crop=1.0", "optimizer.batch_size=4")
    estimate = dry_run(config)
    trainer = Trainer(config, quiet=True)
    batch = next(trainer.data.batches(0))
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as work:
        trainer.losses(batch)[0].total.backward()
    assert estimate.gmacs == pytest.approx(work.get_total_flops() / 2e9, rel=1e-3)
    assert estimate.generator_parameters == sum(p.numel() for p in trainer.generator.parameters())
    assert (estimate.steps, estimate.images) == (8, 2 * 4 * 8)


def test_memory_follows_the_batch_and_checkpointing_part_by_part(tmp_path, vit_state):
    path = write_run(tmp_path / "job", vit_state)
    size = ["data.size=96", "loss.vit_size=96", "optimizer.batch_size=8"]
    whole, twice, thrifty = (
        dry_run(read_config(path, *size, change))
        for change in ("seed=0", "optimizer.batch_size=16", "run.gradient_checkpointing=true")
    )
    assert twice.peak_memory > 1.6 * whole.peak_memory > 1.6 / 0.9 * thrifty.peak_memory
    parts = whole.memory_by_part
    assert sum(parts.values()) == whole.peak_memory
    assert (
        parts["generator's weights"] == parts["its average"] == pytest.approx(4 * whole.generator_parameters, rel=0.01)
    )
    assert "ViT's weights in float32" not in parts
    mixed = dry_run(read_config(path, *size, "run.precision=bf16")).memory_by_part
    assert mixed["ViT's weights in float32"] == parts["ViT's weights"] > mixed["ViT's weights"]
    assert parts["AdamW's state"] == pytest.approx(8 * whole.generator_parameters, rel=0.01)
    for part in ("ViT", "UNet at 1/1"):
        assert twice.memory_by_part[part] == pytest.approx(2 * parts[part], rel=0.1)
    assert thrifty.memory_by_part["UNet at 1/1"] < 0.1 * parts["UNet at 1/1"]
    assert thrifty.memory_by_part["ViT"] == pytest.approx(parts["ViT"], rel=0.1)


def test_the_command_says_what_a_run_takes_and_leaves_nothing(tmp_path, vit_state):
    output = tmp_path / "run"
    shown = CliRunner().invoke(app, ["train", "dino-24gb", f"output={output}", "optimizer.steps=7", "--dry-run"])
    assert shown.exit_code == 0, shown.output
    for words in (
        "steps                7",
        "336 seen",
        "13.0 M trained, 21.7 M frozen",
        "GMACs",
        "GiB",
        "UNet at 1/1 ",
        "s a step",
    ):
        assert words in shown.output
    assert not output.exists()
    assert "not counted" not in shown.output
    small = str(write_run(tmp_path / "job", vit_state))
    for loss in ("realism", "kernel"):
        shown = CliRunner().invoke(app, ["train", small, f"loss.terms.{loss}=0.1", "--dry-run"])
        assert "not counted          the network of the terms realism and kernel" in shown.output


LINES = [
    (page, line.strip().lstrip("# "))
    for page in PAGES
    for line in Path(page).read_text(encoding="utf-8").splitlines()
    if re.match(r"(# Then: )?[# ]*(splice-ff train|accelerate launch .*-m splice_ff train) ", line)
]


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda value: value if value in PAGES else None)
def test_launch_lines_train(page, line, tmp_path, vit_state):
    small = write_run(tmp_path / "job", vit_state)
    words = shlex.split(line.removeprefix("Then: "), comments=True)
    arguments = words[words.index("train") + 1 :]
    overrides = [
        f"data.source={small.parent / 'photos'}", f"output={tmp_path / 'run'}", f"backbone.name={small.parent / 'vit'}",
        "data.split=train", "data.held_out=train", "data.size=32", "data.workers=0", "data.mined_pairs=null",
        "data.pairs.mined=0", "data.labels=null", "distill=null", "loss.vit_size=32", "generator.size=tiny",
        "optimizer.steps=1", "optimizer.batch_size=2", "run.precision=fp32", "run.compile=false", "run.trackers=[]",
        "run.validation_pairs=2",
    ]  # fmt: skip
    shown = CliRunner().invoke(app, ["train", *arguments, *overrides, "--quiet"])
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_every_page_has_launch_lines():
    assert {page for page, _ in LINES} == set(PAGES)


def test_configs_ship_with_the_package():
    assert {file.stem for file in bundled_dir("configs").glob("*.yaml")} == set(NAMES)
