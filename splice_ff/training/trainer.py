"""Training the amortized generator on many pairs, through accelerate: one device or many."""

from __future__ import annotations

import copy
import hashlib
import math
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from splice_ff.errors import InputError
from splice_ff.losses.splice import Losses, compare
from splice_ff.networks.amortized import AmortizedGenerator, GeneratorConfig
from splice_ff.networks.cross_attention_unet import SIZES
from splice_ff.one_shot.pipeline import SpliceFF
from splice_ff.training.batches import Batch, TrainingData
from splice_ff.training.checkpoints import checkpoint_steps
from splice_ff.training.config import TrainingConfig
from splice_ff.training.kernel import KernelDistance
from splice_ff.training.losses import PairLosses
from splice_ff.training.realism import Realism, load_realism_network
from splice_ff.training.runtime import CONFIG, TrainingLoop, make_accelerator, own_folder
from splice_ff.utils.averaging import move_average, ramped_decay
from splice_ff.utils.console import noted_signals
from splice_ff.utils.files import check_place
from splice_ff.vit.weights import load_backbone

FIXED = ("generator", "backbone", "seed")
"""Settings that cannot change when a run goes on."""
LEAST_COPY_LOSS = 1e-3
"""A ratio to copying means something only where copying costs more."""


class Trainer:
    """One training run; `run()` takes it to its end.

    Args:
        config: what to train.
        accelerator: devices, processes and precision; made from the config if omitted.
        quiet: no progress bar and no messages.

    Raises:
        InputError: data, backbone, weights, trackers or an output folder that cannot be used.
    """

    def __init__(self, config: TrainingConfig, accelerator: Accelerator | None = None, quiet: bool = False) -> None:
        self.config = config
        check_place(config.output / CONFIG)
        run, optimizer = config.run, config.optimizer
        self.accelerator = accelerator or make_accelerator(
            run.precision, run.trackers, config.output, optimizer.gradient_accumulation_steps
        )
        self.device = self.accelerator.device
        set_seed(config.seed)

        self.original_backbone = load_backbone(config.backbone.name, config.backbone.weights).to(self.device)
        is_mixed = self.accelerator.mixed_precision == "bf16"
        self.backbone = self.original_backbone.with_matmuls_in(torch.bfloat16) if is_mixed else self.original_backbone
        self.generator = self._make_generator().to(self.device)
        self.generator.unet.checkpointing = run.gradient_checkpointing
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        """The moving average of the generator's weights, which is what is judged and kept."""
        if run.compile:
            self.generator.compile()
            self.backbone.compile()

        network = load_realism_network(config.loss, self.device)
        self.realism = self.kernel = None
        if network and config.loss.terms.get("realism"):
            self.realism = Realism(network.channels, self.backbone.width, self.accelerator)
        if network and config.loss.terms.get("kernel"):
            self.kernel = KernelDistance(network.channels).to(self.device)
        self.data = TrainingData(config, self.accelerator, quiet)
        adam = torch.optim.AdamW(
            self.generator.parameters(), betas=(0.9, 0.99), weight_decay=optimizer.weight_decay, fused=True
        )
        modules: dict[str, nn.Module] = {"model": self.generator, "average": self.average}
        if self.realism:
            modules["discriminator"] = self.realism.discriminator
        if self.kernel:
            modules["kernel"] = self.kernel
        self.loop = TrainingLoop(
            config.output, self.accelerator, modules, adam, optimizer, run,
            unit="pairs", checkpoint_every=run.checkpoint_every, quiet=quiet,
            circumstances={} if config.data.streaming else {"images": len(self.data.pairs)},  # type: ignore[arg-type]
            other_optimizers={"discriminator_optimizer": self.realism.adam.optimizer} if self.realism else {},
        )  # fmt: skip
        self.loop.log.skipped_images = self.data.unreadable
        self.pair_losses = PairLosses(config, self.generator, self.backbone, network, self.realism, self.kernel)
        self.was_interrupted = False
        """Whether ctrl-C ended the run; SIGTERM, as schedulers send it, is an ordinary end."""

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
            InputError: the output folder is another run's, damaged, or takes no files.
            DivergedError: too many steps in a row had useless gradients; the last good state is kept.
        """
        config, loop, run = self.config, self.loop, self.config.run
        settings, is_started = config.model_dump(mode="json"), bool(checkpoint_steps(config.output))
        with own_folder(
            self.accelerator, config.output, settings, fixed=FIXED, is_started=is_started, say=loop.say
        ), noted_signals() as noted:  # fmt: skip
            loop.resume()
            batches = self.data.batches(loop.progress.seen)
            try:
                for _ in loop.steps(noted):
                    self.step(batches)
                    if loop.is_due(run.validate_every):
                        self._validate_and_keep_best()
                    if loop.is_due(run.sample_every):
                        self._sample()
                self.save_model(config.output / "model")
            finally:
                loop.log.close()
        self.was_interrupted = signal.SIGINT in noted

    def step(self, batches: Iterator[Batch]) -> dict[str, float]:
        """One update of the weights, from `gradient_accumulation_steps` batches.

        Returns:
            This process's losses, means over the batches.
        """
        loop, optimizer = self.loop, self.config.optimizer
        loop.set_learning_rate()
        means: dict[str, Tensor] = {}
        pairs = skipped = 0
        for _ in range(optimizer.gradient_accumulation_steps):
            with loop.log.waiting():
                batch = next(batches)
            with self.accelerator.accumulate(loop.model, *([self.realism.model] if self.realism else [])):
                losses, terms = self.losses(batch)
                total = losses.total + sum(terms.values())
                self.accelerator.backward(total)
                values = {"total": total, "structure": losses.structure, "appearance": losses.appearance}
                values |= {"identity": losses.identity, **terms}
                if self.accelerator.sync_gradients and loop.clip_gradients(total):
                    loop.adam.step()
                    updates = loop.step_count + 1 - loop.progress.skipped_steps
                    move_average(self.average, self.generator, ramped_decay(optimizer.ema_decay, updates))
                if self.realism:
                    values["discriminator"] = self.realism.step()
                for name, value in values.items():
                    share = value.detach().float() / optimizer.gradient_accumulation_steps
                    means[name] = means[name] + share if name in means else share
            pairs, skipped = pairs + len(batch.first), skipped + batch.skipped
        loop.end_step(means, pairs, skipped)
        return dict(zip(means, torch.stack([*means.values()]).tolist(), strict=True))

    def losses(self, batch: Batch) -> tuple[Losses, dict[str, Tensor]]:
        """Splice's losses of a batch, and the weighted terms by name; see `PairLosses`."""
        with self.accelerator.autocast():
            return self.pair_losses(self.loop.model, batch, self.loop.step_count)

    # -- judging and keeping ------------------------------------------------------------------------------------

    @torch.no_grad()
    def paint(self, first: Tensor, second: Tensor) -> Tensor:
        """The averaged generator's output: layouts (B, 3, S, S) of `first` with the looks of `second`."""
        with self.accelerator.autocast():
            (structure, _), (appearance, _) = map(self.pair_losses.encode_images, (first, second))
            return self.average(first, structure.structure_features, appearance.cls, appearance.patches).float()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Losses of the averaged generator on the held-out pairs, whole and without augmentation.

        Returns:
            Total, structure, appearance and identity; `copy`, the total of the structure image itself; and `gap_left`,
            total / copy, where copying costs anything. Empty if no pair is of two different images.
        """
        losses, sums = self.pair_losses, torch.zeros(6, device=self.device)
        weights = losses.weights(self.config.optimizer.steps)
        for first, second in self.data.validation():
            with self.accelerator.autocast():
                outputs = (self.paint(first, second), self.paint(second, second))
                structure, appearance, *seen = losses.encode(first, second, *outputs)
                made = compare(weights, seen, structure, appearance)
                copied = compare(weights, [structure], structure, appearance)
            terms = (made.total, made.structure, made.appearance, made.identity, copied.total)
            sums += torch.stack([*(t.float() for t in terms), sums.new_ones(())]) * len(first)
        *terms, count = self.accelerator.reduce(sums, "sum").tolist()
        if not count:
            return {}
        names = ("total", "structure", "appearance", "identity", "copy")
        means = {name: term / count for name, term in zip(names, terms, strict=True)}
        return means | ({"gap_left": means["total"] / means["copy"]} if means["copy"] > LEAST_COPY_LOSS else {})

    def _validate_and_keep_best(self) -> None:
        loop = self.loop
        if not self.data.has_validation or not loop.is_sane:
            return
        losses = self.validate()
        if not losses:
            loop.say("no held-out pair is of two different images: nothing to judge by")
            return
        loop.log.put(loop.step_count, "validation", losses)
        ratio = f", {losses['gap_left']:.2f} times that of copying" if "gap_left" in losses else ""
        loop.say(f"step {loop.step_count}: held-out total {losses['total']:.4f}{ratio}")
        measured, before = self._measured_by(), loop.progress.results
        if before and measured not in before:
            loop.say("note: what best is chosen by has changed; it is chosen anew")
        if losses["total"] < before.get(measured, math.inf):
            loop.progress.results = {measured: losses["total"]}
            self.save_model(self.config.output / "best", losses)

    def _measured_by(self) -> str:
        """Tells held-out totals that can be compared from those of other weights, sizes or images."""
        data, weights = self.config.data, self.pair_losses.weights(self.config.optimizer.steps)
        images = (data.source, data.held_out, data.labels, data.size, self.config.run.validation_pairs)
        settings = repr((weights, self.config.loss.vit_size, images))
        return f"best total, {hashlib.sha256(settings.encode()).hexdigest()[:16]}"

    def _sample(self) -> None:
        """An image: structure, appearance and output of the first held-out pairs, a row each."""
        if not self.data.has_validation or not self.accelerator.is_main_process:
            return
        for first, second in islice(self.data.validation(), 1):
            painted = self.paint(first[:6], second[:6])
            if painted.isfinite().all():
                self.loop.log.samples(self.loop.step_count, first[:6], second[:6], painted)

    def save_model(self, folder: Path, held_out: dict[str, float] | None = None) -> None:
        """Write the averaged generator, with facts for its card, as `SpliceFF.from_pretrained` reads it."""
        if not self.accelerator.is_main_process:
            return
        data, loss = self.config.data, self.config.loss
        facts = {
            "steps": self.loop.step_count,
            "directed pairs seen": 2 * self.loop.progress.seen,
            "size of their images": f"{data.size} px",
            "started from": str(self.config.generator.start_from or "random weights"),
            "data": {
                "source": data.source,
                "split": data.split,
                "labels": data.labels or "all",
                "pairs": data.pairs.model_dump(),
            },
            "loss": {
                "weights": {name: getattr(loss, name) for name in ("structure", "appearance", "identity")} | loss.terms,
                **({"realism_network": loss.realism_network} if {"realism", "kernel"} & loss.terms.keys() else {}),
                **{f"held-out {name}": value for name, value in (held_out or {}).items()},
            },
        }
        model = SpliceFF(
            self.average, self.original_backbone, vit_size=loss.vit_size, size=data.size, card=facts
        )  # fmt: skip
        model.save_pretrained(folder)
