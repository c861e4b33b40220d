"""Bad inputs of every kind to every command: exit status 2, one line that names the input, nothing left behind."""

import json
import os
import pickle
import struct
import zlib
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.checkpoint_files import CONFIG, checkpoint_folder
from support.one_shot_model import make_model
from support.tiny_vit import make_vit
from typer.testing import CliRunner

from splice_ff.cli import app
from splice_ff.vit.weights import load_backbone

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
LONG = "a" * 300


class Bomb:
    """A pickle that would leave a file behind."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def png(width, height):
    """A PNG file that claims a size and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def write_images(folder):
    """Bad images by name; `missing.png` is not made."""
    pixels = np.random.default_rng(0).integers(0, 255, (2, 72, 96, 3), dtype=np.uint8)
    for name, array in zip(("good.png", "other.png"), pixels, strict=True):
        Image.fromarray(array).save(folder / name)
    whole = (folder / "good.png").read_bytes()
    for name, data in {
        "empty.png": b"", "text.png": b"hello", "truncated.png": whole[: len(whole) // 2],
        "page.png": b"<!doctype html>", "pointer.png": LFS, "bomb.png": png(20_000, 20_000),
        "drawing.svg": b"<svg></svg>", "noise.png": bytes(range(256)) * 20,
        "pickle.png": pickle.dumps(Bomb()), "short.png": whole[:20],
    }.items():  # fmt: skip
        (folder / name).write_bytes(data)
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")


IMAGES = (
    "missing.png", "empty.png", "text.png", "truncated.png", "page.png", "pointer.png", "drawing.svg", "bomb.png",
    "noise.png", "pickle.png", "short.png", "folder.png", "pipe.png", f"{LONG}.png",
)  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Good and bad files of all kinds; tests only read there."""
    folder = tmp_path_factory.mktemp("files")
    write_images(folder)
    state = make_vit(depth=2).state_dict()
    checkpoint_folder(folder / "vit", CONFIG, state)
    make_model(load_backbone(str(folder / "vit"))).save_pretrained(folder / "model")
    weights = (folder / "vit/model.safetensors").read_bytes()
    for name, data in {
        "empty.safetensors": b"", "text.safetensors": b"hello", "cut.safetensors": weights[:1000],
        "pointer.safetensors": LFS, "huge.safetensors": struct.pack("<Q", 2**62) + b"{}",
        "pickle.pth": pickle.dumps(Bomb()), "text.pth": b"hello", "empty.pth": b"",
    }.items():  # fmt: skip
        (folder / name).write_bytes(data)
    save_file({"a": torch.zeros(1)}, folder / "other.safetensors")
    for name, config in {
        "no-json": "{", "list": "[]", "nested": "[" * 100_000, "deep": json.dumps(CONFIG | {"depth": 10**9}),
        "wide": json.dumps(CONFIG | {"embed_dim": "wide"}), "resnet": json.dumps(CONFIG | {"architecture": "ResNet"}),
        "none": json.dumps({}), "null": "null",
    }.items():  # fmt: skip
        checkpoint_folder(folder / f"vit-{name}", config, state)
        (folder / f"model-{name}").mkdir()
        (folder / f"model-{name}/config.json").write_text(config)
    checkpoint_folder(folder / "vit-cut", CONFIG, state)
    (folder / "vit-cut/model.safetensors").write_bytes(weights[:1000])
    (folder / "hollow").mkdir()
    write_lists(folder)
    write_configs(folder)
    if find_spec("av"):
        write_videos(folder)
    return folder


VIDEOS = (
    "missing.mp4", "empty.mp4", "text.mp4", "cut.mp4", "sound.mp4", "playlist.m3u8", "tiny.mkv", "folder.mp4",
    "pipe.png", "good.png", "hollow", f"{LONG}.mp4",
)  # fmt: skip
"""Bad ones by name. Only with the extra video; without it, every one is the line that asks for it."""


def write_videos(folder):
    from support.video_files import panned, write_video

    write_video(folder / "good.mkv", panned(count=2), audio="aac")
    write_video(folder / "tiny.mkv", panned(count=2, h=8, w=8))
    write_video(folder / "sound.mp4", [], audio="aac")
    write_video(folder / "adpcm.avi", panned(count=2), audio="adpcm_ms")
    (folder / "cut.mp4").write_bytes((folder / "good.mkv").read_bytes()[:300])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("hello")
    (folder / "playlist.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\n{folder / 'good.mkv'}\n#EXT-X-ENDLIST\n")
    (folder / "folder.mp4").mkdir()


LISTS = {
    "empty.csv": "", "header.csv": "structure,appearance\n", "columns.csv": "a,b\n1,2\n",
    "binary.csv": "\udcff\udcfe\0",
    "twice.csv": "structure,appearance,name\na,b,x\na,b,x\n", "parent.csv": "structure,appearance,name\na,b,..\n",
    "slash.csv": "structure,appearance,name\na,b,a/b\n", "short.csv": "structure,appearance\nonly\n",
    "empty.jsonl": "", "text.jsonl": "hello\n", "list.jsonl": "[1]\n", "number.jsonl": "1\n",
    "lacks.jsonl": '{"structure": "a"}\n',
    "type.jsonl": '{"structure": 1, "appearance": 2}\n', "nested.jsonl": "[" * 100_000, "binary.jsonl": "\udcff\n",
    "list.txt": "a b\n", "list.json": "[]",
}  # fmt: skip


def write_lists(folder):
    for name, text in LISTS.items():
        (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    (folder / "half/one").mkdir(parents=True)
    (folder / "half/one/structure.png").write_bytes((folder / "good.png").read_bytes())
    for role, name in (("structure", "good.png"), ("appearance", "other.png")):
        (folder / "pairs/one").mkdir(parents=True, exist_ok=True)
        (folder / f"pairs/one/{role}.png").write_bytes((folder / name).read_bytes())


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
CONFIGS = {
    "empty.yaml": "", "list.yaml": "[1]", "text.yaml": "hello", "tab.yaml": "a:\n\tb: 1", "binary.yaml": "\udcff",
    "aliases.yaml": ALIASES, "nested.yaml": "[" * 50_000,
    "tag.yaml": "!!python/object/apply:os.system ['touch executed']",
    "unknown.yaml": "data: {source: x}\nshoes: 2", "section.yaml": "data: 1",
}  # fmt: skip


def write_configs(folder):
    for name, text in CONFIGS.items():
        (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    (folder / "good.yaml").write_text(f"output: run\ndata: {{source: {folder / 'hollow'}}}\noptimizer: {{steps: 1}}\n")


VIT = ["--backbone", "FILES/vit", "--device", "cpu"]
MODEL = ["--model", "FILES/model", "--backbone", "FILES/vit", "--device", "cpu"]
GOOD, OTHER = "FILES/good.png", "FILES/other.png"

IMAGE_PLACES = {
    "transfer structure": ["transfer", "BAD", OTHER, *MODEL],
    "transfer appearance": ["transfer", GOOD, "BAD", *MODEL],
    "transfer second appearance": ["transfer", GOOD, OTHER, "BAD", *MODEL],
    "embed": ["embed", "BAD", *MODEL],
    "optimize structure": ["optimize", "BAD", OTHER, *VIT],
    "optimize appearance": ["optimize", GOOD, "BAD", *VIT],
    "pca": ["pca", "BAD", *VIT],
    "pca second": ["pca", GOOD, "BAD", *VIT],
    "invert": ["invert", "BAD", *VIT],
    "attention": ["attention", "BAD", *VIT],
    "match first": ["match", "BAD", OTHER, *VIT],
    "match second": ["match", GOOD, "BAD", *VIT],
    "explain structure": ["explain", "BAD", OTHER, GOOD, *VIT],
    "explain appearance": ["explain", GOOD, "BAD", OTHER, *VIT],
    "explain output": ["explain", GOOD, OTHER, "BAD", *VIT],
}

FILE_OUTPUTS = {
    "transfer": ["transfer", GOOD, OTHER, *MODEL],
    "optimize": ["optimize", GOOD, OTHER, *VIT],
    "attention": ["attention", GOOD, *VIT],
    "match": ["match", GOOD, OTHER, *VIT],
    "explain": ["explain", GOOD, OTHER, GOOD, *VIT],
}
BAD_FILES = (
    "FILES/hollow",
    "FILES/good.png/out.png",
    "out.xyz",
    "out",
    "/proc/none/out.png",
    f"{LONG}.png",
    "/dev/null",
)
FOLDER_OUTPUTS = {
    "pca": ["pca", GOOD, *VIT],
    "invert": ["invert", GOOD, *VIT],
    "batch": ["batch", "FILES/pairs", *MODEL],
    "evaluate": ["evaluate", "FILES/pairs", *VIT],
    "teach": ["teach", "FILES/pairs", *VIT],
    "demo": ["demo", "--device", "cpu"],
}
BAD_FOLDERS = ("FILES/good.png", "FILES/good.png/out", "/proc/none/out", LONG)

NUMBERS = {
    ("transfer", GOOD, OTHER, *MODEL): {
        "--size": ["0", "-1", "8", "100000", "big", "1e3"], "--strength": ["-0.1", "1.1", "nan", "inf", "full"],
        "--refine": ["-1", "many"], "--weight": ["nan", "-1", "inf"], "--device": ["abacus", "cuda:99", "cpu:x"],
        "--look": ["FILES/missing", "FILES/text.safetensors"],
    },
    ("optimize", GOOD, OTHER, *VIT): {
        "--size": ["0", "-1", "32"], "--steps": ["0", "-3", "2.5"], "--seed": ["-1", "1e99", "x"],
        "--precision": ["fp8"], "--preset": ["slow"], "--generator": ["huge"], "--preview-every": ["0"],
        "--state": ["FILES/text.pth", "FILES/pickle.pth", "FILES/hollow", "FILES/empty.pth"],
        "--save-generator": ["/proc/none/g.safetensors", "FILES/hollow"], "--device": ["abacus"],
    },
    ("pca", GOOD, *VIT): {
        "--size": ["0", "-5"], "--layers": ["99", "x", "1,,2", "-9"], "--facets": ["colors", "keys,shoes"],
    },
    ("invert", GOOD, *VIT): {
        "--steps": ["0", "-1"], "--layers": ["99", "x"], "--feature": ["colors"], "--prior": ["none"], "--seeds": ["0"],
        "--seed": ["-1"], "--size": ["0"],
    },
    ("attention", GOOD, *VIT): {"--layer": ["99", "-99", "x"], "--size": ["0"]},
    ("match", GOOD, OTHER, *VIT): {"--layer": ["99", "x"], "--size": ["-2"]},
    ("batch", "FILES/pairs", *MODEL): {"--size": ["0"], "--strength": ["3"], "--batch-size": ["0"]},
    ("evaluate", "FILES/pairs", *VIT): {
        "--limit": ["0"], "--method": ["paint", "optimize-fast:0", "copy:2"], "--baseline": ["none"],
        "--results": ["x", "x=FILES/none"], "--judge": ["no_such_net"], "--also-backbone": ["no_such_vit"],
    },
    ("teach", "FILES/pairs", *VIT): {"--limit": ["0"], "--steps": ["0"], "--size": ["1"], "--seed": ["-1"]},
    ("benchmark", "step"): {
        "--size": ["1"], "--repeats": ["0"], "--backbone": ["no_such_vit", "FILES/vit-null"],
        "--json": ["/proc/none/x.json", "FILES/hollow"],
    },
}  # fmt: skip

WEIGHTS = (
    "missing.safetensors", "empty.safetensors", "text.safetensors", "cut.safetensors", "pointer.safetensors",
    "huge.safetensors", "other.safetensors", "pickle.pth", "text.pth", "empty.pth", "good.png", "hollow",
)  # fmt: skip
CONFIGURED = ("no-json", "list", "nested", "deep", "wide", "resnet", "none", "null")


def cases():
    for place, arguments in IMAGE_PLACES.items():
        for name in IMAGES:
            yield f"{place}: {name[:20]}", [f"FILES/{name}" if a == "BAD" else a for a in arguments], name[:100]
    for command, arguments in FILE_OUTPUTS.items():
        for output in BAD_FILES:
            yield f"{command} -o {output[:20]}", [*arguments, "-o", output], output.removeprefix("FILES/")[:100]
    for command, arguments in FOLDER_OUTPUTS.items():
        for output in BAD_FOLDERS:
            yield f"{command} -o {output[:20]}", [*arguments, "-o", output], output.removeprefix("FILES/")[:100]
    for arguments, options in NUMBERS.items():
        for option, values in options.items():
            for value in values:
                yield f"{arguments[0]} {option} {value}", [*arguments, option, value], ""
    for name in WEIGHTS:
        yield f"--weights {name}", ["optimize", GOOD, OTHER, *VIT, "--weights", f"FILES/{name}"], name
        yield f"--look {name}", ["transfer", GOOD, *MODEL, "--look", f"FILES/{name}"], name
        yield f"apply {name}", ["apply", f"FILES/{name}", GOOD, "--device", "cpu"], name
    for name in CONFIGURED:
        yield f"--backbone {name}", ["attention", GOOD, "--backbone", f"FILES/vit-{name}"], f"vit-{name}"
        yield f"--model {name}", ["transfer", GOOD, OTHER, "--model", f"FILES/model-{name}"], f"model-{name}"
    yield "--backbone cut", ["attention", GOOD, "--backbone", "FILES/vit-cut"], "vit-cut"
    yield "--model hollow", ["transfer", GOOD, OTHER, "--model", "FILES/hollow"], "hollow"
    for name in [*LISTS, "missing.csv", "missing", "half", "hollow"]:
        yield f"batch {name}", ["batch", f"FILES/{name}", *MODEL], name
        yield f"evaluate {name}", ["evaluate", f"FILES/{name}", *VIT], name
        yield f"teach {name}", ["teach", f"FILES/{name}", *VIT], name
    for name in [*CONFIGS, "missing.yaml", "hollow", "good.yaml"]:
        yield f"train {name}", ["train", f"FILES/{name}"], "hollow" if name == "good.yaml" else name
    for override in (
        "optimizer.batch_size=0", "optimizer.batch_size=100000000000", "optimizer.steps=-1", "optimizer.steps=x",
        "optimizer.learning_rate=.inf", "optimizer.learning_rate=.nan", "optimizer.learning_rate=-1", "seed=-1",
        "seed=99999999999999999999", "data.size=0", "data.size=x", "loss.vit_size=0", "generator.size=huge", "nothing",
        "=1", "shoes=2", "data.shoes=2", "data=1", "run.precision=fp8", "loss.crop=2", "data.workers=-1",
        "backbone.name=[", "optimizer.ema_decay=2",
    ):  # fmt: skip
        yield f"train {override}", ["train", "FILES/good.yaml", override], override.partition("=")[0].split(".")[-1]
    for name in ("missing", "hollow", "text.png", "list.txt"):
        yield f"pairs {name}", ["pairs", f"FILES/{name}", *VIT], name


def video_cases():
    for name in VIDEOS:
        yield f"video structure {name[:20]}", ["video", f"FILES/{name}", OTHER, *MODEL], name[:100]
    video = ["video", "FILES/good.mkv"]
    for name in IMAGES:
        yield f"video look {name[:20]}", [*video, f"FILES/{name}", *MODEL], name[:100]
    for name in WEIGHTS:
        if name.endswith(".safetensors"):
            yield f"video look {name}", [*video, f"FILES/{name}", *MODEL], name
    for output in (*BAD_FILES, "FILES/good.mkv", f"{LONG}.mp4", "/proc/none/out.mp4", "FILES/good.png/out.mp4"):
        word = output.removeprefix("FILES/")[:100]
        yield f"video -o {output[:20]} {output[-5:]}", [*video, OTHER, *MODEL, "-o", output], word
    yield "video sound", ["video", "FILES/adpcm.avi", OTHER, *MODEL, "-o", "out.mp4"], "adpcm_ms"
    for option, values in {"--size": ["0", "8", "100000"], "--strength": ["3", "nan"], "--batch-size": ["0"]}.items():
        for value in values:
            yield f"video {option} {value}", [*video, OTHER, *MODEL, option, value], ""


CASES = [*cases(), *(video_cases() if find_spec("av") else ())]


def test_the_table_is_long():
    assert len(CASES) >= 500 and len({name for name, *_ in CASES}) == len(CASES)


def contents(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(("arguments", "word"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input(files, tmp_path, monkeypatch, arguments, word):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    before = contents(files)
    result = CliRunner().invoke(app, [argument.replace("FILES", str(files)) for argument in arguments])
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    if not result.stderr.startswith("Usage: "):  # typer's own lines for what is no number, or out of range
        lines = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1 and lines[0].startswith("error: ") and word in lines[0], result.stderr
    assert not list(tmp_path.iterdir()), "something was left behind"
    assert contents(files) == before, "an input was changed"
