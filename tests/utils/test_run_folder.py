"""Folders that a run fills: settings on record, no mixing, one writer."""

import os
import signal
import subprocess
import sys

import pytest

from splice_ff.errors import InputError
from splice_ff.utils.run_folder import claim_folder, lock_folder

HOLD = """
import sys, time
from pathlib import Path
from splice_ff.utils.run_folder import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["run.json", "run.yaml"])
def test_a_folder_belongs_to_its_settings(tmp_path, name):
    record, settings = tmp_path / "out" / name, {"model": "a", "size": 64, "nested": {"x": [1, 2]}}
    assert claim_folder(record, settings, holds="images").is_new
    again = claim_folder(record, settings, holds="images")
    assert not again.is_new and not again.changed
    with pytest.raises(InputError, match=r"holds images made with other settings \(size: 64 before, 65 now\)"):
        claim_folder(record, settings | {"size": 65}, holds="images")
    assert not claim_folder(record, settings, holds="images").changed  # the refused claim left the record as it was


def test_settings_that_may_change_are_reported_and_recorded(tmp_path):
    record = tmp_path / "run.json"
    claim_folder(record, {"seed": 0, "steps": 10}, holds="checkpoints", fixed=["seed"])
    claim = claim_folder(record, {"seed": 0, "steps": 20}, holds="checkpoints", fixed=["seed"])
    assert claim.changed == {"steps": (10, 20)}
    assert not claim_folder(record, {"seed": 0, "steps": 20}, holds="checkpoints", fixed=["seed"]).changed


@pytest.mark.parametrize("damage", ["", "{", "[1]", "3", "[" * 100_000], ids=["empty", "cut", "list", "number", "deep"])
def test_a_damaged_record_is_one_line(tmp_path, damage):
    record = tmp_path / "run.json"
    record.write_text(damage)
    with pytest.raises(InputError, match=r"run\.json: damaged"):
        claim_folder(record, {"seed": 0}, holds="images")


def test_a_second_run_is_refused_and_a_killed_one_is_no_obstacle(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"locked\n"
    with pytest.raises(InputError, match="another run is writing there"), lock_folder(tmp_path):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with lock_folder(tmp_path):
        assert (tmp_path / ".lock").exists()
