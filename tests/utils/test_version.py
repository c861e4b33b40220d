"""The version names the commit, and says whether anything in the checkout was changed since."""

import subprocess

import pytest

import splice_ff
from splice_ff.utils.machine import version


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A committed checkout in which the package lies; and a function that commits."""
    package = tmp_path / "checkout" / "splice_ff"
    (package / "vit").mkdir(parents=True)
    (package.parent / "train").mkdir()
    for name in ("splice_ff/__init__.py", "splice_ff/vit/features.py", "train/amortized.py", "README.md"):
        (package.parent / name).write_text("text\n")
    monkeypatch.setattr(splice_ff, "__file__", str(package / "__init__.py"))
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    git(package.parent, "init", "--quiet")
    return package.parent


def git(folder, *arguments):
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def commit_all(folder):
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "state")


def test_a_clean_checkout_names_its_commit(checkout):
    commit_all(checkout)
    name, commit = version().split(", commit ")
    assert name == splice_ff.__version__ and len(commit) >= 7 and int(commit, 16)


@pytest.mark.parametrize(
    "changed", ["splice_ff/__init__.py", "splice_ff/vit/features.py", "train/amortized.py", "README.md", "new.py"]
)
def test_a_change_anywhere_is_told(checkout, changed):
    commit_all(checkout)
    (checkout / changed).write_text("another text\n")
    assert version().endswith(" with changes")


def test_a_deleted_file_is_told(checkout):
    commit_all(checkout)
    (checkout / "train/amortized.py").unlink()
    assert version().endswith(" with changes")


def test_another_projects_checkout_is_not_ours(checkout):
    git(checkout, "add", "README.md")
    git(checkout, "commit", "--quiet", "--message", "state")
    assert version() == splice_ff.__version__
