import contextlib
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoint_files import refusal
from torch import nn

from splice_ff.errors import WeightsError
from splice_ff.vit.weights import load_backbone, read_state

KEY = "blocks.1.attn.qkv.weight"


@pytest.mark.parametrize("key", [KEY, "pos_embed", "cls_token", "norm.bias"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_missing_tensor(blank_folder, tmp_path, vit_state, key, suffix):
    file = tmp_path / f"file{suffix}"
    del vit_state[key]
    save_file(vit_state, file) if suffix == ".safetensors" else torch.save(vit_state, file)
    assert f"'{key}'" in refusal(blank_folder, file)


@pytest.mark.parametrize(
    ("key", "shape"), [(KEY, (144, 40)), ("pos_embed", (1, 50, 48)), ("patch_embed.proj.weight", (48, 3, 16, 16))]
)
def test_a_tensor_of_another_shape(blank_folder, tmp_path, vit_state, key, shape):
    vit_state[key] = torch.ones(shape)
    save_file(vit_state, tmp_path / "file.safetensors")
    message = refusal(blank_folder, tmp_path / "file.safetensors")
    assert (
        f"'{key}'" in message
        and str(shape) in message
        and str(tuple(load_file(blank_folder / "model.safetensors")[key].shape)) in message
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers(blank_folder, tmp_path, vit_state, value):
    vit_state[KEY][3, 5] = value
    save_file(vit_state, tmp_path / "file.safetensors")
    assert f"'{KEY}'" in refusal(blank_folder, tmp_path / "file.safetensors")


def test_a_model_of_another_depth(blank_folder, tmp_path, tiny_vit):
    save_file(tiny_vit(depth=1).state_dict(), tmp_path / "file.safetensors")
    assert "'blocks.1." in refusal(blank_folder, tmp_path / "file.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0, 1, 5, 100, 1000, 0.5, 0.9, -1])
def test_a_truncated_file(blank_folder, tmp_path, vit_state, suffix, kept):
    file = tmp_path / f"file{suffix}"
    save_file(vit_state, file) if suffix == ".safetensors" else torch.save(vit_state, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    refusal(blank_folder, file)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_a_damaged_pth(tmp_path, is_zip):
    """Every truncation is seen; a changed byte is, or is one of a tensor's."""
    file = tmp_path / "file.pth"
    torch.save({"a": torch.ones(3), "b": torch.ones(2)}, file, _use_new_zipfile_serialization=is_zip)
    content = file.read_bytes()
    for length in range(0, len(content), 7):
        file.write_bytes(content[:length])
        with pytest.raises(WeightsError, match=r"file\.pth"):
            read_state(file)
    for i in range(0, len(content), 3):
        file.write_bytes(content[:i] + bytes([content[i] ^ 0x55]) + content[i + 1 :])
        with contextlib.suppress(WeightsError):
            read_state(file)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin", ""])
@pytest.mark.parametrize(
    "content",
    [
        b"<html>404 Not Found</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        bytes(999),
        b"I1\n.",
    ],
    ids=["html", "git-lfs pointer", "zeros", "pickled number"],
)
def test_a_file_of_something_else(blank_folder, tmp_path, suffix, content):
    file = tmp_path / f"file{suffix}"
    file.write_bytes(content)
    refusal(blank_folder, file)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"teacher": {}},
        {"epoch": 3},
        [torch.ones(2)],
        torch.ones(2),
        {0: torch.ones(2)},
        {"a": torch.ones(2), 1: torch.ones(2)},
        {"teacher": {"a": torch.ones(2), "b": "c"}},
        None,
    ],
    ids=str,
)
def test_a_pth_without_a_dictionary_of_tensors(blank_folder, tmp_path, content):
    torch.save(content, tmp_path / "file.pth")
    refusal(blank_folder, tmp_path / "file.pth")


def test_no_such_file(blank_folder, tmp_path):
    assert "no such" in refusal(blank_folder, tmp_path / "absent.pth")
    assert "no such" in refusal("test_vit", tmp_path / "absent.pth")


def test_a_folder_without_weights(blank_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "model.safetensors" in refusal(blank_folder, tmp_path / "empty")
    (blank_folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=re.escape(str(blank_folder / "model.safetensors"))):
        load_backbone(str(blank_folder))


class Harmful:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda content, file: file.write_bytes(pickle.dumps(content, 2))])
def test_pickled_code_is_refused_and_not_run(blank_folder, tmp_path, vit_state, save):
    mark, file = tmp_path / "it ran", tmp_path / "file.pth"
    save({"teacher": vit_state | {"harmful": Harmful(mark)}}, file)
    refusal(blank_folder, file)
    assert not mark.exists()
    torch.load(file, weights_only=False) if save is torch.save else pickle.loads(file.read_bytes())
    assert mark.exists()  # so it would have


def test_a_whole_pickled_model_is_refused(blank_folder, tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "file.pth")
    message = refusal(blank_folder, tmp_path / "file.pth")
    assert "torch.nn.modules.linear.Linear" in message and "could run code" in message


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"\n <!DOCTYPE html><title>404</title>", "web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
        (b"", "empty"),
    ],
    ids=["pointer", "html", "xml", "empty"],
)
def test_files_that_people_get_instead_of_weights(blank_folder, tmp_path, suffix, content, word):
    file = tmp_path / f"file{suffix}"
    file.write_bytes(content)
    assert word in refusal(blank_folder, file)


@pytest.mark.parametrize("save", [torch.save, lambda content, file: file.write_bytes(pickle.dumps(content, 2))])
@pytest.mark.parametrize("what", ["code", "class", "text", "truncated"])
def test_torchs_advice_to_let_files_run_code_is_not_passed_on(blank_folder, tmp_path, save, what):
    file = tmp_path / "file.pth"
    content = {"code": Harmful(tmp_path / "mark"), "class": nn.Linear(2, 2), "text": "words", "truncated": [1.0] * 99}
    save({"teacher": {"a": content[what]}}, file)
    if what == "truncated":
        file.write_bytes(file.read_bytes()[:-30])
    message = refusal(blank_folder, file)
    assert not any(word in message for word in ("weights_only", "torch.load", "arbitrary", "add_safe_globals"))
    assert len(message) < 400 + len(str(file))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(4, 4).to_sparse(),
        torch.ones(4, device="meta"),
        torch.ones(4, dtype=torch.complex64),
    ],
    ids=["sparse", "meta", "complex"],
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_tensors_of_odd_kinds(blank_folder, tmp_path, vit_state, tensor):
    torch.save(vit_state | {KEY: tensor}, tmp_path / "file.pth")
    assert f"'{KEY}'" in refusal(blank_folder, tmp_path / "file.pth")


def test_a_bomb_of_zeros_is_not_unpacked(blank_folder, tmp_path):
    """PyTorch reads compressed archives, which it never writes: a few megabytes may stand for many gigabytes."""
    with zipfile.ZipFile(tmp_path / "file.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(2**24))
    assert "compressed" in refusal(blank_folder, tmp_path / "file.pth")
