"""`POST /v1/classify` through real servers, of an encoder and of a decoder: PEFT's own scores, labels and offsets."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import encoder_tokenizer
from support.headed import make_base, reference, tuned
from support.served import Served, upload_parts

TEXT = "The film was a gripping, beautiful piece"
CONTEXT = 64


class Classifier:
    """A server of a tiny BERT, its tokenizer, and PEFT's models by task."""

    def __init__(self, server: Served, tokenizer: Any, models: dict[str, Any]) -> None:
        self.server, self.tokenizer, self.models = server, tokenizer, models

    def post(self, task: str | None, status: int = 200, **body: Any) -> Any:
        response = self.server.http.post(
            "/v1/classify", params={"task": task} if task else {}, content=json.dumps(body)
        )
        assert response.status_code == status, response.text
        return response.json()

    def logits(self, task: str, text: str, kind: str = "SEQ_CLS") -> np.ndarray:
        return reference(self.models[task], self.tokenizer(text)["input_ids"], kind)


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Classifier]:
    folder = tmp_path_factory.mktemp("encoder")
    base = make_base("bert", folder / "base", vocab_size=300, max_position_embeddings=CONTEXT)
    tokenizer = encoder_tokenizer.save(encoder_tokenizer.word_piece(), folder / "base")
    several = {"problem_type": "multi_label_classification"}
    tasks: dict[str, tuple[str, str, int, dict[str, Any]]] = {
        "topic": ("SEQ_CLS", "prefix", 4, {}),
        "mood": ("SEQ_CLS", "prompt", 2, {}),
        "several": ("SEQ_CLS", "p_tuning", 3, several),
        "degree": ("SEQ_CLS", "prefix", 1, {}),
        "tags": ("TOKEN_CLS", "prefix", 5, {}),
    }
    models = {
        task: tuned(base, "bert", kind, method, labels, folder / task, **more)
        for task, (kind, method, labels, more) in tasks.items()
    }
    with Served(folder / "base", folder / "data", "--context-length", str(CONTEXT)) as server:
        for task in tasks:
            response = server.http.put(f"/v1/adapters/{task}", files=upload_parts(folder / task))
            assert response.status_code == 201, response.text
        yield Classifier(server, tokenizer, models)


def test_sequences_are_labelled_as_peft_scores_them(encoder: Classifier) -> None:
    texts = [TEXT, "dull", "far too long; the ending"]
    reply = encoder.post("topic", input=texts)
    assert reply["adapter"]["method"] == "p_tuning_v2"
    for text, result in zip(texts, reply["results"], strict=True):
        expected = softmax(encoder.logits("topic", text)[0])
        np.testing.assert_allclose(list(result["scores"].values()), expected, atol=1e-5)
        assert result["label"] == f"L{expected.argmax()}"
        assert result["score"] == max(result["scores"].values())
    [one] = encoder.post("mood", input=TEXT)["results"]
    np.testing.assert_allclose(list(one["scores"].values()), softmax(encoder.logits("mood", TEXT)[0]), atol=1e-5)


def test_several_labels_and_regressions_are_told_as_they_are(encoder: Classifier) -> None:
    [result] = encoder.post("several", input=TEXT)["results"]
    expected = 1 / (1 + np.exp(-encoder.logits("several", TEXT)[0]))
    np.testing.assert_allclose(list(result["scores"].values()), expected, atol=1e-5)
    assert result["labels"] == [f"L{i}" for i in range(3) if expected[i] >= 0.5]
    [result] = encoder.post("degree", input=TEXT)["results"]
    np.testing.assert_allclose(result["score"], encoder.logits("degree", TEXT)[0, 0], rtol=1e-5, atol=1e-5)


def test_tokens_are_labelled_where_they_are(encoder: Classifier) -> None:
    [result] = encoder.post("tags", input=TEXT)["results"]
    expected = softmax(encoder.logits("tags", TEXT, "TOKEN_CLS"))[1:-1]  # [CLS] … [SEP]
    offsets = encoder.tokenizer(TEXT, return_offsets_mapping=True)["offset_mapping"][1:-1]
    assert [(token["start"], token["end"]) for token in result["tokens"]] == offsets
    for token, scores in zip(result["tokens"], expected, strict=True):
        assert TEXT[token["start"] : token["end"]] == token["text"]
        assert token["label"] == f"L{scores.argmax()}"
        assert token["score"] == pytest.approx(scores.max(), abs=1e-5)
    [words] = encoder.post("tags", input=TEXT, aggregation="word")["results"]
    assert [word["text"] for word in words["tokens"]] == TEXT.replace(",", " ,").split()
    firsts = {token["start"]: token["label"] for token in result["tokens"]}
    assert all(word["label"] == firsts[word["start"]] for word in words["tokens"])


def test_an_empty_list_is_refused_as_what_it_is(encoder: Classifier) -> None:
    error = encoder.post("topic", 422, input=[])["error"]
    assert (error["code"], error["param"]) == ("invalid_request", "input")
    assert "empty list" in error["message"]


def test_windows_are_no_more_than_the_server_takes_at_once(encoder: Classifier) -> None:
    many = " ".join([TEXT] * 1000)
    for texts in (many, ["dull", " ".join([TEXT] * 300), many]):
        error = encoder.post("topic", 422, input=texts, stride=CONTEXT - 4 - 2 - 1)["error"]
        assert (error["code"], error["param"]) == ("invalid_request", "stride")
        assert "windows" in error["message"]


def test_long_texts_go_by_windows_or_are_refused(encoder: Classifier) -> None:
    long = " ".join([TEXT] * 30)
    for task in ("topic", "tags"):
        error = encoder.post(task, 400, input=long)["error"]
        assert (error["code"], error["param"]) == ("context_too_long", "input")
        assert "stride" in error["message"]
        assert encoder.post(task, 422, input=long, stride=CONTEXT)["error"]["param"] == "stride"
    content = encoder.tokenizer(long, add_special_tokens=False, return_offsets_mapping=True)
    room, stride = CONTEXT - 4 - 2, 10  # virtual tokens, [CLS] and [SEP]
    ids = content["input_ids"]
    cut = [ids[at : at + room] for at in range(0, len(ids) - stride, room - stride)]
    each = [softmax(reference(encoder.models["topic"], [2, *part, 3], "SEQ_CLS")[0]) for part in cut]
    [result] = encoder.post("topic", input=long, stride=stride)["results"]
    np.testing.assert_allclose(list(result["scores"].values()), np.mean(each, axis=0), atol=1e-5)
    [tags] = encoder.post("tags", input=long, stride=stride)["results"]
    assert [(token["start"], token["end"]) for token in tags["tokens"]] == content["offset_mapping"]
    first = softmax(reference(encoder.models["tags"], [2, *cut[0], 3], "TOKEN_CLS"))[1 : 1 + room - stride]
    assert [token["label"] for token in tags["tokens"][: room - stride]] == [f"L{row.argmax()}" for row in first]


@pytest.mark.parametrize(
    ("task", "status", "code", "body"),
    [
        ("topic", 422, "invalid_request", {"input": ""}),
        ("topic", 422, "invalid_request", {"input": [TEXT, " \n"]}),
        ("topic", 422, "invalid_request", {"input": []}),
        ("topic", 422, "invalid_request", {}),
        ("topic", 422, "invalid_request", {"input": TEXT, "stride": -1}),
        ("topic", 422, "invalid_request", {"input": TEXT, "aggregation": "word"}),
        ("topic", 422, "invalid_request", {"input": TEXT, "prompt": TEXT}),
        ("nobody", 404, "task_not_found", {"input": TEXT}),
        ("topic@9", 404, "version_not_found", {"input": TEXT}),
        (None, 422, "invalid_request", {"input": TEXT}),
    ],
)
def test_what_can_not_be_classified_is_refused(
    encoder: Classifier, task: str | None, status: int, code: str, body: dict[str, Any]
) -> None:
    assert encoder.post(task, status, **body)["error"]["code"] == code


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=90),
    task=st.sampled_from(["topic", "mood", "several", "degree", "tags"]),
    stride=st.none() | st.integers(0, 60),
)
def test_whatever_the_text_it_is_classified_or_refused_in_words(
    encoder: Classifier, text: str, task: str, stride: int | None
) -> None:
    body = {"input": text} if stride is None else {"input": text, "stride": stride}
    response = encoder.server.http.post("/v1/classify", params={"task": task}, content=json.dumps(body))
    if response.status_code != 200:
        assert response.status_code in (400, 422), response.text
        assert response.json()["error"]["param"] in ("input", "stride")
        return
    [result] = response.json()["results"]
    for token in result.get("tokens", []):
        assert token["text"] == text[token["start"] : token["end"]] != ""


def test_an_encoder_generates_nothing(encoder: Classifier) -> None:
    http = encoder.server.http
    for params in ({}, {"task": "topic"}):
        response = http.post("/v1/generate", params=params, json={"prompt": TEXT})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "wrong_task_kind")
        assert "/v1/classify" in response.json()["error"]["message"]
    assert "softmux_requests_total" in http.get("/metrics").text


# --- a decoder -------------------------------------------------------------------------------------------------------


def test_a_decoders_head_beside_its_generating_tasks(server: Served, base: tuple[Any, Path], tmp_path: Path) -> None:
    models = {}
    for kind in ("SEQ_CLS", "TOKEN_CLS"):
        models[kind] = tuned(base[0], "llama", kind, "prefix", 3, tmp_path / kind)
        response = server.http.put(f"/v1/adapters/{kind.lower()}", files=upload_parts(tmp_path / kind))
        assert response.status_code == 201, response.text
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base[1])
    ids = tokenizer(TEXT)["input_ids"]
    [result] = server.http.post("/v1/classify?task=seq_cls", json={"input": TEXT}).json()["results"]
    expected = softmax(reference(models["SEQ_CLS"], ids, "SEQ_CLS")[0])
    np.testing.assert_allclose(list(result["scores"].values()), expected, atol=1e-5)
    [tags] = server.http.post("/v1/classify?task=token_cls", json={"input": TEXT}).json()["results"]
    expected = softmax(reference(models["TOKEN_CLS"], ids, "TOKEN_CLS"))[1:]
    assert [token["label"] for token in tags["tokens"]] == [f"L{row.argmax()}" for row in expected]
    assert "".join(TEXT.split()) == "".join(token["text"] for token in tags["tokens"])
    wrong = server.http.post("/v1/generate?task=seq_cls", json={"prompt": TEXT})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "wrong_task_kind")
    wrong = server.http.post("/v1/classify?task=prompt-tuning", json={"input": TEXT})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "wrong_task_kind")
    assert "/v1/generate" in wrong.json()["error"]["message"]
    for kind in models:
        server.http.delete(f"/v1/adapters/{kind.lower()}")


def test_a_generating_task_chooses_among_its_labels(
    server: Served, adapters: dict[str, Path], base: tuple[Any, Path]
) -> None:
    """A verbalizer: each label's likelihood after the prompt, by PEFT's own logits."""
    words = {"good": " beautiful", "bad": " dull and far too long", "so-so": " piece"}
    parts = upload_parts(adapters["prefix-tuning"], **{"softmux.json": json.dumps({"labels": words}).encode()})
    assert server.http.put("/v1/adapters/verbal", files=parts).status_code == 201
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base[1])
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base[0]), str(adapters["prefix-tuning"])).eval()
    prompt, likelihoods = tokenizer(TEXT)["input_ids"], []
    for word in words.values():
        answer = tokenizer(word, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            ids = torch.tensor([prompt + answer])
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
        likelihoods.append(sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)))
    expected = softmax(np.array(likelihoods))
    for _ in range(2):  # cold, then from the cache
        reply = server.http.post("/v1/classify?task=verbal", json={"input": [TEXT, "The ending"]}).json()
        found = reply["results"][0]["scores"]
        assert list(found) == list(words)
        np.testing.assert_allclose(list(found.values()), expected, atol=1e-5)
    assert reply["usage"]["prompt_tokens"] == len(prompt) + len(tokenizer("The ending")["input_ids"])
    refused = server.http.post("/v1/classify?task=verbal", json={"input": TEXT, "stride": 3})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "stride")
    server.http.delete("/v1/adapters/verbal")
