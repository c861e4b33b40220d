"""Opening image datasets of every kind, decoding rows, and decoding all of them ahead."""

import io
import tarfile

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image
from support.image_folders import LABELS, color, encoded, index_of, make_dataset, noise_image

from splice_ff.data.decoding import decode, load_row, square_crop
from splice_ff.data.image_dataset import ImageRows, label_names, preload
from splice_ff.data.sources import open_dataset
from splice_ff.errors import ImageError, InputError
from splice_ff.images import load_image


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture
def parquet_folder(tmp_path):
    """Two files of 6 and 4 images."""
    folder = tmp_path / "parquet"
    folder.mkdir()
    data = make_dataset(10)
    data.select(range(6)).to_parquet(folder / "a-0.parquet")
    data.select(range(6, 10)).to_parquet(folder / "a-1.parquet")
    return folder


def colors(data):
    return [index_of(decode(row, 16)) for row in data]


def row_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return {"image": {"bytes": file.getvalue(), "path": None}}


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_of_images_labeled_by_subfolder(tmp_path, streaming):
    for i in range(4):
        path = tmp_path / "photos" / LABELS[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(i))
    (tmp_path / "photos" / "ant" / "damaged.png").write_bytes(b"no image")
    data = open_dataset(str(tmp_path / "photos"), streaming=streaming)
    found = {}
    for row in data:
        try:
            found[index_of(decode(row, 16))] = data.features["label"].int2str(row["label"])
        except ImageError:
            found["damaged"] = data.features["label"].int2str(row["label"])
    assert found == {0: "ant", 1: "bee", 2: "ant", 3: "bee", "damaged": "ant"}
    if not streaming:
        assert sorted(label_names(data)) == ["ant", "ant", "ant", "bee", "bee"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("source", ["", "a-*.parquet", "a-1.parquet"])
def test_parquet_folder_pattern_and_file(parquet_folder, source, streaming):
    data = open_dataset(str(parquet_folder / source), streaming=streaming)
    assert colors(data) == list(range(6 if source == "a-1.parquet" else 0, 10))
    assert [row["label"] for row in data][-2:] == ["cow", "ant"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("source", ["", "*.tar", "shard.tar"])
def test_webdataset_folder_pattern_and_file(tmp_path, source, streaming):
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "shard.tar", "w") as tar:
        for i in range(3):
            for suffix, data in (("png", encoded(i)), ("cls", str(5 + i).encode())):
                info = tarfile.TarInfo(f"{i:03d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    data = open_dataset(str(tmp_path / "tars" / source), streaming=streaming)
    assert [(index_of(decode(row, 16)), row["label"]) for row in data] == [(0, 5), (1, 6), (2, 7)]


def test_slices_of_a_split_cover_it_without_overlap(parquet_folder):
    head, tail = (open_dataset(str(parquet_folder), split) for split in ("train[:80%]", "train[80%:]"))
    assert colors(head) + colors(tail) == list(range(10))
    assert len(tail) == 2


def test_single_column_of_images_by_another_name(tmp_path):
    make_dataset(3, labels=None).rename_column("image", "photo").to_parquet(tmp_path / "photos.parquet")
    data = open_dataset(str(tmp_path / "photos.parquet"))
    assert colors(data) == [0, 1, 2]
    assert label_names(data) is None


@pytest.mark.parametrize(
    ("source", "split", "streaming", "message"),
    [
        ("{}/absent", "train", False, "no such file or folder"),
        ("{}/absent.parquet", "train", False, "no such file"),
        ("{}/*.tar", "train", False, "no such file"),
        ("{}/words.txt", "train", False, "not a dataset"),
        ("nobody/nothing", "train", False, "no such folder or file, .* nor can the hub be asked"),
        ("{}/parquet", "test", False, "has no split .test., but train"),
        ("{}/parquet", "test", True, "has no split .test., but train"),
        ("{}/parquet", "train[:9", False, "train\\[:9"),
        ("{}/parquet", "train[:90%]", True, "a stream cannot be sliced"),
        ("{}/numbers.parquet", "train", False, "no column of images among n"),
        ("{}/damaged.parquet", "train", False, "cannot be read"),
    ],
)
def test_what_cannot_be_opened(parquet_folder, tmp_path, source, split, streaming, message):
    (tmp_path / "words.txt").write_text("words")
    (tmp_path / "damaged.parquet").write_text("words")
    datasets.Dataset.from_dict({"n": [1]}).to_parquet(tmp_path / "numbers.parquet")
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(source.format(tmp_path), split, streaming)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [(RepositoryNotFoundError, "nor a dataset on the hub; check the path"), (TimeoutError, "nor can the hub be asked")],
)
def test_a_name_that_is_nothing_is_one_line(monkeypatch, error, message):
    def answer(url):
        assert url.endswith("/datasets/photos/resolve/main/README.md")
        raise error.__new__(error)

    monkeypatch.setattr("splice_ff.utils.hub.ask_hub", answer)
    with pytest.raises(InputError, match=f"^photos: no such folder or file.*{message}"):
        open_dataset("photos")
    with pytest.raises(InputError, match=r"^my photos: no such folder or file, nor a dataset"):
        open_dataset("my photos")  # no name that the hub could know: it is not asked
    with pytest.raises(InputError, match=r"^photos/: no such file or folder"):
        open_dataset("photos/")


def test_a_missing_folder_is_not_another_one_of_its_name_from_the_cache(tmp_path, monkeypatch):
    """datasets keeps local folders under their names, and offers them where the hub cannot be reached."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.png").write_bytes(encoded(0))
    assert len(open_dataset(str(tmp_path / "photos"))) == 1
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no such folder or file"):
        open_dataset("photos")


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "LA"])
def test_pixels_are_those_of_load_image(tmp_path, mode):
    noise_image(0).convert(mode).save(tmp_path / "a.png")
    expected = (load_image(tmp_path / "a.png").rgb[0] * 255).round().to(torch.uint8)
    assert torch.equal(load_row({"image": {"bytes": None, "path": str(tmp_path / "a.png")}}, 48), expected)


def test_orientation_tag_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    image = noise_image(0, 32, 64)
    turned = load_row(row_of(image, exif=exif), 32)
    expected = np.asarray(image.rotate(-90, expand=True)).transpose(2, 0, 1)
    assert np.array_equal(turned.numpy(), expected)


def test_large_jpeg_is_decoded_small_and_looks_the_same():
    image = noise_image(0, 6, 8).resize((1600, 1200), Image.Resampling.BICUBIC)
    small = load_row(row_of(image, "JPEG", quality=95), 60)
    expected = np.asarray(image.resize((80, 60), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert small.shape == (3, 60, 80)
    assert np.abs(small.numpy().astype(int) - expected).mean() < 2


def test_strips_keep_their_middle():
    strip = np.zeros((20, 400, 3), dtype=np.uint8)
    strip[:, 180:220] = 255
    pixels = load_row(row_of(Image.fromarray(strip)), 40)
    assert pixels.shape == (3, 40, 120)
    assert pixels[:, :, 50:70].min() == 255


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": None},
                                  {"bytes": b"words", "path": None}, {"bytes": encoded(1)[:60], "path": "a.png"},
                                  {"bytes": encoded(1, (8, 40)), "path": None}])  # fmt: skip
def test_unreadable_rows(cell):
    with pytest.raises(ImageError):
        load_row({"image": cell}, 16)


def test_square_crop_moves_and_mirrors_with_the_generator_only():
    image = torch.arange(3 * 20 * 30).reshape(3, 20, 30)
    assert torch.equal(square_crop(image, 16), image[:, 2:18, 7:23])
    lefts, tops, mirrored = set(), set(), 0
    for seed in range(400):
        square = square_crop(image, 16, torch.Generator().manual_seed(seed))
        again = square_crop(image, 16, torch.Generator().manual_seed(seed))
        assert torch.equal(square, again)
        is_mirrored = bool(square[0, 0, 0] > square[0, 0, -1])
        corner = int(square[0, 0, -1 if is_mirrored else 0])
        tops.add(corner // 30)
        lefts.add(corner % 30)
        mirrored += is_mirrored
    assert tops == set(range(5)) and lefts == set(range(15))
    assert 150 < mirrored < 250


@pytest.mark.parametrize("workers", [0, 2])
def test_preload_keeps_all_in_order_and_says_what_it_could_not_read(workers):
    count = 150  # more than two batches
    cache = preload(ImageRows(make_dataset(count, damaged=(3, 70)), 24), workers=workers, quiet=True)
    assert cache.pixels.shape == (count, 3, 24, 24) and cache.pixels.dtype == torch.uint8
    assert sorted(cache.unreadable) == [3, 70] and "cannot identify" in cache.unreadable[70]
    assert all(index_of(cache[i]) == i for i in range(count) if i not in cache.unreadable)
    assert cache.labels == [LABELS[i % 3] for i in range(count)]


def test_preload_where_a_whole_batch_is_damaged():
    cache = preload(ImageRows(make_dataset(70, damaged=range(64)), 24), quiet=True)
    assert sorted(cache.unreadable) == list(range(64))
    assert cache.pixels[:64].max() == 0 and index_of(cache[65]) == 65


def test_rows_name_class_labels():
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=LABELS)})
    image = {"bytes": encoded(0), "path": None}
    data = datasets.Dataset.from_dict({"image": [image] * 3, "label": [2, 0, -1]}, features=features)
    rows = ImageRows(data, 16)
    assert rows.labels == ["cow", "ant", "none"]
    assert rows[np.int64(0)][:, 0, 0].tolist() == list(color(0))


def test_a_slice_of_a_labeled_folder_holds_all_labels_and_the_slices_all_rows(tmp_path):
    for label in "abc":
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (20, 20), (i, 0, 0)).save(tmp_path / "photos" / label / f"{i}.png")
    parts = [open_dataset(str(tmp_path / "photos"), split) for split in ("train[:70%]", "train[70%:]")]
    assert [len(part) for part in parts] == [21, 9]
    assert all({*label_names(part)} == {"a", "b", "c"} for part in parts)
    paths = [row["image"]["path"] for part in parts for row in part]
    assert len({*paths}) == 30
    again = open_dataset(str(tmp_path / "photos"), "train[70%:]")
    assert [row["image"]["path"] for row in again] == paths[21:]
