"""What training many tasks at once is worth: tasks an hour beside PEFT with the Hugging Face trainer, and beside this
trainer one task at a time; the share of the card's matrix rate; memory; and whether gradients are the task's own.

Random weights of known shapes and made-up rows of mixed lengths, so nothing is downloaded: `softmux bench tuning`. Each
part is a process with a time limit of its own, and writes its figures to a file as it goes (`--out`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from softmux.bench.bases.random_base import SHAPES as GPU_SHAPES
from softmux.bench.training.peft_training import collated
from softmux.tuning.bases.base import Base
from softmux.tuning.data.rows import Row
from softmux.tuning.frozen.decoder import FrozenBase
from softmux.tuning.learned.methods import begin, lent, start_of
from softmux.tuning.recipes.recipe import Lora, PrefixTuning, PromptTuning, PTuning, Train
from softmux.tuning.training.cohort import Start
from softmux.tuning.training.job import Active, Job
from softmux.tuning.training.many import Trainer

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": GPU_SHAPES["tiny"],
    "135m": {  # SmolLM2-135M
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "1b": GPU_SHAPES["1b"],
}
VECTORS = 20
ANSWER = 8
HOW = Train(steps=500, learning_rate=1e-2, batch_rows=16, validate_every=10_000, patience=10_000)
"""What a task an hour means: 500 steps of 16 rows. Validation is left out on both sides."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """`tasks` of `rows` rows a step, each of at most `tokens` tokens, learned ones and the answer included."""

    tasks: int
    rows: int
    tokens: int
    steps: int


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="softmux bench tuning", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of: " + ", ".join(PARTS))
    parser.add_argument("--shapes", default="135m,1b", help="some of: " + ", ".join(SHAPES))
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--many", type=int, default=512, help="tasks of the part `many`")
    parser.add_argument("--rows", type=int, default=16, help="of a task, in a step")
    parser.add_argument("--tokens", type=int, default=128, help="of a row, at most")
    parser.add_argument("--steps", type=int, default=10, help="measured, after 3 that are not")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--timeout", type=int, default=120, help="seconds a part may take")
    parser.add_argument("--out", type=Path, help="a folder for each part's figures")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    said = parser.parse_args(arguments)
    console = Console(width=160)
    if said.part:
        return _part(said, console)
    found: dict[str, dict[str, Any]] = {}
    for part in said.parts.split(","):
        for shape in said.shapes.split(",") if part in BY_SHAPE else said.shapes.split(",")[:1]:
            found[f"{part} {shape}"] = _run_part(said, part, shape, console)
    for line in summary(found):
        console.print(line, markup=False, soft_wrap=True, highlight=False)
        if said.out:
            with (said.out / "summary.txt").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
    return 0


def _run_part(said: argparse.Namespace, part: str, shape: str, console: Console) -> dict[str, Any]:
    """A part as a process of its own; {} where it fails or takes too long, which is said."""
    options = [f"--{name}={getattr(said, name)}" for name in ("tasks", "many", "rows", "tokens", "steps", "device")]
    out = [f"--out={said.out}"] if said.out else []
    command = [sys.executable, "-m", "softmux.bench", "tuning", "--part", part, "--shapes", shape, *options, *out]
    console.print(f"[{part}, {shape}]", markup=False)
    started = time.monotonic()
    try:
        done = subprocess.run(  # noqa: S603 - our own arguments
            command, stdout=subprocess.PIPE, timeout=said.timeout, text=True, check=False, env=dict(os.environ)
        )
    except subprocess.TimeoutExpired:
        console.print(f"  stopped after {said.timeout} s")
        return {}
    console.print(
        f"  {done.stdout.strip()}  ({time.monotonic() - started:.0f} s)", markup=False, soft_wrap=True, highlight=False
    )
    if done.returncode:
        return {}
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def _part(said: argparse.Namespace, console: Console) -> int:
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if said.device == "auto" else said.device)
    sizes = Sizes(said.many if said.part == "many" else said.tasks, said.rows, said.tokens, said.steps)
    figures = PARTS[said.part](said.shapes, sizes, device)
    sys.stdout.write(json.dumps(figures) + "\n")
    if said.out:
        said.out.mkdir(parents=True, exist_ok=True)
        (said.out / f"{said.part}-{said.shapes}.txt").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def summary(found: dict[str, dict[str, Any]]) -> list[str]:
    """Each figure beside the one it is compared with."""
    lines = []
    for name, figures in found.items():
        part, shape = name.split()
        if part == "together" and figures:
            lines.append(
                f"{shape}: {figures['tasks_an_hour']:.0f} tasks an hour, {figures['step_ms']:.0f} ms a step of "
                f"{figures['tasks']} tasks, {figures['model_tflops']:.0f} TFLOP/s"
            )
            if rate := found.get(f"rate {shape}") or found.get(f"rate {next(iter(found)).split()[1]}"):
                lines.append(f"{shape}: {figures['model_tflops'] / rate['tflops']:.1%} of the measured bf16 rate")
            for other, words in (("peft", "PEFT and the Hugging Face trainer"), ("alone", "this trainer, one by one")):
                if beside := found.get(f"{other} {shape}"):
                    ratio = figures["tasks_an_hour"] / beside["tasks_an_hour"]
                    lines.append(f"{shape}: {ratio:.1f} x {words} ({beside['tasks_an_hour']:.0f} tasks an hour)")
        elif figures:
            lines.append(f"{shape}, {part}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    return lines


# --- what is measured -------------------------------------------------------------------------------------------------


def rate(_shape: str, _sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """A large product of random numbers in bfloat16: what the card can do."""
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = _timed(lambda: torch.mm(a, b), device, 10)
    return {"tflops": 2 * side**3 / seconds / 1e12}


def together(shape: str, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    return _own(shape, sizes, device, lambda base: _prompts(base, sizes))


def mixed(shape: str, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """The same with four methods by turns."""
    return _own(shape, sizes, device, lambda base: _of_all_methods(base, sizes))


def alone(shape: str, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """One task, with the same trainer."""
    one = Sizes(1, sizes.rows, sizes.tokens, 4 * sizes.steps)
    return _own(shape, one, device, lambda base: _prompts(base, one))


def many(shape: str, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """As many tasks as are asked, all in at once."""
    return _own(shape, Sizes(sizes.tasks, sizes.rows, sizes.tokens, 3), device, lambda base: _prompts(base, sizes))


def memory(shape: str, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """The peak of a step of all tasks beside that of one task with as many rows of the same lengths."""
    if device.type != "cuda":
        return {}
    base = _base(shape, device, torch.bfloat16)
    jobs = _prompts(base, sizes)
    pooled = [row for job in jobs for row in job.rows[: sizes.rows]]
    one = Job("one", jobs[0].start, pooled, pooled[:1], HOW.model_copy(update={"batch_rows": len(pooled)}))
    peaks = []
    for chosen in ([one], jobs):
        trainer = Trainer(FrozenBase(base.model), tokens=32768, at_once=len(chosen))
        for job in chosen:
            trainer.enter(job)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        with trainer.base.running():
            for _ in range(3):
                trainer.step()
        peaks.append(torch.cuda.max_memory_allocated() / 2**30)
        del trainer
    return {"one_gib": round(peaks[0], 3), "tasks_gib": round(peaks[1], 3), "ratio": round(peaks[1] / peaks[0], 4)}


def exact(shape: str, sizes: Sizes, device: torch.device, steps: int = 50) -> dict[str, Any]:
    """In float32: gradients alone and among the others, relative to each tensor's largest; losses over 50 steps."""
    torch.set_float32_matmul_precision("highest")
    base = _base(shape, device, torch.float32)
    frozen = FrozenBase(base.model)
    jobs = _of_all_methods(base, Sizes(sizes.tasks, sizes.rows, sizes.tokens, 1))
    among, chosen = _gradients(frozen, jobs), jobs[:: max(1, len(jobs) // 8)]
    worst = 0.0
    for job in chosen:
        for a, b in zip(_gradients(frozen, [job])[job.name], among[job.name], strict=True):
            worst = max(worst, float((a - b).abs().max() / a.abs().max()))
    few = jobs[:8]
    curves = [_losses(frozen, few, steps), {}]
    for job in few[:4]:
        curves[1] |= _losses(frozen, [job], steps)
    apart = max(abs(a - b) / b for name, own in curves[1].items() for a, b in zip(curves[0][name], own, strict=True))
    return {"gradients_apart": worst, "losses_apart": apart, "tasks": len(jobs), "tasks_compared": len(chosen)}


def peft(shape: str, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """One task by PEFT and `transformers.Trainer`, the base in bfloat16: a step's time without what comes before it."""
    from peft import PromptTuningConfig, get_peft_model
    from transformers import Trainer as HubTrainer
    from transformers import TrainerCallback, TrainingArguments

    base = _base(shape, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    model = get_peft_model(base.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VECTORS))
    rows = [{"ids": row.ids[VECTORS:], "answer": row.answer} for row in _rows(0, 256, sizes.tokens, base.vocab_size)]
    warm, counted = 5, 4 * sizes.steps
    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            if state.global_step in (warm, warm + counted):
                _wait(device)
                times.append(time.perf_counter())

    trainer = HubTrainer(
        model=model,
        args=TrainingArguments(
            output_dir="/tmp/softmux-bench",  # noqa: S108 - nothing is saved
            per_device_train_batch_size=sizes.rows,
            max_steps=warm + counted,
            learning_rate=HOW.learning_rate,
            lr_scheduler_type="linear",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=device.type == "cpu",
        ),
        train_dataset=rows,
        data_collator=collated,
        callbacks=[Clock()],
    )
    trainer.train()
    step = (times[1] - times[0]) / counted
    return {"step_ms": 1e3 * step, "tasks_an_hour": 3600 / (HOW.steps * step)}


# --- parts of it ------------------------------------------------------------------------------------------------------


def _own(shape: str, sizes: Sizes, device: torch.device, jobs: Callable[[Base], list[Job]]) -> dict[str, Any]:
    base = _base(shape, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    frozen = FrozenBase(base.model)
    trainer = Trainer(frozen, at_once=sizes.tasks)
    for job in jobs(base):
        trainer.enter(job)
    counted: list[int] = []
    with frozen.running():
        for _ in range(3):
            trainer.step()
        watched = _Counted(trainer, counted)
        _wait(device)
        started = time.perf_counter()
        for _ in range(sizes.steps):
            watched.step()
        _wait(device)
    step = (time.perf_counter() - started) / sizes.steps
    tokens = sum(counted) / sizes.steps
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return {
        "tasks": len(trainer.active),
        "step_ms": 1e3 * step,
        "tasks_an_hour": 3600 / (HOW.steps * step) * len(trainer.active),
        "tokens_a_step": tokens,
        "model_tflops": _flops(base, tokens, len(trainer.active) * sizes.rows) / step / 1e12,
        "attention": frozen.attention.name,
        "tokens_at_once": trainer.tokens,
        "peak_gib": round(peak, 2),
    }


class _Counted:
    """A trainer whose rows' tokens are counted."""

    def __init__(self, trainer: Trainer, counted: list[int]) -> None:
        self._trainer = trainer
        plain = trainer.gradients

        def gradients(rows: Any) -> torch.Tensor:
            counted.append(sum(row.length for own in rows for row in own))
            return plain(rows)

        trainer.gradients = gradients  # type: ignore[method-assign]

    def step(self) -> None:
        self._trainer.step()


def _flops(base: Base, tokens: float, rows: int) -> float:
    """Of the products with the frozen weights: forward, and the gradient of their input, 2 each a weight and token;
    the output layer at the answers alone. Attention's own are left out."""
    config = base.model.config
    embeddings = config.vocab_size * config.hidden_size
    everything = sum(parameter.numel() for parameter in base.model.parameters())
    inner = everything - embeddings * (1 if config.tie_word_embeddings else 2)
    return float(4 * (inner * tokens + embeddings * rows * ANSWER))


def _base(shape: str, device: torch.device, dtype: torch.dtype) -> Base:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=2048)
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, dtype=dtype)
    return Base(model.requires_grad_(False).eval(), None, shape, device, (2,))


def _rows(seed: int, count: int, tokens: int, vocabulary: int) -> list[Row]:
    """Inputs of mixed lengths behind the learned vectors; answers of `ANSWER` tokens."""
    draw = random.Random(seed)  # noqa: S311 - made-up rows
    most = tokens - VECTORS - ANSWER
    learned = [-1 - i for i in range(VECTORS)]
    return [
        Row(
            (*learned, *(draw.randrange(3, vocabulary) for _ in range(draw.randrange(min(8, most), most + 1)))),
            tuple(draw.randrange(3, vocabulary) for _ in range(ANSWER)),
        )
        for _ in range(count)
    ]


def _prompts(base: Base, sizes: Sizes) -> list[Job]:
    recipe = PromptTuning(kind="prompt_tuning", virtual_tokens=VECTORS)
    return [_job(base, recipe, number, sizes) for number in range(sizes.tasks)]


def _of_all_methods(base: Base, sizes: Sizes) -> list[Job]:
    recipes: list[Any] = [
        PromptTuning(kind="prompt_tuning", virtual_tokens=VECTORS),
        PTuning(kind="p_tuning", virtual_tokens=VECTORS, encoder_hidden_size=256),
        PrefixTuning(kind="prefix_tuning", virtual_tokens=VECTORS, projection=False),
        Lora(kind="lora", rank=8, alpha=16, target_modules=["q_proj", "v_proj"]),
    ]
    return [_job(base, recipes[number % len(recipes)], number, sizes) for number in range(sizes.tasks)]


def _job(base: Base, recipe: Any, number: int, sizes: Sizes) -> Job:
    torch.manual_seed(number)
    with lent(begin(recipe, base)) as learned:
        start = start_of(learned)
    rows = _rows(number, 4 * sizes.rows, sizes.tokens, base.vocab_size)
    if not learned.layout.virtual_tokens:
        rows = [Row(row.ids[VECTORS:], row.answer) for row in rows]
    how = HOW.model_copy(update={"seed": number, "batch_rows": sizes.rows})
    return Job(f"{number}", _apart(start), rows, rows[:1], how, learned.prefix)


def _apart(start: Start) -> Start:
    """Its second matrices not zero, so that all its numbers have gradients."""
    for _, b in start.low_rank.values():
        b.normal_(0, 0.02)
    return start


def _gradients(frozen: FrozenBase, jobs: Sequence[Job]) -> dict[str, list[torch.Tensor]]:
    trainer = Trainer(frozen, tokens=16384, at_once=len(jobs))
    active: list[Active] = [trainer.enter(job) for job in jobs]
    with frozen.running():
        trainer.gradients([member.next_rows() for member in active])
    return {
        member.job.name: [v.grad[trainer.index(member)] for v in member.cohort.values if v.grad is not None]
        for member in active
    }


def _losses(frozen: FrozenBase, jobs: Sequence[Job], steps: int) -> dict[str, list[float]]:
    trainer = Trainer(frozen, tokens=16384, at_once=len(jobs))
    active = [trainer.enter(job) for job in jobs]
    with frozen.running():
        for _ in range(steps):
            trainer.step()
    return {member.job.name: member.losses for member in active}


def _timed(act: Callable[[], object], device: torch.device, times: int) -> float:
    for _ in range(3):
        act()
    _wait(device)
    started = time.perf_counter()
    for _ in range(times):
        act()
    _wait(device)
    return (time.perf_counter() - started) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


PARTS: dict[str, Callable[[str, Sizes, torch.device], dict[str, Any]]] = {
    "rate": rate,
    "together": together,
    "alone": alone,
    "peft": peft,
    "memory": memory,
    "exact": exact,
    "many": many,
    "mixed": mixed,
}
BY_SHAPE = ("together", "alone", "peft")
"""Parts that are measured for every shape; the others for the first."""
