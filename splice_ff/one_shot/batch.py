"""Many pairs through the one-shot model: equal sizes together, each image written as soon as it is painted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from splice_ff.data.pair_list import PairFiles
from splice_ff.errors import InputError
from splice_ff.images import LoadedImage, load_image, save_image
from splice_ff.one_shot.call import images_a_pass
from splice_ff.one_shot.model import OneShotModel
from splice_ff.one_shot.tokens_file import SUFFIX, load_look
from splice_ff.utils.files import file_digest, reason
from splice_ff.utils.machine import is_out_of_memory

MAX_WAITING = 64_000_000
"""Pixels of structure images that may wait for others of their size."""
LOOKS_KEPT = 1024
"""Looks remembered: lists often paint many structure images with few appearance images."""


@dataclass(frozen=True)
class Outcome:
    """What became of a pair."""

    name: str
    error: str | None
    """One line, if it failed."""


INPUTS = "inputs_sha256"
"""The text entry of a painted image that says of which files it was made."""


def digest_of_inputs(pair: PairFiles) -> str:
    """What the entry `INPUTS` holds.

    Raises:
        InputError: a file cannot be read.
    """
    try:
        return " ".join(file_digest(path)[:16] for path in (pair.structure, pair.appearance))
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({reason(error)})") from error


def paint_pairs(
    model: OneShotModel,
    pairs: Sequence[PairFiles],
    folder: Path,
    *,
    size: int | None = None,
    strength: float = 1.0,
    batch_size: int = 8,
    settings: Mapping[str, str] | None = None,
    on_note: Callable[[str], object] = lambda note: None,
) -> Iterator[Outcome]:
    """Paint each pair into `folder/NAME.png`, in the order in which batches fill up; a bad file fails its pair alone.

    Args:
        model: the one-shot model.
        pairs: which structure and appearance files; an appearance may also be a look that `save_look` wrote.
        folder: created if it is missing.
        size, strength: see `OneShotModel.paint`.
        batch_size: structure images of one size that are painted together, at most; fewer of large ones.
        settings: for the images' text entries.
        on_note: told what was done to an image to read it, once for each image that is read.
    """
    looks: OrderedDict[Path, Tensor] = OrderedDict()
    waiting: dict[tuple[int, int], list[tuple[PairFiles, LoadedImage, Tensor]]] = {}

    def read(path: Path) -> LoadedImage:
        image = load_image(path)
        for note in image.notes:
            on_note(f"{path}: {note}")
        return image

    def look_of(path: Path) -> Tensor:
        if path not in looks:
            is_look = path.suffix.lower() == SUFFIX
            looks[path] = load_look(path, model)[0] if is_look else model.embed(read(path).rgb)
        looks.move_to_end(path)
        if len(looks) > LOOKS_KEPT:
            looks.popitem(last=False)
        return looks[path]

    def paint(shape: tuple[int, int]) -> Iterator[Outcome]:
        group = waiting.pop(shape)
        try:
            images, tokens = torch.cat([image.rgb for _, image, _ in group]), torch.cat([look for *_, look in group])
            outputs = model.paint(images, tokens, size=size, strength=strength)
        except Exception as error:
            if not isinstance(error, InputError) and not is_out_of_memory(error):
                raise
            why = error if isinstance(error, InputError) else "out of memory; work at a smaller size"
            yield from (Outcome(pair.name, f"{pair.structure}: {why}") for pair, *_ in group)  # it is of their size
            return
        for (pair, image, _), output in zip(group, outputs, strict=True):
            facts = {**(settings or {}), "structure": pair.structure.name, "appearance": pair.appearance.name}
            try:
                facts[INPUTS] = digest_of_inputs(pair)
                save_image(folder / f"{pair.name}.png", output, alpha=image.alpha, settings=facts)
                yield Outcome(pair.name, None)
            except InputError as error:
                yield Outcome(pair.name, str(error))

    for pair in pairs:
        try:
            image = read(pair.structure)
            look = look_of(pair.appearance)
        except InputError as error:
            yield Outcome(pair.name, str(error))
            continue
        waiting.setdefault(image.size, []).append((pair, image, look))
        if len(waiting[image.size]) >= min(batch_size, images_a_pass(*image.size, size or model.config.size)):
            yield from paint(image.size)
        while sum(h * w * len(group) for (h, w), group in waiting.items()) > MAX_WAITING:
            yield from paint(max(waiting, key=lambda shape: shape[0] * shape[1] * len(waiting[shape])))
    for shape in list(waiting):
        yield from paint(shape)
