"""Training the amortized generator on many pairs, through accelerate: one device or many."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from splice_ff.errors import DivergedError, InputError
from splice_ff.losses import Losses
from splice_ff.networks.amortized import AmortizedGenerator, GeneratorConfig
from splice_ff.networks.cross_attention_unet import SIZES
from splice_ff.one_shot.pipeline import SpliceFF
from splice_ff.training.batches import Batch, TrainingData
from splice_ff.training.checkpoints import newest_checkpoint, save_checkpoint
from splice_ff.training.config import OptimizerConfig, TrainingConfig
from splice_ff.training.log import TrainingLog, picture_grid
from splice_ff.training.losses import PairLosses
from splice_ff.training.runtime import agree, make_accelerator
from splice_ff.utils.console import noted_signals, progress_bar
from splice_ff.utils.files import atomic_write, check_place
from splice_ff.vit.weights import load_backbone

CONFIG = "config.yaml"
"""In the output folder: the settings of the run whose checkpoints it holds."""
FIXED = ("generator", "backbone", "seed")
"""Settings that cannot change when a run goes on."""


class Trainer:
    """One training run; `run()` takes it to its end.

    Args:
        config: what to train.
        accelerator: devices, processes and precision; made from the config if omitted.
        quiet: no progress bar.

    Raises:
        InputError: data, backbone, weights, trackers or an output folder that cannot be used.
    """

    def __init__(self, config: TrainingConfig, accelerator: Accelerator | None = None, quiet: bool = False) -> None:
        self.config, self.quiet = config, quiet
        check_place(config.output / CONFIG)
        run = config.run
        self.accelerator = accelerator or make_accelerator(
            run.precision, run.trackers, config.output, config.optimizer.gradient_accumulation_steps
        )
        self.device = self.accelerator.device
        set_seed(config.seed)
        backbone = load_backbone(config.backbone.name, config.backbone.weights).to(self.device)
        is_mixed = self.accelerator.mixed_precision == "bf16"
        self.backbone = backbone.with_matmuls_in(torch.bfloat16) if is_mixed else backbone
        self.original_backbone = backbone

        self.generator = self._make_generator().to(self.device)
        self.generator.unet.checkpointing = config.run.gradient_checkpointing
        decay = config.optimizer.ema_decay
        self.average: Any = AveragedModel(self.generator, multi_avg_fn=_ramped_average(decay))
        if config.run.compile:
            self.generator.compile()
            self.backbone.compile()
        adam = torch.optim.AdamW(
            self.generator.parameters(), betas=(0.9, 0.99), weight_decay=config.optimizer.weight_decay, fused=True
        )
        self.model, self.adam = self.accelerator.prepare(self.generator, adam)
        self.accelerator.register_for_checkpointing(self.average, self)
        self.pair_losses = PairLosses(config, self.generator, self.backbone)
        self.step_count = 0
        self.bad_steps = 0
        self.bad_in_a_row = 0
        self.best_total = math.inf
        self.was_interrupted = False
        """Whether ctrl-C ended the run; SIGTERM, as schedulers send it, is an ordinary end."""

        self.data = TrainingData(config, self.accelerator, quiet)
        self.log = TrainingLog(config, self.accelerator)  # last: what cannot run leaves no output folder
        self.log.count(0, self.data.unreadable)

    def _make_generator(self) -> AmortizedGenerator:
        settings = self.config.generator
        config = GeneratorConfig(self.backbone.depth, self.backbone.width, SIZES[settings.size], settings.context)
        if settings.start_from is None:
            return AmortizedGenerator(config)
        start = SpliceFF.from_pretrained(settings.start_from, backbone=self.original_backbone)
        if start.generator.config != config:
            raise InputError(f"{settings.start_from}: a generator of another kind ({start.generator.config})")
        return start.generator.requires_grad_(True)

    # -- the run ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the last step, from the newest whole checkpoint in the output folder if there is one.

        Raises:
            InputError: the output folder holds a run of something else, or one that cannot be read.
            DivergedError: too many steps in a row had NaN or infinite gradients; the last good state is kept.
        """
        config = self.config
        self._resume()
        self._write_config()
        batches = self.data.batches(self.step_count)
        last_checkpoint = time.monotonic()
        with noted_signals() as noted, self._bar() as bar:
            while self.step_count < config.optimizer.steps:
                losses = self.step(batches)
                bar.set_postfix({k: f"{v:.3f}" for k, v in losses.items() if k != "learning_rate"}, refresh=False)
                bar.update()
                if self._is_due(config.run.log_every):
                    self.log.write(self.step_count, bad_steps=self.bad_steps)
                if self._is_due(config.run.validate_every):
                    self._validate_and_keep_best()
                if self._is_due(config.run.sample_every):
                    self._sample()
                minutes = (time.monotonic() - last_checkpoint) / 60
                stop, late = agree(self.accelerator, bool(noted), minutes > config.run.checkpoint_minutes)
                if stop or late or self._is_due(config.run.checkpoint_every):
                    save_checkpoint(
                        self.accelerator, config.output, self.step_count, config.run.checkpoints_total_limit
                    )
                    last_checkpoint = time.monotonic()
                if stop:
                    self.was_interrupted = signal.SIGINT in noted
                    self.log.say(f"stopped at step {self.step_count}; the same command goes on from there")
                    break
                if self.bad_in_a_row >= config.optimizer.max_skipped_steps:
                    save_checkpoint(
                        self.accelerator, config.output, self.step_count, config.run.checkpoints_total_limit
                    )
                    self.log.close()
                    raise DivergedError(f"{self.bad_in_a_row} steps in a row without finite gradients; weights kept")
        self.save_model(config.output / "model")
        self.log.close()

    def step(self, batches: Iterator[Batch]) -> dict[str, float]:
        """One update of the weights, from `accumulation` batches.

        Returns:
            The losses (means over the update and all processes), the norm of the gradient and the learning rate.
        """
        optimizer = self.config.optimizer
        learning_rate = learning_rate_at(self.step_count, optimizer)
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        sums = torch.zeros(5, device=self.device)
        norm = torch.zeros(())
        for _ in range(optimizer.gradient_accumulation_steps):
            with self.log.waiting():
                batch = next(batches)
            with self.accelerator.accumulate(self.model):
                losses, distilled = self.losses(batch)
                self.accelerator.backward(losses.total + distilled)
                values = (losses.total + distilled, losses.structure, losses.appearance, losses.identity, distilled)
                sums += torch.stack([v.detach().float() for v in values]) / optimizer.gradient_accumulation_steps
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.model.parameters(), optimizer.max_grad_norm)
                    # Gradients are averages over all processes, so that all of them decide alike.
                    if math.isfinite(norm.item()):
                        self.adam.step()
                        self.average.update_parameters(self.accelerator.unwrap_model(self.model))
                        self.bad_in_a_row = 0
                    else:
                        self.bad_steps, self.bad_in_a_row = self.bad_steps + 1, self.bad_in_a_row + 1
                    self.adam.zero_grad()
            self.log.count(len(batch.first), batch.skipped)
        self.step_count += 1
        names = ("total", "structure", "appearance", "identity", "distilled")
        means = dict(zip(names, self.accelerator.reduce(sums, "mean").tolist(), strict=True))
        found = means | {"gradient_norm": norm.item(), "learning_rate": learning_rate}
        if not self.config.distill:
            del found["distilled"]
        self.log.add(found)
        return found

    def losses(self, batch: Batch) -> tuple[Losses, Tensor]:
        """Splice's losses of a batch, and the weighted distillation terms; see `PairLosses`."""
        with self.accelerator.autocast():
            return self.pair_losses(self.model, batch, self.step_count)

    # -- judging and keeping ------------------------------------------------------------------------------------

    @torch.no_grad()
    def paint(self, first: Tensor, second: Tensor) -> Tensor:
        """The averaged generator's output: layouts (B, 3, S, S) of `first` with the looks of `second`."""
        with self.accelerator.autocast():
            (structure, _), (appearance, _) = map(self.pair_losses.encode_images, (first, second))
            return self.average.module(first, structure.structure_features, appearance.cls, appearance.patches).float()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Losses of the averaged generator on the held-out pairs, whole and without augmentation.

        Returns:
            Total, structure, appearance and identity; `copy`: the total of the structure image itself; and
            `gap_left`: total / copy.
        """
        loss = self.pair_losses.at(self.config.optimizer.steps)
        sums = torch.zeros(6, device=self.device)
        for first, second in self.data.validation():
            with self.accelerator.autocast():
                structure, appearance = loss.targets(first, second)
                found = loss(self.paint(first, second), structure, appearance, self.paint(second, second))
                copy = loss(first, structure, appearance)
            terms = (found.total, found.structure, found.appearance, found.identity, copy.total)
            sums += torch.stack([*(t.float() for t in terms), sums.new_ones(())]) * len(first)
        *terms, count = self.accelerator.reduce(sums, "sum").tolist()
        names = ("total", "structure", "appearance", "identity", "copy")
        means = {name: term / count for name, term in zip(names, terms, strict=True)}
        return means | {"gap_left": means["total"] / max(means["copy"], 1e-12)}

    def _validate_and_keep_best(self) -> None:
        if not self.data.has_validation:
            return
        found = self.validate()
        self.log.write_validation(self.step_count, found)
        if found["total"] < self.best_total:
            self.best_total = found["total"]
            self.save_model(self.config.output / "best", found)

    def _sample(self) -> None:
        """An image: structure, appearance and output of the first held-out pairs, a row each."""
        if self.data.has_validation and self.accelerator.is_main_process:
            first, second = next(self.data.validation())
            rows = picture_grid(first[:6], second[:6], self.paint(first[:6], second[:6]))
            self.log.picture(self.step_count, rows)

    def save_model(self, folder: Path, validation: dict[str, float] | None = None) -> None:
        """Write the averaged generator as `SpliceFF.from_pretrained` reads it."""
        if not self.accelerator.is_main_process:
            return
        config = self.config
        facts = {
            "steps": self.step_count,
            "directed pairs seen": 2 * self.step_count * self.data.pairs_a_step,
            "size of their images": f"{config.data.size} px",
            "started from": str(config.generator.start_from or "random weights"),
            "data": {
                "source": str(config.data.source),
                "split": config.data.split,
                "labels": config.data.labels or "all",
                "pairs": config.data.pairs.model_dump(),
            },
            "loss": {
                "weights": {k: getattr(config.loss, k) for k in ("structure", "appearance", "identity")},
                **{f"held-out {k}": v for k, v in (validation or {}).items()},
            },
        }
        model = SpliceFF(
            self.average.module,
            self.original_backbone,
            vit_size=self.config.loss.vit_size,
            size=self.config.data.size,
            card=facts,
        )
        model.save_pretrained(folder)

    # -- stopping and resuming ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Counters, for accelerate's checkpoint."""
        return {k: getattr(self, k) for k in ("step_count", "bad_steps", "bad_in_a_row", "best_total")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        for key, value in state.items():
            setattr(self, key, value)

    def _resume(self) -> None:
        checkpoint = newest_checkpoint(self.config.output)
        if checkpoint is None:
            return
        file, now = self.config.output / CONFIG, self.config.model_dump(mode="json")
        try:
            settings = yaml.safe_load(file.read_text(encoding="utf-8"))
            before = {section: settings[section] for section in FIXED}
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
            raise InputError(
                f"{file}: missing or damaged, and it says what the checkpoints beside it are of; put it back, or "
                "choose another output"
            ) from error
        for section in FIXED:
            if before[section] != now[section]:
                raise InputError(f"{self.config.output}: holds a run with another {section} ({before[section]})")
        self.accelerator.load_state(str(checkpoint))
        self.log.say(f"going on from step {self.step_count} ({checkpoint})")

    def _write_config(self) -> None:
        if self.accelerator.is_main_process:
            text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
            atomic_write(self.config.output / CONFIG, lambda file: file.write_text(text, encoding="utf-8"))

    def _is_due(self, every: int) -> bool:
        return self.step_count % every == 0 or self.step_count == self.config.optimizer.steps

    def _bar(self) -> tqdm:  # type: ignore[type-arg]
        hidden = self.quiet or not self.accelerator.is_main_process
        return progress_bar(self.config.optimizer.steps, "step", hidden, self.step_count)


def learning_rate_at(step: int, settings: OptimizerConfig) -> float:
    """Linear warm-up to the configured rate, then half a cosine to 0 at the last step."""
    warmup = settings.warmup_steps
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, settings.steps - warmup)))


def _ramped_average(decay: float) -> Any:
    """Moving average over fewer steps at first: the initial weights should not linger."""

    @torch.no_grad()
    def average(averaged: Any, current: Any, count: Tensor) -> None:
        steps = int(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + steps) / (10 + steps)))

    return average
