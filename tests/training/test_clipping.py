"""Clipping that does not depend on the scale of the losses, and so not on that of a backbone's features."""

import datasets
import pytest
import torch
from support.small_run import SmallRun
from support.training_setup import write_run

from eval.loss_scale import CLIPPING
from eval.loss_scale import main as loss_scale


@pytest.fixture
def weights_after(tmp_path):
    def run(name, steps=20, **options):
        return SmallRun(tmp_path / name, steps=steps, learning_rate=0.1, **options).run().weights

    return run


def test_losses_of_another_scale_train_the_same(weights_after):
    one, large, small = (weights_after(f"{s}", max_grad_ratio=1.2, scale=s) for s in (1.0, 1e4, 1e-2))
    torch.testing.assert_close(large, one, rtol=0, atol=3e-5)
    torch.testing.assert_close(small, one, rtol=0, atol=3e-5)


def test_with_a_norm_they_do_not(weights_after):
    one, large = (weights_after(f"{s}", max_grad_norm=1.0, scale=s) for s in (1.0, 1e4))
    assert (large - one).abs().max() > 3e-4


def test_an_outlier_is_scaled_down_to_the_usual(tmp_path):
    run = SmallRun(tmp_path, max_grad_ratio=2.0)
    loop, parameters = run.loop, list(run.model.parameters())

    def clip(norm):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, norm / sum(p.numel() for p in parameters) ** 0.5)
        assert loop.clip_gradients(torch.ones(()))
        return sum(p.grad.square().sum() for p in parameters).sqrt().item()

    assert [clip(3.0) for _ in range(3)] == pytest.approx([1.0] * 3)  # 3 is usual
    assert clip(4.5) == pytest.approx(1.5)
    loop.progress.usual_gradient_norm = 3.0
    assert clip(300.0) == pytest.approx(2.0, rel=1e-4) and loop.gradient_norm == pytest.approx(300.0)
    assert loop.progress.usual_gradient_norm == pytest.approx(3 * 0.98 + 6 * 0.02)


def test_what_is_usual_is_remembered(tmp_path, weights_after):
    unbroken = weights_after("unbroken", max_grad_ratio=1.1)
    broken = SmallRun(tmp_path / "broken", steps=20, learning_rate=0.1, max_grad_ratio=1.1)
    noted = []
    step = broken.step
    broken.step = lambda: (step(), noted.append(15) if broken.loop.step_count == 7 else None)
    broken.run(noted)
    assert broken.loop.step_count == 7
    torch.testing.assert_close(weights_after("broken", max_grad_ratio=1.1), unbroken, rtol=0, atol=0)


def test_a_run_without_it_remembers_nothing(tmp_path):
    assert SmallRun(tmp_path, steps=3).run().loop.progress.usual_gradient_norm == 0


def test_the_experiment_tells_them_apart(tmp_path, vit_state, monkeypatch, capsys):
    """`python -m eval.loss_scale`, on a tiny ViT: only clipping at a norm sees the scale."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    job = write_run(tmp_path / "job", vit_state).parent
    own = [
        f"backbone.name={job / 'vit'}",
        "data.size=32",
        "loss.vit_size=32",
        "data.split=train",
        "data.held_out=train",
    ]
    loss_scale(str(job / "photos"), tmp_path / "out", steps=3, factor=0.001, overrides=own)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[-4:]]
    assert [row[:2] for row in rows] == [[clipping, times] for clipping in CLIPPING for times in ("1", "0.001")]
    (norm, small_norm), (ratio, small_ratio) = rows[:2], rows[2:]
    assert norm[4] != "0%" and small_norm[4] == "0%"  # steps clipped
    assert ratio[4] == small_ratio[4]
    gaps = [float(row[5]) for row in rows]  # held-out loss of copying's
    assert abs(gaps[3] - gaps[2]) < 0.2 * abs(gaps[1] - gaps[0])
