"""Import this before timm and torchvision: they come without torch's compiler, whose import takes as long as torch's.

While they are imported they want two functions of `torch._dynamo`: one tells where `torch.compile` works, the other
marks what it shall pass over. Both are put off until somebody calls them; who asks for more gets the compiler at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

COMPILER, UTILS = "torch._dynamo", "torch._dynamo.utils"


def _compiler(name: str) -> Any:
    """The real module; until now a stand-in may have had its place."""
    for known in (COMPILER, UTILS):
        if isinstance(sys.modules.get(known), _StandIn):
            del sys.modules[known]
    return importlib.import_module(name)


class _StandIn(ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # a package, to the import system

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # `inspect` asks every module
            raise AttributeError(name)
        return getattr(_compiler(self.__name__), name)

    def is_compile_supported(self, device: Any) -> Any:
        return _compiler(UTILS).is_compile_supported(device)

    def disable(self, function: Any = None, *args: Any, **options: Any) -> Callable[..., Any]:
        if function is None:  # a decorator with options
            return lambda function: self.disable(function, *args, **options)

        @wraps(function)
        def call(*inputs: Any, **named: Any) -> Any:
            return _compiler(COMPILER).disable(function, *args, **options)(*inputs, **named)

        return call


if COMPILER not in sys.modules:
    sys.modules.update({name: _StandIn(name) for name in (COMPILER, UTILS)})
    try:
        for package in ("timm", "torchvision.transforms.v2"):
            importlib.import_module(package)
    finally:
        _compiler("torch")  # removes the stand-ins
