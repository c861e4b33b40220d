"""splice-ff runs on Windows and on a Mac, as far as that shows elsewhere."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "splice_ff"
FILES = {str(file.relative_to(PACKAGE)): ast.parse(file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py")}
UNIX_ONLY = {"fcntl", "grp", "posix", "pwd", "resource", "termios"}


def test_no_module_imports_what_only_unix_has():
    """Inside a function, behind a question for the system, it may."""
    found = set()
    for name, tree in FILES.items():
        for node in tree.body:
            if isinstance(node, ast.Import):
                found |= {(name, module.name) for module in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((name, node.module))
    assert not [(name, module) for name, module in found if module in UNIX_ONLY]
