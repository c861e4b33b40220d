"""Programs whose streams are missing, closed, or cannot show all letters."""

import os
import subprocess
import sys

import pytest

from splice_ff.errors import InputError, printable

WORK = """
import sys
from splice_ff.utils.console import hush_libraries, mend_streams, progress_bar
mend_streams()
hush_libraries(quiet={quiet})
import logging, warnings
warnings.warn("of another library")
logging.getLogger("datasets").warning("of another log")
with progress_bar(3, "step", quiet={quiet}) as bar:
    for _ in range(3):
        print("a note \u2026 猫", file=sys.stderr, flush=True)
        bar.update()
print("a result \u2026 猫", flush=True)
open("done", "w").close()
"""


def run(folder, *, quiet=False, shell="exec {python} work.py", **environment):
    (folder / "work.py").write_text(WORK.format(quiet=quiet), encoding="utf-8")
    command = shell.format(python=sys.executable)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run(
        command, shell=True, cwd=folder, env=env, capture_output=True, check=False, text=True, errors="replace"
    )


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    "shell",
    [
        "exec {python} work.py 2>&-",
        "exec {python} work.py >&- 2>&-",
        "exec {python} work.py <&- >&- 2>&-",
        "exec {python} work.py 2>/dev/full",
        "({python} work.py 2>&1 >/dev/null; echo $? >status) | true; exit $(cat status)",
    ],
    ids=["no stderr", "no stdout nor stderr", "no streams", "full", "reader gone"],
)
def test_work_goes_on_without_anybody_who_listens(tmp_path, shell):
    assert run(tmp_path, shell=shell).returncode == 0
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_letters_that_a_terminal_lacks_are_no_reason_to_end(tmp_path, encoding):
    done = run(tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and done.stdout.startswith("a result ")


def test_other_libraries_warnings_are_not_for_people(tmp_path):
    said = run(tmp_path).stderr
    assert "of another library" not in said and "of another log" in said and "a note" in said
    assert "of another library" in run(tmp_path, PYTHONWARNINGS="always").stderr


def test_quiet_reaches_other_libraries(tmp_path):
    said = run(tmp_path, quiet=True).stderr
    assert "of another" not in said and "step/s" not in said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines", "two lines"),
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("bell\x07", "bell\\x07"),
        ("nul\0", "nul\\x00"),
        ("right-to-left \u202e.png", "right-to-left \\u202e.png"),
        (os.fsdecode(b"bad\xff.png"), "bad\\udcff.png"),
        ("猫 é ok", "猫 é ok"),
    ],
)
def test_messages_are_one_line_of_text(text, shown):
    assert printable(text) == shown
    assert str(InputError(text)) == shown
