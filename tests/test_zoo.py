"""The model tables of docs/weights.md say what registry and checkpoints say."""

import importlib.util
from pathlib import Path

import pytest

from splice_ff.vit.spec import BACKBONES

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def zoo():
    spec = importlib.util.spec_from_file_location("zoo", DOCS / "zoo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_present_tables(zoo):
    page = (DOCS / "weights.md").read_text(encoding="utf-8")
    assert page == zoo.filled(page), "run `python docs/zoo.py`"


def test_known_facts_are_in_them(zoo):
    table = zoo.backbone_table()
    assert table.count("\n") == 1 + len(BACKBONES) + len(list(zoo._checkpoints("architecture")))
    row = next(line for line in table.splitlines() if "`dino_vits8`" in line)
    assert row.endswith("| `--preset fast` | 8 px | 384 | 12 | 21.7 M | 87 |")  # Caron et al., table 1: 21 M
    assert "`vit_mini` | bundled" in table and "16 px | 192 | 12 | 5.5 M | 11 |" in table


def test_a_page_without_a_place_for_a_table_is_an_error(zoo):
    with pytest.raises(ValueError, match="0 tables between <!-- backbones"):
        zoo.filled("# Models")
