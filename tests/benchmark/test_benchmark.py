"""Operations are counted right, floors lie below what was measured, and the command says what it found."""

import json
import resource

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from splice_ff import benchmark as module
from splice_ff.benchmark import count_operations, in_fresh_process, memory_of_a_step
from splice_ff.cli import app


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_convolutions_and_attention_are_counted(dtype):
    a, b = torch.rand(5, 7).to(dtype), torch.rand(7, 11).to(dtype)
    assert count_operations(lambda: a @ b) == 2 * 5 * 7 * 11
    conv, image = torch.nn.Conv2d(3, 4, 3, padding=1).to(dtype), torch.rand(1, 3, 8, 10).to(dtype)
    assert count_operations(lambda: conv(image)) == 2 * 4 * 80 * 27
    query, key = torch.rand(2, 3, 50, 16).to(dtype), torch.rand(2, 3, 7, 16).to(dtype)
    assert count_operations(lambda: F.scaled_dot_product_attention(query, key, key)) == 2 * 2 * 6 * 50 * 7 * 16


def test_backward_is_counted_where_it_happens():
    weight = torch.rand(7, 11, requires_grad=True)
    image = torch.rand(5, 7)
    assert count_operations(lambda: (image @ weight).sum().backward()) == 2 * 2 * 5 * 7 * 11  # not towards the image
    query = torch.rand(1, 2, 50, 16, requires_grad=True)
    # two products forward; backward four, and one of the forward's again
    attention = count_operations(lambda: F.scaled_dot_product_attention(query, query, query).sum().backward())
    assert attention == (2 + 5) * 2 * 2 * 50 * 50 * 16


def test_an_emulated_bfloat16_is_left_out(monkeypatch):
    monkeypatch.setattr(module.machine, "matmul_rate", lambda _, dtype, n=None: 100.0 if dtype.itemsize == 4 else 1.0)
    assert list(module.measure_rates(torch.device("cpu"))) == ["fp32"]


def test_the_step_is_timed_beside_a_naive_one(vit_folder, tmp_path):
    arguments = ["benchmark", "step", "--backbone", str(vit_folder), "--size", "64", "--repeats", "1", "--quiet"]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--json", str(tmp_path / "speed.json")])
    assert result.exit_code == 0 and result.stderr == "", result.output
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["operations_per_second"]["fp32"] > 0 and "torch" in found["machine"] and found["version"]
    rows = {row["step"]: row for row in found["parts"]["step"]}
    assert {"naive fp32", "paper fp32", "fast fp32"} <= rows.keys() and rows["naive fp32"]["naive/this"] == 1
    assert rows["naive fp32"]["GFLOP"] > 1.5 * rows["paper fp32"]["GFLOP"] > 1.5 * rows["fast fp32"]["GFLOP"]
    for row in rows.values():
        assert 0 < row["floor"] < 2 * row["seconds"]  # twice: the rate is a measurement on a busy machine
    lines = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows) and len({len(line) for line in lines}) == 1


def test_usage_and_memory_are_those_of_fresh_processes(monkeypatch, vit_folder):
    held = torch.ones(2**28)  # 1 GiB; a child's ru_maxrss would include it
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    step = in_fresh_process(memory_of_a_step, str(vit_folder), 96, "cpu")
    assert held.sum() == 2**28 and 0.1 < step["GiB before"] <= step["GiB at the peak"] < ours - 0.5
    monkeypatch.setattr(module, "in_fresh_process", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(module, "REFINING_STEPS", 2)
    monkeypatch.setattr(module, "REFINED_AT", (64,))
    found = module.benchmark(["usage"], size=64, repeats=2, device="cpu", quiet=True)["parts"]["usage"]
    assert [row["what"] for row in found] == ["one shot", "2 refining steps"]
    assert [len(row["all"]) for row in found] == [2, 1] and found[1]["working size"] == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "unknown part 'speed'. Known: step"),
        (["step", "--backbone", "no_such_vit"], "unknown backbone"),
        (["step", "--backbone", "dinov3_vits16"], "plain ViTs"),
        (["step", "--size", "32"], "size must be at least 64"),
        (["step", "--repeats", "0"], "repeats must be at least 1"),
        (["usage", "--model", "no/such/model"], "no/such/model"),
        (["step", "--json", "/proc/none/speed.json"], "/proc/none"),
        (["step", "--device", "abacus"], "device 'abacus' cannot be used"),
    ],
)
def test_the_command_refuses(arguments, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = CliRunner().invoke(app, ["benchmark", *arguments, "--quiet"])
    assert result.exit_code == 2
    assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1
