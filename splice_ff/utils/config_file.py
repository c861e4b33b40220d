"""Settings of a program: a YAML file, checked by a pydantic model, with values replaced on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splice_ff.errors import InputError

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    """A part of the settings: unknown names are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_settings(model: type[Model], path: Path, overrides: Sequence[str] = ()) -> Model:
    """Read a YAML file and check it.

    Args:
        model: what the file should hold.
        path: the file.
        overrides: `section.key=value` each, the value as YAML; they replace or add to the file's.

    Raises:
        InputError: no such file, not YAML, or wrong values: one line that names each of them.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds no settings")
    for override in overrides:
        _set(values, override)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {_describe(model, error)}") from error


def _set(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise InputError(f"'{override}' is not of the form section.key=value")
    *sections, key = name.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(f"'{override}': '{section}' is not a section")
        values = inner
    try:
        values[key] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"'{override}': the value is not YAML") from error


def _describe(model: type[BaseModel], error: ValidationError) -> str:
    return "; ".join(dict.fromkeys(_describe_fault(model, fault) for fault in error.errors()))


def _describe_fault(model: type[BaseModel], fault: Mapping[str, Any]) -> str:
    # Where a value may be of several types, pydantic adds the type's name to its place.
    path = [part for part in map(str, fault["loc"]) if part not in ("int", "float", "str") and "[" not in part]
    where = ".".join(path)
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown setting. Known: {', '.join(_settings_in(model, path[:-1]))}"
    if fault["type"] == "missing":
        return f"{where}: missing"
    if fault["type"] == "model_type":
        return f"{where}: a section ({', '.join(_settings_in(model, path))}), not a value (is {fault['input']!r:.60})"
    message = fault["msg"].removeprefix("Value error, ")
    value = "" if isinstance(fault["input"], dict) else f" (is {fault['input']!r:.60})"
    return (f"{where}: " if where else "") + message + value


def _settings_in(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Names of the settings in a section."""
    section = model
    for name in path:
        annotation = section.model_fields[name].annotation
        section = next(
            kind
            for kind in (annotation, *get_args(annotation))  # of `Section | None` the first
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        )
    return list(section.model_fields)
