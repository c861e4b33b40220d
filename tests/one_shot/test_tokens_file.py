"""Looks in files: they come back as they were, and only to the model that made them."""

import os

import pytest
import torch
from safetensors.torch import save_file
from support.one_shot_model import make_model, random_image

from splice_ff.errors import CheckpointError
from splice_ff.one_shot.tokens_file import FORMAT, load_look, save_look


@pytest.fixture
def model(tiny_backbone):
    return make_model(tiny_backbone())


@pytest.fixture
def look(model, tmp_path):
    """A file, and the tokens in it."""
    tokens = model.embed(random_image(2))
    save_look(tmp_path / "look.safetensors", model, tokens, {"appearance": "tigre été.jpg"})
    return tmp_path / "look.safetensors", tokens


def test_a_look_comes_back(model, look):
    path, tokens = look
    again, facts = load_look(path, model)
    assert torch.equal(again, tokens) and facts == {"appearance": "tigre été.jpg"}
    assert torch.equal(model.paint(random_image(1), again), model(random_image(1), random_image(2), output_type="pt"))


def test_others_may_read_it_as_the_umask_says(look):
    umask = os.umask(0)
    os.umask(umask)
    assert look[0].stat().st_mode & 0o777 == 0o666 & ~umask


def test_another_models_look_is_refused(look, model, tiny_backbone):
    other = make_model(tiny_backbone(), seed=1)
    with pytest.raises(CheckpointError) as caught:
        load_look(look[0], other)
    for words in (str(look[0]), model.fingerprint[:12], other.fingerprint[:12]):
        assert words in str(caught.value)


def test_damaged_looks_are_refused(look, model, tmp_path):
    path, tokens = look
    whole = path.read_bytes()
    metadata = {"format": FORMAT, "model": model.fingerprint, "facts": "{}"}
    cases = {
        "no such file": lambda: path.unlink(),
        "damaged": lambda: path.write_bytes(whole[:-1]),
        "not a look": lambda: path.write_text("hello"),
        "format 'none'": lambda: save_file({"tokens": tokens}, path),
        "a damaged look": lambda: save_file({"other": tokens}, path, metadata),
        "shape": lambda: save_file({"tokens": tokens[:, :-1].contiguous()}, path, metadata),
        "NaN": lambda: save_file({"tokens": tokens * torch.nan}, path, metadata),
        "damaged look": lambda: save_file({"tokens": tokens}, path, metadata | {"facts": "{"}),
    }
    for words, damage in cases.items():
        damage()
        with pytest.raises(CheckpointError, match=words) as caught:
            load_look(path, model)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_is_written_of_what_is_not_a_look(model, tmp_path):
    path = tmp_path / "look.safetensors"
    tokens = model.embed(random_image(2))
    with pytest.raises(ValueError, match="one look"):
        save_look(path, model, tokens.expand(2, -1, -1))
    with pytest.raises(CheckpointError, match="NaN"):
        save_look(path, model, tokens * torch.inf)
    assert not list(tmp_path.iterdir())
