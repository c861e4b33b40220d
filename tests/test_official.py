"""`make official`, rehearsed: the same program against a hub and the authors' server on this machine."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.fake_hub import FakeHub

from eval.official import AUTHORS, compare_with_authors
from splice_ff.vit.spec import BACKBONES
from splice_ff.vit.weights import load_backbone

ROOT = Path(__file__).parents[1]
TINY, OFFICIAL = "test_vit.r160_in1k", "dino_vits16"
PTH = "/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth"


@pytest.fixture
def hub(randomized, tmp_path):
    files, path = {}, tmp_path / "model.safetensors"
    for name in (TINY, BACKBONES[OFFICIAL].timm_name):
        state = randomized(timm.create_model(name, num_classes=0)).state_dict()
        save_file(state, path)
        files[f"/timm/{name}/resolve/main/model.safetensors"] = path.read_bytes()
    stream = io.BytesIO()
    torch.save(state, stream)
    files[PTH] = stream.getvalue()
    hub = FakeHub(files)
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture
def official(hub, tmp_path):
    def run(*options):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
        clean |= {
            "HF_HOME": str(tmp_path / "hub"), "TORCH_HOME": str(tmp_path / "torch"), "HF_ENDPOINT": hub.endpoint,
            "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT)),
        }  # fmt: skip
        command = [sys.executable, "-m", "eval.official", "-o", str(tmp_path / "out"), "--authors",
                   f"{hub.endpoint}/dino", "--tests", "tests/utils/test_markdown.py", "--steps", "1", "--size", "64",
                   "--device", "cpu", *options]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=240)
        report = tmp_path / "out" / "report.md"
        return done, report.read_text(encoding="utf-8") if report.exists() else ""

    return run


def line(report, words):
    (found,) = (line for line in report.splitlines() if words in line)
    return found


@pytest.mark.slow
def test_from_download_to_image(official, hub, tmp_path):
    done, report = official("--backbone", TINY, "--backbone", OFFICIAL)
    for words, results in {
        "SHA-256 of the file": ["passed", "passed"],
        "authors' file": ["not checked", "passed"],
        "timm's tokens": ["passed", "passed"],
        "| pytest tests": ["passed"],
    }.items():
        found = [row.split(" | ")[-1] for row in report.splitlines() if words in row]
        assert found == [f"{result} |" for result in results], (words, done.stderr)
    assert (tmp_path / "out" / "sample.png").exists() and "total" in line(report, "step ")
    # random weights may or may not take cats for cats: nothing else may fail
    assert done.returncode == int("FAILED" in report), done.stderr
    assert all("kitten" in row for row in report.splitlines() if "FAILED" in row)


def test_values_that_are_not_the_authors_are_found_out(tmp_path, monkeypatch, randomized):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / Path(PTH).name  # downloaded before
    file.parent.mkdir(parents=True)
    state = randomized(timm.create_model(BACKBONES[OFFICIAL].timm_name, num_classes=0)).state_dict()
    torch.save(state, file)
    backbone = load_backbone(OFFICIAL, file)
    assert compare_with_authors(OFFICIAL, backbone, AUTHORS).passed is True
    torch.save(state | {"cls_token": state["cls_token"] + 1e-6}, file)
    assert compare_with_authors(OFFICIAL, backbone, AUTHORS).passed is False
    assert compare_with_authors("dinov2_vits14", backbone, AUTHORS).passed is None


@pytest.mark.slow
def test_without_a_hub_it_says_so(official, hub):
    hub.mode = "missing"
    done, report = official("--backbone", TINY)
    assert done.returncode == 2 and not report
    assert len(done.stderr.strip().splitlines()) == 2 and "could not be downloaded" in done.stderr
