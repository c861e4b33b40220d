"""What `--help` says of every option of every command: its default, and what becomes of a file that is there."""

import json
from pathlib import Path

import pytest
import typer

from splice_ff.cli import app
from splice_ff.per_pair.recipes import PRESETS
from splice_ff.utils.files import checkpoints_dir

COMMANDS = typer.main.get_command(app).commands
OPTIONS = [
    (name, option) for name, command in COMMANDS.items() for option in command.params if option.opts[0].startswith("-")
]
OFF = {
    "look", "structure", "state", "save_generator_to", "preview_every", "limit", "results", "also_backbone", "judge",
    "label", "data", "model", "config", "set", "json",
}  # fmt: skip
"""Options that stand for nothing where they are not given."""


def words_of(command, option):
    """What --help shows of an option, with the default that typer adds."""
    context = COMMANDS[command].context_class(COMMANDS[command], info_name=command)
    return " ".join(option.get_help_record(context)[1].split())


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=[f"{name} {o.opts[0]}" for name, o in OPTIONS])
def test_help_says_the_default(command, option):
    is_off = option.default in (None, []) and (option.name in OFF or option.opts[0].strip("-") in OFF)
    assert option.is_flag or is_off or "default" in words_of(command, option).lower()


PATHS = [
    (name, option)
    for name, command in COMMANDS.items()
    for option in command.params
    if "Path" in str(option.type_descriptor.annotation)
]


@pytest.mark.parametrize(("command", "option"), PATHS, ids=[f"{name} {option.name}" for name, option in PATHS])
def test_the_home_folder_is_known_where_no_shell_replaces_it(command, option):
    home, several = Path.home() / "a", option.multiple or option.nargs != 1
    assert option.callback(None, option, [Path("~/a")] if several else Path("~/a")) == ([home] if several else home)


def test_all_commands_that_take_files_are_known():
    assert {"attention", "batch", "export", "pca", "transfer"} <= {name for name, _ in PATHS} and len(PATHS) > 40


@pytest.mark.parametrize("command", ["transfer", "batch", "video"])
def test_the_size_is_the_models(command):
    [size] = (option for option in COMMANDS[command].params if option.name == "size")
    default = json.loads((checkpoints_dir() / "everyday" / "config.json").read_text())["size"]
    assert f"by default the model's, of everyday {default}" in words_of(command, size)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(("optimize", name) for name in ("size", "steps", "precision", "generator")),
        ("teach", "size"),
        ("teach", "steps"),
    ],
)
def test_defaults_of_presets(command, name):
    [option] = (option for option in COMMANDS[command].params if option.name == name)
    values = {getattr(preset, name) for preset in PRESETS.values()} - {None}
    assert values and all(str(value) in words_of(command, option) for value in values)


@pytest.mark.parametrize(
    ("command", "option"),
    [pair for pair in OPTIONS if pair[1].opts[0] in ("--output", "--save-generator", "--json")],
    ids=lambda value: value if isinstance(value, str) else value.opts[0],
)
def test_help_says_what_becomes_of_a_file_that_is_there(command, option):
    words = words_of(command, option)
    is_folder = "Folder" in words and Path(str(option.default)).suffix == ""
    assert is_folder or "replaced" in words or (command == "video" and "not there yet" in words)
