"""Peak memory: this process's own, in bytes."""

import subprocess
import sys

import numpy as np
import torch

from splice_ff.utils.machine import peak_memory

GROW = """
import torch
from splice_ff.utils.machine import peak_memory
before = peak_memory(torch.device("cpu"))
held = torch.ones(64 * 2**20)
del held
print(before, peak_memory(torch.device("cpu")))
"""


def test_it_grows_by_what_is_taken_and_is_not_the_parents():
    ballast = np.ones(128 * 2**20)  # 1 GiB here, which the child must not count
    assert peak_memory(torch.device("cpu")) > ballast.nbytes
    done = subprocess.run([sys.executable, "-c", GROW], capture_output=True, text=True, check=True)
    before, after = (int(number) for number in done.stdout.split())
    assert 200 * 2**20 < after - before < 300 * 2**20
    assert after < ballast.nbytes
