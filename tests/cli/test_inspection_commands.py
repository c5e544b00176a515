"""`inspect`, `compare-methods` and `fold` over real PEFT folders and tiny or weightless bases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from click.testing import Result
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from softmux.cli import app
from support import encoder_decoders, headed
from support.models import VOCABULARY, make_adapter, make_base


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def told(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.output))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("base")
    model = make_base("llama", folder)
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCABULARY)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    return model, folder


def saved(model: Any, config: Any, folder: Path) -> Path:
    tuned = peft.get_peft_model(model, config)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned.save_pretrained(folder)
    return folder


def test_a_prompt_is_told_with_what_it_costs(base: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = base
    make_adapter(model, "prompt_tuning", tmp_path)
    facts = told("inspect", str(tmp_path), "--model", str(folder))
    assert (facts["method"], facts["virtual_tokens"], facts["parameters"]) == ("prompt_tuning", 5, 240)
    assert (facts["bytes_float32"], facts["bytes_bfloat16"], facts["tokens_a_request"]) == (960, 480, 5)
    assert facts["kv_bytes_bfloat16"] == 5 * 3 * 2 * (2 * 12) * 2
    assert facts["share_of_base"] == 240 / sum(parameter.numel() for parameter in model.parameters())
    assert (facts["fits"], facts["served"], facts.get("why_not")) == (True, True, None)
    plain = run("inspect", str(tmp_path), "--model", str(folder)).output
    assert "acts_on" in plain
    assert "5 vectors of 48 numbers" in plain


def test_nearest_tokens_are_those_of_the_largest_cosine(base: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = base
    make_adapter(model, "prompt_tuning", tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    table = model.get_input_embeddings().weight.detach()
    weights["prompt_embeddings"][2] = 7 * table[41]
    safetensors.torch.save_file(weights, tmp_path / "adapter_model.safetensors")
    found = told("inspect", str(tmp_path), "--model", str(folder), "--nearest", "4")["nearest"]
    assert [row["vector"] for row in found] == list(range(5))
    assert (found[2]["tokens"][0]["id"], found[2]["tokens"][0]["text"]) == (41, "w41")
    assert found[2]["tokens"][0]["cosine"] == pytest.approx(1)
    cosines = torch.nn.functional.cosine_similarity(weights["prompt_embeddings"][0][None], table)
    best = cosines.topk(4)
    assert [token["id"] for token in found[0]["tokens"]] == best.indices.tolist()
    np.testing.assert_allclose([token["cosine"] for token in found[0]["tokens"]], best.values, atol=1e-6)
    assert "nearest" not in told("inspect", str(tmp_path), "--model", str(folder), "--nearest", "0")


def test_a_lora_is_told_and_its_base_asked(base: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = base
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, rank_pattern={"v_proj": 2}, trainable_token_indices=[3, 5])
    lora = saved(make_base("llama", tmp_path / "again"), config, tmp_path / "lora")
    alone = told("inspect", str(lora))
    assert alone["method"] == "lora"
    assert alone["acts_on"].endswith("6 linear layers (q_proj, v_proj), rank 2, 4")
    assert "rows of 2 tokens" in alone["acts_on"]
    assert (alone["tokens_a_request"], alone["kv_bytes_bfloat16"]) == (0, 0)
    assert alone["parameters"] == 2 * 48 + 3 * (4 * (48 + 48) + 2 * (48 + 24))
    assert (alone["share_of_base"], "fits" in alone) == (None, False)
    held = told("inspect", str(lora), "--model", str(folder))
    assert held["fits"] is True
    assert model.config.vocab_size == VOCABULARY


def test_another_base_is_told_with_why_not(tmp_path: Path) -> None:
    model = make_base("llama", tmp_path / "llama")
    make_base("gpt2", tmp_path / "gpt2")
    prefix = tmp_path / "prefix"
    make_adapter(model, "prefix_tuning", prefix)
    held = told("inspect", str(prefix), "--model", str(tmp_path / "gpt2"))
    assert (held["fits"], held["served"]) == (False, False)
    assert "train it on this base" in held["why_not"]
    assert held["kv_bytes_bfloat16"] == 4 * 3 * 2 * (2 * 12) * 2
    (prefix / "softmux.json").write_text(json.dumps({"base_fingerprint": "sha256:" + "0" * 64}))
    other = told("inspect", str(prefix), "--model", str(tmp_path / "llama"))
    assert other["fits"] is False
    assert "made for another base model" in other["why_not"]


def test_a_broken_folder_still_says_what_it_holds(base: tuple[Any, Path], tmp_path: Path) -> None:
    make_adapter(base[0], "prompt_tuning", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"num_virtual_tokens": 6}))
    facts = told("inspect", str(tmp_path))
    assert "its shape is [5, 48]" in facts["problem"]
    assert facts["tensors"] == {"prompt_embeddings": [5, 48]}


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_heads_are_told(task: str, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

    kind = BertForSequenceClassification if task == "SEQ_CLS" else BertForTokenClassification
    config = BertConfig(vocab_size=VOCABULARY, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
                        num_attention_heads=4, num_labels=3)  # fmt: skip
    saved(kind(config), peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=4), tmp_path / "head")
    (tmp_path / "head" / "softmux.json").write_text('{"labels": ["a", "b", "c"]}')
    facts = told("inspect", str(tmp_path / "head"))
    assert facts["method"] == "p_tuning_v2"
    assert "3 labels (single label classification)" in facts["acts_on"]
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["BertModel"]}))
    held = told("inspect", str(tmp_path / "head"), "--model", str(tmp_path / "base"))
    assert held["fits"] is True


def written(folder: Path, **fields: Any) -> Path:
    folder.mkdir()
    whole = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000} | fields
    (folder / "config.json").write_text(json.dumps(whole))
    return folder


SEVEN = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
SEVENTY = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
           "num_key_value_heads": 8}  # fmt: skip


def test_a_7b_costs_what_the_textbook_says(tmp_path: Path) -> None:
    facts = told("compare-methods", "--model", str(written(tmp_path / "7b", **SEVEN)))
    methods = {method["method"]: method for method in facts["methods"]}
    assert list(methods) == [
        "prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2", "lora", "qlora", "full_fine_tuning"
    ]  # fmt: skip
    parameters = {name: method["parameters"] for name, method in methods.items()}
    assert parameters["prompt_tuning"] == parameters["p_tuning"] == 20 * 4096 == 81_920
    assert parameters["prefix_tuning"] == 20 * 32 * 2 * 4096 == 5_242_880
    assert parameters["p_tuning_v2"] == 5_242_880 + 2 * 4096 + 2
    assert parameters["lora"] == parameters["qlora"] == 32 * 2 * 8 * (4096 + 4096) == 4_194_304
    assert parameters["full_fine_tuning"] == facts["base_parameters"] == 6_738_415_616
    assert {
        name: method["added_tokens"] for name, method in methods.items() if method["added_tokens"]
    } == dict.fromkeys(("prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2"), 20)
    assert methods["prompt_tuning"]["resident_bytes"] == 2 * (81_920 + 5_242_880)
    assert methods["prefix_tuning"]["resident_bytes"] == 2 * 5_242_880
    assert methods["prompt_tuning"]["base_bytes"] == 2 * 6_738_415_616
    assert 3.5e9 < methods["qlora"]["base_bytes"] < 4e9
    assert [line["use"] for line in facts["guide"]] == list(methods)
    assert all(line["when"] and line["because"] for line in facts["guide"])


def test_fifty_prompts_of_a_70b_are_33_megabytes(tmp_path: Path) -> None:
    folder = written(tmp_path / "70b", **SEVENTY)
    facts = told("compare-methods", "--model", str(folder))
    prompt = facts["methods"][0]
    assert prompt["bytes_float32"] == 20 * 8192 * 4 == 655_360
    assert prompt["all_tasks_bytes_float32"] == 50 * 655_360
    assert facts["methods"][2]["parameters"] == 20 * 80 * 2 * 1024, "its keys and values have 8 heads of 128"
    plain = run("compare-methods", "--model", str(folder))
    assert plain.exit_code == 0
    assert "32.8 MB" in plain.output
    assert "prompt_tuning: where" in plain.output
    more = told("compare-methods", "--model", str(folder), "--virtual-tokens", "100", "--rank", "16", "--tasks", "2")
    assert more["methods"][0]["parameters"] == 100 * 8192
    assert more["methods"][4]["parameters"] == 2 * facts["methods"][4]["parameters"]


def test_the_guide_knows_small_bases(tmp_path: Path) -> None:
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    guides = [
        told("compare-methods", "--model", str(written(tmp_path / name, **sizes)))["guide"][0]["when"]
        for name, sizes in (("small", small), ("large", SEVEN))
    ]
    assert "on a base this small" in guides[0]
    assert "the base is large" in guides[1]


@pytest.mark.parametrize(
    ("fields", "targets"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, "query, value"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "c_attn"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "q, v"),
        ({"model_type": "distilbert", "architectures": ["DistilBertForMaskedLM"]}, "q_lin, v_lin"),
        ({"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"]}, "Wqkv, rank"),
        ({"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}, "query_key_value"),
    ],
)
def test_other_families_are_compared_too(fields: dict[str, Any], targets: str, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    facts = told("compare-methods", "--model", str(folder))
    acts_on = {method["method"]: method["acts_on"] for method in facts["methods"]}
    assert acts_on["lora"].startswith(targets)
    takes_prefix = fields["model_type"] not in ("distilbert", "modernbert")
    assert ("prefix_tuning" in acts_on) == ("prefix_tuning" in {each["use"] for each in facts["guide"]}) == takes_prefix
    assert ("p_tuning_v2" in acts_on) == (takes_prefix and fields["model_type"] != "t5")


@pytest.mark.parametrize("method", ["prompt", "lora"])
@pytest.mark.parametrize("architecture", ["modernbert", "modernbert-mean"])
def test_a_modernberts_heads_are_told(architecture: str, method: str, tmp_path: Path) -> None:
    base = headed.make_base(architecture, tmp_path / "base")
    headed.tuned(base, architecture, "TOKEN_CLS", method, 2, tmp_path / "head")
    facts = told("inspect", str(tmp_path / "head"))
    assert "problem" not in facts
    own = 48 * 48 + 3 * 48 if architecture == "modernbert-mean" else 0
    learned = {"modernbert": 3 * 3 * (48 + 144 + 48 + 128), "modernbert-mean": 3 * 3 * (48 + 144 + 48 + 48 + 64 + 48)}
    assert facts["parameters"] == (5 * 48 if method == "prompt" else learned[architecture]) + 2 * 49 + own
    held = told("inspect", str(tmp_path / "head"), "--model", str(tmp_path / "base"))
    assert (held["fits"], held["served"]) == (True, True)


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_encoder_decoders_are_told_and_compared(architecture: str, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    model = encoder_decoders.make_base(architecture, folder)
    total = sum(parameter.numel() for parameter in model.parameters())
    said = {}
    for method in ("prompt_tuning", "prefix_tuning", "lora"):
        encoder_decoders.make_adapter(model, method, tmp_path / method)
        said[method] = told("inspect", str(tmp_path / method), "--model", str(folder))
        assert (said[method]["fits"], said[method]["served"], said[method]["task_type"]) == (True, True, "SEQ_2_SEQ_LM")
        assert said[method]["share_of_base"] == said[method]["parameters"] / total
    prompt, prefix = said["prompt_tuning"], said["prefix_tuning"]
    assert (prompt["parameters"], prompt["tokens_a_request"]) == (5 * 48, 5), "of ten saved vectors half are used"
    assert len(prompt["nearest"]) == 5
    assert prompt["kv_bytes_bfloat16"] == 0, "an encoder's input is run with its request"
    assert prefix["kv_bytes_bfloat16"] == 4 * 3 * 2 * (4 * 12) * 2
    facts = told("compare-methods", "--model", str(folder))
    parameters = {method["method"]: method["parameters"] for method in facts["methods"]}
    assert parameters["prompt_tuning"] == 20 * 48
    assert parameters["prefix_tuning"] == 20 * 3 * 2 * 48
    assert parameters["full_fine_tuning"] == facts["base_parameters"] == total
    make_base("llama", tmp_path / "llama")
    other = told("inspect", str(tmp_path / "prompt_tuning"), "--model", str(tmp_path / "llama"))
    assert (other["fits"], other["served"]) == (False, False)
    assert "needs an encoder-decoder" in other["why_not"]


def test_a_base_that_is_none_is_told(tmp_path: Path) -> None:
    refused = run("compare-methods", "--model", str(tmp_path))
    assert refused.exit_code == 1
    assert "can't be described" in refused.output


def test_one_task_of_a_multitask_prompt_becomes_a_folder(base: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = base
    config = peft.MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, num_tasks=3, num_ranks=2)
    several = saved(make_base("llama", tmp_path / "again"), config, tmp_path / "several")
    assert run("fold", str(several), "--task-id", "1", "--out", str(tmp_path / "one")).exit_code == 0
    tuned = peft.PeftModel.from_pretrained(make_base("llama", tmp_path / "third"), str(several))
    with torch.no_grad():
        theirs = tuned.get_prompt(1, task_ids=torch.tensor([1]))[0]
    ours = safetensors.torch.load_file(tmp_path / "one" / "adapter_model.safetensors")["prompt_embeddings"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    facts = told("inspect", str(tmp_path / "one"), "--model", str(folder))
    assert (facts["method"], facts["served"]) == ("prompt_tuning", True)
    peft.PeftModel.from_pretrained(model, str(tmp_path / "one"))
    for arguments, said in (
        (("fold", str(several), "--task-id", "3", "--out", str(tmp_path / "two")), "0 to 2"),
        (("fold", str(several), "--task-id", "1", "--out", str(tmp_path / "one")), "there already"),
        (("fold", str(tmp_path / "one"), "--task-id", "0", "--out", str(tmp_path / "two")), "MULTITASK"),
    ):
        refused = run(*arguments)
        assert refused.exit_code == 1
        assert said in refused.output


def test_an_adapter_of_a_4_bit_base_fits_a_server_of_that_base_alone(base: tuple[Any, Path], tmp_path: Path) -> None:
    from softmux.inspection.base import describe

    model, folder = base
    make_adapter(model, "prompt_tuning", tmp_path)
    fingerprint = describe(str(folder), fingerprints=True, quantization="nf4").base_fingerprint
    (tmp_path / "softmux.json").write_text(json.dumps({"base_fingerprint": fingerprint}))
    asked = ("inspect", str(tmp_path), "--model", str(folder), "--nearest", "0")
    assert told(*asked)["fits"] is False
    assert told(*asked, "--quantization", "fp8")["fits"] is False
    assert told(*asked, "--quantization", "nf4")["fits"] is True
