"""Drawing pairs from indexed and streamed datasets."""

import io
import tarfile
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from support.image_folders import LABELS, color, encoded, index_of, make_dataset
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from splice_ff.data.image_dataset import ImageCache, ImageRows, preload
from splice_ff.data.mined_pairs import MinedPairs
from splice_ff.data.pairs import PairDataset, PairMix
from splice_ff.data.sources import open_dataset
from splice_ff.data.streaming_pairs import StreamingPairs
from splice_ff.errors import InputError

ALL = PairMix(within=0.4, across=0.3, identity=0.3)
WITHIN, ACROSS, IDENTITY, MINED = (PairMix.only(**{kind: 1}) for kind in ("within", "across", "identity", "mined"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    # datasets waits 5 s at the end of every shuffled stream for threads that are long gone here; older ones do not.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05, raising=False)
    datasets.disable_progress_bars()


def cache_of(count, labels=LABELS, unreadable=()):
    pixels = torch.tensor([color(i) for i in range(count)], dtype=torch.uint8)
    names = [labels[i % len(labels)] for i in range(count)] if labels else None
    return ImageCache(pixels[:, :, None, None].repeat(1, 1, 20, 20), names, dict.fromkeys(unreadable, "damaged"))


def drawn(pairs, epoch=0):
    """(first, second) of all pairs of an epoch, as indices of images."""
    items = (pairs[epoch, i] for i in range(len(pairs)))
    return [(index_of(item["first"]), index_of(item["second"])) for item in items]


def neighbors(*lists):
    structure = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
    appearance = np.array([i for one in lists for i in one], dtype=np.int64)
    return MinedPairs(structure, appearance, np.zeros(len(appearance), np.float32), {"rows": len(lists)})


def test_every_image_comes_first_once_an_epoch_in_another_order_each_time():
    pairs = PairDataset(cache_of(50), 16, ALL)
    orders = [[first for first, _ in drawn(pairs, epoch)] for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] and orders[0] != list(range(50))


def test_pairs_depend_on_seed_epoch_and_place_only():
    def pairs(seed):
        return PairDataset(cache_of(30), 16, ALL, seed=seed)

    reference = drawn(pairs(0), 3)
    again = pairs(0)
    again[1, 29]  # the order of access does not matter
    assert drawn(again, 3) == reference
    assert drawn(pairs(1), 3) != reference
    assert drawn(pairs(0), 4) != reference


@pytest.mark.parametrize(("mix", "kind"), [(WITHIN, "within"), (ACROSS, "across"), (IDENTITY, "identity")])
def test_kinds_of_pairs(mix, kind):
    partners = set()
    pairs = PairDataset(cache_of(12), 16, mix)
    for epoch in range(80):
        for first, second in drawn(pairs, epoch):
            assert (first == second) == (kind == "identity")
            assert (first % 3 == second % 3) == (kind != "across")
            partners.add((first, second))
    assert len(partners) == 12 * {"within": 3, "across": 8, "identity": 1}[kind]  # all of them turn up


def test_kinds_come_as_often_as_asked():
    firsts = Counter()
    pairs = PairDataset(cache_of(200), 16, PairMix(within=3, across=2, identity=5))
    for first, second in drawn(pairs):
        firsts["identity" if first == second else "within" if first % 3 == second % 3 else "across"] += 1
    assert abs(firsts["within"] - 60) < 20 and abs(firsts["across"] - 40) < 20 and abs(firsts["identity"] - 100) < 22


def test_partners_are_spread_evenly():
    counts = Counter()
    pairs = PairDataset(cache_of(10, labels=None), 16, WITHIN)
    for epoch in range(60):
        counts.update(second for _, second in drawn(pairs, epoch))
    assert min(counts.values()) > 40 and max(counts.values()) < 85  # 60 expected


@pytest.mark.parametrize("zoom", [1.0, 0.5])
def test_mined_partners_are_cropped_and_mirrored_alike_and_others_are_not(zoom):
    places = torch.arange(20 * 20).reshape(20, 20) % 251  # a pixel says where it was
    pixels = torch.stack([places, places, places]).to(torch.uint8).expand(6, 3, 20, 20).contiguous()
    images = ImageCache(pixels, [LABELS[i % len(LABELS)] for i in range(6)], {})
    mined = neighbors([1], [2], [3], [4], [5], [0])
    for mix, are_alike in ((MINED, True), (WITHIN, False)):
        pairs = PairDataset(images, 16, mix, mined=mined, zoom=zoom)
        items = [pairs[epoch, i] for epoch in range(4) for i in range(6)]
        assert all(torch.equal(item["first"], item["second"]) for item in items) == are_alike
        assert len({tuple(item["first"].flatten().tolist()) for item in items}) > 12  # from many places


def test_mined_partners_come_from_the_list_then_from_the_label():
    mined = neighbors([4, 2], [3], [], [1, 5, 0], [0], [2])
    pairs = PairDataset(cache_of(6), 16, MINED, mined=mined, labels=["ant", "cow"])
    found = {}
    for epoch in range(30):
        for first, second in drawn(pairs, epoch):
            found.setdefault(first, set()).add(second)
    # 4 is a bee and left out; 2 has no neighbors and 5 is the only other cow; 3 has 1 (a bee), 5 and 0
    assert found == {0: {2}, 2: {5}, 3: {5, 0}, 5: {2}}


def test_identity_pairs_are_cropped_alike_and_others_are_not():
    images = ImageCache(torch.randint(0, 256, (6, 3, 40, 40), dtype=torch.uint8))
    same, other = PairDataset(images, 16, IDENTITY), PairDataset(images, 16, WITHIN)
    assert all(torch.equal(same[i]["first"], same[i]["second"]) for i in range(6))
    assert not any(torch.equal(other[i]["first"], other[i]["second"]) for i in range(6))
    centers = PairDataset(images, 16, WITHIN, augment=False)
    middle = {tuple(x.flatten().tolist()) for x in images.pixels[..., 12:28, 12:28]}
    assert {tuple(centers[i]["first"].flatten().tolist()) for i in range(6)} == middle


def test_a_zoom_shows_close_ups_of_both_images_alike_enlarged():
    places = torch.arange(16 * 16, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)  # 1 more to the right
    images = ImageCache(torch.stack([places] * 6), list(LABELS[:1]) * 6)
    mix = PairMix.only(within=1)
    steps = []
    zooming, still, plain = (PairDataset(images, 12, mix, **kind) for kind in ({"zoom": 0.5}, {"zoom": 1.0}, {}))
    for item in (zooming[i] for i in range(6)):
        assert item["first"].shape == item["second"].shape == (3, 12, 12)
        spans = [int(item[k][0, 6, 11]) - int(item[k][0, 6, 0]) for k in ("first", "second")]
        assert abs(abs(spans[0]) - abs(spans[1])) <= 1, "the same share of both"
        steps.append(abs(spans[0]))
    assert len(set(steps)) > 2 and min(steps) >= 4 and max(steps) <= 11
    assert all(torch.equal(still[i]["first"], plain[i]["first"]) for i in range(6))


def test_damaged_images_are_replaced_by_the_next_counted_and_named(caplog):
    rows = ImageRows(make_dataset(12, damaged=(3, 4, 9)), 20)
    pairs = PairDataset(rows, 16, IDENTITY)
    items = [pairs[i] for i in range(12)]
    firsts = Counter(index_of(item["first"]) for item in items)
    assert firsts == Counter([0, 1, 2, 5, 6, 7, 8, 10, 11, 5, 5, 10])
    assert sum(item["skipped"] for item in items) == 2 + 1 + 1
    assert sorted(record.args[0] for record in caplog.records) == [3, 4, 9]
    partners = [PairDataset(rows, 16, WITHIN)[i] for i in range(12)]
    assert all(index_of(item["second"]) not in (3, 4, 9) for item in partners)


def test_images_known_to_be_damaged_are_left_out():
    pairs = PairDataset(cache_of(12, unreadable=(3, 4)), 16, ALL)
    assert sorted(first for first, _ in drawn(pairs)) == [i for i in range(12) if i not in (3, 4)]
    assert not {3, 4} & {second for _, second in drawn(pairs)}


def test_an_image_alone_under_its_label_is_paired_with_another_and_only_a_lonely_one_with_itself():
    pairs = PairDataset(cache_of(4), 16, WITHIN)
    items = [item for epoch in range(20) for item in drawn(pairs, epoch)]
    assert all(first != second for first, second in items)
    assert {second for first, second in items if first == 0} == {3}  # the same label still comes first
    assert {second for first, second in items if first == 1} == {0, 2, 3}
    across = PairDataset(ImageRows(make_dataset(4, damaged=(1, 2)), 20), 16, ACROSS)
    assert {*drawn(across)} == {(0, 3), (3, 0)}  # no readable image has another label
    assert drawn(PairDataset(cache_of(1), 16, WITHIN)) == [(0, 0)]


def test_all_damaged():
    pairs = PairDataset(ImageRows(make_dataset(3, damaged=range(3)), 20), 16, WITHIN)
    with pytest.raises(InputError, match="no image of the dataset can be read"):
        pairs[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 21}, "squares of 21 pixels cannot be cut from images of 20"),
        ({"labels": ["ant", "elk"]}, "no label elk in the dataset; it has ant, bee, cow"),
        ({"labels": ["ant"], "mix": ACROSS}, "at least two labels"),
        ({"mix": MINED}, "need the file"),
        ({"mined": neighbors([1], [0])}, "of 2 images, not 6"),
    ],
)
def test_what_cannot_be_drawn(arguments, message):
    with pytest.raises(InputError, match=message):
        PairDataset(cache_of(6), **{"size": 16, "mix": WITHIN} | arguments)


@pytest.mark.parametrize("shares", [{"within": 0}, {"within": -1, "across": 2}, {"within": float("nan")},
                                    {"mined": float("inf")}, {"other": 1}])  # fmt: skip
def test_bad_mixes(shares):
    with pytest.raises(ValueError, match=r"all shares are 0|greater than or equal to 0|finite number|not permitted"):
        PairMix.only(**shares)


def test_two_processes_with_workers_see_every_image_once_and_the_same_pairs():
    pairs = PairDataset(ImageRows(make_dataset(23), 20), 16, ALL)
    sampler = BatchSampler(SequentialSampler(pairs), batch_size=3, drop_last=False)
    seen = []
    for rank in range(2):
        shard = BatchSamplerShard(sampler, 2, rank, even_batches=False)
        for batch in DataLoader(pairs, batch_sampler=shard, num_workers=2 * rank):
            seen += list(zip(map(index_of, batch["first"]), map(index_of, batch["second"]), strict=True))
    assert sorted(seen) == sorted(drawn(pairs))
    assert sorted(first for first, _ in seen) == list(range(23))


def stream_of(folder, count, files, **arguments):
    folder.mkdir(exist_ok=True)
    data = make_dataset(count, **arguments)
    for i in range(files):
        data.shard(files, i).to_parquet(folder / f"{i}.parquet")
    return open_dataset(str(folder), streaming=True)


@pytest.mark.parametrize("files", [4, 3, 1])  # divided by files, or image by image
@pytest.mark.parametrize("workers", [0, 2])
def test_stream_two_processes_see_every_image_once(tmp_path, files, workers):
    seen = []
    for rank in range(2):
        stream = stream_of(tmp_path / "s", 23, files)
        pairs = StreamingPairs(stream, 16, ALL, buffer=4, rank=rank, world_size=2)
        part = [index_of(x) for batch in DataLoader(pairs, 2, num_workers=workers) for x in batch["first"]]
        assert len(part) >= 5
        seen += part
    assert sorted(seen) == list(range(23))


@pytest.mark.parametrize("shards", [3, 5])
def test_webdataset_shards_stream_without_overlap_or_loss(tmp_path, shards):
    """Two processes, two loader workers each; neither 3 nor 5 shards divide among them."""
    for shard in range(shards):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as file:
            for i in range(shard, 29, shards):
                info = tarfile.TarInfo(f"{i:03d}.png")
                info.size = len(encoded(i))
                file.addfile(info, io.BytesIO(encoded(i)))
    for epoch in (0, 1):
        counts = Counter()
        for rank in range(2):
            stream = open_dataset(str(tmp_path / "*.tar"), "train", streaming=True)
            pairs = StreamingPairs(stream, 16, WITHIN, buffer=3, rank=rank, world_size=2)
            pairs.set_epoch(epoch)
            part = [index_of(x) for batch in DataLoader(pairs, 2, num_workers=2) for x in batch["first"]]
            assert 8 <= len(part) <= 21
            counts.update(part)
        assert counts == Counter(range(29))


@pytest.mark.parametrize("images", [1, 2, 29])
def test_a_folder_streams_without_overlap_or_loss(tmp_path, images):
    for i in range(images):
        (tmp_path / f"{i}.png").write_bytes(encoded(i))
    counts = Counter()
    for rank in range(2):
        stream = open_dataset(str(tmp_path), "train", streaming=True)
        pairs = StreamingPairs(stream, 16, WITHIN, buffer=3, rank=rank, world_size=2)
        counts.update(index_of(x) for batch in DataLoader(pairs, 2, num_workers=2) for x in batch["first"])
    assert counts == Counter(range(images))


@pytest.mark.parametrize(("mix", "same"), [(WITHIN, True), (ACROSS, False)])
def test_stream_kinds_order_and_epochs(tmp_path, mix, same):
    stream = stream_of(tmp_path / "s", 40, 2)
    pairs = StreamingPairs(stream, 16, mix, buffer=20)
    orders = []
    for epoch in (0, 0, 1):
        pairs.set_epoch(epoch)
        items = [(index_of(item["first"]), index_of(item["second"])) for item in pairs]
        assert all(first != second and (first % 3 == second % 3) == same for first, second in items)
        orders.append(items)
    assert orders[0] == orders[1] != orders[2]
    assert [first for first, _ in orders[0]] != list(range(40))


def test_stream_identity_and_choice_of_labels(tmp_path):
    pairs = StreamingPairs(stream_of(tmp_path / "s", 12, 1), 16, IDENTITY, labels=["bee"], buffer=3)
    items = [(index_of(item["first"]), index_of(item["second"])) for item in pairs]
    assert sorted(items) == [(1, 1), (4, 4), (7, 7), (10, 10)]


def test_stream_says_once_where_no_partner_fits(tmp_path, caplog):
    stream = stream_of(tmp_path / "s", 5, 1, labels=["ant"] * 5)
    assert len(list(StreamingPairs(stream, 16, ACROSS, buffer=4))) == 5
    assert [record.getMessage() for record in caplog.records] == [
        "pairs across labels: of 4 images of the stream none fits; any is taken"
    ]


def test_stream_counts_what_it_skips(tmp_path):
    stream = stream_of(tmp_path / "s", 20, 1, damaged=(0, 7, 18))
    items = list(StreamingPairs(stream, 16, ALL, buffer=4))
    assert len(items) == 17 and sum(item["skipped"] for item in items) == 3


def test_stream_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(InputError, match="mined pairs need a dataset that is not streamed"):
        StreamingPairs(stream_of(tmp_path / "s", 4, 1), 16, MINED)
    with pytest.raises(InputError, match="no column 'label'"):
        StreamingPairs(stream_of(tmp_path / "t", 4, 1, labels=None), 16, ACROSS)


def test_preloaded_and_lazy_images_make_the_same_pairs():
    data = make_dataset(9)
    lazy = PairDataset(ImageRows(data, 20), 16, ALL)
    assert drawn(PairDataset(preload(ImageRows(data, 20), quiet=True), 16, ALL)) == drawn(lazy)
