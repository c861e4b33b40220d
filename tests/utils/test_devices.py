"""Which device is chosen, and what happens on one that is neither a CPU nor CUDA."""

import os
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from splice_ff.cli import app
from splice_ff.utils import machine


@pytest.fixture
def reports(monkeypatch):
    """Let torch report devices that are not there."""

    def report(cuda, mps):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return report


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(False, False, "cpu"), (False, True, "mps"), (True, False, "cuda"), (True, True, "cuda")],
)
def test_a_gpu_is_chosen_where_there_is_one(reports, cuda, mps, chosen):
    reports(cuda, mps)
    assert machine.default_device().type == chosen
    assert ("mps" in machine.available_devices()) == mps


def test_a_macs_gpu_computes_in_float32_and_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    device = torch.device("mps")
    machine.synchronize(device)
    machine.synchronize(torch.device("cpu"))
    assert waited == [device] and machine.fastest_dtype(device) is torch.float32
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 7)
    assert machine.peak_memory(device) == 7


def test_plain_torch_leaves_a_macs_autocast():
    with torch.autocast("mps", torch.bfloat16), machine.plain_torch():
        assert not torch.is_autocast_enabled("mps")


def test_doctor_says_where_it_runs(reports, monkeypatch):
    reports(False, True)
    monkeypatch.setattr("splice_ff.utils.machine.matmul_rate", lambda device, dtype: 1e9)
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 0 and "runs on mps\n" in shown.output


def test_what_a_macs_gpu_lacks_runs_on_the_cpu():
    code = "import os, sys, splice_ff; print(os.environ['PYTORCH_ENABLE_MPS_FALLBACK'], 'torch' in sys.modules)"
    environment = {k: v for k, v in os.environ.items() if k != "PYTORCH_ENABLE_MPS_FALLBACK"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["1", "False"]  # set before torch is imported, which reads it once
