"""The README.md of a trained model, written from facts so that it cannot say what nobody recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from splice_ff.errors import printable
from splice_ff.networks.cross_attention_unet import SIZES
from splice_ff.utils.markdown import markdown_table

HEADER = """---
library_name: splice-ff
pipeline_tag: image-to-image
tags: [semantic-appearance-transfer, splice]
---

# {name}: amortized appearance transfer

Paints a structure image with the look of an appearance image in one forward pass. It takes the losses of Splice \
(Tumanyan et al., CVPR 2022) and is trained on many pairs. Load it with \
`splice_ff.SpliceFF.from_pretrained(FOLDER)`; it works only with the backbone below."""
SECTIONS = {"data": "Training data", "loss": "Losses"}
LIMITS = (
    "Trained on one collection of images: others, and parts that it has not seen, may come out wrong.",
    "Where the two images share no parts, colors land anywhere.",
    "Details finer than its working size come from the structure image.",
)


def model_card(name: str, config: Mapping[str, Any], parameters: int, dtype: str) -> str:
    """Markdown with the hub's header.

    Args:
        name: of the model, for the title.
        config: as in config.json. Of `training`, the entries `data`, `loss` and `limits` become sections (text, a
            list, or a table of names and values); the rest a table. An absent one is called "not recorded".
        parameters: of the generator.
        dtype: of the weights on disk.
    """
    training, generator, backbone = (config[key] for key in ("training", "generator", "backbone"))
    rows = {
        "generator": f"size `{_size(generator['unet'])}`, context `{generator['context']}`",
        "parameters": f"{parameters / 1e6:.1f} M",
        "weights on disk": dtype,
        "backbone": f"`{backbone['name']}`, SHA-256 `{backbone['fingerprint']}`",
        "what the ViT sees": f"shorter side {config['vit_size']} px",
        "default working size": f"shorter side {config['size']} px",
        **{k: v for k, v in training.items() if k not in (*SECTIONS, "limits") and v is not None},
    }
    limits = training.get("limits", ())
    parts = [HEADER.format(name=_line(name)), _table(rows)]
    for key, heading in SECTIONS.items():
        parts += [f"## {heading}", _text(training.get(key, "Not recorded."))]
    parts += ["## Limits", _text([*([limits] if isinstance(limits, str) else limits), *LIMITS])]
    return "\n\n".join(parts) + "\n"


def _size(unet: Mapping[str, Any]) -> str:
    """The name of a UNet with these numbers, if it has one."""
    numbers = {**unet, "channels": tuple(unet["channels"])}
    return next((name for name, size in SIZES.items() if asdict(size) == numbers), "custom")


def _table(rows: Mapping[str, Any]) -> str:
    return markdown_table(("", ""), [(key, _cell(value)) for key, value in rows.items()])


def _cell(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return _table(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\n".join(f"- {_line(item)}" for item in value)
    return _line(value)


def _line(value: Any) -> str:
    """One line that starts no heading, list or HTML of its own."""
    line = printable(" ".join(str(value).split())).replace("<", "&lt;")
    return f"\\{line}" if line[:1] in tuple("#>-+*|=") else line
