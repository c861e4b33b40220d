"""`splice-ff demo` paints the example pair where it is called, and never replaces a file that is not its own."""

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import splice_ff
from splice_ff.cli import app
from splice_ff.commands._options import errors
from splice_ff.commands.demo import APPEARANCE, PAINTED, STRUCTURE


def test_the_example_pair_is_painted_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second time its images are there
        result = CliRunner().invoke(app, ["demo", "--device", "cpu"])
        assert result.exit_code == 0, result.output
        assert f"splice-ff transfer {STRUCTURE} {APPEARANCE} -o {PAINTED}" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {STRUCTURE, APPEARANCE, PAINTED}
    assert Image.open(PAINTED).size == Image.open(STRUCTURE).size


@pytest.mark.parametrize("name", [STRUCTURE, APPEARANCE])
def test_an_image_of_ones_own_is_left_alone(tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    result = CliRunner().invoke(app, ["demo", "-o", str(tmp_path)])
    assert result.exit_code == 2 and name in result.stderr and "another folder" in result.stderr
    assert (tmp_path / name).read_bytes() == b"mine" and not (tmp_path / PAINTED).exists()


def test_a_place_that_takes_no_file_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["demo", "-o", str(tmp_path / "file")])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and result.stdout == f"splice-ff {splice_ff.__version__}\n"


def test_torch_and_torchvision_of_different_builds_are_one_line(capsys):
    with pytest.raises(typer.Exit) as ended, errors(debug=False):
        raise RuntimeError("operator torchvision::nms does not exist")  # as importing torchvision says it then
    said = capsys.readouterr().err
    assert ended.value.exit_code == 2 and said.count("\n") == 1 and "do not fit together" in said
