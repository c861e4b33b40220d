"""The model tables of docs/weights.md, from the registry, the presets and the checkpoints: `python docs/zoo.py`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open

from splice_ff.per_pair.recipes import PRESETS
from splice_ff.utils.files import checkpoints_dir
from splice_ff.utils.markdown import markdown_table
from splice_ff.vit.spec import BACKBONES

PAGE = Path(__file__).with_name("weights.md")


def backbone_table() -> str:
    """Backbones by name: those of the registry, whose weights the hub has, then the bundled ones."""
    rows = [_registered(name) for name in BACKBONES] + [_bundled(folder) for folder in _checkpoints("architecture")]
    header = ("`--backbone`", "weights", "default of", "patch", "width", "layers", "parameters", "megabytes")
    return markdown_table(header, rows, numbers_from=3)


def one_shot_table() -> str:
    """The bundled one-shot models."""
    rows = []
    for folder in _checkpoints("generator"):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name, size = config["backbone"]["name"], f"{config['size']} px"
        rows.append((f"`{folder.name}`", f"`{name}`", _card(folder), size, *_file_facts(folder)))
    header = ("`--model`", "backbone", "trained on, limits", "works at", "parameters", "megabytes")
    return markdown_table(header, rows, numbers_from=3)


def filled(page: str) -> str:
    """The page with present tables between its markers."""
    for name, table in (("backbones", backbone_table()), ("one-shot", one_shot_table())):
        page, count = re.subn(
            rf"(<!-- {name}:.*? -->\n).*?(<!-- end -->)", rf"\1\n{table}\n\n\2", page, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"{PAGE}: {count} tables between <!-- {name}: … --> and <!-- end -->, not 1")
    return page


def _registered(name: str) -> tuple[Any, ...]:
    with torch.device("meta"):  # shapes only
        vit: Any = timm.create_model(BACKBONES[name].timm_name, pretrained=False, num_classes=0)
    count = sum(parameter.numel() for parameter in vit.parameters())
    presets = ", ".join(f"`--preset {preset}`" for preset, recipe in PRESETS.items() if recipe.backbone == name)
    shape = (f"{vit.patch_embed.patch_size[0]} px", vit.embed_dim, len(vit.blocks))
    source = f"[hub](https://huggingface.co/{vit.pretrained_cfg['hf_hub_id']})"
    return (f"`{name}`", source, presets, *shape, _millions(count), _megabytes(4 * count))


def _bundled(folder: Path) -> tuple[Any, ...]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = (f"{config['patch_size']} px", config["embed_dim"], config["depth"])
    return (f"`{folder.name}`", f"bundled, {_card(folder)}", "", *shape, *_file_facts(folder))


def _checkpoints(key: str) -> Iterator[Path]:
    """Folders under checkpoints/ whose config has this key."""
    for config in sorted(checkpoints_dir().glob("*/config.json")):
        if key in json.loads(config.read_text(encoding="utf-8")):
            yield config.parent


def _card(folder: Path) -> str:
    return f"[model card](../checkpoints/{folder.name}/README.md)"


def _file_facts(folder: Path) -> tuple[str, str]:
    """Parameters, and megabytes on disk."""
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as tensors:
        count = sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return _millions(count), _megabytes(file.stat().st_size)


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
