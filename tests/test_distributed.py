"""Two processes on one machine do what one does with the doubled batch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from training_setup import log_lines, write_run

ROOT = Path(__file__).parent.parent


def launch(processes, config, *overrides):
    # accelerate's own --cpu --num_processes 2 starts a single process; this is what it starts on GPUs
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
        str(ROOT / "train" / "amortized.py"), "--config", str(config), *overrides,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240,
        env={"PATH": "", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1",
             "HF_DATASETS_CACHE": str(config.parent / "cache"), "HOME": str(config.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def config(tmp_path, vit_state):
    return write_run(tmp_path / "job", vit_state, optimizer__steps=3, optimizer__clip=1e9)


def test_two_processes_equal_one_with_the_doubled_batch(config):
    folder = config.parent
    launch(2, config, f"output={folder / 'two'}", "optimizer.batch_size=2")
    launch(1, config, f"output={folder / 'one'}", "optimizer.batch_size=4")
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
    launch(2, config, f"output={resumed}", "optimizer.steps=4")
    assert list(log_lines(resumed)) == [1, 2, 3, 4]
