"""Mining nearest neighbors: exactness, what is excluded, resuming, the file, the command."""

from io import BytesIO

import datasets
import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.image_folders import LABELS, encoded, make_dataset, noise_image
from typer.testing import CliRunner

import splice_ff.data.mining as mining
from splice_ff.cli import app
from splice_ff.data.mined_pairs import read_mined_pairs
from splice_ff.data.mining import mine_pairs, nearest_neighbors
from splice_ff.errors import InputError


@pytest.fixture(autouse=True)
def small_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mining, "PART", 4)
    datasets.disable_progress_bars()


def brute_force(embeddings, count, groups=None):
    similarity = F.normalize(embeddings.double()) @ F.normalize(embeddings.double()).T
    similarity[similarity > mining.DUPLICATE] = -torch.inf
    similarity.fill_diagonal_(-torch.inf)
    if groups is not None:
        similarity[groups[:, None] == groups] = -torch.inf
    return similarity.sort(descending=True).indices[:, :count], similarity.sort(descending=True).values[:, :count]


@pytest.mark.parametrize("blocks", [(1024, 16384), (7, 10), (10, 7)])
def test_neighbors_are_exact_whatever_the_blocks(monkeypatch, blocks):
    monkeypatch.setattr(mining, "ROWS", blocks[0])
    monkeypatch.setattr(mining, "COLUMNS", blocks[1])
    embeddings = torch.randn(53, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 54)[:, None]
    embeddings[20] = 3 * embeddings[41]  # copies
    for groups in (None, torch.arange(53) % 3):
        index, cosine = nearest_neighbors(embeddings, 5, groups=groups, across=True)
        expected = brute_force(embeddings, 5, groups)
        either = [i.where(i != 41, 20) for i in (index, expected[0])]  # of copies any one may come first
        assert torch.equal(*either)
        torch.testing.assert_close(cosine.double(), expected[1], atol=1e-6, rtol=0)
    assert 41 not in index[20] and 20 not in index[41]


@pytest.mark.parametrize("count", [5, 10**12])
def test_fewer_neighbors_than_asked_for(count):
    _, cosine = nearest_neighbors(torch.eye(3) + 0.1, count)
    assert cosine.shape == (3, 2) and (cosine > -torch.inf).all()


@pytest.fixture
def rows(tmp_path):
    """The path of a dataset in which row 2k + 1 is much like row 2k, but 5 is damaged and 8 and 9 are the same."""
    images = []
    for i in range(12):
        image = noise_image(i // 2, 6, 6)
        if i % 2 and i != 9:
            image = Image.blend(image, noise_image(100 + i, 6, 6), 0.1)
        image.resize((96, 96)).save(file := BytesIO(), "PNG")
        images.append({"bytes": b"no image" if i == 5 else file.getvalue(), "path": None})
    labels = ["ant" if i < 6 else "bee" for i in range(12)]
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("string")})
    path = tmp_path / "data" / "rows.parquet"
    path.parent.mkdir()
    datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(path)
    return str(path)


def mine(rows, backbone, path, **changes):
    arguments = {"neighbors": 3, "size": 48, "batch_size": 3, "quiet": True}
    return mine_pairs(rows, backbone, path, **arguments | changes)


def test_twins_find_each_other_and_the_file_says_so(rows, tiny_backbone, tmp_path):
    path = tmp_path / "pairs.parquet"
    backbone = tiny_backbone()
    report = mine(rows, backbone, path)
    pairs = read_mined_pairs(path)
    assert [pairs.of(i)[0] for i in (0, 1, 2, 3, 6, 7, 10, 11)] == [1, 0, 3, 2, 7, 6, 11, 10]
    assert not len(pairs.of(5)) and 5 not in pairs.appearance
    assert 9 not in pairs.of(8) and 8 not in pairs.of(9)
    assert pairs.rows == 12 and report.pairs == 33 and report.paired == 11 and report.unreadable == 1
    assert report.images == 12
    assert pairs.about["fingerprint"] == backbone.fingerprint and pairs.about["split"] == "train"
    table = parquet.read_table(path)
    assert [str(t) for t in table.schema.types] == ["int64", "int64", "float"]
    assert (np.diff(pairs.similarity.reshape(11, 3)) <= 0).all()
    assert list(tmp_path.glob("pairs*")) == [path]  # no parts left


def test_labels_and_across_labels(rows, tiny_backbone, tmp_path):
    mine(rows, tiny_backbone(), tmp_path / "a.parquet", labels=["bee"])
    bees = read_mined_pairs(tmp_path / "a.parquet")
    assert bees.rows == 12 and min(bees.appearance) == 6
    assert [len(bees.of(i)) for i in range(12)] == [0] * 6 + [3] * 6
    mine(rows, tiny_backbone(), tmp_path / "b.parquet", across_labels=True)
    across = read_mined_pairs(tmp_path / "b.parquet")
    assert all(((across.of(i) < 6) != (i < 6)).all() and len(across.of(i)) == 3 for i in range(12) if i != 5)
    mine(rows, tiny_backbone(), tmp_path / "c.parquet", within_labels=True)
    within = read_mined_pairs(tmp_path / "c.parquet")
    assert all(((within.of(i) < 6) == (i < 6)).all() and len(within.of(i)) == 3 for i in range(12) if i != 5)


def square_on_noise(seed, corner, color):
    """A square at top left (corner 0) or at bottom right (1)."""
    image = noise_image(seed, 24, 24).resize((96, 96))
    image.paste(color, (56, 56, 96, 96) if corner else (0, 0, 40, 40))
    return image


def test_neighbors_by_structure_are_laid_out_alike_whatever_their_colors(tmp_path, tiny_backbone):
    """Squares in two corners and two colors: the corner decides."""
    rows = []
    for i in range(8):
        square_on_noise(i, i % 2, ((200, 30, 40), (40, 60, 210))[i // 4]).save(file := BytesIO(), "PNG")
        rows.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(decode=False)})
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(tmp_path / "rows.parquet")
    mine(str(tmp_path / "rows.parquet"), tiny_backbone(), tmp_path / "pairs.parquet", by="structure")
    pairs = read_mined_pairs(tmp_path / "pairs.parquet")
    assert all((pairs.of(i) % 2 == i % 2).all() for i in range(8))
    assert pairs.about["by"] == "structure"


def test_descriptors_and_labels_that_cannot_be(rows, tiny_backbone, tmp_path):
    with pytest.raises(InputError, match="unknown descriptor 'color'; neighbors are found by appearance or by"):
        mine(rows, tiny_backbone(), tmp_path / "pairs.parquet", by="color")
    with pytest.raises(InputError, match="across labels, or within labels"):
        mine(rows, tiny_backbone(), tmp_path / "pairs.parquet", across_labels=True, within_labels=True)


def test_interrupted_run_goes_on_where_it_was(rows, tiny_backbone, tmp_path, monkeypatch):
    mine(rows, tiny_backbone(), tmp_path / "whole.parquet")
    embed, embedded = mining._embed, []

    def interrupted(dataset, indices, *rest):
        if 7 in indices:
            raise KeyboardInterrupt
        return embed(dataset, indices, *rest)

    def counted(dataset, indices, *rest):
        embedded.extend(indices)
        return embed(dataset, indices, *rest)

    path = tmp_path / "pairs.parquet"
    monkeypatch.setattr(mining, "_embed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mine(rows, tiny_backbone(), path)
    assert not path.exists()
    monkeypatch.setattr(mining, "_embed", counted)
    with pytest.raises(InputError, match="holds embeddings made with other settings"):
        mine(rows, tiny_backbone(seed=1), path)
    mine(rows, tiny_backbone(), path)
    assert embedded == list(range(4, 12))  # the first part of 4 was kept
    assert parquet.read_table(path).equals(parquet.read_table(tmp_path / "whole.parquet"))


def test_damaged_part_is_named(rows, tiny_backbone, tmp_path, monkeypatch):
    path = tmp_path / "pairs.parquet"
    monkeypatch.setattr(mining, "write_mined_pairs", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mine(rows, tiny_backbone(), path)
    part = tmp_path / "pairs.parquet.parts" / "part-00001.safetensors"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(InputError, match=r"part-00001\.safetensors: damaged"):
        mine(rows, tiny_backbone(), path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["elk"]}, "no label elk in the dataset; it has ant, bee"),
        ({"labels": []}, "fewer than two images"),
        ({"path": "p.csv"}, "written as .parquet"),
        ({"size": 10**9}, "squares of 16 to 2048 pixels"),
        ({"path": "folder.parquet"}, "cannot be written"),
    ],
)
def test_what_cannot_be_mined(rows, tiny_backbone, tmp_path, changes, message):
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(InputError, match=message):
        mine(rows, tiny_backbone(), tmp_path / changes.pop("path", "p.parquet"), **changes)


def test_unlabeled_dataset_cannot_be_mined_across_labels(tiny_backbone, tmp_path):
    make_dataset(4, labels=None).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(InputError, match="has no labels"):
        mine(str(tmp_path / "data.parquet"), tiny_backbone(), tmp_path / "p.parquet", across_labels=True)


def test_files_that_hold_no_mined_pairs(tmp_path):
    with pytest.raises(InputError, match="no such file; make it with `splice-ff pairs"):
        read_mined_pairs(tmp_path / "absent.parquet")
    (tmp_path / "words.parquet").write_text("words")
    make_dataset(3).to_parquet(tmp_path / "data.parquet")
    for name in ("words.parquet", "data.parquet"):
        with pytest.raises(InputError, match="not a file of pairs"):
            read_mined_pairs(tmp_path / name)


def test_command(tmp_path):
    for i in range(5):
        path = tmp_path / "photos" / LABELS[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(50 * i))
    (tmp_path / "photos" / "ant" / "damaged.png").write_bytes(b"no image")
    output = tmp_path / "pairs.parquet"
    words = ["pairs", str(tmp_path / "photos"), "-o", str(output), "--backbone", "vit_mini", "--size", "64"]
    result = CliRunner().invoke(app, [*words, "--neighbors", "2"])
    assert result.exit_code == 0, result.output
    assert "1 images could not be read" in result.output and "10 pairs, for 5 of 6 images" in result.output
    assert len(read_mined_pairs(output).appearance) == 10
    result = CliRunner().invoke(app, [*words, "--by", "structure", "--within-labels"])
    assert result.exit_code == 0, result.output
    pairs = read_mined_pairs(output)
    assert pairs.about["by"] == "structure" and pairs.about["within_labels"] and not pairs.about["across_labels"]
    for change, message in (
        (["--split", "x"], "has no split 'x', but train"),
        (["--by", "color"], "unknown descriptor 'color'"),
        (["--across-labels", "--within-labels"], "across labels, or within labels"),
        (["-o", "pairs.csv"], "written as .parquet"),
    ):
        result = CliRunner().invoke(app, [*words, *change])
        assert result.exit_code == 2 and message in result.output and "Traceback" not in result.output


def put_images(folder, count, kind="folder", step=50):
    folder.mkdir()
    images = [{"bytes": encoded(step * i), "path": None} for i in range(count)]
    if kind == "parquet":
        features = datasets.Features({"image": datasets.Image(decode=False)})
        datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(folder / "rows.parquet")
    else:
        for i, image in enumerate(images):
            (folder / f"{i}.png").write_bytes(image["bytes"])
        (folder / "notes.txt").touch()
    return str(folder)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_quiet_is_quiet_and_numbers_beyond_the_data_are_bounded(tmp_path, kind):
    datasets.enable_progress_bars()
    source = put_images(tmp_path / "photos", 3, kind)
    words = ["pairs", source, "-o", str(tmp_path / "p.parquet"), "--backbone", "vit_mini", "--size", "32", "--quiet"]
    result = CliRunner().invoke(app, [*words, "--batch-size", "100000000", "--neighbors", "100000000"])
    assert result.exit_code == 0 and result.output == "", result.output
    assert len(read_mined_pairs(tmp_path / "p.parquet").appearance) == 6


@pytest.mark.parametrize(
    ("count", "step", "message"),
    [(1, 50, "fewer than two images"), (2, 0, "copies of each other"), (3, 0, "copies of each other")],
)
def test_too_few_images_that_differ(tiny_backbone, tmp_path, count, step, message):
    with pytest.raises(InputError, match=rf"photos: .*{message}"):
        mine(put_images(tmp_path / "photos", count, step=step), tiny_backbone(), tmp_path / "p.parquet")
    assert not (tmp_path / "p.parquet").exists()
