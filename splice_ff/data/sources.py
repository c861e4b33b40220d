"""Opening image datasets: folders of images; parquet files, WebDataset tars and the hub through HF `datasets`."""

from __future__ import annotations

import errno
import glob
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from splice_ff.data.image_folder import SPLITS, image_datasets, list_folder, split_folders, split_shards
from splice_ff.errors import InputError, first_line
from splice_ff.utils.files import check_place, reason

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

log = logging.getLogger(__name__)
BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}
STREAM_SHARDS = 256
"""Parts into which a streamed folder is divided among processes and loader workers."""
MAX_BYTES_AN_IMAGE = 2**28
"""On average in a row group of parquet, decompressed: more is no image, and would fill disk and memory."""
ROWS_AT_A_TIME = 256
"""Rows of parquet that are read at once, whatever the size of its row groups."""

MOST_KINDS = 8
"""Of files left out that are named in a warning."""


def open_dataset(
    source: str, split: str = "train", streaming: bool = False, *, quiet: bool = False
) -> Dataset | IterableDataset:
    """Open a dataset of images; nothing is decoded.

    Args:
        source: one of

            - a folder of images, in any number of subfolders, which name labels (see
              `splice_ff.data.image_folder.image_datasets`). If all images lie in folders called `train`, `validation`,
              `test` (or `training`, `val`, `valid`, `dev`, `testing`, `eval`), these are splits; else all images are
              the split `train`. Rows are shuffled, in the same way as long as no file is added, removed or renamed.
              What is left out (hidden files, other kinds of files, output folders of runs) is said in a log warning,
            - a folder of .parquet or of WebDataset .tar files; if all their names, or all their folders' names, begin
              with a split's, as `train-00000-of-00002.parquet`, they make splits, else all are the split `train`. Rows
              keep their order,
            - a .parquet or .tar file, or a pattern such as `shards/*.tar`; all of it is the split `train`,
            - the name of a dataset on the Hugging Face hub.

            The images are in the column `image`, or in the only column that holds any. A path that exists is meant
            literally, also with `*`, `?` or `[` in it.
        split: a split's name; not streaming also a slice of it: `train[:95%]`, `train[95%:]`, `train[:1000]`.
        streaming: read from first to last without storing or indexing anything.
        quiet: no progress bars, no warnings.

    Returns:
        Rows `{"image": {"bytes": ..., "path": ...}}`, with `label` (a string or a number) if the source has one;
        WebDataset's `.cls` is a label. `splice_ff.data.decoding.decode` and `ImageRows` read them.

    Raises:
        InputError: nothing there, an unknown split, no column of images, a slice of a stream (a stream does not know
            its length; hold out files or a named split instead), or a cache of `datasets` that cannot be written.
    """
    if streaming and "[" in split:
        name = split.partition("[")[0]
        raise InputError(f"split '{split}': a stream cannot be sliced; use '{name}', or files kept aside")
    with _hushed(quiet):
        path = Path(os.path.abspath(os.path.expanduser(source)))
        try:
            if path.is_dir():
                data = _open_folder(source, path, split, streaming, quiet)
            elif files := _local_files(source, path):
                data = _open_shards(source, {"train": files}, split, streaming)
            else:
                data = _open_hub(source, split, streaming)
        except InputError:
            raise
        except Exception as error:  # datasets raises whatever its readers and the hub's client trip over
            raise InputError(f"{source}: split '{split}' cannot be read ({_why(error)})") from error
        if not streaming and not len(data):
            raise InputError(f"{source}: split '{split}' holds no image; take a larger one")
        return _keep_columns(data, source)


def _open_folder(source: str, folder: Path, split: str, streaming: bool, quiet: bool) -> Any:
    """A folder holds images or shards: what there is more of."""
    listing = list_folder(folder)
    kinds = {"": listing.images, **listing.shards}
    kind = max(kinds, key=lambda suffix: len(kinds[suffix]))
    left_out = listing.left_out + Counter({f"{k or 'image'} file": len(v) for k, v in kinds.items() if k != kind})
    files = kinds[kind]
    if not files:
        raise InputError(f"{source}: holds no images{_listed(left_out, ', but ')}; name another folder")
    splits = split_shards(files) if kind else split_folders(files)
    if not quiet:
        _warn_of_left_out(source, files, left_out, splits, split)
    if kind:
        shards = {name: [folder / file for file in part] for name, part in (splits or {"train": files}).items()}
        return _open_shards(source, shards, split, streaming)
    parts = image_datasets(folder, files)
    if streaming:
        part = parts[_known_split(source, split, parts)]
        return part.to_iterable_dataset(num_shards=min(len(part), STREAM_SHARDS))
    return _select(source, parts, split)


def _open_shards(source: str, splits: Mapping[str, Sequence[Path]], split: str, streaming: bool) -> Any:
    """Parquet files or tars, all of one kind."""
    import datasets

    suffix = next(iter(splits.values()))[0].suffix.lower()
    options: dict[str, Any] = {}
    if suffix == ".parquet":
        for file in (file for files in splits.values() for file in files):
            _check_parquet(file)
        options["batch_size"] = ROWS_AT_A_TIME
    # `datasets` reads patterns; these are paths.
    files = {name: [glob.escape(str(file)) for file in files] for name, files in splits.items()}
    _check_cache()
    if streaming:
        name = _known_split(source, split, splits)
        return datasets.load_dataset(BUILDERS[suffix], data_files=files, split=name, streaming=True, **options)
    return _select(source, datasets.load_dataset(BUILDERS[suffix], data_files=files, **options), split)


def _open_hub(source: str, split: str, streaming: bool) -> Any:
    import datasets

    if source.startswith((".", "/", "~")) or source.endswith("/") or source.count("/") > 1:
        raise InputError(f"{source}: no such file or folder; check the path")
    _check_hub(source)
    _check_cache()
    return datasets.load_dataset(source, split=split, streaming=streaming)


def _local_files(source: str, path: Path) -> list[Path]:
    """The file, or the files that a pattern matches; none where it can only be a name on the hub."""
    suffix = path.suffix.lower()
    is_pattern = glob.has_magic(source)
    if path.is_file() or is_pattern or suffix in BUILDERS:
        if suffix not in BUILDERS:
            raise InputError(f"{source}: not a dataset; name a folder, a .parquet or .tar file, or a hub dataset")
        if path.is_file():
            return [path]
        files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))] if is_pattern else []
        if not files:
            raise InputError(f"{source}: no such file; check the path")
        return files
    if path.exists():
        raise InputError(f"{source}: a pipe or a device; name a folder, a .parquet or .tar file, or a hub dataset")
    return []


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


def _select(source: str, parts: Mapping[str, Dataset], split: str) -> Dataset:
    """The rows that a split such as `train[95%:]` names."""
    import datasets

    for one in split.split("+"):
        _known_split(source, one.partition("[")[0].strip(), parts)
    named = {alias: parts[name] for alias, name in SPLITS.items() if name in parts} | dict(parts)
    wanted = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(part) for name, part in named.items()})
    chosen = [named[one.splitname].select(range(one.from_, one.to) if one.from_ < one.to else ()) for one in wanted]
    return chosen[0] if len(chosen) == 1 else datasets.concatenate_datasets(chosen)


def _known_split(source: str, split: str, splits: Mapping[str, Any]) -> str:
    name = split if split in splits else SPLITS.get(split, split)
    if name not in splits:
        raise InputError(f"{source}: has no split '{split}', but {', '.join(splits)}")
    return name


def _check_parquet(file: Path) -> None:
    """See that no row group decompresses to what no image has.

    Raises:
        InputError: it does, or the file is damaged.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(file) as opened:
            groups = [opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups)]
            largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{file}: cannot be read ({first_line(error)}); download or export it again") from error
    if largest > MAX_BYTES_AN_IMAGE:
        raise InputError(
            f"{file}: rows of {largest / 2**20:.0f} MiB on average; images have at most {MAX_BYTES_AN_IMAGE >> 20}"
        )


def _check_cache() -> None:
    """Raise InputError if `datasets` cannot write its cache."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE)
    try:
        check_place(folder / "file")
    except InputError as error:
        raise InputError(
            f"{folder}: the cache of datasets cannot be written; set HF_DATASETS_CACHE to a folder that can ({error})"
        ) from error


def _why(error: BaseException) -> str:
    """What was wrong at first, in one line: `datasets` wraps errors in errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        import datasets

        return f"{reason(error)}: {error.filename or datasets.config.HF_DATASETS_CACHE}, the cache of datasets"
    return first_line(error)


@contextmanager
def _hushed(quiet: bool) -> Iterator[None]:
    """Silence `datasets`, if asked to."""
    import datasets

    if not quiet:
        yield
        return
    verbosity, had_bars = datasets.logging.get_verbosity(), not datasets.utils.are_progress_bars_disabled()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if had_bars:
            datasets.enable_progress_bars()


def _warn_of_left_out(
    source: str,
    files: Sequence[PurePath],
    left_out: Counter[str],
    splits: Mapping[str, Sequence[PurePath]] | None,
    split: str,
) -> None:
    if left_out:
        _warn(f"{source}: left out{_listed(left_out, ': ')}")
    if splits and len(splits) > 1:
        sizes = ", ".join(f"{name} ({len(part)})" for name, part in splits.items())
        _warn(f"{source}: makes splits by its names, {sizes}; '{split}' is used")
    unused = {file.parts[0] for file in files if len(file.parts) > 1 and file.parts[0].lower() in SPLITS}
    if unused and not splits:
        _warn(f"{source}: {', '.join(sorted(unused))}: no splits, as other images lie beside them; all images are used")


@cache
def _warn(message: str) -> None:
    """Once a process: a run opens its data several times."""
    log.warning(message)


def _listed(counts: Counter[str], before: str) -> str:
    """`3 .txt files, 1 hidden image`, the most first; nothing if there is nothing."""
    kinds = sorted((-count, name) for name, count in counts.items() if count)
    most = [f"{-count} {name}{'s' * (count < -1)}" for count, name in kinds[:MOST_KINDS]]
    rest = len(kinds) - len(most)
    return before + ", ".join(most) + (f" and {rest} other kinds" if rest else "") if most else ""


def _keep_columns(data: Any, source: str) -> Any:
    """Only `image`, undecoded, and `label`."""
    import datasets

    features = data.features
    if features is None:
        raise InputError(f"{source}: its columns are not known; store it as parquet or WebDataset")
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    column = "image" if "image" in features else images[0] if len(images) == 1 else None
    if column is None:
        columns = "several columns of images" if images else "no column of images"
        raise InputError(f"{source}: {columns} among {', '.join(features)}; name one 'image'")
    if column != "image":
        data = data.rename_column(column, "image")
    if "label" not in features and "cls" in features:
        data = data.rename_column("cls", "label")
    kept = [name for name in ("image", "label") if name in data.features]
    try:
        return data.select_columns(kept).cast_column("image", datasets.Image(decode=False))
    except Exception as error:  # pyarrow's own kinds of error
        raise InputError(
            f"{source}: column 'image' holds no images ({first_line(error.__cause__ or error)})"
        ) from error
