"""Batches of the training loop: nothing missed or seen twice, in any number of processes."""

import json
import shutil
from types import SimpleNamespace

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from support.training_setup import read_config, write_run
from torch.utils.data import DataLoader

from splice_ff import InputError
from splice_ff.training.batches import InfiniteBatchSampler, TrainingData
from splice_ff.utils.color import LUMA


class Places(torch.utils.data.Dataset):
    """Items that say where they stand."""

    def __getitem__(self, place):
        return place


def read(rank, world, batches, start=0, workers=0):
    sampler = InfiniteBatchSampler(7, 2 * world, start=start * 2 * world, rank=rank, world_size=world)
    loader = DataLoader(Places(), batch_sampler=sampler, num_workers=workers, collate_fn=list)
    return [place for batch, _ in zip(loader, range(batches), strict=False) for place in batch]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_every_epoch_without_overlap_or_loss(world):
    batches = 84 // (2 * world)  # twelve epochs
    seen = [item for rank in range(world) for item in read(rank, world, batches)]
    assert sorted(seen) == [(epoch, index) for epoch in range(12) for index in range(7)]


@pytest.mark.parametrize("per_step", [1, 2, 5, 6])
def test_parts_of_a_step_are_disjoint_and_make_it_up(per_step):
    samplers = [
        InfiniteBatchSampler(7, per_step, accumulation=2, start=per_step, rank=rank, world_size=2) for rank in (0, 1)
    ]
    batches = [samplers[rank].part(batch) for batch in (0, 1) for rank in (0, 1)]
    assert [place for batch in batches for place in batch] == list(range(per_step))
    starts = [next(iter(sampler))[0] for sampler in samplers if any(map(sampler.part, (0, 1)))]
    assert min(starts) == divmod(per_step, 7)


def test_workers_do_not_change_the_order():
    assert read(0, 2, 8, workers=2) == read(0, 2, 8)


def test_a_resumed_run_gets_what_would_have_come():
    assert read(1, 2, 5, start=3) == read(1, 2, 8)[6:]


def test_a_run_resumed_with_another_batch_size_misses_nothing():
    before = read(0, 1, 3)
    after = InfiniteBatchSampler(7, 5, start=len(before))
    items = [place for batch, _ in zip(after, range(2), strict=False) for place in batch]
    assert before + items == [divmod(i, 7) for i in range(16)]


@pytest.fixture
def data(tmp_path, vit_state, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def make(*overrides, rank=0, world=1, images=12, quiet=False, **changes):
        config = read_config(write_run(tmp_path / "job", vit_state, images, **changes), *overrides)
        accelerator = SimpleNamespace(
            process_index=rank,
            num_processes=world,
            device=torch.device("cpu"),
            is_main_process=rank == 0,
            is_local_main_process=rank == 0,
        )
        return TrainingData(config, accelerator, quiet=quiet)

    return make


def test_two_processes_see_the_pairs_of_one(data):
    whole = next(data("optimizer.batch_size=4").batches(0))
    parts = [next(data("optimizer.batch_size=2", rank=rank, world=2).batches(0)) for rank in (0, 1)]
    torch.testing.assert_close(torch.cat([part.first for part in parts]), whole.first)
    torch.testing.assert_close(torch.cat([part.second for part in parts]), whole.second)


def test_validation_pairs_are_shared_and_always_the_same(data):
    whole = torch.cat([first for first, _ in data("run.validation_pairs=5").validation()])
    shares = [
        torch.cat([first for first, _ in data("run.validation_pairs=5", rank=rank, world=2).validation()])
        for rank in (0, 1)
    ]
    assert len(whole) == 5 and [len(share) for share in shares] == [3, 2]
    torch.testing.assert_close(whole[::2], shares[0])
    torch.testing.assert_close(whole[1::2], shares[1])
    torch.testing.assert_close(whole, torch.cat([first for first, _ in data("run.validation_pairs=5").validation()]))


@pytest.mark.parametrize("preload", ["false", "true"])
def test_corrupt_images_are_skipped_and_counted(data, tmp_path, preload):
    run = data(f"data.preload={preload}")
    for path in sorted((tmp_path / "job" / "photos").rglob("*.png"))[:3]:
        path.write_bytes(b"not an image")
    run = data(f"data.preload={preload}", "data.held_out=null")
    batches = run.batches(0)
    skipped = sum(next(batches).skipped for _ in range(6))
    assert run.unreadable + skipped >= 3
    assert not run.has_validation


@pytest.mark.parametrize("how", ["preload=false", "preload=true", "streaming=true"])
def test_colors_are_sharpened_for_training_and_held_out(data, how):
    plain, sharp = (data(f"data.{how}", f"data.color_sharpening={amount}") for amount in (0, 3))
    for choose in (lambda run: next(run.batches(0)).first, lambda run: next(iter(run.validation()))[0]):
        before, after = choose(plain), choose(sharp)
        luma = [torch.einsum("c,bcyx->byx", torch.tensor(LUMA), x) for x in (before, after)]
        assert 0.01 < (after - before).abs().mean() < 0.1
        assert (luma[1] - luma[0]).abs().mean() < 0.005


def test_pixels_are_in_range_and_on_their_way(data):
    batch = next(data().batches(0))
    assert batch.first.shape == batch.second.shape == (2, 3, 32, 32)
    assert batch.first.dtype == torch.float32 and batch.first.min() >= 0 and 0.2 < batch.first.max() <= 1
    assert batch.teacher is None


def test_a_folder_of_one_label_trains_and_says_what_becomes_of_pairs_across(data, tmp_path, caplog):
    data()
    for path in (tmp_path / "job" / "photos" / "b").iterdir():
        path.unlink()
    assert next(data("data.pairs={across: 1}").batches(0)).first.shape == (2, 3, 32, 32)
    assert "fewer than two labels" in caplog.text


@pytest.mark.parametrize("chosen", ["null", "[a]"])
def test_a_stream_of_one_label_says_what_becomes_of_pairs_across(data, tmp_path, caplog, chosen):
    data()
    if chosen == "null":
        shutil.rmtree(tmp_path / "job" / "photos" / "b")
    run = data("data.streaming=true", "data.held_out=null", "data.pairs={across: 1}", f"data.labels={chosen}")
    assert next(run.batches(0)).first.shape == (2, 3, 32, 32)
    assert "fewer than two labels" in caplog.text


def test_a_stream_without_labels_trains_on_any_two(data, tmp_path, caplog):
    data()
    for path in (tmp_path / "job" / "photos").rglob("*.png"):
        path.rename(path.parent.parent / path.name)
    for name in ("a", "b"):
        (tmp_path / "job" / "photos" / name).rmdir()
    batch = next(data("data.streaming=true", "data.held_out=null", "data.pairs={across: 1}").batches(0))
    assert not torch.equal(batch.first, batch.second) and "fewer than two labels" in caplog.text


def test_a_stream_that_never_fills_a_batch_is_an_error(data):
    run = data("data.streaming=true", "data.held_out=null", "optimizer.batch_size=13")
    with pytest.raises(InputError, match=r"not one whole batch.*optimizer\.batch_size"):
        next(run.batches(0))
    with pytest.raises(InputError, match="no label c in the dataset; it has a, b"):
        data("data.streaming=true", "data.held_out=null", "data.labels=[c]")


def test_mined_pairs_are_of_the_split_that_is_trained_on(data, tmp_path):
    about = json.dumps({"rows": 6, "split": "train[:6]"})
    columns = {"structure": [0, 5], "appearance": [1, 2], "similarity": [0.5, 0.5]}
    file = tmp_path / "pairs.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns, metadata={"splice_ff": about}), file)
    wanted = f"data.mined_pairs={file}", "data.pairs={mined: 1}"
    assert next(data("data.split=train[:6]", *wanted).batches(0)).first.shape == (2, 3, 32, 32)
    with pytest.raises(InputError, match=r"split 'train\[:6\]', not 'train\[6:12\]'"):
        data("data.split=train[6:12]", *wanted)
    with pytest.raises(InputError, match=r"another dataset or split|not 'train'"):
        data("data.split=train", *wanted)


@pytest.mark.parametrize(
    ("images", "held_out", "message"),
    [
        (1, "null", "train has 1 image, and pairs need two"),
        (2, "train[99%:]", "holds no image"),
        (2, "train[:1]", r"train\[:1\] has 1 image, .* data.split='train\[:80%\]' data.held_out='train\[80%:\]'"),
        (3, "train[2:]", "has 1 image"),
    ],
)
def test_too_few_images_say_what_to_do(data, tmp_path, images, held_out, message):
    data()
    for path in sorted((tmp_path / "job" / "photos").rglob("*.png"))[images:]:
        path.unlink()
    with pytest.raises(InputError, match=message):
        data(f"data.held_out={held_out}")


@pytest.mark.parametrize("images", [2, 3, 20])
@pytest.mark.parametrize("pairs", ["{within: 1}", "{across: 1, within: 0, identity: 0}", "{within: 0, identity: 9}"])
def test_held_out_pairs_are_of_different_images(data, images, pairs):
    run = data(f"data.pairs={pairs}", "data.held_out=train", "run.validation_pairs=64", images=images)
    batches = list(run.validation())
    assert sum(len(first) for first, _ in batches) == images
    assert not any(torch.equal(*pair) for first, second in batches for pair in zip(first, second, strict=True))


def test_copies_of_one_image_are_no_held_out_pairs(data, tmp_path):
    data()
    paths = sorted((tmp_path / "job" / "photos").rglob("*.png"))
    for path in paths[1:]:
        path.unlink()
    with Image.open(paths[0]) as image:
        for quality in (90, 95):  # not byte by byte the same
            image.save(paths[0].with_suffix(f".{quality}.jpg"), quality=quality)
    assert list(data("data.held_out=train").validation()) == []


def test_a_batch_beyond_any_memory_is_refused(data):
    with pytest.raises(InputError, match=r"a batch of 65536 pairs of 4096 px takes .* GiB: set a smaller"):
        data("optimizer.batch_size=65536", "data.size=4096")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_ends_a_loader_is_one_line(data, tmp_path, workers):
    run = data(f"data.workers={workers}", "data.held_out=null")
    for path in (tmp_path / "job" / "photos").rglob("*.png"):
        path.write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"^no image of the dataset can be read$"):
        next(run.batches(0))


def test_an_empty_held_out_split_is_named_before_anything_is_decoded(data):
    with pytest.raises(InputError, match=r"train\[99%:\].*data\.held_out=null"):
        data("data.held_out=train[99%:]")
