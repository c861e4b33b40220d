"""Nothing stays on the CPU where the work is on a GPU: by a simulated one, which refuses to mix the two."""

from dataclasses import replace

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from support.fake_gpu import fake_gpu
from support.one_shot_model import make_model, random_image
from support.training_setup import CONFIGS, read_config, write_run
from torch._subclasses.fake_tensor import FakeTensor

from splice_ff.benchmark import step_works
from splice_ff.networks.teachers import Teacher
from splice_ff.one_shot.refine import refine
from splice_ff.per_pair.optimize import apply_generator
from splice_ff.per_pair.optimizer import PairOptimizer
from splice_ff.per_pair.recipes import PRESETS
from splice_ff.training import realism
from splice_ff.training import trainer as training
from splice_ff.training.config import load_config
from splice_ff.training.runtime import make_accelerator
from splice_ff.training.trainer import Trainer
from splice_ff.vit.weights import backbone_without_weights

NAMES = sorted(file.stem for file in CONFIGS.glob("*.yaml"))
MIXED = "Expected all tensors to be on the same device"


@pytest.fixture
def gpu():
    with fake_gpu() as device:
        yield device


class FlatMaps(torch.nn.Module):
    """A frozen network for the discriminator."""

    def forward(self, images):
        return [torch.nn.functional.avg_pool2d(images, 8)]


@pytest.fixture
def trains_on(gpu, tmp_path, monkeypatch):
    """accelerate takes the simulated GPU, and official backbones come without numbers."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def accelerator(*settings):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        made = make_accelerator(*settings)
        made.state.__dict__["device"] = PartialState._shared_state["device"] = gpu
        return made

    def backbone(name, weights=None):
        empty = backbone_without_weights(name).to_empty(device=gpu)
        empty.fingerprint = name
        return empty

    monkeypatch.setattr(training, "make_accelerator", accelerator)
    monkeypatch.setattr(training, "load_backbone", backbone)
    flat = Teacher(FlatMaps(), [3], (0.5,) * 3, (0.5,) * 3).to(gpu)
    monkeypatch.setattr(realism, "load_teacher", lambda name: flat)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _: torch.zeros(16, dtype=torch.uint8))
    yield gpu
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def small_parts_of(name, tmp_path, vit_state):
    """A shipped config with data that is here, and nothing else changed but what costs time."""
    photos = write_run(tmp_path / "job", vit_state).parent / "photos"
    overrides = [
        f"data.source={photos}", f"output={tmp_path / 'run'}", "data.split=train", "data.held_out=train",
        "data.labels=null", "data.mined_pairs=null", "data.pairs.mined=0", "generator.start_from=null",
        "generator.size=tiny", "data.workers=0",
        "optimizer.batch_size=2", "run.validation_pairs=2", "run.compile=false", "run.trackers=[]",
    ]  # fmt: skip
    return load_config(CONFIGS / f"{name}.yaml", overrides)


# one of them in every run of the tests; the others differ by sizes, precision and backbone
@pytest.mark.parametrize("name", [n if n == "dino-8gb" else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_a_step_of_every_config(name, trains_on, tmp_path, vit_state):
    trainer = Trainer(small_parts_of(name, tmp_path, vit_state), quiet=True)
    assert trainer.device == trains_on
    assert {p.device for p in (*trainer.generator.parameters(), *trainer.backbone.parameters())} == {trains_on}
    trainer.step(trainer.data.batches(0))
    assert trainer.loop.step_count == 1 and trainer.loop.progress.skipped_steps == 0
    assert {t.device for s in trainer.loop.adam.state.values() for t in s.values() if t.ndim} == {trains_on}
    assert trainer.validate()


@pytest.mark.slow
def test_a_whole_run_and_its_resumption(trains_on, tmp_path, vit_state):
    path = write_run(tmp_path / "job", vit_state, optimizer__steps=1)
    Trainer(read_config(path), quiet=True).run()
    again = Trainer(read_config(path, "optimizer.steps=2"), quiet=True)
    again.run()
    assert again.loop.resumed_at == 1 and again.loop.step_count == 2
    assert (path.parent / "run" / "best" / "model.safetensors").exists()


@pytest.mark.parametrize("part", ["backbone", "generator", "batch"])
def test_a_tensor_left_on_the_cpu_is_caught_in_a_step(part, trains_on, tmp_path, vit_state, monkeypatch):
    trainer = Trainer(small_parts_of("dino-8gb", tmp_path, vit_state), quiet=True)
    if part == "backbone":
        trainer.backbone.mean = torch.zeros(1, 3, 1, 1)
    elif part == "generator":
        trainer.generator.unet.stem.weight = torch.nn.Parameter(torch.zeros(trainer.generator.unet.stem.weight.shape))
    else:
        monkeypatch.setattr(trainer.data, "_to_device", lambda pixels: pixels.float() / 255)
    with pytest.raises(RuntimeError, match=MIXED):
        trainer.step(trainer.data.batches(0))


@pytest.mark.parametrize("context", ["cls", "cls+patches"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_shot(gpu, tiny_backbone, context, dtype):
    model = make_model(tiny_backbone(), context=context).to(gpu, dtype)
    structures, appearances = (
        [random_image(0, 64, 80)[0], random_image(1, 96, 64)[0]],
        [random_image(2)[0], random_image(3)[0]],
    )
    painted = model(structures, appearances, output_type="pt")
    assert [image.device for image in painted] == [gpu] * 2
    assert model(structures[0].to(gpu), appearances[0], strength=0.5).size == (80, 64)
    model(structures[0], appearances, weights=[2, 1], output_type="np")


def test_one_shot_in_tiles(gpu, tiny_backbone, monkeypatch):
    monkeypatch.setattr("splice_ff.one_shot.model.MAX_UNTILED", 64 * 64)
    monkeypatch.setattr("splice_ff.one_shot.tiles.CORE", 64)
    model = make_model(tiny_backbone()).to(gpu)
    assert model(random_image(0, 96, 192)[0], random_image(1)[0], size=96, output_type="pt").device == gpu


def test_refining(gpu, tiny_backbone):
    model = make_model(tiny_backbone()).to(gpu)
    assert model(random_image(0)[0], random_image(1)[0], refine=2, output_type="pt").device == gpu
    kept = refine(model, random_image(0), random_image(1), steps=2).generator  # on the CPU, while its model is not
    assert apply_generator(kept, random_image(2), 64).device == torch.device("cpu")


@pytest.mark.parametrize("preset", PRESETS)
def test_optimizing_a_pair(gpu, tiny_backbone, preset):
    recipe = replace(PRESETS[preset], steps=2, size=72, views=min(2, PRESETS[preset].views), copy_steps=2)
    run = PairOptimizer(random_image(0, 72, 80), random_image(1, 80, 72), tiny_backbone(), recipe, device=gpu)
    run.run()
    assert run.preview().device == run.result().image.device == torch.device("cpu")
    other = PairOptimizer(random_image(0, 72, 80), random_image(1, 80, 72), tiny_backbone(), recipe, device=gpu)
    other.load_state_dict(run.state_dict())


def test_the_steps_that_the_benchmark_times(gpu):
    works = step_works("vit_mini", 96, ["fp32"], gpu)
    assert len(works) == 1 + len(PRESETS)
    for work in works.values():
        work()


def test_a_tensor_left_on_the_cpu_is_caught_elsewhere(gpu, tiny_backbone):
    model = make_model(tiny_backbone()).to(gpu)
    model.backbone.mean = torch.zeros(1, 3, 1, 1)
    with pytest.raises(RuntimeError, match=MIXED):
        model(random_image(0)[0], random_image(1)[0])
    recipe = replace(PRESETS["paper"], steps=2, size=72)
    run = PairOptimizer(random_image(0, 72, 80), random_image(1, 80, 72), tiny_backbone(), recipe, device=gpu)
    run.whole_structure = replace(run.whole_structure, images=random_image(0, 72, 80))
    with pytest.raises(RuntimeError, match=MIXED):
        run.step()


def test_the_cpu_keeps_its_numbers(gpu):
    numbers = torch.arange(4.0)
    assert numbers.sum() == 6 and not isinstance(numbers, FakeTensor)
    assert numbers.to(gpu).cpu().tolist() == [1.0] * 4  # the simulated ones are lost
    with pytest.raises(RuntimeError, match=MIXED):
        numbers.to(gpu) + numbers
