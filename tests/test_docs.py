"""The documentation site: every page is in its menu, and it builds without a warning."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def test_every_page_is_in_the_menu():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    menu = [page for entry in site["nav"] for page in entry.values()]
    assert sorted(menu) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_it_builds_without_a_warning(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(module, reason='builds the site: pip install ".[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site" / "reference" / "index.html").read_text(encoding="utf-8")
    for name in ("SpliceFF", "optimize_pair", "ViTFeatures", "SpliceLoss"):
        assert f'id="splice_ff.{name}"' in reference or f".{name}" in reference
