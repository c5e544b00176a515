"""The benches of a GPU, on a CPU over tiny random bases: they end, and tell what they were asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from softmux.bench import cartridges, checkpoint, encoders, heads, prefill
from softmux.bench.gpu import Bench, Workload, main
from softmux.bench.random_base import SHAPES
from softmux.bench.random_tasks import random_lora
from softmux.bench.rates import product_rate
from softmux.errors import InvalidRequest
from support.tokenizers_made import byte_level, save

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"num_key_value_heads": 1, "vocab_size": 512}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", SMALL)
    monkeypatch.setitem(main.__globals__["WORKLOADS"], "W4", Workload(3, 2, 6, 4))
    monkeypatch.setitem(main.__globals__, "copy_rate", lambda device: 1e9)


def words(text: str) -> list[str]:
    return text.split()


def told(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], dict[str, object]]:
    *lines, last = capsys.readouterr().out.splitlines()
    return lines, json.loads(last)


def test_steps_and_workloads_of_every_contender_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    main(words("--shape tiny --device cpu --rows 4 --context 34 --works W4 --repeats 1 --tasks 5 --loras 2"))
    lines, found = told(capsys)
    assert lines[2].startswith("   1 rows: step ")
    kinds = ["bare", "5 soft prompts", "5 tasks of four methods", "2 LoRAs of rank 8"]
    assert [line.removeprefix("W4 ").split(":")[0] for line in lines[3:]] == kinds
    assert "100.0% of bare" in lines[3]
    rates = found["W4"]
    assert isinstance(rates, dict)
    assert all(len(rates[kind]) == 1 and min(rates[kind]) > 0 for kind in kinds)


def test_a_prefill_counts_each_weight_once_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    assert prefill.main(words("--shape tiny --device cpu --rows 2 --tokens 5 --repeats 1 --side 16")) == 0
    (line,), found = told(capsys)
    hidden, inner, layers = 32, 48, 2
    body = layers * (hidden * (hidden + 16 + 16 + hidden) + 3 * hidden * inner)
    assert found["product_operations"] == 2 * 2 * (5 * body + hidden * 512)
    assert found["attention_operations"] == 4 * 2 * 15 * layers * hidden
    assert "2 prompts of 5" in line


def test_a_cartridge_is_told_beside_as_long_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    asked = words("--shape tiny --device cpu --tokens 6 50 --own 3 --repeats 2")
    assert cartridges.main(asked) == 0
    lines, found = told(capsys)
    assert [line.split(" tokens")[0] for line in lines] == ["CPU, tiny, 6", "CPU, tiny, 50"]
    seconds = found["seconds"]
    assert isinstance(seconds, dict)
    assert all([len(times) for times in of.values()] == [2, 2, 2] for of in seconds.values())


def test_a_lora_of_a_module_that_is_not_there_is_refused() -> None:
    bench = Bench("tiny", 2, tasks=1, device="cpu")
    assert len(random_lora(bench.engine.spec, 0, 4, ("q_proj", "v_proj")).layers) == 4
    with pytest.raises(ValueError, match="no module k"):
        random_lora(bench.engine.spec, 0, 4, ("k",))
    bench.engine.close()


def test_a_products_rate_is_of_the_device() -> None:
    assert product_rate(torch.device("cpu"), torch.float32, 16) > 0


def test_a_checkpoint_of_a_shape_serves_and_one_like_an_encoder_classifies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, BertConfig

    like = tmp_path / "like"
    save(byte_level(), like)
    assert checkpoint.main([str(tmp_path / "decoder"), "--shape", "tiny", "--tokenizer", str(like)]) == 0
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "decoder")
    assert made.config.hidden_size == 32
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertConfig(vocab_size=512, **sizes, architectures=["BertModel"], pad_token_id=0).save_pretrained(like)
    assert checkpoint.main([str(tmp_path / "encoder"), "--like", str(like)]) == 0
    capsys.readouterr()
    asked = f"--model {tmp_path / 'encoder'} --device cpu --texts 6 --tasks 2 --virtual 3 --longest 4 --runs 1"
    encoders.main([*words(asked), "--dtype", "float32"])
    found = json.loads(capsys.readouterr().out)
    assert found["dtype"] == "float32"
    assert found["largest_difference"] < 1e-4
    assert np.isfinite(found["ratio"])
    with pytest.raises(InvalidRequest, match="holds no tokenizer"):
        checkpoint.main([str(tmp_path / "none"), "--shape", "tiny", "--tokenizer", str(tmp_path)])


def test_heads_of_their_own_are_told_beside_a_shared_one(capsys: pytest.CaptureFixture[str]) -> None:
    heads.main(words("--shape tiny --rows 4 --tokens 3 --runs 1"))
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 4
    assert found["own_of_shared"] > 0
