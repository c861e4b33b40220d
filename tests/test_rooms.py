"""The rooms of `splice_ff` import one another in one direction only, and files stay readable."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "splice_ff"
ROOT_FILES = 7
MOST_LINES = 400
ROOMS = ("splice_ff", "tests", "eval", "train", "integrations", "docs")


def room_of(module: str) -> str:
    """`splice_ff.vit.features` is in the room `vit`, `splice_ff.losses` a room of its own."""
    return module.split(".")[1] if "." in module else "splice_ff"


def imports(file: Path) -> set[str]:
    """Rooms that a file imports from, also inside functions and for types."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("splice_ff."):
            found.add(room_of(node.module))
        elif isinstance(node, ast.Import):
            found |= {room_of(name.name) for name in node.names if name.name.startswith("splice_ff.")}
    return found


def test_no_room_imports_another_in_a_circle():
    graph: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).with_suffix("").parts[0]
        if room != "__init__":  # its names are lazy
            graph.setdefault(room, set()).update(imports(file) - {room})
    assert {"vit", "networks", "per_pair", "one_shot", "losses"} <= graph.keys()
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def modules_imported(file: Path) -> set[str]:
    """Modules of the package that a file imports, also inside functions and for types."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("splice_ff."):
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def test_no_module_imports_another_in_a_circle():
    files = {".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}
    graph = {module: modules_imported(file) & files.keys() for module, file in files.items()}
    graph["splice_ff.vit.features"].remove("splice_ff.vit.weights")  # for `ViTFeatures.from_name`, when it is called
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_helpers_know_no_room():
    used = set().union(*(imports(file) for file in (PACKAGE / "utils").glob("*.py")))
    assert used <= {"utils", "errors"}


def test_the_root_is_short():
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= ROOT_FILES


def test_files_are_short():
    files = [f for room in ROOMS for f in (PACKAGE.parent / room).rglob("*.py")]
    long = {str(f): n for f in files if (n := len(f.read_text(encoding="utf-8").splitlines())) > MOST_LINES}
    assert not long
