"""A file that is not there is said before torch is imported, for each argument and option that names one."""

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import get_type_hints

import typer
from support.one_shot_model import random_image

from splice_ff.cli import app
from splice_ff.images import save_image

COMMANDS = typer.main.get_command(app).commands
RUN = """
import json, sys
from typer.testing import CliRunner
from splice_ff.cli import app
for arguments in json.load(sys.stdin):
    result = CliRunner().invoke(app, arguments)
    print(json.dumps([result.exit_code, result.stderr, "torch" in sys.modules]), flush=True)
"""
WORKING = {
    "transfer": {"structure": "a.png", "appearance": "a.png"},
    "embed": {"appearance": "a.png"},
    "batch": {"inputs": "a.png", "look": "a.png"},
    "video": {"structure": "a.mkv", "look": "a.png"},
    "optimize": {"structure": "a.png", "appearance": "a.png"},
    "apply": {"generator": "a.png", "image": "a.png"},
    "pairs": {"data": "photos"},
    "train": {"config": "cpu"},
    "teach": {"pairs": "pairs"},
    "evaluate": {"pairs": "pairs"},
    "pca": {"images": "a.png"},
    "invert": {"image": "a.png"},
    "attention": {"image": "a.png"},
    "match": {"image_a": "a.png", "image_b": "a.png"},
    "explain": {"structure": "a.png", "appearance": "a.png", "result": "a.png"},
}
"""What each command can work with; one of them is then replaced by what is not there."""
WRITTEN = {"output", "state", "save_generator_to"}
INSTEAD = {("transfer", "look"): "appearance", ("batch", "structure"): "look"}
"""Of two that exclude each other, the one left out."""


def cases():
    """(command, parameter) of all paths that are read, and of names that may be paths."""
    for command, parsed in COMMANDS.items():
        for name, kind in get_type_hints(parsed.callback).items():
            if name not in WRITTEN and ("Path" in str(kind) or name in ("backbone", "also_backbone", "config")):
                yield command, name


def words_of(command, name, missing):
    values = WORKING.get(command, {}) | {name: missing}
    values.pop(INSTEAD.get((command, name)), None)
    words = []
    for option in COMMANDS[command].params:
        if option.name in values:
            is_option = option.opts[0].startswith("-")
            words += [option.opts[0], values[option.name]] if is_option else [values[option.name]]
    return [command, *words]


def test_missing_files_need_no_torch(tmp_path):
    save_image(tmp_path / "a.png", random_image(0, 64, 64))
    for role in ("structure", "appearance"):
        save_image(tmp_path / f"pairs/one/{role}.png", random_image(0, 64, 64))
    chosen = [case for case in cases() if case[0] != "video" or find_spec("av")]
    if find_spec("av"):
        from support.video_files import panned, write_video

        write_video(tmp_path / "a.mkv", panned(count=2))
    missing = {name: str(tmp_path / "none" / f"{name}.safetensors") for _, name in chosen}
    calls = [words_of(command, name, missing[name]) for command, name in chosen]
    process = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(calls), capture_output=True, text=True, check=True, cwd=tmp_path
    )
    late, answers = [], [json.loads(line) for line in process.stdout.splitlines()]
    for (command, name), (code, message, has_torch) in zip(chosen, answers, strict=True):
        assert code == 2 and missing[name] in message, (command, name, message)
        assert message.startswith("error: ") and message.count("\n") == 1, (command, name, message)
        late += [(command, name)] if has_torch else []
    assert not late, "the first of them imported torch"


def test_every_command_that_reads_files_is_tried():
    assert len(list(cases())) >= 40
    assert {command for command, _ in cases()} | {"demo", "doctor", "export"} == set(COMMANDS)
