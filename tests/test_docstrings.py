"""Examples in the docstrings of the public API run, and the one-shot API has one for each of its methods."""

import doctest
import inspect

import pytest

import splice_ff
from splice_ff import SpliceFF

METHODS = ("forward", "embed", "paint", "mix", "from_pretrained", "save_pretrained")


def examples(thing, name):
    """Doctests of a function or class, its methods included."""
    return [test for test in doctest.DocTestFinder(recurse=True).find(thing, name) if test.examples]


def public_examples():
    for name in splice_ff.__all__:
        thing = getattr(splice_ff, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            yield from examples(thing, name)


@pytest.mark.parametrize("test", list(public_examples()), ids=lambda test: test.name)
def test_the_example_runs(test, monkeypatch, tmp_path, request):
    monkeypatch.chdir(tmp_path)  # for what they write; what they read is in the repository
    (tmp_path / "examples").symlink_to(request.config.rootpath / "examples")
    said = []
    doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize("method", METHODS)
def test_the_one_shot_api_has_examples(method):
    assert examples(getattr(SpliceFF, method), method)
