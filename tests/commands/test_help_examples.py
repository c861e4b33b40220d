"""Commands that help texts show, and that README and docs mention in passing, are ones that splice-ff takes."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from splice_ff.cli import app

ROOT = Path(__file__).parents[2]
COMMANDS = typer.main.get_command(app).commands


def shown():
    """(where, words) of every `splice-ff …` in backquotes."""
    texts = {f"{name} --help": command.callback.__doc__ or "" for name, command in COMMANDS.items()}
    for name, command in COMMANDS.items():
        texts[f"options of {name}"] = "\n".join(getattr(option, "help", None) or "" for option in command.params)
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        texts[page.name] = page.read_text(encoding="utf-8")
    for where, text in texts.items():
        for line in re.findall(r"`splice-ff ([a-z][^`]*)`", text):
            yield where, line


SHOWN = sorted({*shown()})


@pytest.mark.parametrize(("where", "line"), SHOWN, ids=[f"{where}: {line[:50]}" for where, line in SHOWN])
def test_shown_commands_parse(where, line):
    name, *words = [word for word in shlex.split(line.replace("\n", " ")) if word != "…"]
    if words and words[-1].startswith("-"):  # an option by its name alone
        words.append("value")
    command = COMMANDS[name]
    command.make_parser(command.context_class(command, info_name=name)).parse_args(words)  # NoSuchOption
