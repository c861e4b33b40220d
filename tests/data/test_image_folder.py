"""No image of a folder is left out without a word; splits are those that people mean; paths are literal."""

import time
from pathlib import Path, PurePath

import datasets
import pytest
import torch
from support.image_folders import encoded, index_of

from splice_ff.data.decoding import decode
from splice_ff.data.image_dataset import ImageCache, label_names
from splice_ff.data.image_folder import image_datasets, list_folder
from splice_ff.data.pairs import PairDataset, PairMix
from splice_ff.data.sources import open_dataset
from splice_ff.errors import InputError
from splice_ff.utils.run_folder import lock_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def put(folder, *names):
    """Images 0, 1, … under these names."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(i))
    return str(folder)


def contents(source, split="train", streaming=False):
    """Which images, with which labels."""
    data = open_dataset(source, split, streaming)
    labels = data.features.get("label")
    return {
        index_of(decode(row, 16)): labels.names[row["label"]] if labels and row["label"] >= 0 else None for row in data
    }


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "labels",
    [
        ("train", "car"), ("test", "car"), ("dev board", "car"), ("validation", "car"), ("val", "eval", "car"),
        ("Train", "bus"), ("test tube", "train station"), ("testing-1", "training_2"), ("dev", "board"),
    ],
)  # fmt: skip
def test_labels_called_like_splits_are_labels(tmp_path, labels, streaming):
    source = put(tmp_path / "photos", *(f"{label}/{i}.png" for label in labels for i in range(3)))
    expected = dict(enumerate(label for label in labels for _ in range(3)))
    assert contents(source, streaming=streaming) == expected


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("names", [("train", "test"), ("Training", "val"), ("train", "dev", "testing")])
def test_top_folders_named_as_splits_are_splits_and_said(tmp_path, caplog, names, streaming):
    source = put(tmp_path / "photos", *(f"{name}/{label}/{i}.png" for name in names for label in "ab" for i in (0, 1)))
    assert contents(source, streaming=streaming) == dict(enumerate("aabb"))
    assert contents(source, names[-1].lower(), streaming) == {4 * (len(names) - 1) + i: x for i, x in enumerate("aabb")}
    assert "makes splits by its names" in caplog.text and "(4)" in caplog.text


def test_splits_are_added_and_sliced(tmp_path):
    source = put(tmp_path / "photos", "train/a/0.png", "train/b/1.png", "val/a/2.png", "val/a/3.png")
    assert contents(source, "train+validation[:1]").keys() in ({0, 1, 2}, {0, 1, 3})
    assert contents(source, "val")[2] == "a"
    with pytest.raises(InputError, match="has no split 'test', but train, validation"):
        open_dataset(source, "train+test[:50%]")


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["0.png", "1.png"], [None, None]),
        (["a/0.png", "a/1.png"], ["a", "a"]),
        (["all/a/0.png", "all/b/1.png"], ["a", "b"]),  # a folder around it all, as archives have it
        (["a/0.png", "b/1/1.png", "b/2/x/2.png"], ["a", "b", "b"]),  # other depths
        (["0.png", "b/1.png"], [None, "b"]),
        (["train/0.png", "train/1.png"], [None, None]),
    ],
)
def test_labels_are_the_first_folders_that_differ(tmp_path, names, labels):
    assert contents(put(tmp_path / "photos", *names)) == dict(enumerate(labels))


@pytest.mark.parametrize(
    "name",
    [
        "holiday [2024]",
        "what?",
        "stars*",
        "a b",
        "-rf",
        "[a-z]*",
        "Фото ☃",
        "per%20cent",
        "a'b\"c",
        "train",
        "x.tar",
        "{1}",
    ],
)
@pytest.mark.parametrize("kind", ["images", "parquet"])
def test_paths_are_literal(tmp_path, name, kind, monkeypatch):
    put(tmp_path / "stars2", "9.png")  # what a pattern would match
    source = put(tmp_path / name, "cat [1]/0.png", "dog*?/1.JPG", "ünï/2.JpEg")
    if kind == "parquet":
        image = {"bytes": encoded(0), "path": None}
        features = datasets.Features({"image": datasets.Image(decode=False)})
        file = tmp_path / name / "cat [1]" / "rows *.parquet"
        datasets.Dataset.from_dict({"image": [image] * 2}, features=features).to_parquet(file)
        assert [index_of(decode(row, 16)) for row in open_dataset(str(file))] == [0, 0]
        return
    assert contents(source) == {0: "cat [1]", 1: "dog*?", 2: "ünï"}
    monkeypatch.chdir(tmp_path)
    assert contents(name).keys() == {0, 1, 2}


def test_what_is_left_out_is_counted_and_said_once(tmp_path, caplog):
    source = put(tmp_path / "photos", "a/0.PNG", "a/1.jpeg", "a/.h.png", ".thumbnails/2.png", "b/4.heic", "b/5.HEIC",
                 "b/6.svg", "b/7", "c/rows.parquet", "c/8.webp.part")  # fmt: skip
    (tmp_path / "photos" / "b" / "back").symlink_to(tmp_path / "photos")
    assert contents(source).keys() == {0, 1}
    open_dataset(source)
    (record,) = caplog.records
    for words in ("1 hidden image", "1 hidden folder", "2 .heic files", "1 .svg file", "1 file without a suffix",
                  "1 .parquet file", "1 .part file", "1 folder linked twice"):  # fmt: skip
        assert words in record.getMessage()


def test_nothing_is_said_of_a_plain_folder_or_to_those_who_asked_for_quiet(tmp_path, caplog, capfd):
    open_dataset(put(tmp_path / "photos", "a/0.png", "b/1.png"))
    open_dataset(put(tmp_path / "others", "a/0.png", "b/1.txt", "test/1.png"), quiet=True)
    assert not caplog.records and capfd.readouterr().err == ""


@pytest.mark.parametrize("inside", ["run", "a/run"])
def test_an_output_folder_inside_the_data_is_no_data(tmp_path, caplog, inside):
    source = put(tmp_path / "photos", "a/0.png", "b/1.png")
    before = contents(source)
    with lock_folder(tmp_path / "photos" / inside):
        put(tmp_path / "photos" / inside, "samples/step-1.png", "sheet.jpg")
    assert contents(source) == before == {0: "a", 1: "b"}
    assert "1 output folder of a run" in caplog.text


def test_names_that_are_no_text_are_counted(tmp_path):
    put(tmp_path, "a.png")
    with open(bytes(tmp_path) + b"/bad\xff.png", "wb") as file:
        file.write(encoded(1))
    listing = list_folder(tmp_path)
    assert len(listing.images) == 1 and listing.left_out == {"file whose name is not UTF-8": 1}


@pytest.mark.parametrize("name", ["empty", "words", "hidden"])
def test_a_folder_without_images_says_what_it_holds(tmp_path, name):
    (tmp_path / "empty").mkdir()
    put(tmp_path / "words", "a.txt", "b.heic"), put(tmp_path / "hidden", ".a.png")
    with pytest.raises(InputError, match=rf"{name}: holds no images.*; name another folder") as caught:
        open_dataset(str(tmp_path / name))
    assert {"empty": "images;", "words": "1 .heic file, 1 .txt file", "hidden": "1 hidden image"}[name] in str(
        caught.value
    )


def test_shards_make_splits_by_all_their_names_or_none(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image(decode=False)})
    for i, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")):
        rows = {"image": [{"bytes": encoded(i), "path": None}]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{name}.parquet")
    assert contents(str(folder)).keys() == {0, 1} and contents(str(folder), "test").keys() == {2}
    (folder / "test-00000-of-00001.parquet").rename(folder / "more.parquet")
    assert contents(str(folder)).keys() == {0, 1, 2}


def test_a_hundred_thousand_images_make_a_dataset_in_seconds():
    images = [PurePath(f"{i % 1000}/{i}.png") for i in range(100_000)]
    start = time.process_time()
    data = image_datasets(Path("photos"), images)["train"]
    labels = label_names(data)
    pixels = torch.zeros(1, 3, 16, 16, dtype=torch.uint8).expand(100_000, -1, -1, -1)
    PairDataset(ImageCache(pixels, labels), 16, PairMix())[3, 99_999]
    assert time.process_time() - start < 5
    assert len(data) == 100_000 and len({*labels}) == 1000
