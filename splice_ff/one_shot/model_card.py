"""The README.md of a trained model, written from facts so that it cannot say what nobody recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from splice_ff.networks.cross_attention_unet import SIZES

SECTIONS = {"data": "Training data", "loss": "Losses"}
LIMITS = (
    "Trained on one collection of images: others, and parts that it has not seen, may come out wrong.",
    "Where the two images share no parts, colors land anywhere.",
    "Details finer than its working size come from the structure image.",
)


def model_card(config: Mapping[str, Any], parameters: int, dtype: str) -> str:
    """Markdown with the hub's header.

    Args:
        config: as in config.json. Of `training`, the entries `data`, `loss` and `limits` become sections (text, a
            list, or a table of names and values); the rest a table. An absent one is called "not recorded".
        parameters: of the generator.
        dtype: of the weights on disk.
    """
    training = config["training"]
    generator, backbone = config["generator"], config["backbone"]
    rows = {
        "generator": f"size `{_size(generator['unet'])}`, context `{generator['context']}`",
        "parameters": f"{parameters / 1e6:.1f} M",
        "weights on disk": dtype,
        "backbone": f"`{backbone['name']}`, SHA-256 `{backbone['fingerprint']}`",
        "what the ViT sees": f"shorter side {config['vit_size']} px",
        "default working size": f"shorter side {config['size']} px",
        **{str(k): v for k, v in training.items() if k not in (*SECTIONS, "limits") and v is not None},
    }
    parts = [
        "---\nlibrary_name: splice-ff\npipeline_tag: image-to-image\ntags: [semantic-appearance-transfer, splice]\n---",
        "# Amortized appearance transfer",
        "Paints a structure image with the look of an appearance image in one forward pass. It takes the losses of "
        "Splice (Tumanyan et al., CVPR 2022) and is trained on many pairs. Load it with "
        "`splice_ff.SpliceFF.from_pretrained(FOLDER)`; it works only with the backbone below.",
        _table(rows),
    ]
    for key, heading in SECTIONS.items():
        parts += [f"## {heading}", _text(training.get(key, "Not recorded."))]
    limits = training.get("limits", ())
    parts += ["## Limits", _text([*([limits] if isinstance(limits, str) else limits), *LIMITS])]
    return "\n\n".join(parts) + "\n"


def _size(unet: Mapping[str, Any]) -> str:
    known = {
        name: size for name, size in SIZES.items() if asdict(size) == {**unet, "channels": tuple(unet["channels"])}
    }
    return next(iter(known), "custom")


def _table(rows: Mapping[str, Any]) -> str:
    lines = ["| | |", "|---|---|"]
    for key, value in rows.items():
        cells = ", ".join(f"{k} {_plain(v)}" for k, v in value.items()) if isinstance(value, Mapping) else _plain(value)
        lines.append(f"| {key} | {cells} |")
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return _table(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\n".join(f"- {item}" for item in value)
    return str(value)


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/").replace("\n", " ")
