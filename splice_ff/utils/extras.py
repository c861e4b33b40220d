"""Packages that only some commands need, in extras of their own: `pip install "splice-ff[onnx]"`."""

from __future__ import annotations

from importlib.util import find_spec

from splice_ff.errors import InputError


def need(*packages: str, extra: str) -> None:
    """Return if all packages are installed; nothing is imported.

    Args:
        packages: names of their top-level modules.
        extra: the extra of this project that brings them.

    Raises:
        InputError: one is missing; the line says how to install it.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise InputError(f'this needs {", ".join(missing)}: pip install "splice-ff[{extra}]"')
