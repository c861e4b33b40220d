"""FID and KID: with a small network in Inception's place, whose features have known distances."""

import pytest
import torch

from splice_ff.evaluation import perceptual, tables
from splice_ff.evaluation.metrics import METRICS
from splice_ff.evaluation.summary import distances_of_sets, summarize
from splice_ff.images import save_image

METHODS = ["copy", "ours"]


class Colors(torch.nn.Module):
    """Mean colors of uint8 images as features, (B, 3) in [0, 1]; counts its passes."""

    num_features, passes = 3, 0

    def forward(self, images):
        Colors.passes += 1
        return images.float().mean((-2, -1)) / 255


@pytest.fixture
def rows(tmp_path):
    """Six pairs; `ours` paints the appearance image itself, `copy` something 0.2 brighter. The sixth lacks `ours`."""
    torch.manual_seed(0)
    found = []
    for i in range(6):
        colors = torch.randint(20, 200, (1, 3, 1, 1)) / 255
        shift = {"appearance": 0, "copy": 51 / 255, "ours": 0}
        paths = {role: tmp_path / f"{i}-{role}.png" for role in shift}
        for role, path in paths.items():
            save_image(path, (colors + shift[role]).expand(1, 3, 16 + i, 24))
        found += [
            {
                "pair": str(i), "domain": "all", "method": name, "image": paths[name].name, "seconds": None,
                "error": None, "structure_file": "", "appearance_file": str(paths["appearance"]), "objective": 1.0,
            }
            for name in METHODS[: 1 + (i < 5)]
        ]  # fmt: skip
    return found


def test_known_distances(rows, tmp_path):
    pytest.importorskip("torchmetrics")

    def measure(ours, theirs):
        assert [*map(len, ours.values()), len(theirs)] == [5, 5, 5]  # those that both methods have
        return perceptual.set_distances(ours, theirs, Colors(), torch.device("cpu"))

    Colors.passes = 0
    found = distances_of_sets(rows, METHODS, tmp_path, measure)
    assert Colors.passes == 15  # each image once, for both metrics and all methods
    assert found["ours"]["fid"] == pytest.approx(0, abs=1e-4)
    assert found["copy"]["fid"] == pytest.approx(3 * 0.2**2, rel=1e-3)  # same covariance, mean shifted in 3 channels
    assert found["copy"]["kid"] > found["ours"]["kid"]
    again = distances_of_sets(rows, METHODS, tmp_path, measure)
    assert again["copy"]["kid"] == pytest.approx(found["copy"]["kid"], rel=1e-5)

    summary = summarize(rows, METHODS, METRICS, "copy", {}, found)
    (shown,) = [row for row in tables.means_table(summary).rows if row[0].text.startswith("FID")]
    assert shown[0].text == "FID to the appearance images, 5 pairs ↓" and shown[1].text == "0.12"


def test_too_few_pairs_have_none(rows, tmp_path):
    assert distances_of_sets(rows[:6], METHODS, tmp_path, lambda *_: pytest.fail("measured")) == {}


def test_a_report_without_them_has_no_such_rows(rows):
    table = tables.means_table(summarize(rows, METHODS, METRICS, "copy", {}))
    assert not any(row[0].text.startswith(("FID", "KID")) for row in table.rows)


def test_the_reason_why_they_are_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None if name == "torch_fidelity" else name)
    cpu = torch.device("cpu")
    assert perceptual.find_set_distances(cpu) == (None, "FID and KID (torch_fidelity is not installed)")
    monkeypatch.setattr(perceptual, "find_spec", lambda name: name)
    weights = tmp_path / "checkpoints/weights-inception-2015-12-05-6726825d.pth"
    assert perceptual.find_set_distances(cpu) == (None, f"FID and KID (no {weights})")
    weights.parent.mkdir()
    weights.touch()
    assert perceptual.find_set_distances(cpu)[0] is not None
