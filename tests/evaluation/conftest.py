"""Pairs on disk, and a measurer."""

import json

import pytest
from support.evaluation import Cheap, smooth_image

from splice_ff.data.pair_list import read_pairs
from splice_ff.evaluation.rows import with_domains
from splice_ff.images import save_image


@pytest.fixture
def pairs(tmp_path):
    """A folder of three pairs, one of them of another domain."""
    for i, name in enumerate(("one", "two", "three")):
        save_image(tmp_path / f"pairs/{name}/structure.png", smooth_image(2 * i))
        save_image(tmp_path / f"pairs/{name}/appearance.png", smooth_image(2 * i + 1, 80, 72))
    domains = [{"name": "one", "domain": "cat"}, {"name": "two", "domain": "dog"}, {"name": "three", "domain": "cat"}]
    (tmp_path / "pairs/pairs.json").write_text(json.dumps(domains))
    return tmp_path / "pairs"


@pytest.fixture
def listed(pairs):
    return with_domains(read_pairs(pairs), pairs)


@pytest.fixture
def measurer(tiny_backbone):
    return Cheap(tiny_backbone())
