"""Short texts over many tasks on an encoder: softmux's mixed steps against transformers' padded pipeline, task by task.

`softmux bench encoders --model DIR` makes P-tuning v2 adapters with heads at random, sends the same texts to
both in turn, compares the scores, and prints texts a second. Both tokenize within the time that is measured (softmux as
its server does: by the library itself, beside the engine), and both run in the same dtype: float32 on a CPU, bfloat16
on a GPU where nothing else is said. On a GPU a step has up to 8192 tokens, as `softmux serve --max-step-tokens 8192`
has them.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from tokenizers import Tokenizer

from softmux.engine.engine import Engine, pick_device, pick_dtype
from softmux.formats.folder import load_folder, read_adapter
from softmux.scheduler.radix import RootKey
from softmux.settings import Settings
from softmux.types import DEFAULT_TENANT

_WORDS = ("the", "a", "film", "was", "dull", "gripping", "long", "short", "ending", "plot", "cast", "great", "poor")
_BATCH = 32
_GPU_STEP_TOKENS = 8192
_BLOCK = 64
"""Texts that are tokenized while those before are queued."""


def make_texts(count: int, longest: int) -> list[str]:
    """Half of them have fewer words than a quarter of the longest."""
    draw = random.Random(0)  # noqa: S311
    return [" ".join(draw.choices(_WORDS, k=1 + int(longest * draw.random() ** 2))) for _ in range(count)]


def make_tasks(model: str, count: int, virtual: int, folder: Path) -> Any:
    """PEFT's model with a random adapter for each task, saved under `folder/task-N`."""
    import peft

    torch.manual_seed(0)
    base = tf.AutoModelForSequenceClassification.from_pretrained(model, num_labels=4, dtype=torch.float32).eval()
    tuned: Any = None
    for number in range(count):
        config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=virtual)
        name = f"task-{number}"
        if tuned is None:
            tuned = peft.get_peft_model(base, config, adapter_name=name)
        else:
            tuned.add_adapter(name, config)
        torch.nn.init.normal_(tuned.prompt_encoder[name].embedding.weight, std=0.5)
    tuned.save_pretrained(folder)
    for number in range(count):
        labels = {"labels": [f"label {i}" for i in range(4)]}
        (folder / f"task-{number}" / "softmux.json").write_text(json.dumps(labels))
    return tuned.eval()


class Softmux:
    """An engine with every task in host memory."""

    def __init__(
        self, model: str, tasks: int, folder: Path, tokenizer: Any, device: str, dtype: str, step_tokens: int
    ) -> None:
        def from_nowhere(key: RootKey) -> dict[str, bytes]:
            raise LookupError(f"{key} is in no store")

        given = {"model": model, "device": device, "dtype": dtype, "max_step_tokens": step_tokens}
        self._engine = Engine(Settings.model_validate(given), from_nowhere)
        self._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._beside = ThreadPoolExecutor(1)
        self._roots: list[RootKey] = []
        for number in range(tasks):
            adapter = read_adapter(load_folder(folder / f"task-{number}"), self._engine.spec)
            self._lead = tuple(-1 - i for i in range(adapter.manifest.virtual_tokens))
            root = self._engine.key(DEFAULT_TENANT, adapter.manifest.digest)
            self._engine.adopt(root, adapter.parts)
            self._roots.append(root)

    def scores(self, texts: list[str]) -> np.ndarray[Any, Any]:
        """`[texts, labels]`; text i is task i mod tasks'."""
        found: dict[str, bytes] = {}
        blocks = [texts[at : at + _BLOCK] for at in range(0, len(texts), _BLOCK)]
        encoded = itertools.chain.from_iterable(self._beside.map(self._tokenizer.encode_batch, blocks))
        for number, encoding in enumerate(encoded):
            root = self._roots[number % len(self._roots)]
            self._engine.read(
                str(number), (*self._lead, *encoding.ids), root=root, now=0.0, head="sequence", trained_prefix=True
            )
        while len(found) < len(texts):
            for sequence, output in self._engine.step().each():
                found[sequence.id] = output.scores
        return np.stack([np.frombuffer(found[str(number)], np.float32) for number in range(len(texts))])

    def close(self) -> None:
        self._beside.shutdown()
        self._engine.close()


def pipeline_scores(tuned: Any, tokenizer: Any, tasks: int, texts: list[str], device: str) -> np.ndarray[Any, Any]:
    """transformers' own pipeline, padded batches of one task after the other."""
    scores = np.empty((len(texts), 4), np.float32)
    for number in range(tasks):
        tuned.set_adapter(f"task-{number}")
        classify = tf.pipeline(
            "text-classification", model=tuned, tokenizer=tokenizer, device=device, top_k=None,
            function_to_apply="none", batch_size=_BATCH,
        )  # fmt: skip
        for at, labels in zip(range(number, len(texts), tasks), classify(texts[number::tasks]), strict=True):
            for label in labels:
                scores[at, int(label["label"].rpartition("_")[2])] = label["score"]
    return scores


@dataclass(frozen=True, slots=True)
class Run:
    """`seconds` on the clock; `cpu` seconds of this process on all its threads, which other load changes little."""

    seconds: float
    cpu: float
    scores: np.ndarray[Any, Any]


def timed(run: Callable[[], np.ndarray[Any, Any]]) -> Run:
    began, worked = time.perf_counter(), time.process_time()
    scores = run()
    return Run(time.perf_counter() - began, time.process_time() - worked, scores)


def main(arguments: Sequence[str]) -> None:
    options = argparse.ArgumentParser(prog="softmux bench encoders", description=__doc__)
    options.add_argument("--model", required=True)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    options.add_argument("--texts", type=int, default=512)
    options.add_argument("--tasks", type=int, default=16)
    options.add_argument("--virtual", type=int, default=16)
    options.add_argument("--longest", type=int, default=48)
    options.add_argument("--step-tokens", type=int, help="the server's --max-step-tokens; 8192 on a GPU")
    options.add_argument("--runs", type=int, default=3)
    given = options.parse_args(arguments)
    device = pick_device(given.device)
    dtype = pick_dtype(given.dtype, device)
    usual = _GPU_STEP_TOKENS if device.type == "cuda" else Settings(model=given.model).max_step_tokens
    step_tokens = given.step_tokens or usual
    tf.logging.set_verbosity_error()
    texts = make_texts(given.texts, given.longest)
    tokenizer = tf.AutoTokenizer.from_pretrained(given.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tuned = make_tasks(given.model, given.tasks, given.virtual, folder)
        softmux = Softmux(given.model, given.tasks, folder, tokenizer, given.device, given.dtype, step_tokens)
        tuned.to(given.device, dtype)
        gc.collect()
        gc.freeze()  # as the server's worker does: what was loaded is walked by no collection while either side runs
        turns = [
            (
                timed(lambda: softmux.scores(texts)),
                timed(lambda: pipeline_scores(tuned, tokenizer, given.tasks, texts, given.device)),
            )
            for _ in range(1 + given.runs)
        ][1:]  # the first is not counted
        softmux.close()
        gc.unfreeze()
    ours, theirs = (min((turn[side] for turn in turns), key=lambda run: run.seconds) for side in (0, 1))
    told = {
        "texts": len(texts),
        "tasks": given.tasks,
        "tokens": sum(map(len, tokenizer(texts)["input_ids"])),
        "device": given.device,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "step_tokens": step_tokens,
        "softmux_texts_per_second": round(len(texts) / ours.seconds, 1),
        "pipeline_texts_per_second": round(len(texts) / theirs.seconds, 1),
        "ratio": round(theirs.seconds / ours.seconds, 2),
        "ratios": [round(theirs.seconds / ours.seconds, 2) for ours, theirs in turns],
        "cpu_ratios": [round(theirs.cpu / ours.cpu, 2) for ours, theirs in turns],
        "largest_difference": float(np.abs(ours.scores - theirs.scores).max()),
    }
    sys.stdout.write(json.dumps(told, indent=1) + "\n")
