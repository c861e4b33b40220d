"""Mined pairs: for every image its nearest neighbors in deepest [CLS] cosine, where semantics match.

Training on pairs that show like things in like poses is what lets appearance land where it belongs; the deepest
[CLS] token is the appearance descriptor of the paper (section 3.2), so its neighbors are those whose looks compare.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from splice_ff.data.image_dataset import decode, label_names
from splice_ff.errors import ImageError, InputError
from splice_ff.utils.console import progress_bar
from splice_ff.utils.files import atomic_write, check_place
from splice_ff.vit.features import ViTFeatures

if TYPE_CHECKING:
    from datasets import Dataset

DUPLICATE = 0.9999
"""Above this cosine images are copies of each other; a pair of them teaches nothing that identity pairs do not."""
PART = 256
"""Images per file of embeddings: what an interrupted run may lose."""
ROWS, COLUMNS = 1024, 16384
"""Block of similarities computed at a time: 64 MiB in float32."""


@dataclass(frozen=True, eq=False)
class MinedPairs:
    """Neighbors of every image of a dataset.

    Attributes:
        starts: `(rows + 1,)`; the neighbors of image i are `appearance[starts[i]:starts[i + 1]]`, nearest first.
        appearance: rows of the dataset, in the order in which `open_dataset` gives them.
        similarity: cosine of deepest [CLS] tokens, float32.
        about: what they were mined from: data, split, backbone, fingerprint, ...
    """

    starts: NDArray[np.int64]
    appearance: NDArray[np.int64]
    similarity: NDArray[np.float32]
    about: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """Number of images in the dataset."""
        return len(self.starts) - 1

    def of(self, index: int) -> NDArray[np.int64]:
        """The neighbors of an image, nearest first; none where it was left out or could not be read."""
        return self.appearance[self.starts[index] : self.starts[index + 1]]

    def check(self, rows: int, split: str | None = None) -> None:
        """See that their rows are those of a dataset, as far as its length and the name of its split tell.

        Raises:
            InputError: they are another one's.
        """
        theirs = self.about.get("split", split)
        if split is not None and theirs != split:
            raise InputError(f"mined pairs are of the split '{theirs}', not '{split}': name the one that they are of")
        if self.rows != rows:
            raise InputError(f"mined pairs are of {self.rows} images, not {rows}: another dataset or split")


@dataclass(frozen=True)
class MiningReport:
    """What `mine_pairs` did."""

    pairs: int
    pictures: int
    """Images with at least one neighbor."""
    unreadable: int


def mine_pairs(
    dataset: Dataset,
    backbone: ViTFeatures,
    output: Path,
    *,
    about: Mapping[str, Any],
    neighbors: int = 8,
    labels: Sequence[str] | None = None,
    across_labels: bool = False,
    size: int = 224,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    quiet: bool = False,
) -> MiningReport:
    """Write the nearest neighbors of every image as parquet: `structure`, `appearance` (rows), `similarity`.

    Exact: all cosines are computed, in blocks. An image is no neighbor of itself, nor of copies of itself (cosine
    above `DUPLICATE`). Embeddings are kept in `<output>.parts/` as they come; the same call goes on from there, and
    the folder is removed once the pairs are written, whole or not at all.

    Memory, beside the backbone's for one batch: embeddings, 4 D bytes an image (100 000 images at D = 768: 307 MB),
    twice that for a moment while they are joined; one block of similarities with its masks and its sorting, some
    300 MB; results, 12 bytes a pair. 100 000 images at D = 768 take 15 TFLOP to compare.

    Args:
        dataset: from `open_dataset`, not streaming.
        about: what identifies the data (source, split); kept with the pairs, and a run resumes only what agrees.
        neighbors: at most so many for each image.
        labels: only images with these labels, by name; rows still count the whole dataset.
        across_labels: only neighbors with another label.
        size: the ViT sees the middle square of each image at this size, in pixels.
        batch_size: images per forward pass.
        quiet: no progress bars.

    Raises:
        InputError: an unknown label, no labels where they are needed, fewer than two images, an output that cannot
            be written, or `<output>.parts/` of a run with other settings.
    """
    check_place(output)
    names = label_names(dataset)
    if names is None and (labels is not None or across_labels):
        raise InputError("the dataset has no column 'label'")
    unknown = set(labels or ()) - set(names or ())
    if unknown:
        known = ", ".join(sorted(set(names or ())))
        raise InputError(f"no label {', '.join(sorted(unknown))} in the dataset; it has {known}")
    kept = [i for i in range(len(dataset)) if labels is None or (names and names[i] in set(labels))]
    if len(kept) < 2:
        raise InputError("fewer than two images: there is nothing to pair")
    about = {
        **about,
        "rows": len(dataset),
        "labels": sorted(labels) if labels is not None else None,
        "backbone": backbone.name,
        "fingerprint": backbone.fingerprint,
        "size": size,
    }
    parts = output.with_name(output.name + ".parts")
    _claim(parts, about)
    embeddings, readable = _embed_all(dataset, kept, backbone.to(device), parts, size, batch_size, quiet)
    rows = torch.tensor(kept)[readable]
    groups = None
    if across_labels and names is not None:
        groups = torch.from_numpy(np.unique(np.array(names), return_inverse=True)[1])[rows]
    nearest, cosine = nearest_neighbors(embeddings[readable], neighbors, not_among=groups, device=device, quiet=quiet)
    found = cosine > -torch.inf
    structure = rows[:, None].expand_as(nearest)[found]
    _write(output, structure, rows[nearest[found]], cosine[found], about | {"across_labels": across_labels})
    for file in parts.iterdir():
        file.unlink()
    parts.rmdir()
    return MiningReport(len(structure), int(found.any(1).sum()), int((~readable).sum()))


def nearest_neighbors(
    embeddings: Tensor,
    count: int,
    *,
    not_among: Tensor | None = None,
    device: torch.device | str = "cpu",
    quiet: bool = True,
) -> tuple[Tensor, Tensor]:
    """Nearest neighbors by cosine, exactly, without self and copies.

    Args:
        embeddings: `(N, D)` float32, of any length but zero. Stays where it is; blocks move to `device`.
        count: neighbors of each.
        not_among: `(N,)` group of each; neighbors come from other groups only.

    Returns:
        Indices `(N, count)` and cosines `(N, count)`, falling; a cosine of -inf where there are not so many.
    """
    directions = F.normalize(embeddings, dim=-1)
    total = len(directions)
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
                if not_among is not None:
                    groups = not_among.to(device)
                    excluded |= groups[top : top + ROWS, None] == groups[None, left : left + COLUMNS]
                block.masked_fill_(excluded, -torch.inf)
                values, places = block.topk(min(count, block.shape[1]))
                best, order = torch.cat([best, values], 1).topk(count)
                where = torch.cat([where, places + left], 1).gather(1, order)
            index[top : top + ROWS], cosine[top : top + ROWS] = where.cpu(), best.cpu()
            bar.update()
    return index, cosine


def read_mined_pairs(path: Path) -> MinedPairs:
    """Read what `mine_pairs` wrote.

    Raises:
        InputError: no such file, or not one of ours.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path)
        about = json.loads((table.schema.metadata or {})[b"splice_ff"])
        structure, appearance, similarity = (
            table[name].to_numpy() for name in ("structure", "appearance", "similarity")
        )
        starts = np.searchsorted(structure, np.arange(about["rows"] + 1))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; make it with `splice-ff pairs DATA -o {path.name}`") from error
    except (OSError, KeyError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: not a file of pairs; make it with `splice-ff pairs`") from error
    return MinedPairs(starts, appearance, similarity, about)


def _claim(parts: Path, about: Mapping[str, Any]) -> None:
    """Make the folder of embeddings, or see that the one there belongs to the same data and backbone."""
    note = parts / "about.json"
    if note.exists():
        try:
            there = json.loads(note.read_text())
        except ValueError:
            there = None
        if there != json.loads(json.dumps(about)):
            raise InputError(
                f"{parts}: left by a run on other data or with other settings, or damaged; delete it to start anew"
            )
        return
    text = json.dumps(about)
    atomic_write(note, lambda temporary: temporary.write_text(text))


@torch.inference_mode()
def _embed_all(
    dataset: Any, kept: Sequence[int], backbone: ViTFeatures, parts: Path, size: int, batch_size: int, quiet: bool
) -> tuple[Tensor, Tensor]:
    """Deepest [CLS] tokens (N, D) of the images kept, and which of them could be read (N,)."""
    found: list[tuple[Tensor, Tensor]] = []
    with progress_bar(len(kept), "picture", quiet, what="embedding") as bar:
        for start in range(0, len(kept), PART):
            chunk = kept[start : start + PART]
            file = parts / f"part-{start // PART:05d}.safetensors"
            part = _read_part(file)
            if part is None:
                batches = []
                for first in range(0, len(chunk), batch_size):
                    batches.append(_embed(dataset, chunk[first : first + batch_size], backbone, size))
                    bar.update(len(batches[-1][1]))
                part = torch.cat([cls for cls, _ in batches]), torch.cat([readable for _, readable in batches])
                atomic_write(file, partial(save_file, {"cls": part[0], "readable": part[1]}))
            else:
                bar.update(len(chunk))
            found.append(part)
    return torch.cat([cls for cls, _ in found]), torch.cat([readable for _, readable in found])


def _embed(dataset: Any, indices: Sequence[int], backbone: ViTFeatures, size: int) -> tuple[Tensor, Tensor]:
    pictures = torch.zeros(len(indices), 3, size, size, dtype=torch.uint8)
    readable = torch.ones(len(indices), dtype=torch.bool)
    for place, index in enumerate(indices):
        try:
            pictures[place] = decode(dataset[index], size)
        except ImageError:
            readable[place] = False
    features = backbone(pictures.to(backbone.mean.device).float() / 255, cls=True)
    assert features.cls is not None
    return features.cls[:, -1].float().cpu(), readable


def _read_part(file: Path) -> tuple[Tensor, Tensor] | None:
    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as tensors:
            return tensors.get_tensor("cls"), tensors.get_tensor("readable")
    except SafetensorError as error:
        raise InputError(f"{file}: damaged; delete it to compute it again") from error


def _write(output: Path, structure: Tensor, appearance: Tensor, similarity: Tensor, about: Mapping[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    table = pyarrow.table(
        {"structure": structure.numpy(), "appearance": appearance.numpy(), "similarity": similarity.numpy()},
        metadata={"splice_ff": json.dumps(about)},
    )
    atomic_write(output, partial(parquet.write_table, table))
