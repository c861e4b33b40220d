"""One-shot inference: sizes, batches, strength and mixes; and models in folders and on the hub."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.one_shot_model import make_model, random_image

from splice_ff.errors import CheckpointError, InputError
from splice_ff.one_shot.model_card import model_card
from splice_ff.one_shot.model_files import bundled_models, read_config
from splice_ff.one_shot.pipeline import SpliceFF
from splice_ff.one_shot.tiles import paint_in_tiles
from splice_ff.utils.resize import resize_shorter_side

FACTS = {"data": "a folder of 40 cats", "steps": 1234, "loss": {"appearance": 0.125}, "limits": "cats only"}


@pytest.fixture
def model(tiny_backbone):
    return make_model(tiny_backbone(), card=FACTS)


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# --- painting -------------------------------------------------------------------------------------------------------


def test_output_depends_on_both_images(model):
    a, b, c = random_image(1), random_image(2), random_image(3)
    output = model(a, b, output_type="pt")
    assert output.shape == a.shape and output.min() >= 0 and output.max() <= 1
    assert (output - a).abs().mean() > 0.02
    assert (output - model(c, b, output_type="pt")).abs().mean() > 0.02
    assert (output - model(a, c, output_type="pt")).abs().mean() > 1e-3


@pytest.mark.parametrize("context", ["cls", "cls+patches"])
def test_a_batch_is_its_samples(tiny_backbone, context):
    model = make_model(tiny_backbone(), context=context)
    structure, appearance = random_image(1, 72, 90, batch=3), random_image(2, 64, 80, batch=3)
    together = model(structure, appearance, output_type="pt")
    apart = torch.cat([model(structure[i : i + 1], appearance[i : i + 1], output_type="pt") for i in range(3)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


def test_one_look_serves_a_batch(model):
    structure, tokens = random_image(1, batch=2), model.embed(random_image(2))
    one_by_one = torch.cat([model.paint(image, tokens) for image in structure.split(1)])
    torch.testing.assert_close(model.paint(structure, tokens), one_by_one, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("h", "w"), [(16, 17), (75, 201), (200, 64), (20, 1600)])
def test_any_size_comes_back(model, h, w):
    assert model(random_image(1, h, w), random_image(2, w, h), output_type="pt").shape == (1, 3, h, w)


def test_works_at_the_size_asked_for(model):
    structure, tokens = random_image(1, 128, 160), model.embed(random_image(2))
    working = resize_shorter_side(structure, 96)
    small = model.paint(working, tokens, size=96)
    made = model.paint(structure, tokens, size=96)
    assert (resize_shorter_side(made, 96) - small).abs().mean() < 0.02
    assert (made - model.paint(structure, tokens, size=32)).abs().mean() > 1e-3
    for size in (15, 100_000):
        with pytest.raises(InputError, match="size"):
            model.paint(structure, tokens, size=size)


def test_large_sizes_go_in_tiles(model, monkeypatch):
    structure, tokens = random_image(1, 64, 96), model.embed(random_image(2))
    whole = model.paint(structure, tokens)
    calls = []
    monkeypatch.setattr("splice_ff.one_shot.model.MAX_UNTILED", 64 * 95)
    monkeypatch.setattr(
        "splice_ff.one_shot.model.paint_in_tiles", lambda *a, **k: calls.append(a) or paint_in_tiles(*a, core=32, **k)
    )
    torch.testing.assert_close(model.paint(structure, tokens), whole, atol=2e-5, rtol=0)
    assert len(calls) == 1


def test_strength_is_a_share_of_the_change(model):
    structure, tokens = random_image(1), model.embed(random_image(2))
    full = model.paint(structure, tokens)
    whole = (full - structure).abs().mean()
    torch.testing.assert_close(model.paint(structure, tokens, strength=0), structure, atol=1e-5, rtol=0)
    assert torch.equal(model.paint(structure, tokens, strength=1), full)
    for strength in (0.25, 0.5, 0.75):  # neither a switch nor a curve that hardly moves at one end
        share = (model.paint(structure, tokens, strength=strength) - structure).abs().mean() / whole
        assert abs(share - strength) < 0.15 and whole > 1e-3
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="strength"):
            model.paint(structure, tokens, strength=strength)


def test_mixes(model):
    a, b = model.embed(random_image(1)), model.embed(random_image(2))
    assert torch.equal(model.mix([a, b], [1, 0]), a)
    torch.testing.assert_close(model.mix([a, b]), (a + b) / 2)
    torch.testing.assert_close(model.mix([a, b], [6, 2]), 0.75 * a + 0.25 * b)
    for looks, weights in [([], None), ([a, b], [1]), ([a, b], [0, 0]), ([a, b], [2, -1]), ([a], [float("nan")])]:
        with pytest.raises(InputError, match="weight"):
            model.mix(looks, weights)
    with pytest.raises(InputError, match="tokens"):
        model.mix([a[:, :-1]])


def test_a_generator_for_another_vit_is_refused(tiny_backbone):
    with pytest.raises(InputError, match="depth and width"):
        SpliceFF(make_model(tiny_backbone()).generator, tiny_backbone(depth=2), vit_size=48, size=64)
    with pytest.raises(InputError, match="vit_size"):
        make_model(tiny_backbone(), vit_size=0)


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_saved_model_paints_the_same(model, folder):
    again = SpliceFF.from_pretrained(folder, backbone=model.backbone)
    assert not again.training
    assert torch.equal(
        again(random_image(1), random_image(2), output_type="pt"),
        model(random_image(1), random_image(2), output_type="pt"),
    )
    assert again.config == model.config and again.fingerprint == model.fingerprint
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_half_precision_on_disk(model, tmp_path):
    model.save_pretrained(tmp_path / "half", dtype="fp16")
    model.save_pretrained(tmp_path / "full")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    again = SpliceFF.from_pretrained(tmp_path / "half", backbone=model.backbone)
    assert again.fingerprint == model.fingerprint  # so looks go with both
    assert all(p.dtype == torch.float32 for p in again.parameters())
    assert (
        again(random_image(1), random_image(2), output_type="pt")
        - model(random_image(1), random_image(2), output_type="pt")
    ).abs().max() < 0.02
    with pytest.raises(CheckpointError, match="int8"):
        model.save_pretrained(tmp_path / "other", dtype="int8")


def test_the_fingerprint_is_of_the_weights(model, tiny_backbone):
    before = model.fingerprint
    assert before == make_model(tiny_backbone()).fingerprint != make_model(tiny_backbone(), seed=1).fingerprint
    with torch.no_grad():
        model.generator.unet.stem.bias[0] += 0.01
    assert model.fingerprint != before


def test_the_model_card_says_what_was_recorded(model, folder):
    card = (folder / "README.md").read_text()
    for words in ("a folder of 40 cats", "1234", "0.125", "cats only", model.backbone.fingerprint, "`tiny`", "fp32"):
        assert words in card
    assert f"\n# {folder.name}: amortized" in card
    model.config.training.clear()
    model.config.training["data"] = {"source": "a|b\n# <script>\x1b[2J"}
    model.config.training["limits"] = "# no heading\n---\n<b>"
    model.save_pretrained(folder)
    card = (folder / "README.md").read_text()
    assert "| source | a\\|b # &lt;script>" in card and "\x1b" not in card
    assert "\n- \\# no heading --- &lt;b>\n" in card and card.count("\n---\n") == 1
    assert card.count("\n# ") == 1 and card.count("\n## ") == 3
    model.config.training.clear()
    model.save_pretrained(folder)
    assert "Not recorded" in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", bundled_models())
def test_a_bundled_model_has_the_card_of_its_config(name):
    folder = bundled_models()[name]
    state = load_file(folder / "model.safetensors")
    dtypes = {"fp16" if tensor.dtype == torch.float16 else "fp32" for tensor in state.values()}
    card = model_card(name, read_config(folder).to_dict(), sum(map(torch.numel, state.values())), dtypes.pop())
    assert (folder / "README.md").read_text(encoding="utf-8") == card and f"# {name}: " in card


def test_another_backbone_is_refused(folder, model, tiny_backbone):
    other = tiny_backbone(seed=1)
    with pytest.raises(CheckpointError) as caught:
        SpliceFF.from_pretrained(folder, backbone=other)
    for words in (str(folder), model.backbone.fingerprint[:12], other.fingerprint[:12], model.backbone.name):
        assert words in str(caught.value)


def test_the_backbone_may_lie_elsewhere(tmp_path, vit_folder, blank_folder):
    from splice_ff.vit.weights import load_backbone

    make_model(load_backbone(str(vit_folder))).save_pretrained(tmp_path / "model")
    SpliceFF.from_pretrained(tmp_path / "model", backbone=vit_folder)
    SpliceFF.from_pretrained(tmp_path / "model", backbone=blank_folder, weights=vit_folder)
    with pytest.raises(CheckpointError, match="trained with backbone tiny"):
        SpliceFF.from_pretrained(tmp_path / "model", backbone=blank_folder)


def with_unet(config, **changes):
    generator = config["generator"]
    return config | {"generator": generator | {"unet": generator["unet"] | changes}}


def refusal(folder, model, *words):
    with pytest.raises(CheckpointError) as caught:
        SpliceFF.from_pretrained(folder, backbone=model.backbone)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: "{", ["damaged"]),
        (lambda c: "[]", ["format"]),
        (lambda c: c | {"format": "splice-ff amortized generator 9"}, ["generator 9"]),
        (lambda c: c | {"format": "splice-ff amortized generator 1"}, ["older splice-ff"]),
        (lambda c: {k: v for k, v in c.items() if k != "backbone"}, ["backbone"]),
        *[
            (lambda c, name=name, value=value: c | {name: value}, [name])
            for name in ("vit_size", "size")
            for value in ("large", 0, -1, 1.5, True, None, 10**9, 10**40, float("inf"), [64])
        ],
        (lambda c: '{"a":' * 100_000 + "1" + "}" * 100_000, ["damaged"]),
        (lambda c: json.dumps(c) + " " * 2**20, ["damaged", "MiB"]),
        (lambda c: json.dumps(c).replace('"layers": 3', '"layers": 1' + "0" * 5000), ["damaged"]),
        (
            lambda c: c | {"generator": c["generator"] | {"unet": c["generator"]["unet"] | {"blocks": 10**9}}},
            ["blocks"],
        ),
        (
            lambda c: c | {"generator": c["generator"] | {"unet": c["generator"]["unet"] | {"tokens": 8192}}},
            ["queries"],
        ),
        (lambda c: with_unet(c, heads=7), ["7 heads"]),
        (lambda c: c | {"generator": c["generator"] | {"unet": "tiny"}}, ["wrong entry"]),
        (lambda c: c | {"generator": c["generator"] | {"context": "huge"}}, ["huge"]),
        (lambda c: c | {"generator": c["generator"] | {"width": -1}}, ["config.json"]),
        (lambda c: c | {"generator": c["generator"] | {"depth": 3}}, ["depth"]),
        (lambda c: c | {"generator": c["generator"] | {"layers": 9}}, ["model.safetensors", "encoder"]),
    ],
)
def test_a_wrong_config_is_refused(folder, model, change, words):
    file = folder / "config.json"
    changed = change(json.loads(file.read_text()))
    file.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    refusal(folder, model, str(folder), *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("unet.stem.weight"), ["unet.stem.weight", "no tensor"]),
        (lambda t: t.update(more=torch.zeros(1)), ["more"]),
        (lambda t: t.update({"unet.stem.bias": torch.zeros(3)}), ["unet.stem.bias", "(3,)"]),
        (lambda t: t["unet.stem.bias"].fill_(torch.nan), ["unet.stem.bias", "NaN"]),
    ],
)
def test_wrong_weights_are_refused(folder, model, change, words):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "splice-ff amortized generator 2"})
    refusal(folder, model, str(file), *words)


def test_damaged_and_missing_files_are_refused(folder, model, tmp_path):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for content in (b"", whole[:100], whole[:-1]):
        file.write_bytes(content)
        refusal(folder, model, str(file), "damaged")
    save_file({"a": torch.zeros(1)}, file)
    refusal(folder, model, str(file), "format 'none'")
    file.unlink()
    refusal(folder, model, str(file), "no such file")
    (folder / "config.json").unlink()
    refusal(folder, model, "no config.json")
    refusal("no-such-model", model, "no-such-model", "bundled")


def test_weights_that_are_not_finite_are_not_saved(model, tmp_path):
    with torch.no_grad():
        model.generator.unet.stem.bias[0] = 1e6  # finite, but not in half precision
    with pytest.raises(CheckpointError, match=r"unet\.stem\.bias"):
        model.save_pretrained(tmp_path / "half", dtype="fp16")
    assert not list((tmp_path / "half").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        model.save_pretrained(tmp_path / "file")


# --- names and the hub ----------------------------------------------------------------------------------------------


def test_bundled_models_go_by_name(folder, model, monkeypatch):
    monkeypatch.setattr("splice_ff.one_shot.model_files.checkpoints_dir", lambda: folder.parent)
    (folder.parent / "vit_mini").mkdir()
    (folder.parent / "vit_mini" / "config.json").write_text('{"architecture": "timm.models.VisionTransformer"}')
    assert SpliceFF.from_pretrained("model", backbone=model.backbone).config == model.config
    refusal("vit_mini", model, "here: model")


def test_hub_ids_are_downloaded_and_then_cached(folder, model, monkeypatch):
    asked, hub = [], {"reachable": True}

    def ask(url, token):
        asked.append(url)
        if not hub["reachable"]:
            raise TimeoutError

    def download(repository, allow_patterns, local_files_only, **options):
        assert repository == "someone/cats" and local_files_only is not hub["reachable"]
        assert options == {"revision": "v2", "token": "secret", "cache_dir": "here"}
        return str(folder)

    monkeypatch.setattr("splice_ff.one_shot.model_files.ask_hub", ask)
    monkeypatch.setattr("splice_ff.one_shot.model_files.snapshot_download", download)
    for hub["reachable"] in (True, False):
        again = SpliceFF.from_pretrained(
            "someone/cats", backbone=model.backbone, revision="v2", token="secret", cache_dir="here"
        )
        assert again.config == model.config
    assert "someone/cats" in asked[0] and "v2" in asked[0]
    monkeypatch.setattr("splice_ff.one_shot.model_files.ask_hub", lambda *_: pytest.fail("asked the network"))
    SpliceFF.from_pretrained(
        "someone/cats",
        backbone=model.backbone,
        revision="v2",
        token="secret",
        cache_dir="here",
        local_files_only=True,
    )


def test_an_unreachable_hub_is_one_line(model, monkeypatch):
    def fail(*args, **options):
        raise TimeoutError("no\nanswer")

    monkeypatch.setattr("splice_ff.one_shot.model_files.ask_hub", fail)
    monkeypatch.setattr("splice_ff.one_shot.model_files.snapshot_download", fail)
    refusal("someone/cats", model, "someone/cats", "TimeoutError")


def test_push_to_hub_uploads_the_three_files(model, monkeypatch):
    uploaded = {}

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, **_):
            uploaded[repo_id] = {p.name: p.read_bytes() for p in folder_path.iterdir()}
            return "https://hub/commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert model.push_to_hub("someone/cats") == "https://hub/commit"
    files = uploaded["someone/cats"]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads(files["config.json"])["backbone"]["fingerprint"] == model.backbone.fingerprint
    assert b"40 cats" in files["README.md"]


def test_a_loaded_backbone_stays_on_its_device(tmp_path, tiny_backbone):
    """A trainer that started from a model found its ViT on the CPU."""
    backbone = tiny_backbone()
    make_model(backbone).save_pretrained(tmp_path / "model")
    assert backbone.fingerprint
    elsewhere = backbone.to("meta")
    model = SpliceFF.from_pretrained(tmp_path / "model", backbone=elsewhere)
    assert {t.device.type for t in (elsewhere.mean, *elsewhere.parameters(), *model.generator.parameters())} == {"meta"}
    assert SpliceFF.from_pretrained(tmp_path / "model", backbone=tiny_backbone(), device="cpu").device.type == "cpu"
