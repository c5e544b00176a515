"""Heads as PEFT saves them: the part, laid on the base's hidden states by hand, gives PEFT's own scores."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from formats_fixtures import edited
from msgspec import structs
from zoo_fixtures import DECODERS, HIDDEN, make_base, retensored, save, spec_of, tune

from softmux.errors import InvalidAdapter
from softmux.formats.folder import read_adapter
from softmux.formats.parts import HeadPart

IDS = torch.tensor([[3, 1, 5, 9, 4, 7]])
LABELS = {"softmux.json": json.dumps({"labels": ["x", "y", "z"]}).encode()}
K = 4

METHODS: dict[str, Any] = {
    "prompt": lambda task, **more: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=K, **more),
    "p_tuning": lambda task, **more: peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=K, **more),
    "prefix": lambda task, **more: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=K, **more),
    "cartridge": lambda task, **more: peft.CartridgeConfig(task_type=task, num_virtual_tokens=K, **more),
    "lora": lambda task, **more: peft.LoraConfig(task_type=task, r=2, **more),
}
NAMES = {
    "prompt": "prompt_tuning",
    "p_tuning": "p_tuning",
    "prefix": "p_tuning_v2",
    "cartridge": "cartridge",
    "lora": "lora",
}

CASES = [
    (model, task, method)
    for model in ("bert", "roberta", "xlm-roberta", "electra", "llama", "gpt2")
    for task in ("SEQ_CLS", "TOKEN_CLS")
    for method in ("prompt", "p_tuning", "prefix", "lora")
] + [
    ("distilbert", "SEQ_CLS", "lora"),
    ("distilbert", "TOKEN_CLS", "lora"),
    ("llama", "SEQ_CLS", "cartridge"),
    ("bert", "TOKEN_CLS", "cartridge"),
    ("deberta-v2", "SEQ_CLS", "prompt"),
    ("deberta-v2", "TOKEN_CLS", "prompt"),
    *((f"modernbert{kind}", task, method) for kind in ("", "-mean") for task in ("SEQ_CLS", "TOKEN_CLS")
      for method in ("prompt", "p_tuning", "lora")),
]  # fmt: skip
MORE: dict[tuple[str, str], dict[str, Any]] = {
    ("distilbert", "lora"): {"target_modules": ["q_lin"], "modules_to_save": ["pre_classifier"]},
    ("deberta-v2", "prompt"): {"modules_to_save": ["pooler"]},
    ("modernbert", "lora"): {"target_modules": ["Wqkv", "attn.Wo", "Wi", "mlp.Wo"]},
    ("modernbert-mean", "prompt"): {"modules_to_save": ["head"]},
    ("modernbert-mean", "p_tuning"): {"modules_to_save": ["head"]},
    ("modernbert-mean", "lora"): {"target_modules": ["Wqkv", "Wi", "Wo"], "modules_to_save": ["head"]},
}


def tuned_head(model: str, task: str, method: str, labels: int = 3) -> Any:
    base = make_base(model, task, labels)
    return tune(base, METHODS[method](task, **MORE.get((model, method), {})))


def by_hand(head: HeadPart, hidden: torch.Tensor, base: Any, decoder: bool) -> torch.Tensor:
    """The part's own words, over the last hidden states `[tokens, hidden]` of one row."""
    if head.head == "sequence":
        mean = getattr(base.config, "classifier_pooling", "cls") == "mean"
        hidden = hidden.mean(0) if mean else hidden[-1] if decoder else hidden[0]
    if head.base_pooler:
        own = getattr(base, "pooler", None)
        hidden = base.before_head(hidden) if own is None else torch.tanh(own.dense(hidden))
    if head.dense is not None:
        activation = {"tanh": torch.tanh, "gelu": torch.nn.functional.gelu, "relu": torch.relu}
        dense = tensor(head.dense.weight), tensor(head.dense.bias)
        hidden = activation[head.dense.activation](torch.nn.functional.linear(hidden, *dense))
        if (norm := head.dense.norm) is not None:
            learned = tensor(norm.weight), tensor(norm.bias)
            hidden = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:], *learned, norm.eps)
    return torch.nn.functional.linear(hidden, tensor(head.weight), tensor(head.bias))


def tensor(array: Any) -> Any:
    return None if array is None else torch.from_numpy(array)


@torch.no_grad()
def scores(tuned: Any, model: str) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """(PEFT's logits of the one row, its base's last hidden states, the bare base)."""
    seen: dict[str, torch.Tensor] = {}
    wrapped = tuned.get_base_model()
    bare = getattr(wrapped, wrapped.base_model_prefix)
    hook = bare.register_forward_hook(lambda module, given, output: seen.update(hidden=output[0]))
    logits = tuned(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[0]
    hook.remove()
    bare.before_head = getattr(wrapped, "head", None)
    return logits, seen["hidden"][0], bare


@pytest.mark.parametrize(("model", "task", "method"), CASES)
def test_scores_by_hand_are_pefts(model: str, task: str, method: str) -> None:
    tuned = tuned_head(model, task, method)
    adapter = read_adapter(save(tuned) | LABELS, spec_of(model))
    head = adapter.parts[-1]
    assert isinstance(head, HeadPart)
    theirs, hidden, bare = scores(tuned, model)
    ours = by_hand(head, hidden, bare, model in DECODERS)
    np.testing.assert_allclose(ours.detach(), theirs, rtol=0, atol=1e-5)
    manifest = adapter.manifest
    assert (manifest.method, manifest.head) == (NAMES[method], "sequence" if task == "SEQ_CLS" else "token")
    assert (manifest.labels, manifest.problem_type) == (("x", "y", "z"), "single_label_classification")
    assert manifest.virtual_tokens == (0 if method == "lora" else K)


def test_a_pooler_that_peft_saved_is_the_heads_own() -> None:
    tuned = tune(make_base("bert", "SEQ_CLS"), METHODS["prefix"]("SEQ_CLS", modules_to_save=["pooler"]))
    head = read_adapter(save(tuned) | LABELS, spec_of("bert")).parts[-1]
    assert isinstance(head, HeadPart)
    assert head.dense is not None
    assert not head.base_pooler
    theirs, hidden, bare = scores(tuned, "bert")
    np.testing.assert_allclose(by_hand(head, hidden, bare, False), theirs, rtol=0, atol=1e-5)


def bert(labels: int = 3, **change: Any) -> dict[str, bytes]:
    return edited(save(tuned_head("bert", "SEQ_CLS", "prefix", labels)), **change)


@pytest.mark.parametrize(
    ("labels", "change", "expected"),
    [
        (1, {}, (("LABEL_0",), "regression")),
        (1, {"problem_type": "multi_label_classification"}, (("LABEL_0",), "multi_label_classification")),
        (2, {"id2label": {"1": "yes", "0": "no"}}, (("no", "yes"), "single_label_classification")),
        (
            2,
            {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}, "num_labels": 2,
             "problem_type": "multi_label_classification"},
            (("a", "b"), "multi_label_classification"),
        ),
        (2, {"problem_type": "regression", "id2label": {"0": "a", "1": "b"}}, (("a", "b"), "regression")),
    ],
)  # fmt: skip
def test_labels_and_problem_types(labels: int, change: dict[str, Any], expected: Any) -> None:
    head = read_adapter(bert(labels, **change), spec_of("bert")).parts[-1]
    assert isinstance(head, HeadPart)
    assert (head.labels, head.problem_type) == expected


CLASSIFIER = "base_model__classifier__weight"
MALFORMED: dict[str, tuple[dict[str, Any], dict[str, Any], Any, str]] = {
    "no labels": ({}, {}, None, "softmux.json: labels"),
    "too few labels": ({}, {}, ["a", "b"], "softmux.json: labels"),
    "a map of labels": ({}, {}, {"a": "b", "c": "d", "e": "f"}, "softmux.json: labels"),
    "outputs named beyond the head": ({"id2label": {"0": "a", "1": "b", "3": "c"}}, {}, None, "adapter_config.json"),
    "one name for two outputs": ({"id2label": {"0": "a", "1": "a", "2": "c"}}, {}, None, "adapter_config.json"),
    "another number of labels": ({"num_labels": 4}, {}, ["a", "b", "c"], "adapter_config.json: num_labels"),
    "an unknown problem": ({"problem_type": "ranking"}, {}, ["a", "b", "c"], "adapter_config.json: problem_type"),
    "a head of another width": (
        {},
        {CLASSIFIER: torch.zeros(3, HIDDEN + 1)},
        ["a", "b", "c"],
        "adapter_model.safetensors: base_model.classifier.weight",
    ),
    "a head without outputs": (
        {},
        {CLASSIFIER: torch.zeros(0, HIDDEN)},
        ["a", "b", "c"],
        "adapter_model.safetensors: base_model.classifier.weight",
    ),
    "a flat head": (
        {}, {CLASSIFIER: torch.zeros(3 * HIDDEN)}, ["a", "b", "c"], "adapter_model.safetensors: base_model.classifier"
    ),
    "no head": (
        {},
        {CLASSIFIER: None, "base_model__classifier__bias": None},
        ["a", "b", "c"],
        "adapter_model.safetensors: base_model.classifier.weight",
    ),
    "a bias of another head": (
        {}, {"base_model__classifier__bias": torch.zeros(2)}, ["a", "b", "c"], "adapter_model.safetensors: base_model"
    ),
    "NaN in the head": (
        {},
        {CLASSIFIER: torch.full((3, HIDDEN), float("nan"))},
        ["a", "b", "c"],
        "adapter_model.safetensors: base_model.classifier.weight",
    ),
    "RoBERTa's head": (
        {}, {"base_model__classifier__dense__weight": torch.zeros(HIDDEN, HIDDEN)}, ["a", "b", "c"],
        "adapter_model.safetensors: base_model.classifier.dense.weight",
    ),
    "a module of the base": ({"modules_to_save": ["embeddings"]}, {}, ["a", "b", "c"], "adapter_config.json: modules"),
    "a generative task": ({"task_type": "CAUSAL_LM"}, {}, ["a", "b", "c"], "adapter_config.json: task_type"),
    "no task": ({"task_type": None}, {}, ["a", "b", "c"], "adapter_config.json: task_type"),
    "spans": ({"task_type": "QUESTION_ANS"}, {}, None, "adapter_config.json: task_type"),
    "hidden states": ({"task_type": "FEATURE_EXTRACTION"}, {}, None, "adapter_config.json: task_type"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_ones_are_refused_by_name(name: str) -> None:
    change, tensors, labels, param = MALFORMED[name]
    files = retensored(bert(3, **change), **tensors)
    if labels is not None:
        files["softmux.json"] = json.dumps({"labels": labels}).encode()
    with pytest.raises(InvalidAdapter) as refused:
        read_adapter(files, spec_of("bert"))
    assert str(refused.value.param).startswith(param)
    assert len(refused.value.message) > 30


def test_one_output_is_no_choice() -> None:
    with pytest.raises(InvalidAdapter, match="regression"):
        read_adapter(bert(1, problem_type="single_label_classification"), spec_of("bert"))


def test_what_was_made_with_the_head_and_not_saved_is_asked_for() -> None:
    tuned = tune(make_base("deberta-v2", "SEQ_CLS"), METHODS["prompt"]("SEQ_CLS"))
    with pytest.raises(InvalidAdapter, match=r"modules_to_save=\['pooler'\]"):
        read_adapter(save(tuned) | LABELS, spec_of("deberta-v2"))


def test_a_head_in_parts_or_of_another_build_is_refused_by_name() -> None:
    whole = save(tuned_head("modernbert-mean", "TOKEN_CLS", "prompt")) | LABELS
    spec = spec_of("modernbert-mean")
    assert spec.base_head is not None
    for name in ("dense__weight", "dense__bias", "norm__weight", "norm__bias"):
        files = retensored(whole, **{f"base_model__head__{name}": None})
        with pytest.raises(InvalidAdapter, match=r"missing.*modules_to_save=\['head'\]") as refused:
            read_adapter(files, spec)
        assert str(refused.value.param).endswith(f"base_model.head.{name.replace('__', '.')}")
    with pytest.raises(InvalidAdapter, match="says that it has none there"):
        read_adapter(whole, spec_of("modernbert-mean", base_head=spec_of("modernbert").base_head))
    narrow = retensored(whole, base_model__head__norm__weight=torch.zeros(HIDDEN - 1))
    with pytest.raises(InvalidAdapter, match="its shape is"):
        read_adapter(narrow, spec)
    silu = structs.replace(spec.base_head, activation="silu")
    with pytest.raises(InvalidAdapter, match=r"“silu”.*gelu, relu, tanh"):
        read_adapter(whole, spec_of("modernbert-mean", base_head=silu))


@pytest.mark.parametrize(("model", "before"), [("bert", "bert.pooler.dense"), ("modernbert", "head.dense")])
def test_a_lora_between_the_layers_and_the_head_is_refused_by_name(model: str, before: str) -> None:
    tuned = tune(make_base(model, "SEQ_CLS"), METHODS["lora"]("SEQ_CLS", target_modules="all-linear"))
    with pytest.raises(InvalidAdapter, match=rf"exclude_modules=\['{before}'\]"):
        read_adapter(save(tuned) | LABELS, spec_of(model))
    without = METHODS["lora"]("SEQ_CLS", target_modules="all-linear", exclude_modules=[before])
    assert read_adapter(save(tune(make_base(model, "SEQ_CLS"), without)) | LABELS, spec_of(model)).parts
    # a model that labels tokens has no pooler, and its base may have one all the same
    tuned = tune(make_base("bert", "TOKEN_CLS"), METHODS["lora"]("TOKEN_CLS", target_modules=["dense"]))
    assert read_adapter(save(tuned) | LABELS, spec_of("bert")).parts


@pytest.mark.parametrize(
    ("model", "how"),
    [
        ("modernbert-deep", {"exclude_modules": ["head.dense"]}),
        ("modernbert-deep", {"exclude_modules": r".*head\.dense"}),
        ("modernbert-deep", {"modules_to_save": ["head"]}),
        ("roberta-deep", {}),
    ],
)
def test_names_that_peft_has_shortened_may_be_those_of_what_it_left_out(model: str, how: dict[str, Any]) -> None:
    """From 20 modules on PEFT writes the shortest ends of their names, those that it excluded among them."""
    tuned = tune(make_base(model, "SEQ_CLS"), METHODS["lora"]("SEQ_CLS", target_modules="all-linear", **how))
    assert {name.rpartition(".")[2] for name in tuned.peft_config["default"].target_modules} & {"dense", "out_proj"}
    assert read_adapter(save(tuned) | LABELS, spec_of(model)).parts


@pytest.mark.parametrize(("model", "saved"), [("bert", "pooler"), ("modernbert", "head")])
def test_what_the_config_says_was_saved_is_not_taken_from_the_base(model: str, saved: str) -> None:
    files = save(tuned_head(model, "SEQ_CLS", "prompt")) | LABELS
    assert files["adapter_config.json"]
    said = edited(files, modules_to_save=["classifier", "score", saved])
    with pytest.raises(InvalidAdapter, match="it is missing"):
        read_adapter(said, spec_of(model))


def test_an_lstm_encoders_own_heads_are_read_beside_its_result() -> None:
    how = {"modules_to_save": ["head"], "encoder_reparameterization_type": "LSTM"}
    tuned = tune(make_base("modernbert", "SEQ_CLS"), METHODS["p_tuning"]("SEQ_CLS", **how))
    files = save(tuned) | LABELS
    assert any("lstm_head" in name for name in safetensors.torch.load(files["adapter_model.safetensors"]))
    assert read_adapter(files, spec_of("modernbert")).parts


@pytest.mark.parametrize("model", ["deberta-v2", "distilbert", "modernbert", "modernbert-mean"])
def test_encoders_that_take_no_prefix_refuse_it_by_name(model: str) -> None:
    files = bert() | LABELS
    with pytest.raises(InvalidAdapter, match="takes no keys and values"):
        read_adapter(files, spec_of(model))


def test_a_head_of_an_encoder_that_is_not_known_is_refused_by_name() -> None:
    files = save(tuned_head("bert", "SEQ_CLS", "prompt")) | LABELS
    with pytest.raises(InvalidAdapter, match=r"mpnet.*is not known to this server"):
        read_adapter(files, spec_of("bert", model_type="mpnet"))


def test_a_head_on_a_generative_adapter_is_a_tensor_too_many() -> None:
    files = save(tune(make_base("llama"), METHODS["prompt"]("CAUSAL_LM")))
    with pytest.raises(InvalidAdapter, match="not expected"):
        read_adapter(retensored(files, base_model__score__weight=torch.zeros(2, HIDDEN)), spec_of("llama"))
    with pytest.raises(InvalidAdapter, match="describes a head"):
        read_adapter(edited(files, num_labels=2), spec_of("llama"))
