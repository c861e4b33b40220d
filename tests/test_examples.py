"""The example images: small, each with author, source and a license that allows sharing, and in pairs that exist."""

import re
from pathlib import Path

import pytest
from PIL import Image

from splice_ff.data.pair_list import read_pairs

FOLDER = Path(__file__).parents[1] / "examples"
LICENSES = re.compile(r"public domain|CC0|CC BY(-SA)? [1-4]\.0")
PAIRS = read_pairs(FOLDER / "pairs.csv")
MADE_HERE = {"cat-one-shot.jpg", "cat-refined.jpg", "raccoon-as-cat.jpg"}


def credits():
    """Rows of the table by file name: what, author, source, license."""
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    return {name: cells.split(" | ") for name, cells in rows}


def test_every_image_has_author_source_and_a_free_license():
    rows = credits()
    assert rows.keys() == {path.name for path in FOLDER.glob("*.jpg")} - MADE_HERE
    for name, cells in rows.items():
        assert len(cells) == 4 and all(cells), name
        assert LICENSES.fullmatch(cells[3]), f"{name}: {cells[3]}"


def test_they_are_small():
    images = list(FOLDER.glob("*.jpg"))
    assert sum(path.stat().st_size for path in images) < 3_000_000
    for path in images:
        with Image.open(path) as image:
            assert min(image.size) <= 512, path.name


def test_there_are_pairs_of_every_kind_and_no_image_is_left_over():
    used = {path.name for pair in PAIRS for path in (pair.structure, pair.appearance)}
    assert used == credits().keys()
    assert len(PAIRS) >= 8 and {pair.domain for pair in PAIRS} == {"cross", "building", "mountain"}


def test_the_page_shows_them():
    pytest.importorskip("gradio", reason="needs the extra app")
    from splice_ff.app.page import _examples

    assert _examples() == [[str(pair.structure), str(pair.appearance)] for pair in PAIRS]
