"""`softmux.tuning` with heads: PEFT's configs of sequences and tokens, on encoders and decoders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

from softmux.errors import InvalidRequest
from softmux.formats.folder import load_folder, parse_adapter, read_adapter
from softmux.inspection.base import describe
from softmux.tuning import PromptTuning, PTuningV2, Task, Train, Tuned, open_base, tune
from softmux.tuning.bases.base import as_base
from softmux.tuning.bases.head_base import HeadBase, as_head_base, head_base_of
from softmux.tuning.data.examples import BadData
from softmux.tuning.data.rows import IGNORE, HeadRow
from softmux.tuning.frozen.decoder import padded_base
from softmux.tuning.frozen.encoder import padded_encoder
from softmux.tuning.learned.headed import Headed
from softmux.tuning.learned.heads import begin_head, head_start, release_head
from softmux.tuning.recipes.recipe import Lora, PrefixTuning, PTuning
from softmux.tuning.training.job import Job
from softmux.types import KV_METHODS
from support.encoder_tokenizer import word_piece
from support.engines import TestEngine
from support.headed import CLASSES, DECODERS, make_base, reference
from support.tuning_jobs import apart, gradients
from support.tuning_jobs import job as word_job

HOW = Train(steps=50, learning_rate=3e-2, batch_rows=8, warmup_steps=5, validate_every=20)
Learning = tuple[Path, list[Tuned], set[str]]


def text_of(number: int) -> str:
    return f"{'far too long ' * (number // 2 % 3)}film {number} was {('dull', 'gripping')[number % 2]}"


def words_of(text: str) -> list[tuple[int, int, str]]:
    """The number and the last word, each by its characters."""
    film, last = text.index("film ") + 5, text.rindex(" ") + 1
    return [(film, text.index(" ", film), "number"), (last, len(text), text[last:])]


TEXTS = [text_of(number) for number in range(100)]
SEQUENCES = [(text, ("no", "yes")[text.endswith("gripping")]) for text in TEXTS]
TOKENS = [(text, words_of(text)) for text in TEXTS]
SPOKEN = [(text, f" {label}") for text, label in SEQUENCES]
ROWS: dict[str, Any] = {"SEQ_CLS": SEQUENCES, "TOKEN_CLS": TOKENS}


def configs(task: str, **lora: Any) -> dict[str, Any]:
    return {
        "prompt_tuning": PromptTuningConfig(task_type=task, num_virtual_tokens=4),
        "p_tuning": PromptEncoderConfig(task_type=task, num_virtual_tokens=3, encoder_hidden_size=16),
        "p_tuning_v2": PrefixTuningConfig(task_type=task, num_virtual_tokens=3),
        "lora": LoraConfig(task_type=task, r=4, lora_alpha=8, **lora),
    }


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def learned(request: pytest.FixtureRequest) -> Learning:
    folder: Path = request.getfixturevalue(f"{'encoder' if request.param == 'encoder' else 'base'}_folder")
    base = open_base(folder, device="cpu")
    tasks = [
        Task(f"{name}-{task}", ROWS[task], config, HOW) for task in CLASSES for name, config in configs(task).items()
    ]
    if request.param == "encoder":
        pooled = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2, modules_to_save=["classifier", "pooler"])
        tasks.append(Task("pooled-SEQ_CLS", SEQUENCES, pooled, HOW))
        tasks.append(Task("recipe-SEQ_CLS", SEQUENCES, PTuningV2(kind="p_tuning_v2", virtual_tokens=4), HOW))
    else:
        tasks.append(Task("spoken", SPOKEN, PromptTuning(kind="prompt_tuning", virtual_tokens=4), HOW))
        tasks.append(Task("spoken-lora", SPOKEN, LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4), HOW))
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    seen: set[str] = set()
    tuned = tune(tasks, base, watch=lambda name, _: seen.add(name))
    after = base.model.state_dict()
    assert after.keys() == before.keys()
    assert all(value.equal(after[name]) for name, value in before.items())
    return folder, tuned, seen


def test_a_rule_is_learned_by_every_method_under_every_head(learned: Learning) -> None:
    _, tuned, seen = learned
    assert seen == {one.name for one in tuned}
    for one in tuned:
        if one.labels:
            figures = one.evaluate(ROWS[one.name.rpartition("-")[2]])
            assert figures.rows == len(TEXTS)
            assert next(iter(figures.values.values())) > 0.9, one.name
            assert one.evaluate().rows < len(TEXTS) / 4, "what the task held out"
        else:
            assert one.trained.best_loss < one.trained.losses[0] - 1
            assert one.evaluate(SPOKEN[:4], metric="starts_with", max_tokens=1).values.keys() == {
                "starts with",
                "exact",
            }


def test_the_server_reads_each_folder_as_peft_does(learned: Learning, tmp_path: Path) -> None:
    base_folder, tuned, _ = learned
    engine = TestEngine(base_folder, max_step_tokens=256)
    tokenizer = tf.AutoTokenizer.from_pretrained(base_folder)
    asked = {}
    for one in tuned:
        folder = one.save(tmp_path / one.name)
        adapter = read_adapter(load_folder(folder), engine.engine.spec)
        said = json.loads((folder / "softmux.json").read_text())
        assert said["trained_lengths"] == list(one.lengths)
        if not one.labels:
            assert adapter.manifest.head is None
            continue
        assert adapter.manifest.labels == one.labels == tuple(said["labels"])
        ids = tokenizer(TEXTS[7])["input_ids"]
        root, virtual = engine.adapter(folder)
        kept = adapter.manifest.method in KV_METHODS
        asked[one.name] = engine.read(ids, root, virtual, head=adapter.manifest.head, trained_prefix=kept), ids
    engine.run()
    for name, (sequence, ids) in asked.items():
        task = name.rpartition("-")[2]
        labels = len(json.loads((tmp_path / name / "softmux.json").read_text())["labels"])
        model = CLASSES[task].from_pretrained(base_folder, num_labels=labels)
        expected = reference(PeftModel.from_pretrained(model, str(tmp_path / name)).eval(), ids, task)
        found = np.frombuffer(engine.done[sequence].scores, np.float32).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * abs(expected).max(), err_msg=name)
    engine.close()


WITHOUT_TOKENIZER = SimpleNamespace(eos_token_id=2)
METHODS: dict[str, Any] = {
    "vectors": PromptTuning(kind="prompt_tuning", virtual_tokens=3),
    "made": PTuning(kind="p_tuning", virtual_tokens=2, encoder_hidden_size=16),
    "prefix": PrefixTuning(kind="prefix_tuning", virtual_tokens=3, encoder_hidden_size=16),
    "lora": Lora(kind="lora", rank=2, alpha=8),
}


def job(method: Headed, base: HeadBase, name: str) -> tuple[Job, float, list[torch.Tensor]]:
    """A task with a head over random rows, and what PEFT's own forward and backward make of the first four."""
    torch.manual_seed(0)
    learned = begin_head(method, base, 3)
    try:
        with torch.no_grad():
            for number in learned.parameters():
                if not number.any():
                    number.normal_(0, 0.1)
        vectors, rows = method.virtual_tokens - method.prefix, []
        for length in (5, 9, 3, 7, 4):
            ids = (*range(-1, -1 - vectors, -1), *torch.randint(4, 60, (length,)).tolist())
            if method.head == "token":
                rows.append(HeadRow(ids, (IGNORE, 2, 1, *[0] * (length - 3)), at=vectors))
            else:
                rows.append(HeadRow(ids, (length % 3,), at=len(ids) - 1 if base.family == "decoder" else 0))
        loss = learned.losses(rows[:4]).mean()
        loss.backward()
        start = head_start(learned, method.virtual_tokens)
        assert start.head is not None
        soft = [] if learned.soft is None else list(learned.soft.parameters())
        low_rank = [number for name, number in learned.peft.named_parameters() if ".lora_" in name]
        found = [number.grad for number in (*soft, *low_rank, *dict(start.head.values()).values())]
        assert all(gradient is not None for gradient in found)
        return Job(name, start, rows, rows, HOW), loss.item(), [one.clone() for one in found if one is not None]
    finally:
        release_head(learned)


@pytest.mark.parametrize(
    "architecture",
    [
        "bert",
        "llama",
        "gpt2",
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ("roberta", "electra", "qwen2")),
    ],
)
def test_gradients_under_a_head_are_those_that_peft_computes(architecture: str, tmp_path: Path) -> None:
    model = make_base(architecture, tmp_path)
    words = as_base(model, WITHOUT_TOKENIZER, architecture) if architecture in DECODERS else None
    over = as_head_base(model, None, architecture) if words is None else head_base_of(words)
    made = {
        f"{name} {head}": job(Headed(method, head), over, f"{name} {head}")
        for name, method in METHODS.items()
        for head in ("sequence", "token")
    }
    jobs = [one for one, *_ in made.values()]
    if words is not None:
        jobs[3:3] = [word_job("words", "prompt", words, 1), word_job("mlp", "mlp", words, 2)]
    found = gradients(padded_encoder(over.model) if words is None else padded_base(model), jobs, 60)
    for name, (_, loss, expected) in made.items():
        assert found[name][0] == pytest.approx(loss, rel=1e-5), name
        assert apart(found[name][1], expected) < 1e-5, name
    for each in jobs:
        if each.name not in made:
            alone = gradients(padded_base(model), [each], 10_000)[each.name]
            assert found[each.name][0] == pytest.approx(alone[0], rel=1e-5)
            assert apart(found[each.name][1], alone[1]) < 1e-5


@pytest.mark.parametrize(
    ("config", "field", "words"),
    [
        (LoraConfig(), "task_type", "no task_type: an encoder generates nothing"),
        (LoraConfig(task_type="CAUSAL_LM"), "task_type", "train it with SEQ_CLS or TOKEN_CLS"),
        (LoraConfig(task_type="QUESTION_ANS"), "task_type", "train it as TOKEN_CLS"),
        (LoraConfig(task_type="SEQ_CLS", modules_to_save=["embeddings"]), "modules_to_save", "names embeddings"),
        (LoraConfig(task_type="TOKEN_CLS", modules_to_save=["pooler"]), "modules_to_save", "names pooler"),
        (LoraConfig(task_type="SEQ_CLS", lora_dropout=0.1), "lora_dropout", "is not tuned so"),
        (LoraConfig(task_type="SEQ_CLS", target_modules=["classifier"]), "method.target_modules", "no linear module"),
        (LoraConfig(task_type="SEQ_CLS", target_modules=["dense"]), "method.target_modules", "names the pooler"),
        (PromptTuning(kind="prompt_tuning", virtual_tokens=2), "method", "is an encoder, and prompt_tuning"),
    ],
)
def test_what_an_encoder_can_not_learn_is_refused_by_name(
    config: Any, field: str, words: str, head_base: HeadBase
) -> None:
    before = [name for name, _ in head_base.model.named_modules()]
    with pytest.raises(InvalidRequest, match=words) as caught:
        tune([Task("a", SEQUENCES, config, HOW)], head_base)
    assert caught.value.param == field
    assert [name for name, _ in head_base.model.named_modules()] == before


LORA = LoraConfig(task_type="SEQ_CLS", r=2)
TAGS = LoraConfig(task_type="TOKEN_CLS", r=2)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (Task("a", [("x", "no"), ("y", 0.5)], LORA), "a, row 2, column label: the label is 0.5, .* no regression"),  # type: ignore[list-item]
        (Task("a", [("x", "no"), ("y", "no")], LORA), "every row's answer is 'no'; two different"),
        (Task("a", [("x", "no"), ("x", "yes")], LORA), "row 2, column label: this text's answer"),
        (Task("a", SEQUENCES, LORA, labels=["yes", "maybe"]), "row 1, column label: the answer is 'no'"),
        (Task("a", [("a b", [(0, 1, "A")]), ("a b c", [(2, 9, "B")])], TAGS), r"row 2, column label: \(2, 9, 'B'\)"),
        (Task("a", [("a b", [(0, 1, "A")]), ("a c", [])], TAGS), "the words' labels are A; two different"),
        (Task("a", TOKENS, TAGS, labels=["number", "end"]), "row 1, column label: .* 'dull' is none of number, end"),
        (Task("a", [("long " * 99 + end, end) for end in "xyz"], LORA, validation=SEQUENCES), "have no room in the 64"),
        (Task("a", SEQUENCES, LORA, Train(steps=1, learning_rate=1, dampening=0.1)), "a head says no tokens"),
    ],
)  # fmt: skip
def test_rows_that_no_head_can_learn_from_are_named(task: Task, words: str, head_base: HeadBase) -> None:
    with pytest.raises(InvalidRequest, match=words):
        tune([task], head_base)


def test_heads_are_refused_on_bases_that_they_are_not_tuned_on() -> None:
    sizes = {"vocab_size": 90, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    pair = tf.AutoModelForSeq2SeqLM.from_config(
        tf.T5Config(vocab_size=90, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )
    windowed = tf.AutoModel.from_config(tf.ModernBertConfig(**sizes, intermediate_size=16, pad_token_id=0))
    narrow = tf.AutoModel.from_config(tf.ElectraConfig(**sizes, intermediate_size=16, embedding_size=8))
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=word_piece(90), eos_token="[SEP]")
    with pytest.raises(InvalidRequest, match="an encoder-decoder is served without a head"):
        tune([Task("a", SEQUENCES, LORA)], open_base(pair, tokenizer))
    with pytest.raises(InvalidRequest, match="of type modernbert, and tasks with a head are tuned on decoders and"):
        tune([Task("a", SEQUENCES, LORA)], open_base(windowed, tokenizer))
    vectors = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    with pytest.raises(InvalidRequest, match="embeddings are 8 wide and its layers 16"):
        tune([Task("a", SEQUENCES, vectors)], open_base(narrow, tokenizer))
    with pytest.raises(InvalidRequest, match="needs its tokenizer"):
        open_base(narrow)


def test_rows_to_measure_on_are_given_where_none_were_held_out(head_base: HeadBase) -> None:
    how = HOW.model_copy(update={"steps": 2})
    task = Task("a", SEQUENCES[:40], LORA, how, validation=SEQUENCES[40:60], labels=["yes", "no"])
    [one] = tune([task], head_base)
    assert one.labels == ("yes", "no")
    with pytest.raises(InvalidRequest, match="give rows to measure on"):
        one.evaluate()
    with pytest.raises(BadData, match="a's rows, row 1, column label"):
        one.evaluate([("x", "maybe")])


def test_the_pages_example_runs(base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code, rows = re.subn(r"^rows = .*$", f"rows = {SEQUENCES!r}", code, flags=re.MULTILINE)
    code, bases = re.subn('"path/to/base"', repr(str(base_folder)), code)
    code, steps = re.subn("steps=500", "steps=3", code)
    assert (rows, bases, steps) == (1, 1, 2)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "tuning.md", "exec"), {})
    spec = describe(str(base_folder))
    heads = {path.name: parse_adapter(load_folder(path), spec).manifest.head for path in (tmp_path / "out").iterdir()}
    assert heads == {"tickets": None, "tickets-lora": None, "tickets-head": "sequence", "tickets-head-lora": "sequence"}
