"""Tensors of a TorchScript archive, as OpenAI publishes CLIP, without running anything that it holds.

`torch.jit.load` would compile the archive's program. Its tensors lie beside it: data.pkl is a tree of modules, whose
attributes are modules and tensors. This reads the tree with an unpickler that knows nothing but modules and tensors.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

DTYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class _Module:
    """Stands for a module of any class."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return torch._utils._rebuild_tensor_v2
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name in DTYPES:
            return name
        if module == "torch.jit._pickle":  # lists and dictionaries of plain values
            return lambda value, *_: value
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        _, storage, key, _, count = pid
        dtype = DTYPES[storage]
        content = bytearray(self.archive.read(f"{self.root}data/{key}"))
        if len(content) != count * dtype.itemsize:
            raise pickle.UnpicklingError(f"data/{key} is cut")
        values = torch.frombuffer(content, dtype=dtype)
        return torch.storage.TypedStorage(wrap_storage=values.untyped_storage(), dtype=dtype, _internal=True)


def is_torchscript(file: Path) -> bool:
    """Whether a file is an archive with a program; False of a damaged one."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def read_torchscript(file: Path) -> dict[str, Tensor]:
    """The tensors by the names that the module's state_dict has.

    Raises:
        Exception: whatever a damaged archive trips the unpickler over.
    """
    with zipfile.ZipFile(file) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        with archive.open(f"{root}data.pkl") as opened:
            tree = _Unpickler(opened, archive, root).load()
    return dict(_tensors(tree, ""))


def _tensors(module: _Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.state.items():
        if isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            yield prefix + name, value
