"""Files of settings, read within bounds and checked by a pydantic model: YAML, whose values the command line may
replace, and JSON.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from splice_ff.errors import InputError, first_line
from splice_ff.utils.bundled import bundled_dir
from splice_ff.utils.files import reason

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, AfterValidator(os.path.expanduser)]
"""A name, or a path in which `~` is the home folder."""
UserPath = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path)))]
Model = TypeVar("Model", bound="Section")

MAX_BYTES = 2**15
MAX_JSON_BYTES = 2**20
MAX_DEPTH = 100
MAX_VALUES = 10_000
"""In a file, aliases counted as often as they are used: a few lines of aliases of aliases can stand for billions."""


class Section(BaseModel):
    """A part of the settings: unknown names, NaN and infinity are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    renamed: ClassVar[Mapping[str, str]] = {}
    """Settings of a whole file by the names that they had once, `section.key`, and their names now."""


def read_settings(model: type[Model], path: Path, overrides: Sequence[str] = ()) -> Model:
    """Read a YAML file and check it.

    Args:
        model: what the file should hold.
        path: the file, UTF-8.
        overrides: `section.key=value` each, the value as YAML; they replace or add to the file's.

    Raises:
        InputError: no such file, not YAML, out of bounds, or wrong values: one line that names each of them.
    """
    text = _read(path, MAX_BYTES)
    try:
        values = parse_yaml(text.decode("utf-8-sig"))
    except (InputError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds no settings")
    for override in overrides:
        _set(values, override)
    if old := [name for name in model.renamed if _has(values, name)]:
        raise InputError(f"{path}: " + "; ".join(f"{name} is called {model.renamed[name]} now" for name in old))
    return checked(model, path, values)


def read_json(path: Path) -> dict[str, Any]:
    """The plain values of a JSON file, by name.

    Raises:
        InputError: no such file, not JSON, out of bounds, or no object.
    """
    text = _read(path, MAX_JSON_BYTES)
    try:
        decoded = text.decode("utf-8-sig")
        if _depth(decoded) > MAX_DEPTH:
            raise InputError(f"{path}: nested too deeply")
        values = json.loads(decoded)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError among them
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not JSON ({first_line(error)})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds no settings")
    return values


def checked(model: type[Model], path: Path, values: Mapping[str, Any]) -> Model:
    """Values of a file as its model has them.

    Raises:
        InputError: wrong values: one line that names each of them.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {_describe(model, error)}") from error


def _read(path: Path, most: int) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a file")
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from error
    if len(content) > most:
        raise InputError(f"{path}: larger than {most // 2**10} KiB: not a file of settings")
    return content


def find_config(name: str | Path) -> Path:
    """A file by its path, or one of the configs that come with splice-ff by its name, without suffix.

    Raises:
        InputError: neither; the line lists the names.
    """
    path = Path(os.path.expanduser(name))
    if path.exists():
        return path
    known = {file.stem: file for file in sorted(bundled_dir("configs").glob("*.yaml"))}
    if str(name) in known:
        return known[str(name)]
    raise InputError(f"{name}: no such file, nor a config that comes with splice-ff: {', '.join(known)}")


def parse_yaml(text: str) -> Any:
    """The plain values in a text of bounded depth and size.

    Raises:
        InputError: not YAML, nested too deeply, with too many values, or with a key given twice.
    """
    if len(text) > MAX_BYTES or _depth(text) > MAX_DEPTH:  # the parser takes time with the square of the depth
        raise InputError("nested too deeply, or too long")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _count(node, {}) > MAX_VALUES:
                raise InputError(f"more than {MAX_VALUES} values")
            return _unshared(loader.construct_document(node))
        finally:
            loader.dispose()
    except RecursionError as error:
        raise InputError("nested too deeply, or too long") from error
    except yaml.YAMLError as error:
        raise InputError(" ".join(str(error).split())) from error
    except (ValueError, TypeError, OverflowError) as error:  # what it makes of numbers, dates and keys
        if isinstance(error, InputError):
            raise
        raise InputError(first_line(error)) from error


def _depth(text: str) -> int:
    """Brackets open at once, those in quotes and comments counted too."""
    return max(accumulate(((c in "[{") - (c in "]}") for c in text), initial=0))


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Values below a node, aliases counted as often as they are used."""
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # for a node that holds itself
        known[id(node)] = 1 + sum(_count(child, known) for child in _children(node))
    return known[id(node)]


def _unshared(value: Any) -> Any:
    """A copy in which aliases are values of their own: replacing one must not replace the others."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for key, times in keys.items() if times > 1]:
            raise InputError(f"'{twice[0]}' is given twice")
        for pair in node.value:
            yield from pair


def _has(values: Any, name: str) -> bool:
    for key in name.split("."):
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True


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
        values[key] = parse_yaml(text)
    except InputError as error:
        raise InputError(f"'{override:.200}': the value is not YAML ({error})") from error


def _describe(model: type[BaseModel], error: ValidationError) -> str:
    unknown: dict[tuple[str, ...], list[str]] = {}
    faults: dict[str, None] = {}
    for fault in error.errors():
        if fault["type"] == "extra_forbidden":  # those of one section share one list of the known ones
            unknown.setdefault(_place(fault)[:-1], []).append(".".join(_place(fault)))
        else:
            faults[_describe_fault(model, fault)] = None
    for section, names in unknown.items():
        faults[f"{', '.join(names)}: unknown setting. Known: {', '.join(_settings_in(model, section))}"] = None
    return "; ".join(faults)


def _place(fault: Mapping[str, Any]) -> tuple[str, ...]:
    """Sections and name; where a value may be of several types, pydantic adds the type's name."""
    return tuple(part for part in map(str, fault["loc"]) if part not in ("int", "float", "str") and "[" not in part)


def _describe_fault(model: type[BaseModel], fault: Mapping[str, Any]) -> str:
    path = _place(fault)
    where = ".".join(path)
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
