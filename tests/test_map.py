"""The map in `splice_ff.__doc__` names files and rooms that are there, and all rooms."""

import re
from pathlib import Path

import splice_ff

PACKAGE = Path(splice_ff.__file__).parent


def test_the_map_is_true_and_complete():
    method, around = splice_ff.__doc__.split("What is around them")
    files = re.findall(r"(?:^ {4}|, )([\w/]+\.py)", method, re.MULTILINE)
    assert len(files) == 10
    folder = ""
    for name in files:
        folder = name.rpartition("/")[0] if "/" in name else folder
        assert (PACKAGE / name).is_file() or (PACKAGE / folder / name).is_file(), name
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert {*re.findall(r"(\w+)/ ", around)} == rooms - {"vit", "per_pair"}
