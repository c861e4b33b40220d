"""One process with a large batch, and many with small ones, take the same step."""

from types import SimpleNamespace

import datasets
import pytest
import torch
import yaml
from support.one_shot_model import make_model
from support.training_setup import CONFIGS, read_config, write_run

from splice_ff.data.teacher_pairs import write_teacher_pair
from splice_ff.training.batches import TrainingData
from splice_ff.training.losses import PairLosses

SHIPPED = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(CONFIGS.glob("*.yaml"))]
IDENTITY_EVERY = sorted({config["loss"]["identity_every"] for config in SHIPPED} | {3, 16})


@pytest.fixture
def teacher_folder(tmp_path):
    random = torch.Generator().manual_seed(0)
    facts = {"steps": 1, "seconds": 1.0, "settings": "{}", "losses": dict.fromkeys(("total", "structure", "appearance",
             "identity"), 0.0)}  # fmt: skip
    for i in range(5):
        images = torch.randint(0, 256, (3, 3, 40, 44), generator=random, dtype=torch.uint8)
        names = ("structure", "appearance", "output")
        path = tmp_path / "teacher" / f"pair-{i}.parquet"
        write_teacher_pair(path, dict(zip(names, images, strict=True)), facts | {"name": str(i)})
    return tmp_path / "teacher"


@pytest.fixture
def gradient(tmp_path, vit_state, tiny_backbone, monkeypatch, teacher_folder):
    """The gradient and the losses of a step, averaged over processes and batches as accelerate does."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    backbone = tiny_backbone(depth=1)
    generator = make_model(backbone).generator.requires_grad_(True)

    def of_step(batch_size, world, accumulation, *overrides):
        overrides = (*overrides, f"optimizer.batch_size={batch_size}",
                     f"optimizer.gradient_accumulation_steps={accumulation}")  # fmt: skip
        config = read_config(write_run(tmp_path / "job", vit_state), "data.held_out=null", *overrides)
        losses = PairLosses(config, generator, backbone)
        parts = []
        for rank in range(world):
            accelerator = SimpleNamespace(process_index=rank, num_processes=world, device=torch.device("cpu"),
                                          is_main_process=False, is_local_main_process=False)  # fmt: skip
            batches = TrainingData(config, accelerator, quiet=True).batches(3)
            for _ in range(accumulation):
                splice, terms = losses(generator, next(batches), 3)
                distilled = sum(terms.values(), torch.zeros(()))
                total = splice.total + distilled
                gradients = torch.autograd.grad(total, list(generator.parameters()), allow_unused=True)
                flat = [g.flatten() for g in gradients if g is not None]
                parts.append(torch.cat([*flat, torch.stack([total, splice.identity, distilled]).detach()]))
        return torch.stack(parts).mean(0)

    return of_step


@pytest.mark.parametrize("every", IDENTITY_EVERY)
def test_identity_pairs_are_those_of_the_whole_step(gradient, every):
    whole = gradient(8, 1, 1, f"loss.identity_every={every}")
    for batch_size, world, accumulation in ((4, 2, 1), (2, 2, 2)):
        split = gradient(batch_size, world, accumulation, f"loss.identity_every={every}")
        assert (split - whole).norm() < 1e-5 * whole.norm()
        torch.testing.assert_close(split[-3:], whole[-3:], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_the_teachers_pairs_are_those_of_the_whole_step(gradient, teacher_folder, share):
    distill = f"distill={{source: {teacher_folder}, share: {share}, features: 1}}"
    whole = gradient(8, 1, 1, distill)
    for batch_size, world, accumulation in ((2, 2, 2),):
        split = gradient(batch_size, world, accumulation, distill)
        assert (split - whole).norm() < 1e-5 * whole.norm()
        torch.testing.assert_close(split[-3:], whole[-3:], rtol=1e-5, atol=1e-7)
