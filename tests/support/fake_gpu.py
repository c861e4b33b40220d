"""A GPU that is not there: tensors on it have shapes, types and a device, no numbers, and do not mix with the CPU's.

What runs on the CPU runs there, with numbers; only tensors on "cuda" are `FakeTensor`s, whose rules for devices are
PyTorch's own (torch.compile relies on them). A number that the program reads from there is what was copied there; else
1, a truth true, an index 0, and a comparison one with 1. A tensor copied from there is of ones.
"""

from contextlib import ExitStack, contextmanager
from operator import ge, gt, le, lt
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
COMPARISONS = {aten.lt.Scalar: lt, aten.le.Scalar: le, aten.gt.Scalar: gt, aten.ge.Scalar: ge}
UNCHANGED = (aten.lift_fresh.default, aten.detach.default, aten.alias.default, aten.clone.default)


class _OnlyCudaIsFake(TorchDispatchMode):
    """On top of FakeTensorMode: it sees only what has to do with the GPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))):
            if function is aten._local_scalar_dense.default:
                return getattr(args[0], "answer", (1.0 if args[0].is_floating_point() else args[0].dtype == torch.bool))
            if function in COMPARISONS or (hasattr(args[0], "answer") and function in UNCHANGED):
                result = function(*args, **kwargs)
                result.answer = COMPARISONS[function](1.0, args[1]) if function in COMPARISONS else args[0].answer
                return result
            if function is aten._to_copy.default and device is not None and torch.device(device).type == "cpu":
                with unset_fake_temporarily():
                    return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            return function(*args, **kwargs)
        if device is not None and torch.device(device).type == "cuda":
            result = function(*args, **kwargs)
            if function is aten._to_copy.default and args[0].ndim == 0:
                with unset_fake_temporarily():
                    result.answer = args[0].item()
            return result
        with unset_fake_temporarily():
            return function(*args, **kwargs)


def _move(module, function, recurse=True):
    """`nn.Module._apply` with new parameters in place of old ones: torch swaps their insides, which no fake bears."""
    for child in module.children():
        child._apply(function)
    with torch.no_grad():
        for name, parameter in module._parameters.items():
            if parameter is not None and (moved := function(parameter)) is not parameter:
                module._parameters[name] = torch.nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer if buffer is None else function(buffer)
    return module


def _give_gradients(total):
    """`Tensor.backward` as far as its leaves go: torch's engine wants a driver before it computes on "cuda"."""
    assert total.device.type == "cuda" and total.ndim == 0
    nodes, seen = [total.grad_fn], set()
    while nodes:
        if (node := nodes.pop()) is not None and node not in seen:
            seen.add(node)
            nodes += [after for after, _ in node.next_functions]
            if (leaf := getattr(node, "variable", None)) is not None:
                leaf.grad = torch.ones_like(leaf) if leaf.grad is None else leaf.grad + torch.ones_like(leaf)


@contextmanager
def fake_gpu():
    """Inside, "cuda" can be computed on as far as devices, shapes and types go.

    Raises:
        FakeTensorDeviceMismatchError: inside, from an operation that takes tensors of the CPU and of the GPU (a number,
            a tensor without dimensions, may come from the CPU, as on a real one).
    """
    with ExitStack() as stack:
        # autocast would switch itself off
        stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", lambda *_, **__: True))
        stack.enter_context(mock.patch("torch.nn.Module._apply", _move))
        stack.enter_context(mock.patch("torch.Tensor.backward", _give_gradients))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_OnlyCudaIsFake())
        yield torch.device("cuda", 0)
