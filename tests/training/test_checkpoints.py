"""What a run leaves behind and goes on from: nothing runs code, damage is survived, kills change nothing."""

import errno
import pickle
import random
import shutil
import threading
import time

import pytest
import torch
from support.small_run import SmallRun, curve, in_processes, run_small

from splice_ff import InputError
from splice_ff.errors import CheckpointError, DivergedError
from splice_ff.training import checkpoints
from splice_ff.training.checkpoints import checkpoint_steps

FILES = ("model.safetensors", "average.safetensors", "optimizer.safetensors", "random-00000.safetensors", "state.json")
PICKLES = (  # what accelerate and torch read and write
    "custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl", "optimizer.bin", "random_states_0.pkl", "scheduler.bin",
    "scaler.pt", "sampler.bin", "pytorch_model.bin", "model.bin", "model.pt", "state.pkl", "dl_state_dict.bin",
)  # fmt: skip


class Canary:
    """Unpickled, it leaves a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.fixture
def folder(tmp_path):
    """Of a run of 20 steps, with checkpoints at 10 and 20."""
    SmallRun(tmp_path / "run", steps=20).run()
    assert checkpoint_steps(tmp_path / "run") == [10, 20]
    return tmp_path / "run"


def place(folder, step):
    return folder / "checkpoints" / f"step-{step:08d}"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("name", [*PICKLES, *FILES])
def test_a_pickle_never_runs(folder, tmp_path, name):
    canary = tmp_path / "canary"
    for step in (10, 20) if name in PICKLES else (20,):
        (place(folder, step) / name).write_bytes(pickle.dumps(Canary(canary)))
    run = SmallRun(folder, steps=21).run()
    assert not canary.exists()
    assert f"going on from step {20 if name in PICKLES else 10}" in " ".join(run.said)
    with (place(folder, 10) / "check.pkl").open("w+b") as file:  # the canary sings
        pickle.dump(Canary(canary), file)
        file.seek(0)
        pickle.load(file).close()
    assert canary.exists()


DAMAGES = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "one byte": lambda file: file.write_bytes(file.read_bytes()[:1]),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "short": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "flipped": lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]),
    "folder": lambda file: (file.unlink(), file.mkdir()),
    "garbage": lambda file: file.write_bytes(random.Random(0).randbytes(500)),
}
JSON = {
    "list": b"[]", "null": b"null", "nested": b"[" * 100_000, "nan": b'{"progress": NaN}', "other": b'{"format": "x"}',
    "path": b'{"format": "splice-ff run state 1", "progress": {"step_count": 20}, "circumstances": {}, '
            b'"files": {"../../config.yaml": "0"}}',
    "negative": b'{"progress": {"step_count": -1}, "circumstances": {}, "files": {}}',
    "no files": b'{"progress": {"step_count": 20}, "circumstances": {}, "files": {}}',
}  # fmt: skip


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_an_older_one(folder, file, damage):
    DAMAGES[damage](place(folder, 20) / file)
    check_fallback(folder)


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_a_garbled_record_gives_way_to_an_older_one(folder, text):
    (place(folder, 20) / "state.json").write_bytes(text)
    check_fallback(folder)


def check_fallback(folder):
    newest, older = contents(place(folder, 20)), contents(place(folder, 10))
    run = SmallRun(folder, steps=22)
    run.loop.resume()
    assert run.loop.step_count == 10
    (note,) = (line for line in run.said if "kept as" in line)
    assert "step-00000020" in note and "damaged-step-00000020" in note and "\n" not in note
    assert contents(place(folder, 10)) == older
    assert contents(folder / "checkpoints" / "damaged-step-00000020") == newest
    assert [line[0] for line in curve(folder)] == list(range(1, 11))
    run.run()
    whole = SmallRun(folder.with_name("whole"), steps=22).run()
    torch.testing.assert_close(run.weights, whole.weights, rtol=0.2, atol=0.05)  # another length: another schedule
    assert run.loop.step_count == 22


def test_many_damaged_checkpoints_are_all_kept(folder):
    for _ in range(3):
        (place(folder, 20) / "model.safetensors").unlink()
        SmallRun(folder, steps=20).run()  # takes 11 to 20 again
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert [name for name in names if name.startswith("damaged")] == [
        "damaged-step-00000020", "damaged-step-00000020-1", "damaged-step-00000020-2"
    ]  # fmt: skip


def test_only_damaged_checkpoints_are_left_alone(folder):
    for step in (10, 20):
        (place(folder, step) / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="none of the checkpoints there is whole; choose another output"):
        SmallRun(folder, steps=30).run()
    assert checkpoint_steps(folder) == [10, 20]


def test_a_checkpoint_of_another_model_is_refused(folder):
    run = SmallRun(folder, steps=30)
    run.model.weight = torch.nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(InputError, match=r"step-00000020: is of another model; choose another output"):
        run.loop.resume()


@pytest.mark.parametrize("fails_at", range(6))
def test_a_full_disk_damages_nothing(folder, monkeypatch, fails_at):
    before = {step: contents(place(folder, step)) for step in (10, 20)}
    writes = iter(range(100))
    write = checkpoints.write_file

    def full(path, data):
        if next(writes) == fails_at:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    if fails_at == 5:
        monkeypatch.setattr(checkpoints, "sync_folder", lambda _: full(folder / "x", b""))
        fails_at = 0
    monkeypatch.setattr(checkpoints, "write_file", full)
    monkeypatch.setattr("splice_ff.utils.tensor_files.write_file", full)
    with pytest.raises(CheckpointError, match=r"cannot be written .No space left on device") as caught:
        SmallRun(folder, steps=30).run()
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert {step: contents(place(folder, step)) for step in (10, 20)} == before
    assert not list((folder / "checkpoints").glob("unfinished*"))
    assert SmallRun(folder, steps=30).run().loop.step_count == 30


def test_a_log_that_cannot_be_written_is_one_line(folder):
    (folder / "log.jsonl").unlink()
    (folder / "log.jsonl").mkdir()
    with pytest.raises(InputError, match=r"log\.jsonl: cannot be written"):
        SmallRun(folder, steps=30).run()


def test_a_torn_line_of_the_log_is_removed(folder):
    with (folder / "log.jsonl").open("ab") as file:
        file.write(b'{"step": 20, "kind": "tr\xff')
    SmallRun(folder, steps=25).run()
    assert [line[0] for line in curve(folder)] == list(range(1, 26))


def test_the_optimizer_goes_on_in_the_parameters_layout(tmp_path):
    def make():
        torch.manual_seed(0)
        module = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return module, torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)

    def step(module, adam):
        module(torch.arange(75.0).view(1, 3, 5, 5)).square().sum().backward()
        adam.step()
        adam.zero_grad()

    (whole, adam), (other, fresh) = make(), make()
    step(whole, adam)
    checkpoints._load_optimizer(
        fresh, {k: t.contiguous().clone() for k, t in checkpoints._optimizer_tensors(adam).items()}
    )
    other.load_state_dict(whole.state_dict())
    for _ in range(2):
        step(whole, adam)
        step(other, fresh)
    assert torch.equal(whole.weight, other.weight)


# -- divergence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1e9, 1e30, 1e300])
def test_a_restart_leaves_a_divergence(tmp_path, rate):
    SmallRun(tmp_path / "run", steps=60, every=5).run([15])  # a signal: stops after the first step
    diverging = SmallRun(tmp_path / "run", steps=60, every=1, learning_rate=rate)
    diverging.step = lambda: ruin(diverging)
    with pytest.raises(DivergedError, match=r"the run goes on from step 1: give it a smaller optimizer.learning_rate"):
        diverging.run()
    assert checkpoint_steps(tmp_path / "run") == [1]
    again = SmallRun(tmp_path / "run", steps=60).run()
    assert again.loop.step_count == 60 and again.loop.progress.skipped_steps == 0
    assert curve(tmp_path / "run")[-1][1] < 2


def ruin(run):
    """A step whose loss overflows once the weights have gone."""
    run.loop.set_learning_rate()
    total = run.loop.model(torch.ones(4, 8)).float().pow(8).mean()
    total.backward()
    if run.loop.clip_gradients(total):
        run.loop.adam.step()
    run.loop.end_step({"total": total}, 4)


def test_a_dead_network_counts_as_diverged(tmp_path):
    run = SmallRun(tmp_path / "run", steps=60, every=1)

    def dead():
        run.loop.set_learning_rate()
        total = (run.loop.model(torch.ones(4, 8)) * 0 + 3).mean()
        total.backward()
        assert not run.loop.clip_gradients(total)
        run.loop.end_step({"total": total}, 4)

    run.step = dead
    with pytest.raises(DivergedError, match="goes on from its beginning"):
        run.run()
    assert checkpoint_steps(tmp_path / "run") == []


def test_no_loss_and_no_gradient_is_no_divergence(tmp_path):
    run = SmallRun(tmp_path / "run", steps=20)

    def perfect():
        total = (run.loop.model(torch.ones(4, 8)) * 0).mean()
        total.backward()
        assert run.loop.clip_gradients(total)
        run.loop.end_step({"total": total}, 4)

    run.step = perfect
    run.run()
    assert run.loop.progress.skipped_steps == 0


# -- two runs, and killed ones ---------------------------------------------------------------------------------------


def test_a_second_run_is_refused_and_a_killed_one_is_no_obstacle(tmp_path):
    folder = tmp_path / "run"
    first = in_processes().Process(target=run_small, args=(folder, {"steps": 10_000, "pause": 0.01}))
    first.start()
    wait_for(lambda: checkpoint_steps(folder), first)
    with pytest.raises(InputError, match=r"run: another run is writing there; wait for its end, or choose another"):
        SmallRun(folder, steps=10_000).run()
    first.kill()
    first.join()
    assert (folder / ".lock").exists()
    step = checkpoint_steps(folder)[-1]
    run = SmallRun(folder, steps=step + 5).run()
    assert run.loop.step_count == step + 5


def wait_for(condition, process):
    end = time.monotonic() + 120
    while not condition():
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.slow
def test_kill_9_at_any_moment_changes_nothing(tmp_path):
    options = {"steps": 300, "every": 3, "pause": 0.002}
    whole = SmallRun(tmp_path / "whole", **options).run()
    folder, draw = tmp_path / "killed", random.Random(0)
    while_saving = kills = 0
    for attempt in range(200):
        process = in_processes().Process(target=run_small, args=(folder, options))
        process.start()
        if attempt % 2:  # in the midst of a checkpoint
            deadline = time.monotonic() + draw.uniform(0.2, 0.5)
            while process.is_alive() and time.monotonic() < deadline:
                pass
            while process.is_alive() and not list(folder.glob("checkpoints/unfinished-*")):
                pass
        else:
            process.join(draw.uniform(0.1, 0.6))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills += 1
        while_saving += bool(list(folder.glob("checkpoints/unfinished-*")))
        if kills == 16:
            run_small(folder, options)
            break
    assert kills >= 10 and while_saving >= 1, (kills, while_saving)
    assert curve(folder) == curve(tmp_path / "whole")
    restored = SmallRun(folder, **options)
    restored.loop.resume()
    assert restored.loop.step_count == 300 and torch.equal(restored.weights, whole.weights)


def test_a_run_in_a_thread(tmp_path):
    runs = []
    thread = threading.Thread(target=lambda: runs.append(SmallRun(tmp_path / "run", steps=12).run()))
    thread.start()
    thread.join()
    assert runs[0].loop.step_count == 12


# -- what has changed ------------------------------------------------------------------------------------------------


def test_another_batch_size_goes_on_with_the_next_data_and_is_said(folder):
    run = SmallRun(folder, steps=21, batch_size=5).run()
    assert run.loop.progress.seen == 20 * 4 + 5
    assert "note: optimizer.batch_size: 4 before, 5 now" in run.said
    assert "note: optimizer.steps: 20 before, 21 now" in run.said


def test_a_finished_run_says_so(folder):
    again = SmallRun(folder, steps=20).run()
    assert any("all 20 steps were taken before" in line for line in again.said)
    assert not any("were taken before" in line for line in SmallRun(folder, steps=21).run().said)


def test_other_circumstances_are_said(folder):
    run = SmallRun(folder, steps=21)
    run.loop.state.circumstances["images"] = 7
    run.run()
    again = SmallRun(folder, steps=22)
    again.loop.state.circumstances["images"] = 9
    again.run()
    assert "note: images: 7 before, 9 now" in again.said and not any("processes" in line for line in again.said)


def test_settings_go_on_from_the_config_and_not_from_the_checkpoint(folder):
    shutil.rmtree(place(folder, 10))
    run = SmallRun(folder, steps=40)
    run.loop.state.optimizers["optimizer"].param_groups[0]["weight_decay"] = 0.5
    run.loop.resume()
    assert run.loop.adam.param_groups[0]["weight_decay"] == 0.5 and run.loop.state.optimizers["optimizer"].state
