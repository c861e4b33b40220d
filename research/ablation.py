"""Which parts of a recipe earn their place: from one start each is left out alone, for equal steps, with one seed.

    python -m research.ablation ../shared/data/pairs -o runs/ablation generator.start_from=everyday data.source=photos/

trains the arms one after the other (`splice-ff train everyday` with what each leaves out; if it is stopped, the same
command goes on) and, after each, evaluates all that are done: runs/ablation/evaluation/summary.md has the differences
to the whole recipe with their intervals. `--only NAME` trains one arm.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from splice_ff.evaluation.methods import OneShot
from splice_ff.evaluation.run import evaluate
from splice_ff.networks.amortized import AmortizedGenerator
from splice_ff.networks.cross_attention_unet import SIZES
from splice_ff.one_shot.pipeline import SpliceFF
from splice_ff.training.config import ALL_TERMS, TrainingConfig, load_config
from splice_ff.training.trainer import Trainer
from splice_ff.utils.config_file import find_config
from splice_ff.vit.weights import load_backbone

WHOLE = "whole"
ARMS: dict[str, list[str]] = {
    WHOLE: [],
    "splice-alone": ["loss.terms={}"],
    **{f"no-{name}": [f"loss.terms.{name}=0"] for name in ALL_TERMS},
    "no-independent-views": ["loss.views=similarity"],
    "no-layouts": ["data.pairs={mined: 0, within: 0.7, across: 0.25, identity: 0.05}"],
    "no-zoom": ["data.zoom=1"],
    "no-sharpening": ["data.color_sharpening=0"],
    "no-divided-cells": [],
    "no-fine-colors": [],
}
"""What each leaves out, as overrides of the recipe."""
NETWORKS = {"no-divided-cells": {"parts": 1}, "no-fine-colors": {"keeps_fine_colors": False}}
"""What is left out of the UNet."""
JUDGES = ("efficientnet_lite1", "open_nsfw")
"""Had no part in the training."""


def train(name: str, output: Path, overrides: list[str]) -> None:
    """Train one arm, or go on with it."""
    config = load_config(find_config("everyday"), [*overrides, *ARMS[name], f"output={output / name}"])
    if name in NETWORKS:
        config = _with_network(name, output / f"{name}-start", config)
    Trainer(config).run()


def _with_network(name: str, start: Path, config: TrainingConfig) -> TrainingConfig:
    """The arm's UNet, and a start for it: the same weights with other numbers."""
    size, changes = config.generator.size, NETWORKS[name]
    SIZES[size] = replace(SIZES[size], **changes)  # type: ignore[arg-type]  # of this process alone
    if (first := config.generator.start_from) and not start.exists():
        model = SpliceFF.from_pretrained(first)
        generator = AmortizedGenerator(replace(model.generator.config, unet=SIZES[size]))
        generator.load_state_dict(model.generator.state_dict())
        start_model = SpliceFF(
            generator, model.backbone, vit_size=model.config.vit_size, size=model.config.size
        )  # fmt: skip
        start_model.save_pretrained(start)
    settings = config.generator.model_copy(update={"start_from": start if first else None})
    return config.model_copy(update={"generator": settings})


def compare(pairs: Path, output: Path) -> None:
    """Evaluate the arms that are done beside the whole recipe."""
    done = [name for name in ARMS if (output / name / "model").exists()]
    backbone = load_backbone("vit_s14_robust")
    methods = []
    for name in done:
        method = OneShot(str(output / name / "model"), 0, backbone)
        method.name = name
        methods.append(method)
    evaluate(
        pairs, output / "evaluation", methods=["copy", *methods], results={"splice": pairs}, baseline=WHOLE,
        backbone=backbone, judges=JUDGES, command=" ".join(sys.argv), on_note=print, quiet=True,
    )  # fmt: skip


def main() -> None:
    """Read the arguments, and train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="folder of pairs to evaluate on")
    parser.add_argument("overrides", nargs="*", help="section.key=value, for all arms")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", choices=ARMS, help="train this arm")
    asked = parser.parse_intermixed_args()
    if asked.only:
        train(asked.only, asked.output, asked.overrides)
        return
    for name in ARMS:
        if not (asked.output / name / "model").exists():
            command = [sys.executable, "-m", "research.ablation", str(asked.pairs), "-o", str(asked.output)]
            subprocess.run([*command, "--only", name, *asked.overrides], check=True)
            compare(asked.pairs, asked.output)
    compare(asked.pairs, asked.output)


if __name__ == "__main__":
    main()
