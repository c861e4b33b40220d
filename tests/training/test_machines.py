"""Two machines, rehearsed as two launchers on loopback addresses of this one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import datasets
import psutil
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from support.training_setup import log_lines, read_config, write_run

from splice_ff.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT)), "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    # without it launchers that restarted their workers at different times never meet again: see docs/scaling.md
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}  # fmt: skip
STEPS = 12


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torchrun(machine, port, nodes="2", rendezvous=""):
    """As docs/scaling.md has it; the address of a machine would be found by its name."""
    return [
        "-m", "torch.distributed.run", "--nnodes", nodes, "--nproc_per_node", "1", "--max_restarts", "3",
        "--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "run",
        "--local_addr", f"127.0.0.{machine + 1}", "--rdzv_conf", f"is_host={1 - machine}{rendezvous}",
    ]  # fmt: skip


def elastic_torchrun(machine, port):
    """With one machine or two; impatient, where the defaults wait for half a minute for a machine to come back."""
    return torchrun(machine, port, "1:2", ",last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=2")


def accelerate_launch(machine, port):
    return [
        "-m", "accelerate.commands.launch", "--config_file", "train/configs/accelerate/machines.yaml",
        "--num_processes", "2", "--machine_rank", str(machine), "--main_process_ip", "127.0.0.1",
        "--main_process_port", str(port),
    ]  # fmt: skip


class Machines:
    """Both launchers of a run, and their output."""

    def __init__(self, launcher, home, *training):
        port, self.outputs = free_port(), [home / f"machine-{i}.txt" for i in (0, 1)]
        self.launchers = []
        for machine, output in enumerate(self.outputs):
            command = [sys.executable, *launcher(machine, port), "-m", "splice_ff", "train", *training]
            settings = ENVIRONMENT | {"HOME": str(home), "HF_HOME": str(home / "hf")}
            with output.open("w") as file:
                self.launchers.append(
                    subprocess.Popen(command, cwd=ROOT, env=settings, stdout=file, stderr=subprocess.STDOUT)
                )

    @property
    def said(self):
        return "\n".join(output.read_text() for output in self.outputs)

    def kill_the_worker_of(self, machine):
        (worker,) = (p for p in psutil.Process(self.launchers[machine].pid).children() if "splice_ff" in p.cmdline())
        worker.send_signal(signal.SIGKILL)

    def lose(self, machine):
        """The launcher and its worker, at once and without a word."""
        launcher = psutil.Process(self.launchers[machine].pid)
        for process in (launcher, *launcher.children(recursive=True)):
            process.kill()
        self.launchers.pop(machine).wait()

    def wait_for(self, path):
        deadline = time.monotonic() + 120
        while not path.exists():
            assert time.monotonic() < deadline and all(p.poll() is None for p in self.launchers), self.said[-4000:]
            time.sleep(0.01)

    def end(self):
        assert not any(launcher.wait(timeout=150) for launcher in self.launchers), self.said[-4000:]

    def close(self):
        for launcher in self.launchers:
            if launcher.poll() is None:
                for process in (*psutil.Process(launcher.pid).children(recursive=True), launcher):
                    process.kill()
                launcher.wait()


@pytest.fixture
def launch(tmp_path):
    started = []

    def start(launcher, *training):
        started.append(Machines(launcher, tmp_path, *training))
        return started[-1]

    yield start
    for machines in started:
        machines.close()


@pytest.fixture
def config(tmp_path, vit_state):
    return write_run(tmp_path / "job", vit_state, optimizer__steps=STEPS, data__held_out=None)


def train_alone(config, monkeypatch):
    """One process with both machines' batch: the losses of its steps."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(config.parent / "cache"))
    Trainer(read_config(config, "optimizer.batch_size=4", f"output={config.parent / 'alone'}"), quiet=True).run()
    return log_lines(config.parent / "alone")


def assert_alike(output, alone):
    steps = log_lines(output)
    assert list(steps) == list(alone)
    for step, line in alone.items():
        for name in ("total", "structure", "appearance", "gradient_norm"):
            # the first: the same losses and gradients; later ones: the same weights, up to rounding that adds up
            assert steps[step][name] == pytest.approx(line[name], rel=1e-5 if step == 1 else 1e-2, abs=1e-6), step


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills a process, and takes addresses of the loopback network")
def test_torchrun_goes_on_after_a_worker_was_killed(config, launch, monkeypatch):
    output = config.parent / "run"
    machines = launch(torchrun, str(config), f"output={output}")
    machines.wait_for(output / "checkpoints" / "step-00000004")
    machines.kill_the_worker_of(0)
    machines.end()
    assert "going on from step" in machines.said
    assert_alike(output, train_alone(config, monkeypatch))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills processes, and takes addresses of the loopback network")
def test_torchrun_goes_on_without_a_machine_that_is_gone(config, launch):
    output = config.parent / "run"
    machines = launch(elastic_torchrun, str(config), f"output={output}", "optimizer.steps=60")
    machines.wait_for(output / "checkpoints" / "step-00000004")
    assert _processes(output) == 2
    machines.lose(1)
    machines.end()
    assert "going on from step" in machines.said
    assert _processes(output) == 1
    assert list(log_lines(output)) == list(range(1, 61)), "every step once"


@pytest.mark.slow
def test_accelerate_launch_with_machines_yaml(config, launch):
    output = config.parent / "run"
    machines = launch(accelerate_launch, str(config), f"output={output}", "optimizer.steps=2")
    machines.end()
    assert _processes(output) == 2
    assert list(log_lines(output)) == [1, 2]


def _processes(output):
    """How many took part in the newest checkpoint."""
    newest = max((output / "checkpoints").glob("step-????????"))
    return json.loads((newest / "state.json").read_text())["circumstances"]["processes"]
