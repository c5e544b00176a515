"""From a CSV to a served answer: rows are written as a user has them, and one command of a user's makes a served task.

`softmux bench from-csv` starts a server, writes movie review snippets and their sentiment as `rows.csv` with a recipe
beside it, and times `softmux tune recipe.toml --publish` and the first answer of the task that it publishes.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import torch

from softmux.bench.peers.service import Server
from softmux.demo import demo_model
from softmux.engine.engine import pick_device
from softmux.tuning.sources import SOURCES

RECIPE = """\
task = "mood"
base = {base}
labels = [" positive", " negative"]

[data]
source = "file"
path = "rows.csv"
prompt = "text"
answer = "label"

[method]
kind = "prompt_tuning"
virtual_tokens = 16
init_text = "Is this movie review positive or negative? Answer with one word. Review:"

[train]
steps = {steps}
batch_rows = {batch_rows}
learning_rate = 2e-2
warmup_steps = 20
validate_every = 40
validation_rows = 64

[evaluate]
metric = "exact"
max_tokens = 3
bare = false
"""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="softmux bench from-csv", description=__doc__)
    parser.add_argument("--model", help="the base, served and tuned on; default: the demo's")
    parser.add_argument("--rows", type=int, help="of the CSV; default: all 10,043")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch-rows", type=int, default=8)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the server")
    said = parser.parse_args(arguments)
    if said.rows is not None and said.rows < 1:
        parser.error("--rows is 1 at least")
    device = pick_device(said.device).type
    model = said.model or str(demo_model())
    with tempfile.TemporaryDirectory() as scratch, Server(
        model, None, Path(scratch) / "data", said.threads, device=device
    ) as server:  # fmt: skip
        recipe = written(Path(scratch), model, said)
        started = time.perf_counter()
        command = [sys.executable, "-m", "softmux.cli", "tune", str(recipe), "--out", str(Path(scratch) / "out")]
        command += ["--device", device, "--no-report", "--fresh", "--publish", "--url", server.url]
        ended = subprocess.run(command, check=False)  # noqa: S603
        tuned = time.perf_counter() - started
        if ended.returncode:
            return ended.returncode
        reply = httpx.post(
            f"{server.url}/v1/generate", params={"task": "mood"}, timeout=60,
            json={"prompt": "A gorgeous, witty, seductive movie.", "max_tokens": 3},
        )  # fmt: skip
        asked = time.perf_counter() - started
        reply.raise_for_status()
        answer = reply.json()["choices"][0]["text"]
    sys.stdout.write(
        f"from rows.csv to the answer {answer!r}: {asked:.1f} s on {device}, of which {asked - tuned:.2f} s after "
        f"`softmux tune --publish`; {said.steps} steps of {said.batch_rows} rows\n"
    )
    return 0


def written(folder: Path, model: str, said: argparse.Namespace) -> Path:
    """Writes `rows.csv` and the recipe into `folder`; the recipe's path."""
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        examples = SOURCES["movie-sentiment"].load()
        rows = min(said.rows or len(examples), len(examples))
        few = [examples[i * len(examples) // rows] for i in range(rows)]  # of the whole file, whose order is not random
        table.writerows([example.text, example.answer] for example in few)
    path = folder / "recipe.toml"
    words = RECIPE.format(base=json.dumps(model), steps=said.steps, batch_rows=said.batch_rows)
    path.write_text(words, encoding="utf-8")
    return path
