"""Formats side by side, on a tiny base and a task whose answers it was made to know."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from softmux.bench.device.formats import load_tasks, main
from softmux.errors import InvalidRequest
from support.learned import prompt_files
from support.tiny_llama import tiny_llama

RECIPE = """task = "{task}"
[data]
source = "file"
path = "rows.csv"
[method]
kind = "prompt_tuning"
virtual_tokens = 3
[train]
steps = 1
learning_rate = 1.0
[evaluate]
metric = "exact"
max_tokens = 5
"""


def test_memory_throughput_and_the_tasks_figures_are_told_of_each_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, tokenizer = tiny_llama(tmp_path / "base", hidden_size=64, intermediate_size=128, num_key_value_heads=4)
    vectors = torch.randn((3, 64))
    for task in ("known", "unknown"):
        folder = tmp_path / "adapters" / task
        folder.mkdir(parents=True)
        (folder / "recipe.toml").write_text(RECIPE.format(task=task))
        for name, data in prompt_files(vectors).items():
            (folder / name).write_bytes(data)
        with (folder / "rows.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["prompt", "answer"])
            for number in range(60):
                text = f"row {number}"
                writer.writerow([text, answered(base, tokenizer, vectors, text) if task == "known" else f"no {number}"])
    counts = {task.recipe.task: len(task.rows) for task in load_tasks(tmp_path / "adapters", 4)}
    assert counts == {"known": 4, "unknown": 4}
    assert [task.recipe.task for task in load_tasks(tmp_path / "adapters", 4, names=["known"])] == ["known"]
    with pytest.raises(InvalidRequest, match="no adapter with a recipe called absent; it holds known, unknown"):
        load_tasks(tmp_path / "adapters", 4, names=["known", "absent"])

    elsewhere = tmp_path / "adapters" / "elsewhere"
    shutil.copytree(tmp_path / "adapters" / "known", elsewhere)
    (elsewhere / "recipe.toml").write_text(RECIPE.format(task="elsewhere"))
    for name, data in prompt_files(torch.randn((3, 48))).items():  # of a base of another width
        (elsewhere / name).write_bytes(data)
    main(["--model", str(tmp_path / "base"), "--adapters", str(tmp_path / "adapters"), "--rows", "4"])
    left, head, *lines = capsys.readouterr().out.splitlines()
    assert left == "left out, as they do not generate on this base: elsewhere"
    assert head == "held-out rows: known 4, unknown 4"
    assert [line.split(":")[0] for line in lines] == ["auto", "int8", "nf4"]
    assert "known 1.000, unknown 0.000" in lines[0]
    assert all("tokens/s" in line and "unknown 0.000" in line for line in lines)
    sizes_told = [float(line.split(": ")[1].split(" MB")[0]) for line in lines]
    assert sizes_told == sorted(sizes_told, reverse=True)


@torch.inference_mode()
def answered(base: LlamaForCausalLM, tokenizer: object, vectors: torch.Tensor, text: str) -> str:
    """What the base says behind the vectors, greedily."""
    ids = tokenizer(text, return_tensors="pt").input_ids  # type: ignore[operator]
    said = []
    for _ in range(5):
        given = torch.cat([vectors, base.get_input_embeddings()(ids[0])])[None]
        said.append(int(base(inputs_embeds=given).logits[0, -1].argmax()))
        ids = torch.cat([ids, torch.tensor([[said[-1]]])], 1)
        if said[-1] == base.config.eos_token_id:
            said.pop()
            break
    return str(tokenizer.decode(said))  # type: ignore[attr-defined]
