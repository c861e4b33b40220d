"""Image datasets: opening them through HF `datasets`, decoding a row, keeping all of them decoded in memory.

Rows are decoded here and not by `datasets`, because a damaged image among a million must be skipped and
counted, not end the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from splice_ff.errors import ImageError, InputError
from splice_ff.images import MAX_PIXELS, MIN_SIDE, READABLE, load_image
from splice_ff.utils.console import progress_bar

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

MAX_ASPECT = 3
"""Longer images keep their middle: a 16 x 60 000 strip resized to 144 would take 230 MB."""


def open_dataset(source: str, split: str = "train", streaming: bool = False) -> Dataset | IterableDataset:
    """Open a dataset of images; nothing is decoded.

    Args:
        source: one of

            - a folder of images (`imagefolder`: subfolders name labels), of .parquet or of WebDataset .tar files;
              files named or foldered `train`, `validation`, `test` make splits. Images come sorted by label; so,
              not streaming, their rows are shuffled before a slice is taken, in the same way as long as no file is
              added, removed or renamed. Rows of .parquet and .tar files keep their order,
            - a .parquet or .tar file, or a pattern such as `shards/*.tar`; all of it is the split `train`,
            - the name of a dataset on the Hugging Face hub.

            The images are in the column `image`, or in the only column that holds any.
        split: a split's name; not streaming also a slice of it: `train[:95%]`, `train[95%:]`, `train[:1000]`.
        streaming: read from first to last without storing or indexing anything.

    Returns:
        Rows `{"image": {"bytes": ..., "path": ...}}`, with `label` (a string or a number) if the source has one;
        WebDataset's `.cls` is a label. `decode` and `ImageRows` read them.

    Raises:
        InputError: nothing there, an unknown split, no column of images, or a slice of a stream (a stream does
            not know its length; hold out files or a named split instead).
    """
    import datasets

    if streaming and "[" in split:
        name = split.partition("[")[0]
        raise InputError(f"split '{split}': a stream cannot be sliced; use '{name}', or files kept aside")
    arguments = _load_arguments(source)
    is_local = "data_files" in arguments or Path(arguments["path"]).is_dir()
    if not is_local:
        _check_hub(source)
    is_folder = is_local and not streaming and "data_files" not in arguments
    name = split.partition("[")[0] if is_folder and "+" not in split else split
    try:
        data = datasets.load_dataset(**arguments, split=name, streaming=streaming)
        if is_folder:
            # Images come sorted by label: the last 5 % would all be of one.
            data = _part(data.shuffle(seed=0) if data.builder_name == "imagefolder" else data, name, split)
    except Exception as error:  # datasets raises whatever its readers and the hub's client trip over
        raise InputError(f"{source}: split '{split}' cannot be read ({_first_line(error)})") from error
    if not streaming and not len(data):
        raise InputError(f"{source}: split '{split}' holds no image; take a larger one")
    return _keep_columns(data, source)


def label_names(dataset: Dataset) -> list[str] | None:
    """The label of every row as a string, in order; None where the dataset has no labels."""
    if "label" not in dataset.features:
        return None
    name_of = label_name_function(dataset.features)
    return [name_of(label) for label in dataset.with_format(None)["label"]]


def label_name_function(features: Mapping[str, Any]) -> Callable[[Any], str]:
    """The function from a stored `label` to its name: a `ClassLabel`'s names, else what is stored, as a string."""
    names = getattr(features["label"], "names", None)
    return partial(_class_name, names) if names else str


def decode(row: Mapping[str, Any], size: int, generator: torch.Generator | None = None) -> Tensor:
    """A row's image as a square: `(3, size, size)` uint8, sRGB.

    The shorter side is resized to `size` and the middle kept; with a `generator` a random square, mirrored
    half of the time.

    Raises:
        ImageError: it cannot be read.
    """
    return square_crop(load_row(row, size), size, generator)


def load_row(row: Mapping[str, Any], side: int) -> Tensor:
    """A row's image, `(3, H, W)` uint8, sRGB, its shorter side `side` pixels and its longer at most 3 times that.

    Orientation, color profile, gray and palettes as in `splice_ff.images.load_image`; alpha is dropped.

    Raises:
        ImageError: it cannot be read.
    """
    cell = row["image"]
    if not isinstance(cell, Mapping) or not (cell.get("bytes") or cell.get("path")):
        raise ImageError("a row without an image")
    data, path = cell.get("bytes"), cell.get("path")
    name = path or "an image"
    try:
        with Image.open(_file(data, path), formats=_formats()) as image:
            if image.width * image.height > MAX_PIXELS or min(image.size) < MIN_SIDE:
                raise ImageError(f"{name}: {image.width}x{image.height} is too large or too small")
            image.draft(None, (2 * side, 2 * side))  # JPEG decodes at a half, quarter or eighth of its size
            pixels = _pixels(image)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise whatever their parser trips over
        raise ImageError(f"{name}: {_first_line(error)}") from error
    height, width = pixels.shape[-2:]
    longest = MAX_ASPECT * min(height, width)
    if max(height, width) > longest:
        pixels = F.center_crop(pixels, [min(height, longest), min(width, longest)])
    return F.resize(pixels, [side], interpolation=InterpolationMode.BICUBIC, antialias=True)


def side_for_crops(size: int) -> int:
    """Shorter side, in pixels, that leaves crops of `size` an eighth to move."""
    return size + size // 8


def square_crop(image: Tensor, size: int, generator: torch.Generator | None = None) -> Tensor:
    """A square of `(3, H, W)`: `(3, size, size)`, from the middle; with a generator from anywhere, perhaps mirrored."""
    top, left = (n - size for n in image.shape[-2:])
    if generator is None:
        top, left, mirrored = top // 2, left // 2, False
    else:
        draw = torch.rand(3, generator=generator).tolist()
        top, left, mirrored = int(draw[0] * (top + 1)), int(draw[1] * (left + 1)), draw[2] < 0.5
    square = image[..., top : top + size, left : left + size]
    return square.flip(-1) if mirrored else square.contiguous()


class ImageRows(torch.utils.data.Dataset[Tensor]):
    """The images of a map-style dataset, decoded when asked for.

    Args:
        dataset: from `open_dataset`, not streaming.
        side: shorter side, in pixels, to which each is resized.
    """

    def __init__(self, dataset: Dataset, side: int) -> None:
        self.dataset = dataset
        self.side = side
        self.labels = label_names(dataset)
        self.unreadable: dict[int, str] = {}  # not known before reading

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tensor:
        """`(3, H, W)` uint8, shorter side `side`. Raises ImageError where the image cannot be read."""
        return load_row(self.dataset[int(index)], self.side)


@dataclass(eq=False)
class ImageCache(torch.utils.data.Dataset[Tensor]):
    """Every image of a dataset, decoded: what `preload` returns.

    Attributes:
        pixels: `(N, 3, side, side)` uint8, the middle square of each.
        labels: label of each, or None where the dataset has no labels.
        unreadable: why an image could not be read, by its index; its pixels are zeros.
    """

    pixels: Tensor
    labels: list[str] | None = None
    unreadable: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        """`(3, side, side)` uint8, a view."""
        return self.pixels[index]


def preload(
    dataset: Dataset, side: int, *, labels: Sequence[str | int] | None = None, workers: int = 0, quiet: bool = False
) -> ImageCache:
    """Decode images into memory once, so that training never waits for a decoder.

    It takes `3 * side**2` bytes an image, in every process that calls it: 30 000 at 144 px are 1.9 GB.

    Args:
        dataset: from `open_dataset`, not streaming.
        side: pixels of the squares kept; see `side_for_crops`.
        labels: decode only images with these labels; the others stay black, for a `PairDataset` of the same labels.
        workers: processes that decode; 0 decodes in this one.
        quiet: no progress bar.
    """
    rows = ImageRows(dataset, side)
    # zeros that are never written take no memory
    cache = ImageCache(torch.zeros(len(rows), 3, side, side, dtype=torch.uint8), rows.labels)
    names = {str(label) for label in labels or ()}
    wanted = [i for i, label in enumerate(rows.labels or [""] * len(rows)) if labels is None or label in names]
    squares = torch.utils.data.Subset(_Squares(rows), wanted)
    loader = torch.utils.data.DataLoader(squares, batch_size=64, num_workers=workers, collate_fn=_stack)
    done = 0
    with progress_bar(len(wanted), "picture", quiet, what="decoding") as bar:
        for pixels, failures in loader:
            indices = wanted[done : done + len(pixels)]
            cache.pixels[indices] = pixels
            cache.unreadable |= {indices[i]: why for i, why in failures.items()}
            done += len(pixels)
            bar.update(len(pixels))
    return cache


class _Squares(torch.utils.data.Dataset[Tensor | str]):
    """Middle squares of `ImageRows`, or why there is none."""

    def __init__(self, rows: ImageRows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return square_crop(self.rows[index], self.rows.side)
        except ImageError as error:
            return str(error)


def _stack(items: list[Tensor | str]) -> tuple[Tensor, dict[int, str]]:
    """A batch of squares, zeros where there is none, and why by place."""
    failures = {i: item for i, item in enumerate(items) if isinstance(item, str)}
    squares = [item for item in items if isinstance(item, Tensor)]
    blank = torch.zeros_like(squares[0]) if squares else torch.zeros(3, 1, 1, dtype=torch.uint8)
    return torch.stack([blank if isinstance(item, str) else item for item in items]), failures


def _load_arguments(source: str) -> dict[str, Any]:
    """What `datasets.load_dataset` needs to know."""
    path = Path(source).expanduser()
    if path.is_dir():
        return {"path": str(path)}
    builders = {".parquet": "parquet", ".tar": "webdataset"}
    is_pattern = any(c in source for c in "*?[")
    if path.is_file() or is_pattern or path.suffix in builders:
        if path.suffix not in builders:
            raise InputError(f"{source}: not a dataset; name a folder, a .parquet or .tar file, or a hub dataset")
        if not path.is_file() and not (is_pattern and list(_glob(path))):
            raise InputError(f"{source}: no such file; check the path")
        return {"path": builders[path.suffix], "data_files": str(path)}
    if source.startswith((".", "/", "~")) or source.endswith("/") or source.count("/") > 1:
        raise InputError(f"{source}: no such file or folder; check the path")
    return {"path": source}


def _check_hub(source: str) -> None:
    """Ask the hub for a dataset in one short question: `load_dataset` repeats its own for half a minute.

    Raises:
        InputError: the hub has none of this name; or it cannot be reached and no `owner/name` is cached.
    """
    import datasets
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError, RepositoryNotFoundError

    from splice_ff.utils.hub import ask_hub

    try:
        ask_hub(hf_hub_url(source, "README.md", repo_type="dataset"))
    except (EntryNotFoundError, GatedRepoError):
        pass  # a dataset without a card; or one for those who have asked, which `load_dataset` says
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(f"{source}: no such folder or file, nor a dataset on the hub; check the path") from error
    except Exception as error:  # the HTTP client under huggingface_hub, and with it the exceptions, vary
        # Without an owner, what is cached may as well be another folder of this name.
        if "/" not in source or not (Path(datasets.config.HF_DATASETS_CACHE) / source.replace("/", "___")).is_dir():
            raise InputError(
                f"{source}: no such folder or file, nor a cached dataset owner/name; nor can the hub be asked "
                f"({type(error).__name__})"
            ) from error


def _part(data: Dataset, name: str, split: str) -> Dataset:
    """The rows that a split such as `train[95%:]` names, of all rows of `train`."""
    import datasets

    if split == name:
        return data
    (part,) = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(data)})
    return data.select(range(part.from_ or 0, len(data) if part.to is None else part.to))


def _glob(pattern: Path) -> list[Path]:
    import glob

    return [Path(name) for name in glob.glob(str(pattern), recursive=True)]


def _keep_columns(data: Any, source: str) -> Any:
    """Only `image`, undecoded, and `label`."""
    import datasets

    features = data.features
    if features is None:
        raise InputError(f"{source}: its columns are not known; store it as parquet or WebDataset")
    pictures = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    column = "image" if "image" in features else pictures[0] if len(pictures) == 1 else None
    if column is None:
        found = "several columns of images" if pictures else "no column of images"
        raise InputError(f"{source}: {found} among {', '.join(features)}; name one 'image'")
    if column != "image":
        data = data.rename_column(column, "image")
    if "label" not in features and "cls" in features:
        data = data.rename_column("cls", "label")
    columns = [name for name in ("image", "label") if name in data.features]
    try:
        return data.select_columns(columns).cast_column("image", datasets.Image(decode=False))
    except Exception as error:  # pyarrow's own kinds of error
        raise InputError(f"{source}: column 'image' holds no images ({_first_line(error)})") from error


def _class_name(names: Sequence[str], label: int | None) -> str:
    return names[label] if label is not None and label >= 0 else "none"  # -1 is how datasets marks a missing label


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in READABLE if name in Image.OPEN]


def _file(data: bytes | None, path: str | None) -> Any:
    if data is not None:
        return BytesIO(data)
    assert path is not None
    if "://" in path:  # a streamed folder on the hub
        import fsspec

        with fsspec.open(path, "rb") as file:
            return BytesIO(file.read())
    return os.fspath(path)


def _pixels(image: Image.Image) -> Tensor:
    """(3, H, W) uint8. Plain RGB, as most are, goes straight: the floats of `load_image` take longer than decoding."""
    if image.mode == "RGB" and "icc_profile" not in image.info and "transparency" not in image.info:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if orientation == 1:
            return F.pil_to_tensor(image)
    return (load_image(image).rgb[0] * 255).round().to(torch.uint8)


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    return (str(cause) or type(cause).__name__).splitlines()[0]
