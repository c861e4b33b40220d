"""The extras of pyproject.toml: which packages are there only with one."""

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def packages_of(extra):
    """Modules that an extra brings, those of extras that it includes as well."""
    found = set()
    for requirement in EXTRAS[extra]:
        name, included = re.fullmatch(r"([\w-]+)(?:\[([\w,-]+)\])?.*", requirement).groups()
        if name == "splice-ff":
            found |= set().union(*(packages_of(other) for other in included.split(",")))
        else:
            found |= {name.replace("-", "_")} | ({"pyarrow"} if name == "datasets" else set())
    return found


OPTIONAL = sorted(set().union(*(packages_of(extra) for extra in EXTRAS.keys() - {"dev", "docs"})))
"""Modules that a plain install lacks."""
