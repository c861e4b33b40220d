"""Every promise in docs/reliability.md names tests, and these exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_every_promise_names_a_test():
    promises = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(promises) >= 30
    assert [line for line in promises if not TEST.search(line)] == []


def test_every_test_named_exists():
    named: dict[str, set[str]] = {}
    for file, name in TEST.findall(PAGE):
        named.setdefault(file, set()).add(name)
    missing = []
    for file, names in named.items():
        body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body if (ROOT / file).is_file() else []
        there = {node.name for node in body if isinstance(node, ast.FunctionDef)}
        missing += [f"{file}::{name}" for name in sorted(names - there)]
    assert missing == []
    assert PAGE.count("::test_") == len(TEST.findall(PAGE))  # none is misspelled
