"""Mined pairs: for every image its nearest neighbors, by look or by layout (`splice_ff.data.descriptors`).

Training on pairs that show like things in like poses is what lets appearance land where it belongs. Neighbors by
appearance look alike as well, so little is left to transfer; neighbors by structure differ in their looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from splice_ff.data.decoding import decode
from splice_ff.data.descriptors import DESCRIBE
from splice_ff.data.image_dataset import label_names
from splice_ff.data.mined_pairs import MinedPairs, write_mined_pairs
from splice_ff.data.pairs import known_labels
from splice_ff.data.sources import open_dataset
from splice_ff.errors import ImageError, InputError
from splice_ff.utils.console import progress_bar
from splice_ff.utils.files import check_place, reason, write_file
from splice_ff.utils.run_folder import LOCK, claim_folder, lock_folder
from splice_ff.vit.features import ViTFeatures

Describe = Callable[[Tensor], Tensor]
DUPLICATE = 0.9999
"""Above this cosine images are copies of each other; a pair of them teaches nothing that identity pairs do not."""
PART = 256
"""Images per file of embeddings: what an interrupted run may lose."""
MAX_SIZE = 2048
"""Pixels: attention among the patches of larger squares takes hours."""
ROWS, COLUMNS = 1024, 16384
"""Block of similarities computed at a time: 64 MiB in float32."""


@dataclass(frozen=True)
class MiningReport:
    """What `mine_pairs` did."""

    pairs: int
    images: int
    """Images in the split."""
    paired: int
    """Images with at least one neighbor."""
    unreadable: int


def mine_pairs(
    data: str,
    backbone: ViTFeatures,
    output: Path,
    *,
    split: str = "train",
    neighbors: int = 8,
    labels: Sequence[str] | None = None,
    by: str = "appearance",
    across_labels: bool = False,
    within_labels: bool = False,
    size: int = 224,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    quiet: bool = False,
) -> MiningReport:
    """Write the nearest neighbors of every image of a dataset, for `read_mined_pairs`.

    Exact: all cosines are computed, in blocks. An image is no neighbor of itself, nor of copies of itself (cosine
    above `DUPLICATE`). Embeddings are kept in `<output>.parts/` as they come; the same call goes on from there, and
    the folder is removed once the pairs are written, whole or not at all.

    Memory, beside the backbone's for one batch: embeddings, 4 D bytes an image (100 000 images at D = 768: 307 MB),
    twice that for a moment while they are joined; one block of similarities with its masks and its sorting, some
    300 MB; results, 12 bytes a pair. 100 000 images at D = 768 take 15 TFLOP to compare.

    Args:
        data, split: as for `open_dataset`; train on the same split.
        output: a .parquet file.
        neighbors: at most so many for each image.
        labels: only images with these labels, by name; rows still count the whole dataset.
        by: "appearance", the cosine of deepest [CLS] tokens, or "structure", that of what tells a layout from the
            data's mean.
        across_labels, within_labels: only neighbors with another, or with the same label.
        size: the ViT sees the middle square of each image at this size, in pixels.
        batch_size: images per forward pass.
        quiet: no progress bars, no notes.

    Raises:
        InputError: data that cannot be opened, an unknown descriptor or label, no labels where they are needed,
            neighbors across and within labels at once, fewer than two images, an output that cannot be written, or
            `<output>.parts/` of a run with other settings.
    """
    check_output(output)
    check_choice(by, across_labels, within_labels)
    if not 16 <= size <= MAX_SIZE:
        raise InputError(f"size {size}: the ViT sees squares of 16 to {MAX_SIZE} pixels")
    dataset = open_dataset(data, split, quiet=quiet)
    names = label_names(dataset)
    if names is None and (labels is not None or across_labels or within_labels):
        raise InputError(
            f"{data}: has no labels, which --label, --across-labels and --within-labels need; put images into folders"
        )
    wanted = set(known_labels(labels, names)) if labels is not None else set(names or [""])
    kept = [i for i, name in enumerate(names or [""] * len(dataset)) if name in wanted]
    if len(kept) < 2:
        raise InputError(f"{data}: fewer than two images to pair; add images, or choose other labels")
    about = {
        "data": data,
        "split": split,
        "rows": len(dataset),
        "labels": sorted(wanted) if labels is not None else None,
        "backbone": backbone.name,
        "fingerprint": backbone.fingerprint,
        "size": size,
        "by": by,
    }
    parts = output.with_name(output.name + ".parts")
    with lock_folder(parts):
        claim_folder(parts / "about.json", about, holds="embeddings")
        describe = partial(DESCRIBE[by], backbone.to(device))
        embeddings, readable = _embed_all(dataset, kept, describe, device, parts, size, batch_size, quiet)
        embeddings, rows = embeddings[readable], torch.tensor(kept)[readable]
        if by == "structure":  # most subjects stand in the middle: what differs from the mean tells layouts apart
            embeddings = embeddings - embeddings.mean(0)
        groups = None
        if names is not None and (across_labels or within_labels):
            groups = torch.from_numpy(np.unique(np.array(names), return_inverse=True)[1])[rows]
        nearest, cosine = nearest_neighbors(
            embeddings, neighbors, groups=groups, across=across_labels, device=device, quiet=quiet
        )
        is_neighbor = cosine > -torch.inf
        if not is_neighbor.any():
            raise InputError(
                f"{data}: no image has a neighbor: they are copies of each other, or of one label, or damaged"
            )
        structure = rows[:, None].expand_as(nearest)[is_neighbor]
        appearance, similarity = rows[nearest[is_neighbor]], cosine[is_neighbor]
        about |= {"across_labels": across_labels, "within_labels": within_labels}
        write_mined_pairs(output, MinedPairs(structure.numpy(), appearance.numpy(), similarity.numpy(), about))
        for file in parts.iterdir():
            if file.name != LOCK:
                file.unlink()
    (parts / LOCK).unlink(missing_ok=True)
    parts.rmdir()
    return MiningReport(len(structure), len(dataset), int(is_neighbor.any(1).sum()), int((~readable).sum()))


def check_output(path: Path) -> None:
    """Raise InputError unless `mine_pairs` can write this file."""
    if path.suffix != ".parquet":
        raise InputError(f"{path}: pairs are written as .parquet; choose such a name")
    check_place(path)


def check_choice(by: str, across_labels: bool, within_labels: bool) -> None:
    """Raise InputError unless there are such neighbors."""
    if by not in DESCRIBE:
        raise InputError(f"unknown descriptor '{by}'; neighbors are found by {' or by '.join(DESCRIBE)}")
    if across_labels and within_labels:
        raise InputError("neighbors are across labels, or within labels; ask for one of them, or for neither")


def nearest_neighbors(
    embeddings: Tensor,
    count: int,
    *,
    groups: Tensor | None = None,
    across: bool = False,
    device: torch.device | str = "cpu",
    quiet: bool = True,
) -> tuple[Tensor, Tensor]:
    """Nearest neighbors by cosine, exactly, without self and copies.

    Args:
        embeddings: `(N, D)` float32, of any length but zero. Stays where it is; blocks move to `device`.
        count: neighbors of each, at most.
        groups: `(N,)` group of each; neighbors come from the same only, or from others only if `across`.

    Returns:
        Indices `(N, K)` and cosines `(N, K)`, falling, with K = min(count, N - 1); a cosine of -inf where an image
        has fewer neighbors.
    """
    directions = F.normalize(embeddings, dim=-1)
    groups = None if groups is None else groups.to(device)
    total = len(directions)
    count = min(count, max(1, total - 1))
    index = torch.zeros(total, count, dtype=torch.int64)
    cosine = torch.full((total, count), -torch.inf)
    with progress_bar(-(-total // ROWS), "block", quiet, what="comparing") as bar:
        for top in range(0, total, ROWS):
            rows = directions[top : top + ROWS].to(device)
            best = torch.full((len(rows), count), -torch.inf, device=device)
            where = torch.zeros(len(rows), count, dtype=torch.int64, device=device)
            for left in range(0, total, COLUMNS):
                block = rows @ directions[left : left + COLUMNS].to(device).mT
                excluded = block > DUPLICATE
                diagonal = torch.arange(len(rows), device=device) + top - left
                inside = (diagonal >= 0) & (diagonal < block.shape[1])
                excluded[inside.nonzero()[:, 0], diagonal[inside]] = True  # rounding may leave self just below
                if groups is not None:
                    same = groups[top : top + ROWS, None] == groups[None, left : left + COLUMNS]
                    excluded |= same if across else ~same
                block.masked_fill_(excluded, -torch.inf)
                values, places = block.topk(min(count, block.shape[1]))
                best, order = torch.cat([best, values], 1).topk(count)
                where = torch.cat([where, places + left], 1).gather(1, order)
            index[top : top + ROWS], cosine[top : top + ROWS] = where.cpu(), best.cpu()
            bar.update()
    return index, cosine


@torch.inference_mode()
def _embed_all(
    dataset: Any,
    kept: Sequence[int],
    describe: Describe,
    device: torch.device | str,
    parts: Path,
    size: int,
    batch_size: int,
    quiet: bool,
) -> tuple[Tensor, Tensor]:
    """Descriptors (N, D) of the images kept, and which of them could be read (N,)."""
    embedded: list[tuple[Tensor, Tensor]] = []
    with progress_bar(len(kept), "image", quiet, what="embedding") as bar:
        for start in range(0, len(kept), PART):
            chunk = kept[start : start + PART]
            file = parts / f"part-{start // PART:05d}.safetensors"
            part = _read_part(file)
            if part is None:
                batches = []
                for first in range(0, len(chunk), batch_size):
                    batches.append(_embed(dataset, chunk[first : first + batch_size], describe, device, size))
                    bar.update(len(batches[-1][1]))
                part = torch.cat([found for found, _ in batches]), torch.cat([readable for _, readable in batches])
                _write_part(file, {"descriptors": part[0], "readable": part[1]})
            else:
                bar.update(len(chunk))
            embedded.append(part)
    return torch.cat([found for found, _ in embedded]), torch.cat([readable for _, readable in embedded])


def _embed(
    dataset: Any, indices: Sequence[int], describe: Describe, device: torch.device | str, size: int
) -> tuple[Tensor, Tensor]:
    images = torch.zeros(len(indices), 3, size, size, dtype=torch.uint8)
    readable = torch.ones(len(indices), dtype=torch.bool)
    for place, index in enumerate(indices):
        try:
            images[place] = decode(dataset[index], size)
        except ImageError:
            readable[place] = False
    return describe(images.to(device).float() / 255).cpu(), readable


def _read_part(file: Path) -> tuple[Tensor, Tensor] | None:
    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as tensors:
            return tensors.get_tensor("descriptors"), tensors.get_tensor("readable")
    except SafetensorError as error:
        raise InputError(f"{file}: damaged; delete it to compute it again") from error


def _write_part(file: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        write_file(file, save(dict(tensors)))
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({reason(error)}); the same command goes on from here") from error
