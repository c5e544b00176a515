"""Where a run of many tasks stands, as one file that is there whole or not at all: after a kill it goes on from there.

The file is named by everything that decides the run (rows, starts, recipes, base, device), so that only the same run
finds it. It holds tensors and JSON, nothing that is executed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from softmux.tuning.data.rows import HeadRow
from softmux.tuning.training.cohort import Adam
from softmux.tuning.training.job import Finished, Job
from softmux.tuning.training.many import Trainer
from softmux.tuning.training.trainer import Trained

FORMAT = "3"
_KEPT = 16
"""Numbers of each parameter that are looked at as they are."""


def run_digest(jobs: Sequence[Job], trainer: Trainer, tokens: int | None) -> str:
    """Names a run by all that decides what it computes. `tokens` were asked for at once: where none were, they are what
    the device had room for when the run began, and the file says how many."""
    said = hashlib.sha256()
    said.update(repr((FORMAT, torch.__version__, str(trainer.base.device), tokens, trainer.at_once)).encode())
    said.update(repr((trainer.base.model.config.to_json_string(), trainer.base.dtype)).encode())
    said.update(sample(trainer.base.model))
    for job in jobs:
        said.update(repr((job.name, job.how.model_dump(), job.prefix, job.start.shape, job.measures_start)).encode())
        for name, value in (*job.start.values().items(), *job.start.fixed().items()):
            said.update(name.encode() + value.float().cpu().numpy().tobytes())
        for row in (*job.rows, *job.validation):
            said.update(repr((row.ids, row.answer)).encode())
            said.update(b"" if isinstance(row, HeadRow) or row.taught is None else row.taught.tobytes())
    return said.hexdigest()


def sample(model: torch.nn.Module) -> bytes:
    """Of every parameter the sum of its bits, and some of its numbers: two fine-tunes of one checkpoint differ in it,
    wherever they do. Bits are summed as whole numbers of 8 bytes, which come to the same in whatever order a device
    adds them, and are read where they lie; all that is found leaves the device at once."""
    names, sums, kept = [], [], []
    for name, parameter in model.named_parameters():
        names.append(f"{name} {tuple(parameter.shape)}")
        flat = parameter.detach().reshape(-1)
        each = 8 // flat.element_size()
        even = flat[: len(flat) - len(flat) % each]
        even = even.clone() if even.storage_offset() % each else even
        sums.append(even.view(torch.int64).sum())
        kept += [flat[:: max(1, len(flat) // _KEPT)][:_KEPT], flat[len(even) :]]
    return repr(names).encode() + b"".join(
        found.contiguous().view(torch.uint8).cpu().numpy().tobytes() for found in (torch.stack(sums), torch.cat(kept))
    )


class Checkpoint:
    """`path` is the file; `every` how many steps of the whole lie between two of them, 0 for never."""

    def __init__(self, path: Path, every: int) -> None:
        self.path = path
        self.every = every
        self._steps = 0

    def after_step(self, trainer: Trainer) -> None:
        self._steps += 1
        if self.every and self._steps % self.every == 0:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        tensors: dict[str, torch.Tensor] = {}
        active = []
        for number, member in enumerate(trainer.active):
            index = trainer.index(member)
            adam = member.cohort.member_adam(index)
            kinds = {"value": member.cohort.member(index), "first": adam.first, "second": adam.second}
            for kind, values in (kinds | {"best": member.best}).items():
                tensors |= {f"active.{number}.{kind}.{i}": value.cpu() for i, value in enumerate(values)}
            active.append({"name": member.job.name, "steps": adam.steps[0], **asdict(member.trained())})
        finished = []
        for number, gone in enumerate(trainer.finished):
            tensors |= {f"finished.{number}.{name}": value.cpu() for name, value in gone.values.items()}
            finished.append({"name": gone.name, "error": gone.error, **asdict(gone.trained)})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_suffix(".writing")
        said = json.dumps({"tokens": trainer.tokens, "active": active, "finished": finished})
        save_file({name: value.contiguous() for name, value in tensors.items()}, scratch, {"softmux": said})
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, self.path)

    def resume(self, trainer: Trainer, jobs: Sequence[Job]) -> int | None:
        """Puts `jobs` into `trainer` as they stood, which packs as many tokens as before. The step that the furthest
        had reached; None where there is nothing to go on from, and all begin anew. A file that can't be read is no
        reason to fail."""
        by_name = {job.name: job for job in jobs}
        try:
            with safe_open(self.path, "pt") as file:
                said = json.loads(file.metadata()["softmux"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (FileNotFoundError, SafetensorError, OSError, KeyError, TypeError, ValueError):
            said = {"tokens": trainer.tokens, "active": [], "finished": []}
        trainer.tokens = int(said["tokens"])
        for number, gone in enumerate(said["finished"]):
            head = f"finished.{number}."
            values = {name.removeprefix(head): value for name, value in tensors.items() if name.startswith(head)}
            trainer.finished.append(Finished(gone["name"], _trained(gone), values, gone["error"]))
        for number, was in enumerate(said["active"]):
            kinds = [
                [tensors[f"active.{number}.{kind}.{i}"] for i in range(_count(tensors, f"active.{number}.{kind}."))]
                for kind in ("value", "first", "second", "best")
            ]
            member = trainer.enter(by_name[was["name"]], kinds[0], Adam(kinds[1], kinds[2], [was["steps"]]))
            trained = _trained(was)
            member.losses, member.validations = list(trained.losses), list(trained.validations)
            member.exact = list(trained.exact)
            member.best_step, member.best_loss = trained.best_step, trained.best_loss
            member.best = [value.to(trainer.base.device) for value in kinds[3]]
            for _ in range(member.step):
                next(member.draws)
        seen = {entry["name"] for entry in (*said["finished"], *said["active"])}
        for job in jobs:
            if job.name not in seen:
                trainer.add(job)
        return max((len(entry["losses"]) for entry in (*said["active"], *said["finished"])), default=None)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _count(tensors: dict[str, torch.Tensor], head: str) -> int:
    return sum(name.startswith(head) for name in tensors)


def _trained(entry: dict[str, Any]) -> Trained:
    return Trained(
        tuple(entry["losses"]),
        tuple((int(step), float(loss)) for step, loss in entry["validations"]),
        entry["best_step"],
        float(entry["best_loss"]),
        tuple(entry["exact"]),
    )
