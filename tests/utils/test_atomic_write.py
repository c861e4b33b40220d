import os

import pytest

from splice_ff.utils import files
from splice_ff.utils.files import atomic_write


def test_atomic_write(tmp_path):
    seen = []

    def write(temporary):
        seen.append(temporary)
        temporary.write_text("new")

    (tmp_path / "a.json").write_text("old")
    atomic_write(str(tmp_path / "a.json"), write)
    assert (tmp_path / "a.json").read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]
    assert seen[0].parent == tmp_path and seen[0].suffix == ".json" and seen[0].name != "a.json"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("existing", [False, True])
def test_a_writer_that_raises_changes_nothing(tmp_path, error, existing):
    path = tmp_path / "a.json"
    if existing:
        path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(error):
        atomic_write(path, write)
    assert os.listdir(tmp_path) == (["a.json"] if existing else [])
    assert not existing or path.read_text() == "old"


def test_a_writer_that_writes_nothing_changes_nothing(tmp_path):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(OSError):
        atomic_write(tmp_path / "a.json", lambda temporary: None)
    assert (tmp_path / "a.json").read_text() == "old"


def test_the_file_reaches_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    atomic_write(tmp_path / "a.json", lambda temporary: temporary.write_text("new"))
    assert order == ["fsync", "replace", "fsync"]  # the last of the folder


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.json").symlink_to(tmp_path / "elsewhere" / "b.json")
    atomic_write(tmp_path / "a.json", lambda temporary: temporary.write_text("new"))
    assert (tmp_path / "a.json").is_symlink()
    assert (tmp_path / "elsewhere" / "b.json").read_text() == "new"
