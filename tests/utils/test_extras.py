"""Missing packages are one line that says how to install them."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from splice_ff.cli import app
from splice_ff.errors import InputError
from splice_ff.utils.extras import need

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
COMMANDS = typer.main.get_command(app).commands
HIDDEN = "accelerate datasets gradio matplotlib onnx onnxruntime pyarrow tensorboard torch_fidelity torchmetrics av"


def test_what_is_missing_is_named_with_its_extra():
    need("torch", extra="train")
    with pytest.raises(InputError, match=r'^this needs no_such_module: pip install "splice-ff\[onnx\]"$'):
        need("torch", "no_such_module", extra="onnx")


PLAIN = {"demo", "transfer", "embed", "batch", "optimize", "apply", "doctor", "benchmark"}
"""Commands that a plain install runs. All others are in an extra."""


@pytest.fixture
def hidden(monkeypatch):
    """No package of any extra can be imported."""
    for name in HIDDEN.split():
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - PLAIN))
def test_commands_of_an_extra_say_the_line_that_installs_it(hidden, command):
    required = [p for p in COMMANDS[command].params if p.required]
    result = CliRunner().invoke(app, [command, *([str(ROOT / "examples/cat.jpg")] * len(required))])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.output
    line = re.fullmatch(r'error: this needs (.+): pip install "splice-ff\[(.+)\]"\n', result.stderr)
    assert line, result.stderr
    assert {*line[1].split(", ")} <= packages_of(line[2])


def packages_of(extra):
    """Modules that an extra of pyproject.toml brings, those of extras that it includes as well."""
    found = set()
    for requirement in EXTRAS[extra]:
        name, included = re.fullmatch(r"([\w-]+)(?:\[([\w,-]+)\])?.*", requirement).groups()
        if name == "splice-ff":
            found |= set().union(*(packages_of(other) for other in included.split(",")))
        else:
            found |= {name.replace("-", "_")} | ({"pyarrow"} if name == "datasets" else set())
    return found
