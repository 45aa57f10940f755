"""The loop.

    pretrain -> StageRun.fit -> StageRun.step -> run_schedule [megatron] -> forward_step -> Qwen3VL.forward

A step: next packs -> counts and the normaliser, agreed by all ranks -> forward and backward -> update or, for a
non-finite loss or gradient, nothing at all -> figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_qwen3vl.batch import Batch, Pack, collate
from megatron_qwen3vl.config.schema import RunConfig
from megatron_qwen3vl.data.quarantine import Quarantine, Quarantined, failed_documents, left_out_samples, lost_parts
from megatron_qwen3vl.errors import RunFailed, Stopped, UserError
from megatron_qwen3vl.parallel.device import Device
from megatron_qwen3vl.parallel.groups import Groups, gather_objects
from megatron_qwen3vl.train import figures
from megatron_qwen3vl.train.assemble import StageParts
from megatron_qwen3vl.train.chain import sections
from megatron_qwen3vl.train.clock import StepClock, peak_memory
from megatron_qwen3vl.train.disk import Disk
from megatron_qwen3vl.train.forward import Report, run_schedule
from megatron_qwen3vl.train.gradients import GradientCheck
from megatron_qwen3vl.train.optimizer import learning_rate, set_learning_rate, step_optimizer
from megatron_qwen3vl.train.progress import Display, StageSummary
from megatron_qwen3vl.train.records import Records
from megatron_qwen3vl.train.routing import aux_loss, expert_load
from megatron_qwen3vl.train.saving import Saver
from megatron_qwen3vl.train.stop import StopSignal
from megatron_qwen3vl.train.validation import Validation


@dataclass
class Progress:
    """What a checkpoint remembers beside tensors and the loader's state."""

    step: int = 0
    total_steps: int = 0
    samples: int = 0
    failed: int = 0
    quarantine: dict | None = None
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    checked: list[str] = field(default_factory=list)
    first_loss: float | None = None
    last_loss: float | None = None


@dataclass(frozen=True)
class Origin:
    """Where a stage stands when it begins: its progress, and what the stages before it agreed on."""

    progress: Progress
    sections: dict | None


class StageRun:
    """One stage of one job: its model, optimizer, loader, and the loop over its steps."""

    def __init__(
        self,
        config: RunConfig,
        stage: str,
        parts: StageParts,
        origin: Origin,
        groups: Groups,
        device: Device,
        records: Records,
        stop: StopSignal,
        validation: Validation,
    ) -> None:
        self.config, self.name, self.stage = config, stage, config.stages[stage]
        self.parts, self.progress = parts, origin.progress
        self.groups, self.device, self.records, self.stop = groups, device, records, stop
        self.sections = sections(config, stage, parts.tokenizer.fingerprint, origin.sections)
        self.validation = validation
        self.saver = Saver(groups, Disk(), config.checkpoint.keep)
        self.clock = StepClock()
        visible = groups.is_writer and config.log.progress
        self.quarantine = Quarantine(config.data.max_bad_rate, self.progress.quarantine)
        self.display = Display(stage, self.progress.step, self.stage.num_steps, enabled=visible)

    def fit(self) -> StageSummary:
        """Run to the stage's last step. Raises Stopped after saving when a signal asked for it."""
        self._say_what_changed()
        try:
            while self.progress.step < self.stage.num_steps:
                row, stop = self.step()
                self.display.step(row)
                last = self.progress.step == self.stage.num_steps
                self._validate(last)
                if last or stop or self.progress.step % self.config.checkpoint.every == 0:
                    self.save()
                if stop:
                    self.saver.wait()
                    raise Stopped(f"stopped by a signal after saving {self.name} step {self.progress.step}")
            self.saver.wait()
        except RunFailed:  # every rank raises it at the same step, so that they can still meet
            self.saver.wait()
            raise
        finally:
            self.display.close()
            self.parts.feed.close()
            self.saver.close()
        return self.summary()

    def _say_what_changed(self) -> None:
        """What differs from the checkpoint's mixture, and, once, what of the shards cannot be read."""
        about = self.parts.feed.about
        for sentence in about.changes:
            self.display.say(f"{self.name}: {sentence}")
        for source, damage in about.damage.items():
            for line in damage:
                self.display.say(f"{self.name}: source {source}: {line}")
            if self.progress.step == 0:
                self.records.bad(lost_parts(source, damage, self.name, 0))

    def step(self) -> tuple[dict, bool]:
        """One optimizer step -> (its metrics row, whether a signal asked to stop)."""
        self.clock.begin()
        progress, loss_config = self.progress, self.config.loss
        number = progress.step + 1
        rate = learning_rate(self.stage.optimizer, number, self.stage.num_steps)
        set_learning_rate(self.parts.optimizer, rate)
        data = self.parts.feed.next()
        self.clock.end("data")
        counts = figures.count(data.packs, loss_config.exponent, self.groups, self.device.device)
        check = self._gradient_check(counts)
        report = Report()
        if counts.normaliser > 0:
            self.parts.zero_gradients()
            report = run_schedule(self.parts.chunks, self._batches(data.packs), counts.normaliser, self.groups.dp_size)
        losses = figures.gather_losses(
            report,
            self.parts.feed.about.domains,
            loss_config.exponent,
            max(counts.normaliser, 1e-300),
            self.stop.requested,
            self.saver.ready,
            self.groups,
            self.device.device,
        )
        self.clock.end("model")  # its losses have been read: the device is done with them
        grad_norm = self._update(check, counts, losses, data.keys)
        self.clock.end("optimizer")
        progress.step, progress.total_steps = number, progress.total_steps + 1
        loss = losses.loss if counts.normaliser > 0 else None
        self._remember(counts, loss)
        wall_clock = self.clock.figures()
        text = self.config.model.text_config
        row = {
            "stage": self.name,
            "step": number,
            "loss": _finite(loss),
            "token_loss": _finite(losses.token_loss) if counts.loss_tokens else None,
            "aux_loss": aux_loss(text, num_batches=len(data.packs) // self.stage.micro_batch_size),
            "expert_load": expert_load(self.parts.chunks, text, self.groups),
            "grad_norm": _finite(grad_norm),
            "learning_rate": rate,
            "samples": counts.samples,
            "failed_samples": counts.failed,
            "left_out": len(data.left_out),
            "tokens": counts.tokens,
            "loss_tokens": counts.loss_tokens,
            "images": counts.images,
            "patches": counts.patches,
            "vision_balance": losses.vision_balance,
            "padding_fraction": counts.padding / (counts.padding + counts.tokens),
            "skipped": progress.skipped_in_a_row > 0,
            "domains": losses.domains,
            "sources": dict(data.source_tokens),
            "epochs": dict(data.epochs),
            **wall_clock,
            "memory_bytes": peak_memory(self.device),
        }
        progress.tokens += counts.tokens
        progress.seconds += wall_clock["seconds"]
        failed = self._failed(data.packs, counts)
        left_out = left_out_samples(data.left_out, self.name, number)
        self.records.step(row, data.keys, [*failed, *left_out], progress.total_steps)
        if losses.saved:
            with self.clock.saving():
                self.saver.advance()
        self._judge(counts, failed)
        return row, losses.stop

    def _gradient_check(self, counts: figures.Counts) -> GradientCheck | None:
        """Invariant 1: the first step checks the language model, the first step with a picture ViT and mergers."""
        if counts.normaliser <= 0:
            return None
        within_sight = set(self.stage.trainable) if counts.images else set(self.stage.trainable) & {"language"}
        due = within_sight - set(self.progress.checked)
        return GradientCheck(self.parts.chunks, due) if due else None

    def _batches(self, packs: Sequence[Pack]) -> list[Batch]:
        size = self.stage.micro_batch_size
        return [
            collate(packs[start : start + size], self.config.loss.exponent, self.device.device)
            for start in range(0, len(packs), size)
        ]

    def _update(
        self,
        check: GradientCheck | None,
        counts: figures.Counts,
        losses: figures.Losses,
        keys: Callable[[], Sequence[str]],
    ) -> float | None:
        """Apply the gradients, or nothing: a non-finite loss or gradient never reaches weights or moments."""
        if counts.normaliser <= 0:
            self._skip("no sample of the global batch has a label", keys)
            return None
        if check is not None:
            self._require(check)
        finite = math.isfinite(losses.loss)
        result = step_optimizer(self.parts.optimizer, self.groups, apply=finite)
        if result.skipped:
            what = "gradient" if finite else "loss"
            self._skip(f"the {what} is not finite", keys)
        else:
            self.progress.skipped_in_a_row = 0
        return result.grad_norm

    def _require(self, check: GradientCheck) -> None:
        problems = check.finish()
        self.progress.checked = sorted({*self.progress.checked, *check.modules})
        everywhere = sorted({problem for rank in gather_objects(problems) for problem in rank})
        if everywhere:
            raise RunFailed("the gradient check of the first step failed: " + "; ".join(everywhere[:20]))

    def _skip(self, reason: str, keys: Callable[[], Sequence[str]]) -> None:
        self.progress.skipped += 1
        self.progress.skipped_in_a_row += 1
        self.records.skipped(self.name, self.progress.step + 1, reason, keys)
        step = self.progress.step + 1
        self.display.say(f"{self.name} step {step}: skipped, {reason} (skipped.jsonl names the samples)")
        if self.progress.skipped_in_a_row > self.config.guard.max_skipped_steps:
            raise RunFailed(
                f"{self.progress.skipped_in_a_row} steps in a row were skipped ({reason}); "
                f"guard.max_skipped_steps={self.config.guard.max_skipped_steps}; "
                f"{self.config.run.dir}/skipped.jsonl names their samples"
            )

    def _remember(self, counts: figures.Counts, loss: float | None) -> None:
        progress = self.progress
        progress.samples += counts.samples
        progress.failed += counts.failed
        if progress.first_loss is None:
            progress.first_loss = _finite(loss)
        progress.last_loss = _finite(loss)

    def _failed(self, packs: Sequence[Pack], counts: figures.Counts) -> list[Quarantined]:
        """The failed samples of the global batch; a collective only where there is one."""
        if counts.failed == 0:
            return []
        documents = [document for pack in packs for document in pack.documents]
        # Ranks of one model-parallel group hold the same packs: one of them speaks.
        speaks = self.groups.tp_rank == self.groups.cp_rank == self.groups.pp_rank == 0
        own = failed_documents(documents, self.name, self.progress.step) if speaks else []
        return sorted((sample for rank in gather_objects(own) for sample in rank), key=lambda sample: sample.key)

    def _judge(self, counts: figures.Counts, failed: Sequence[Quarantined]) -> None:
        try:
            self.quarantine.add(counts.samples, failed)
        except UserError:  # on every rank
            self.saver.wait()
            raise
        self.progress.quarantine = self.quarantine.state()

    def _validate(self, last: bool) -> None:
        if not self.validation.due(self.progress.step, last):
            return
        row = {"stage": self.name, "step": self.progress.step, **self.validation.run()}
        self.records.validation(row, self.progress.total_steps)
        with_labels = [(name, values["loss"]) for name, values in row["domains"].items() if values["loss"] is not None]
        listed = ", ".join(f"{name} {loss:.4f}" for name, loss in [("all", row["loss"]), *with_labels] if with_labels)
        self.display.say(f"{self.name} step {self.progress.step}: held-out loss: {listed or 'no labels'}")

    def save(self) -> Path:
        """Begin to write ``checkpoints/<stage>/step_<8 digits>``, complete or absent."""
        root = Path(self.config.run.dir) / "checkpoints" / self.name
        state = {
            "stage": self.name,
            "sections": self.sections,
            "dtype": self.config.dtype,
            "progress": vars(self.progress),
            "step": self.progress.step,
            "total_steps": self.progress.total_steps,
            "loader": self.parts.feed.state(),
            "files": self.records.lengths(),
        }
        folder = root / f"step_{self.progress.step:08d}"
        parts = self.parts
        with self.clock.saving():
            self.saver.save(folder, parts.chunks, parts.optimizer, state, parts.side_files, flush=self.records.sync)
            if not self.config.checkpoint.asynchronous:
                self.saver.wait()
        return folder

    def summary(self) -> StageSummary:
        progress = self.progress
        return StageSummary(
            stage=self.name,
            steps=progress.step,
            sequence_length=self.stage.sequence_length,
            tokens=progress.tokens,
            first_loss=progress.first_loss,
            last_loss=progress.last_loss,
            seconds=progress.seconds,
            skipped=progress.skipped,
            failed_samples=progress.failed,
        )


def _finite(value: float | None) -> float | None:
    """JSON has no infinity: a figure that is not finite is written as null, and the step says it was skipped."""
    return value if value is not None and math.isfinite(value) else None


