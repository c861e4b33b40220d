"""YAML from strangers: bounded, and every fault one line."""

import os
import time
from pathlib import Path

import pytest
import torch

from splice_ff import InputError
from splice_ff.pretraining.config import PretrainingConfig
from splice_ff.training.config import ALL_TERMS, TrainingConfig
from splice_ff.utils.config_file import Section, parse_yaml, read_settings
from splice_ff.utils.machine import peak_memory

BASIS = "output: out\ndata: {source: photos}\noptimizer: {steps: 10}\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
PRETRAINING = "output: out\nimages: {source: photos}\ndino: {optimizer: {steps: 10}}\n"


@pytest.fixture
def refused(tmp_path):
    """The message with which a text and overrides are refused: one line, within two seconds and 100 MB."""

    def read(text, *overrides, model=TrainingConfig):
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        memory = peak_memory(torch.device("cpu"))
        start = time.perf_counter()
        with pytest.raises(InputError) as caught:
            read_settings(model, path, overrides)
        assert time.perf_counter() - start < 2
        assert peak_memory(torch.device("cpu")) - memory < 1e8
        message = str(caught.value)
        assert "\n" not in message and len(message) < 2000
        return message

    return read


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "more than 10000 values"),
        ("a: &a [*a]", "more than 10000 values"),
        ("a: &a {b: *a}", "more than 10000 values"),
        ("[" * 30_000, "nested too deeply"),
        ("{a: " * 8_000, "nested too deeply"),
        ("".join(" " * i + "a:\n" for i in range(230)), "a: unknown setting"),
        (BASIS + "#" * 2**16, "larger than 32 KiB"),
        (BASIS + "seed: " + "9" * 5000, "Exceeds the limit"),
        (BASIS + "seed: 2001-99-99", "month must be in"),
        (BASIS + "? [a]\n: b", "not YAML"),
        (BASIS + "!!python/object/apply:os.system [ls]", "not YAML"),
        (BASIS + "output: other", "'output' is given twice"),
        (BASIS.encode() + b"# caf\xe9", "not YAML"),
        (b"\0\0\0\0", "not YAML"),
    ],
    ids=lambda value: None if isinstance(value, str | bytes) and len(value) > 40 else value,
)
def test_files_out_of_bounds(refused, text, words):
    assert words in refused(text)


NUMBERS = {
    TrainingConfig: (
        BASIS,
        ["seed", "data.size", "data.workers", "data.pairs.within", "loss.structure", "loss.identity_every",
         "loss.vit_size", "loss.crop", "optimizer.steps", "optimizer.batch_size", "optimizer.learning_rate",
         "optimizer.warmup_steps", "optimizer.weight_decay", "optimizer.max_grad_norm", "optimizer.max_grad_ratio",
         "optimizer.ema_decay", "optimizer.gradient_accumulation_steps", "optimizer.max_skipped_steps",
         "run.checkpoint_minutes", "run.validation_pairs", "run.log_every", "run.checkpoints_total_limit"],
    ),
    PretrainingConfig: (
        PRETRAINING,
        ["seed", "images.side", "images.workers", "student.width", "student.depth", "student.drop_path", "views.jitter",
         "dino.local_views", "dino.prototypes", "dino.momentum", "dino.statistics", "dino.optimizer.learning_rate",
         "dino.optimizer.batch_size", "dino.optimizer.steps", "probe.every", "run.save_every"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("value", [".inf", ".nan", "-1", "1e300", "1.0e+300", "99999999999999999999999"])
@pytest.mark.parametrize(("model", "name"), [(model, name) for model, (_, names) in NUMBERS.items() for name in names])
def test_numbers_out_of_bounds(refused, model, name, value):
    if value not in (".inf", ".nan", "-1") and _is_unbounded(model, name):
        pytest.skip("any finite number")
    message = refused(NUMBERS[model][0], f"{name}={value}", model=model)
    assert f"{name}: " in message


def _is_unbounded(model, name):
    """Floats may be as large as they like: weights and rates."""
    return name.split(".")[-1] in (
        "within", "structure", "statistics", "learning_rate", "weight_decay", "max_grad_norm", "max_grad_ratio",
        "checkpoint_minutes",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.batch_size=100000000", "optimizer.batch_size: Input should be less than or equal to 65536"),
        ("optimizer.steps=1e300", "optimizer.steps"),
        (f"output={'[' * 50_000}", "nested too deeply"),
        (f"output={'x' * 2**17}", "too long"),
        ("output={a: &a [*a]}", "more than 10000 values"),
    ],
)
def test_overrides_out_of_bounds(refused, override, words):
    assert words in refused(BASIS, override)


@pytest.mark.parametrize("kind", ["folder", "pipe", "missing"])
def test_what_is_no_file_is_not_read(tmp_path, kind):
    path = tmp_path / "config.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)  # opening it would wait for a writer
    with pytest.raises(InputError, match=r"config\.yaml: (not a file|cannot be read)"):
        read_settings(TrainingConfig, path)


@pytest.mark.parametrize(
    ("model", "old"),
    [(model, old) for model in (TrainingConfig, PretrainingConfig) for old in model.renamed],
)
def test_an_old_name_names_the_new_one(refused, model, old):
    message = refused(NUMBERS[model][0], f"{old}=1", model=model)
    assert f"{old} is called {model.renamed[old]} now" in message
    section = model
    for part in model.renamed[old].split("."):  # the new name is one; `loss.terms` holds names of its own
        if section is None:
            assert part in ALL_TERMS
            break
        kind = section.model_fields[part].annotation
        section = next((k for k in (kind, *getattr(kind, "__args__", ())) if hasattr(k, "model_fields")), None)


def test_the_home_folder_and_the_encoding(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + BASIS.replace("photos", "~/Fotos/Bärchen").encode())
    config = read_settings(
        TrainingConfig, path, ["output=~/runs/a", "generator.start_from=~/m", "distill.source=~/t", "backbone.name=~/b",
                               "backbone.weights=~/w", "data.mined_pairs=~/p"],
    )  # fmt: skip
    assert config.data.source == "/home/me/Fotos/Bärchen" and config.output == Path("/home/me/runs/a")
    assert config.distill is not None and config.distill.source == Path("/home/me/t")
    assert config.generator.start_from == Path("/home/me/m") and config.backbone.name == "/home/me/b"
    assert config.backbone.weights == Path("/home/me/w") and config.data.mined_pairs == Path("/home/me/p")
    config = read_settings(PretrainingConfig, _pretraining(tmp_path), ["images.source=~/a", "output=~/b"])
    assert config.images.source == "/home/me/a" and config.output == Path("/home/me/b")


def _pretraining(folder):
    (folder / "pretraining.yaml").write_text(PRETRAINING)
    return folder / "pretraining.yaml"


def test_aliases_are_understood():
    assert parse_yaml("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}") == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}


def test_overriding_one_alias_leaves_the_others(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "output: out\nimages: {source: photos}\ndino: {optimizer: &o {steps: 10}}\n"
        "distillation: {teacher: open_nsfw, optimizer: *o}\n",
        encoding="utf-8",
    )
    config = read_settings(PretrainingConfig, path, ["dino.optimizer.steps=3"])
    assert config.distillation is not None and config.dino is not None
    assert (config.dino.optimizer.steps, config.distillation.optimizer.steps) == (3, 10)


def test_unknown_settings_of_a_section_share_one_list(tmp_path):
    class Inner(Section):
        size: int = 1

    class Outer(Section):
        inner: Inner = Inner()

    file = tmp_path / "config.yaml"
    file.write_text("inner: {sise: 2, with: 3}\n")
    with pytest.raises(InputError) as caught:
        read_settings(Outer, file)
    assert str(caught.value) == f"{file}: inner.sise, inner.with: unknown setting. Known: size"
