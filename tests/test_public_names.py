"""`import splice_ff`: everything it promises, but nothing heavy before it is used."""

import subprocess
import sys

import pytest

import splice_ff


def test_every_public_name_is_there():
    for name in splice_ff.__all__:
        assert getattr(splice_ff, name).__module__.startswith("splice_ff.") if name != "PRESETS" else splice_ff.PRESETS
    assert {*splice_ff.__all__} <= {*dir(splice_ff)}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = splice_ff.nothing


def test_help_needs_no_torch():
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom splice_ff.cli import app\n"
        "for words in (['--help'], ['pca', '--help'], ['train', '--help']):\n"
        "    assert CliRunner().invoke(app, words).exit_code == 0\n"
        "print({'torch', 'timm', 'datasets', 'accelerate', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
