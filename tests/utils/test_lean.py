"""Start-up: painting loads no compiler, and who asks for it still gets it."""

import subprocess
import sys


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_painting_loads_no_compiler():
    program = """import sys, torch
from splice_ff import SpliceFF
SpliceFF.from_pretrained("everyday").embed(torch.rand(1, 3, 64, 64))
print([name for name in sys.modules if name.startswith("torch._dynamo")])"""
    assert run(program).strip() == "[]"


def test_compiling_works_afterwards():
    program = """import torch, splice_ff.utils.lean
from torchvision.ops.roi_align import is_compile_supported
from torchvision.tv_tensors import Image, wrap
compiled = torch.compile(lambda x: x + 1, backend="eager", fullgraph=True)
assert wrap(torch.ones(3, 2, 2), like=Image(torch.zeros(3, 2, 2))).shape == (3, 2, 2)
assert is_compile_supported("cpu") in (True, False)
print(compiled(torch.ones(1)).item(), torch._dynamo.utils.__file__.endswith(".py"))"""
    assert run(program).split() == ["2.0", "True"]


def test_what_the_stand_in_lacks_comes_from_the_compiler():
    program = """import sys, torch
import splice_ff.utils.lean as lean
sys.modules["torch._dynamo"] = stand_in = lean._StandIn("torch._dynamo")
print(stand_in.is_compiling(), sys.modules["torch._dynamo"] is not stand_in)"""
    assert run(program).split() == ["False", "True"]
