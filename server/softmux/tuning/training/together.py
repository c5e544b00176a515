"""Jobs of one base, trained at once: in which precision, kept where, resumed from what."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from softmux.archives import cache_dir
from softmux.tuning.bases.base import Base, tensor_cores
from softmux.tuning.bases.head_base import HeadBase
from softmux.tuning.frozen.decoder import prove
from softmux.tuning.frozen.encoder import FrozenEncoder, prove_encoder
from softmux.tuning.frozen.encoder_decoder import frozen_over
from softmux.tuning.frozen.module import FrozenModule
from softmux.tuning.recipes.recipe import Train
from softmux.tuning.training.checkpoint import Checkpoint, run_digest
from softmux.tuning.training.job import Finished, Job
from softmux.tuning.training.many import Trainer, Watch


@dataclass(frozen=True, slots=True)
class Together:
    """How a run of many tasks is run. `at_once`: so many tasks are in together, the others wait; `tokens` go through
    the base in one forward (None: what fits); `save_every` so many steps it is saved in `kept`, 0 for never; `fresh`:
    what was saved is not gone on from; `checkpointing`: layers are computed again in the backward, for memory."""

    at_once: int = 64
    tokens: int | None = None
    save_every: int = 50
    kept: Path | None = None
    fresh: bool = False
    checkpointing: bool = False
    tensorboard: Path | None = None

    def trainer(self, base: FrozenModule) -> Trainer:
        return Trainer(base, tokens=self.tokens, at_once=self.at_once)

    def checkpoint(self, trainer: Trainer, jobs: Sequence[Job]) -> Checkpoint:
        folder = self.kept or cache_dir() / "tuning"
        return Checkpoint(folder / f"{run_digest(jobs, trainer, self.tokens)[:32]}.safetensors", self.save_every)


def precision(base: Base | HeadBase, how: Train) -> torch.dtype:
    """bfloat16 where the recipe says so, or, of tasks that generate, on a GPU where it says nothing."""
    on = how.bfloat16 if how.bfloat16 is not None else base.device.type == "cuda" and isinstance(base, Base)
    return torch.bfloat16 if on else torch.float32


def train_together(
    base: Base | HeadBase,
    jobs: Sequence[Job],
    dtype: torch.dtype,
    together: Together,
    watch: Watch,
    console: Console,
    teacher: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[list[Finished], Checkpoint]:
    """What became of each job, in the jobs' order, and the checkpoint of the run: remove it when all is written.
    `teacher`: as `FrozenBase` has it, of a teacher on another base."""
    trainer = together.trainer(_proved(base, dtype, together.checkpointing, teacher))
    checkpoint = together.checkpoint(trainer, jobs)
    if together.fresh:
        checkpoint.remove()
    reached = checkpoint.resume(trainer, jobs)
    if reached is not None:
        console.print(f"going on from step {reached}, where an earlier run was saved")
    with tensor_cores():
        trainer.run(watch, lambda: checkpoint.after_step(trainer))
    if together.save_every:
        checkpoint.save(trainer)
    by_name = {ended.name: ended for ended in trainer.finished}
    return [by_name[job.name] for job in jobs], checkpoint


def _proved(
    base: Base | HeadBase,
    dtype: torch.dtype,
    checkpointing: bool,
    teacher: Callable[[torch.Tensor], torch.Tensor] | None,
) -> FrozenModule:
    """The base, run over packed rows and seen to be right."""
    model = base.model if dtype == torch.float32 else copy.deepcopy(base.model).to(dtype)
    if isinstance(base, HeadBase):
        encoder = FrozenEncoder(model, checkpointing=checkpointing)
        prove_encoder(encoder, base.vocab_size)
        return encoder
    frozen = frozen_over(base, model, checkpointing=checkpointing, teacher=teacher)
    prove(frozen, base.vocab_size)
    return frozen
