"""The benches of a GPU, on a CPU over tiny random bases: they end, and tell what they were asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from softmux.bench.__main__ import main as bench
from softmux.bench.bases import checkpoint
from softmux.bench.bases.random_base import SHAPES
from softmux.bench.bases.random_tasks import Task, random_lora
from softmux.bench.command import command
from softmux.bench.device import cartridges, heads, mixed_steps, prefill, products
from softmux.bench.device.gpu import Bench, Workload, main
from softmux.bench.device.rates import product_rate
from softmux.bench.peers import encoders
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


def test_steps_into_which_prompts_come_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed_steps, "_CASES", ((0, 1, 4), (0, 2, 3), (5, 1, 3)))
    monkeypatch.setattr(mixed_steps, "_CONTEXT", 6)
    assert mixed_steps.main(words("--shape tiny --device cpu --rows 6 --repeats 2 --steps 3")) == 0
    (first, *lines), found = told(capsys)
    assert first.endswith("graphs False")
    assert [line.split(": ")[0] for line in lines] == [
        "   0 rows,  1 prompts of   4 a step",
        "   0 rows,  2 prompts of   3 a step",
    ]
    assert all(line.endswith("; 0 replays") for line in lines)
    cases = found["cases"]
    assert isinstance(cases, list)
    assert all(len(case["seconds"]["without"]) == 3 and min(case["seconds"]["without"]) > 0 for case in cases)
    with pytest.raises(SystemExit):
        mixed_steps.main(["--steps", "0"])


def test_a_prefill_counts_each_weight_once_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    assert prefill.main(words("--shape tiny --device cpu --rows 2 --tokens 5 --repeats 1 --side 16")) == 0
    (line,), found = told(capsys)
    hidden, inner, layers = 32, 48, 2
    body = layers * (hidden * (hidden + 16 + 16 + hidden) + 3 * hidden * inner)
    assert found["product_operations"] == 2 * 2 * (5 * body + hidden * 512)
    assert found["attention_operations"] == 4 * 2 * 15 * layers * hidden
    assert "2 prompts of 5" in line


def test_a_prefill_says_where_the_time_goes(capsys: pytest.CaptureFixture[str]) -> None:
    asked = words("--shape tiny --device cpu --rows 2 --tokens 5 --repeats 1 --side 16 --profile")
    assert prefill.main(asked) == 0
    (*kernels, total, _), _ = told(capsys)
    times = [float(line.split()[0]) for line in kernels]
    assert len(kernels) == 16
    assert times == sorted(times, reverse=True)
    assert any("aten::" in line or "mkldnn" in line for line in kernels)
    assert float(total.split()[0]) >= sum(times) - 0.01


def test_a_steps_products_are_told_by_row_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert products.main(words("--shape tiny --device cpu --rows 1,3")) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    names = [name for name in ("qkv", "output", "gate-up", "down", "head") for _ in range(2)]
    assert [line.split()[2] for line in lines[:-2]] == names
    assert lines[2].split()[3:6] == ["32", "x", "32"]  # the tests' tiny shape
    assert all(float(line.split(" us ")[0].split()[-1]) > 0 for line in lines[:-2])
    assert [line.split()[0] for line in lines[-2:]] == ["1", "3"]
    for rows in ("x", "0", ""):
        with pytest.raises(SystemExit):
            products.main(["--shape", "tiny", "--device", "cpu", "--rows", rows])
    assert "with commas between" in capsys.readouterr().err


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
    with pytest.raises(InvalidRequest, match=r"no module k or v\. It has down_proj, gate_proj, k_proj, "):
        random_lora(bench.engine.spec, 0, 4, ("q_proj", "k", "v"))
    bench.engine.close()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("--context 30", "--context: is above 30"),
        ("--loras 1 --modules q_proj nope", "modules: The base has no module nope. It has "),
        ("--loras -1", "--loras: is the number of LoRAs"),
        ("--repeats 0", "--repeats: is at least 1"),
    ],
)
def test_what_can_not_be_measured_is_refused_before_anything_is(
    asked: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(main, words(f"--shape tiny --device cpu --rows 1 --context 34 --works W4 --tasks 1 {asked}")) == 2
    told = capsys.readouterr()
    assert said in " ".join(told.err.split())
    assert "rows: step" not in told.out


def test_a_cartridges_ids_are_laid_out_before_the_clock_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("tiny", 2, tasks=1, device="cpu")
    clock = [0.0]

    class Slow(Task):
        def around(self, ids: tuple[int, ...]) -> tuple[int, ...]:
            clock[0] += 1.0
            return super().around(ids)

    monkeypatch.setattr(cartridges, "time", SimpleNamespace(perf_counter=lambda: clock[0] + 1e-9 * bench.engine.steps))
    assert 0 < cartridges.first_token(bench.engine, Slow(bench.bare.root), (5, 6, 7)) < 1
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


class Places:
    """Folders named in a command: `like` a model's whole one, `named` with a tokenizer's settings alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save(byte_level(), folder / "like")
        LlamaConfig(**SMALL, architectures=["LlamaForCausalLM"]).save_pretrained(folder / "like")
        (folder / "like" / "model.safetensors").write_bytes(b"trained")
        (folder / "named").mkdir()
        (folder / "named" / "tokenizer_config.json").write_text("{}")
        shutil.copytree(folder / "named", folder / "broken")
        (folder / "broken" / "tokenizer.json").write_text("{")
        (folder / "broken" / "config.json").write_text("{")
        (folder / "file").touch()

    def asked(self, words: str) -> list[str]:
        return [str(self.folder / word[1:]) if word.startswith("@") else word for word in words.split()]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return Places(tmp_path_factory.mktemp("places"))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("@like --like @like", "@like is what the checkpoint is made after"),
        ("@like/../like --shape tiny --tokenizer @like", "@like/../like is what the checkpoint is made after"),
        ("@named --like @like", "@named already holds tokenizer_config.json, and nothing is written over"),
        ("@file --like @like", "@file can not be written to"),
        ("@new --shape tiny --tokenizer @named", "@named holds no tokenizer"),
        ("@new --shape tiny --tokenizer @nowhere", "@nowhere holds no tokenizer"),
        ("@new --shape tiny --tokenizer @broken", "@broken holds no tokenizer that loads"),
        ("@new --like @nowhere", "@nowhere holds no config.json"),
        ("@new --like @broken", "@broken/config.json can not be read"),
        ("@new --shape least --tokenizer @like", "ids, the model a vocabulary of 100"),
    ],
)
def test_a_checkpoint_that_can_not_be_made_is_refused_and_writes_nothing(
    asked: str, said: str, places: Places, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SHAPES, "least", SMALL | {"vocab_size": 100})
    assert command(checkpoint.main, places.asked(asked)) == 2
    told = "".join(capsys.readouterr().err.split())
    assert "".join(said.replace("@", f"{places.folder}/").split()) in told
    assert (places.folder / "like" / "model.safetensors").read_bytes() == b"trained"
    assert not (places.folder / "new").exists()


def test_a_checkpoint_takes_all_of_the_tokenizer_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(byte_level(), tmp_path / "from")
    beside = ("tokenizer.model", "spiece.model", "chat_template.jinja")
    for name in beside:
        (tmp_path / "from" / name).write_text(name)
    assert checkpoint.main([str(tmp_path / "to"), "--shape", "tiny", "--tokenizer", str(tmp_path / "from")]) == 0
    assert all((tmp_path / "to" / name).read_text() == name for name in beside)


def test_a_bench_says_what_it_refuses_in_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert bench(["checkpoint", str(tmp_path / "new"), "--like", str(tmp_path)]) == 2
    assert "holds no config.json" in " ".join(capsys.readouterr().err.split())


def test_heads_of_their_own_are_told_beside_a_shared_one(capsys: pytest.CaptureFixture[str]) -> None:
    heads.main(words("--shape tiny --rows 4 --tokens 3 --runs 1"))
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 4
    assert found["own_of_shared"] > 0
