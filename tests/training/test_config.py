"""Training settings from YAML and the command line."""

from pathlib import Path
from typing import get_args

import pytest

from splice_ff import InputError
from splice_ff.networks.cross_attention_unet import SIZES
from splice_ff.training.config import GeneratorSettings, load_config, weight_at

MINIMAL = "output: out\ndata: {source: photos}\noptimizer: {steps: 10}\n"


@pytest.fixture
def load(tmp_path):
    def read(text=MINIMAL, *overrides):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return load_config(path, overrides)

    return read


def test_what_is_not_said_has_defaults(load):
    config = load()
    assert config.output == Path("out") and config.optimizer.steps == 10
    assert (config.loss.structure, config.loss.appearance, config.loss.identity) == (1, 10, 1)  # as published


@pytest.mark.parametrize("path", sorted(Path("train/configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_configs_that_ship_are_valid(path):
    load_config(path)


def test_values_on_the_command_line_win(load):
    points = "loss.appearance=[[0, 1], [100, 10]]"
    config = load(MINIMAL, "optimizer.steps=7", "data.labels=[cat, dog]", points, "run.compile=true")
    assert config.optimizer.steps == 7 and config.data.labels == ["cat", "dog"] and config.run.compile
    assert config.loss.appearance == [(0, 1.0), (100, 10.0)]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.steps=0", ["optimizer.steps", "greater than or equal to 1", "0"]),
        ("optimizer.steps=many", ["optimizer.steps", "integer", "many"]),
        ("optimizer.learning_rate=-1", ["optimizer.learning_rate", "-1"]),
        ("data.sizze=3", ["data.sizze: unknown setting", "source", "held_out"]),
        ("steps=3", ["steps: unknown setting", "optimizer", "run"]),
        ("distill={source: x, sharee: 1}", ["distill.sharee: unknown setting", "share", "features"]),
        ("data=photos", ["data: a section (source", "not a value", "'photos'"]),
        ("generator.size=huge", ["generator.size", "'tiny', 'compact', 'small', 'base', 'tiny-grid'"]),
        ("run.precision=fp8", ["run.precision", "'fp32' or 'bf16'"]),
        ("loss.appearance=[a]", ["loss.appearance"]),
        ("data={source: x, streaming: true, zoom: 0.5}", ["zoom", "streaming"]),
        ("data.pairs.mined=1", ["mined_pairs", "splice-ff pairs"]),
        ("data.pairs={within: 0, across: 0, identity: 0}", ["shares are 0"]),
        ("output.x=1", ["output.x=1", "not a section"]),
        ("steps", ["section.key=value"]),
        ("optimizer.steps=[", ["not YAML"]),
    ],
)
def test_wrong_values_are_named_in_one_line(load, override, words):
    with pytest.raises(InputError) as caught:
        load(MINIMAL, override)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_all_wrong_values_are_named_at_once(load):
    with pytest.raises(InputError, match=r"optimizer\.steps.*data\.size|data\.size.*optimizer\.steps"):
        load(MINIMAL, "optimizer.steps=0", "data.size=1")


@pytest.mark.parametrize("text", ["", "just words", "a: [", "- 1"])
def test_a_file_that_is_no_config(load, text):
    with pytest.raises(InputError, match=r"holds no settings|not YAML"):
        load(text)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")


def test_missing_sections_are_named(load):
    with pytest.raises(InputError, match=r"data: missing.*optimizer: missing"):
        load("output: out\n")


def test_every_size_of_generator_can_be_chosen():
    assert get_args(GeneratorSettings.model_fields["size"].annotation) == tuple(SIZES)


def test_weights_follow_straight_lines():
    assert weight_at(3, 1000) == 3
    points = [(100, 1.0), (200, 3.0), (300, 0.0)]
    assert [weight_at(points, step) for step in (0, 100, 150, 200, 250, 300, 999)] == [1, 1, 2, 3, 1.5, 0, 0]
