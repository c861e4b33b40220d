"""Opening image datasets through HF `datasets`: folders, parquet files, WebDataset tars, the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from splice_ff.errors import InputError, first_line

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


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
        WebDataset's `.cls` is a label. `splice_ff.data.decoding.decode` and `ImageRows` read them.

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
        raise InputError(
            f"{source}: split '{split}' cannot be read ({first_line(error.__cause__ or error)})"
        ) from error
    if not streaming and not len(data):
        raise InputError(f"{source}: split '{split}' holds no image; take a larger one")
    return _keep_columns(data, source)


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
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    column = "image" if "image" in features else images[0] if len(images) == 1 else None
    if column is None:
        found = "several columns of images" if images else "no column of images"
        raise InputError(f"{source}: {found} among {', '.join(features)}; name one 'image'")
    if column != "image":
        data = data.rename_column(column, "image")
    if "label" not in features and "cls" in features:
        data = data.rename_column("cls", "label")
    columns = [name for name in ("image", "label") if name in data.features]
    try:
        return data.select_columns(columns).cast_column("image", datasets.Image(decode=False))
    except Exception as error:  # pyarrow's own kinds of error
        raise InputError(
            f"{source}: column 'image' holds no images ({first_line(error.__cause__ or error)})"
        ) from error
