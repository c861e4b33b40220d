"""Data that is damaged, hostile or out of bounds: one line, in bounded time and memory, and no code is run."""

import io
import json
import os
import pickle
import struct
import tarfile
import time
import zlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from support.image_folders import encoded, index_of, make_dataset

from splice_ff.data import sources
from splice_ff.data.decoding import decode, load_row
from splice_ff.data.mined_pairs import MinedPairs, read_mined_pairs, write_mined_pairs
from splice_ff.data.pairs import PairMix
from splice_ff.data.sources import open_dataset
from splice_ff.data.streaming_pairs import StreamingPairs
from splice_ff.data.teacher_pairs import read_teacher_pair
from splice_ff.errors import ImageError, InputError
from splice_ff.training.teacher import tasks_of_dataset

ROOM = Path(sources.__file__).parents[1]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05, raising=False)


@pytest.fixture
def bounded():
    """Not more than some seconds of processor time."""
    start = time.process_time()
    yield
    assert time.process_time() - start < 5


def png(width, height, data=b""):
    """A PNG whose header promises so many pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


HOSTILE = {
    "3600 megapixels": png(60_000, 60_000),
    "largest header": png(2**31 - 1, 2**31 - 1),
    "too little data": png(4000, 4000, bytes(100)),
    "half": encoded(0)[: len(encoded(0)) // 2],
    "header": encoded(0)[:40],
    "pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "pickle": pickle.dumps("code"),
    "zeros": b"\x00" * 100,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_bombs_and_cut_images_in_rows_are_one_line(bounded, data):
    with pytest.raises(ImageError) as caught:
        load_row({"image": {"bytes": data, "path": "a.png"}}, 64)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_pipes_and_devices_as_images_do_not_hang(tmp_path, bounded):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(ImageError, match="pipe or a device"):
            load_row({"image": {"bytes": None, "path": str(path)}}, 64)
    with pytest.raises(InputError, match="a pipe or a device"):
        open_dataset(str(tmp_path / "pipe.png"))


def test_a_parquet_file_whose_cells_no_image_fills(tmp_path, bounded):
    """A megabyte of zeros takes a hundred bytes: few rows of them would fill the disk."""
    image = {"bytes": bytes(2**20), "path": None}
    cells = pyarrow.array([image], pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))
    parquet.write_table(pyarrow.table({"image": cells}), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 4000
    limit, sources.MAX_BYTES_AN_IMAGE = sources.MAX_BYTES_AN_IMAGE, 2**19
    try:
        with pytest.raises(InputError, match=r"bomb\.parquet: rows of 1 MiB on average"):
            open_dataset(str(tmp_path / "bomb.parquet"))
    finally:
        sources.MAX_BYTES_AN_IMAGE = limit


def test_row_groups_are_read_in_parts_whatever_their_size(tmp_path, monkeypatch):
    make_dataset(20).to_parquet(tmp_path / "rows.parquet", batch_size=20)
    monkeypatch.setattr(sources, "ROWS_AT_A_TIME", 3)
    assert len(open_dataset(str(tmp_path / "rows.parquet"))) == 20


def tar(path, *members, size=None):
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    if size is not None:  # the first member's header now promises as many bytes
        block = bytearray(path.read_bytes())
        info = tarfile.TarInfo(members[0][0])
        info.size = size
        block[:512] = info.tobuf(tarfile.GNU_FORMAT)[:512]
        path.write_bytes(bytes(block))
    return str(path)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("size", [10**6, 10**12, 2**62])
def test_a_tar_that_promises_absurd_sizes_is_one_line(tmp_path, bounded, size, streaming):
    source = tar(tmp_path / "shard.tar", ("0.png", encoded(0)), ("1.png", encoded(1)), size=size)
    with pytest.raises(InputError) as caught:
        list(StreamingPairs(open_dataset(source, "train", True), 16, PairMix.only(within=1))) if streaming else (
            open_dataset(source)
        )
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("data", [b"", b"words", bytes(10_000), encoded(0)])
@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_shards_that_are_none(tmp_path, bounded, name, data, streaming):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
        list(open_dataset(str(tmp_path / name), "train", streaming))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_nothing_in_a_dataset_is_run(tmp_path):
    mark = tmp_path / "ran"
    bomb = pickle.dumps(Bomb(str(mark)))
    array = io.BytesIO()
    np.save(array, np.array([Bomb(str(mark))], dtype=object), allow_pickle=True)
    saved = io.BytesIO()
    torch.save(Bomb(str(mark)), saved)
    for suffix, data in (
        ("pkl", bomb),
        ("pickle", bomb),
        ("pyd", bomb),
        ("npy", array.getvalue()),
        ("pth", saved.getvalue()),
    ):
        source = tar(tmp_path / f"{suffix}.tar", ("0.png", encoded(0)), (f"0.{suffix}", data))
        for streaming in (False, True):
            try:
                list(open_dataset(source, "train", streaming))
            except Exception as error:  # what it says does not matter here
                assert not mark.exists(), (suffix, error)
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "0.png").write_bytes(encoded(0))
    for name in ("photos.py", "dataset.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(f"open({str(mark)!r}, 'w')")
    assert [index_of(decode(row, 16)) for row in open_dataset(str(folder))] == [0]
    assert not mark.exists()


def test_no_reader_of_these_rooms_unpickles():
    for room in ("data", "training"):
        for file in (ROOM / room).glob("*.py"):
            text = file.read_text(encoding="utf-8")
            for word in (
                "import pickle",
                "pickle.load",
                "allow_pickle=True",
                "weights_only=False",
                "trust_remote_code",
                "eval(",
                "exec(",
            ):
                assert word not in text, (file, word)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("source", ["rows.parquet", "shard.tar"])
def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch, source, streaming):
    make_dataset(2).to_parquet(tmp_path / "rows.parquet")
    tar(tmp_path / "shard.tar", ("0.png", encoded(0)))
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"file/cache: the cache of datasets cannot be written; set HF_DATASETS_CACHE"):
        open_dataset(str(tmp_path / source), "train", streaming)


def test_a_disk_that_fills_up_is_said(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise datasets.exceptions.DatasetGenerationError("An error") from OSError(
            28, "No space left on device", "x.arrow"
        )

    make_dataset(2).to_parquet(tmp_path / "rows.parquet")
    monkeypatch.setattr(datasets, "load_dataset", full)
    with pytest.raises(InputError, match=r"No space left on device: x\.arrow, the cache of datasets"):
        open_dataset(str(tmp_path / "rows.parquet"))


def test_a_folder_of_images_needs_no_cache(tmp_path, monkeypatch):
    (tmp_path / "0.png").write_bytes(encoded(0))
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "file" / "cache"))
    assert len(open_dataset(str(tmp_path))) == 1


@pytest.mark.parametrize(
    "about",
    ['{"rows": 1000000000000}', '{"rows": "many"}', "[" * 100_000, "{}", "[]", '{"rows": 1}', '{"rows": -1}', "null"],
)
def test_mined_pairs_out_of_bounds(tmp_path, bounded, about):
    columns = {"structure": [0, 1], "appearance": [1, 0], "similarity": np.ones(2, np.float32)}
    parquet.write_table(pyarrow.table(columns, metadata={"splice_ff": about}), tmp_path / "p.parquet")
    with pytest.raises(InputError, match=r"not a file of pairs|another dataset"):
        read_mined_pairs(tmp_path / "p.parquet").check(2)


@pytest.mark.parametrize(
    "columns",
    [
        {"structure": [1, 0], "appearance": [1, 0]},
        {"structure": [0, 5], "appearance": [1, 0]},
        {"structure": [0, 1], "appearance": [-1, 0]},
        {"structure": [0.5, 1], "appearance": [1, 0]},
        {"structure": [None, 1], "appearance": [1, 0]},
        {"structure": ["0", "1"], "appearance": [1, 0]},
    ],
)
def test_mined_pairs_with_wrong_rows(tmp_path, columns):
    columns = columns | {"similarity": np.ones(2, np.float32)}
    parquet.write_table(pyarrow.table(columns, metadata={"splice_ff": '{"rows": 2}'}), tmp_path / "p.parquet")
    with pytest.raises(InputError, match="not a file of pairs"):
        read_mined_pairs(tmp_path / "p.parquet")


@pytest.mark.parametrize("data", [b"", b"PAR1", encoded(0)])
def test_teachers_files_that_are_none(tmp_path, data):
    (tmp_path / "pair-0.parquet").write_bytes(data)
    with pytest.raises(InputError, match=r"pair-0\.parquet: damaged"):
        read_teacher_pair(tmp_path / "pair-0.parquet")


def test_a_hundred_thousand_mined_pairs_in_seconds(tmp_path, bounded):
    rows = np.arange(100_000)
    pairs = MinedPairs(rows, (rows + 1) % 100_000, np.ones(100_000, np.float32), {"rows": 100_000})
    write_mined_pairs(tmp_path / "p.parquet", pairs)
    pairs = read_mined_pairs(tmp_path / "p.parquet")
    assert [pairs.of(i).tolist() for i in (0, 99_999)] == [[1], [0]]
    tasks = tasks_of_dataset(pairs, datasets.Dataset.from_dict({"image": [None] * 100_000}))
    assert len({task.name for task in tasks}) == 100_000


def test_about_is_read_back(tmp_path):
    rows = np.arange(2)
    about = {"rows": 2, "data": "Зима\u2028", "labels": None}
    write_mined_pairs(tmp_path / "p.parquet", MinedPairs(rows, rows[::-1].copy(), np.ones(2, np.float32), about))
    assert json.loads(json.dumps(read_mined_pairs(tmp_path / "p.parquet").about)) == about
