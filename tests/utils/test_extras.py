"""Missing packages are one line that says how to install them."""

import re
import sys
from pathlib import Path

import pytest
import typer
from support.extras import OPTIONAL, packages_of
from typer.testing import CliRunner

from splice_ff.cli import app
from splice_ff.errors import InputError
from splice_ff.utils.extras import need

ROOT = Path(__file__).parents[2]
COMMANDS = typer.main.get_command(app).commands
PLAIN = {"demo", "transfer", "embed", "batch", "optimize", "apply", "doctor", "benchmark"}
"""Commands that a plain install runs. All others are in an extra."""


def test_what_is_missing_is_named_with_its_extra():
    need("torch", extra="train")
    with pytest.raises(InputError, match=r'^this needs no_such_module: pip install "splice-ff\[onnx\]"$'):
        need("torch", "no_such_module", extra="onnx")


@pytest.fixture
def hidden(monkeypatch):
    """No package of any extra can be imported."""
    for name in OPTIONAL:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - PLAIN))
def test_commands_of_an_extra_say_the_line_that_installs_it(hidden, command):
    required = [p for p in COMMANDS[command].params if p.required]
    result = CliRunner().invoke(app, [command, *([str(ROOT / "examples/cat.jpg")] * len(required))])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.output
    line = re.fullmatch(r'error: this needs (.+): pip install "splice-ff\[(.+)\]"\n', result.stderr)
    assert line, result.stderr
    assert {*line[1].split(", ")} <= packages_of(line[2])
