"""The shipped tasks on the demo's base model, mixed in one batch, against PEFT's `generate` (fp32, greedy)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from support.engines import TestEngine
from support.models import greedy_reference

ADAPTERS = Path(__file__).parents[2] / "adapters"
NEW_TOKENS = 24
PROMPTS = {
    "sentiment": ["a gripping, beautiful film", "flat, dull and far too long", "I laughed twice. I slept the rest."],
    "source": ["RT @nasa: we have liftoff!", "The battery died after two weeks.", "Shares fell 3 percent on Monday."],
    "person-or-company": ["Smith & Sons Plumbing LLC", "Dr. Maria del Carmen Ortiz", "Acme Holdings Inc"],
    "address": [
        "123 Main St Apt 4, Springfield IL 62704",
        "PO Box 17 Salem, OR 97301",
        "One Infinite Loop Cupertino CA",
    ],
    "summary": [
        "The elements of `x` are compared with their neighbours along `axis`, from the first to the last, and equal "
        "ones are counted once.\n\nParameters\n----------\nx : array_like\n    What is counted.\n\nTL;DR:"
    ],
}
COUNTRIES = ["France", "Japan", "Kenya", "Peru"]


def _by_hand(base: Any, tokenizer: Any, folder: Path, country: str) -> tuple[list[int], int]:
    """The template's reference: the module on embeddings laid out by hand, one greedy token at a time."""
    from safetensors.torch import load_file

    vectors = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"].float()
    assert json.loads((folder / "softmux.json").read_text())["template"] == "{p:2}The capital of {country}{p:2} is"
    embed = base.get_input_embeddings()
    ids = [tokenizer(text)["input_ids"] for text in (f"The capital of {country}", " is")]
    parts = [vectors[:2], embed(torch.tensor(ids[0])), vectors[2:4], embed(torch.tensor(ids[1]))]
    embeddings = torch.cat(parts)[None]
    tokens: list[int] = []
    for position in range(NEW_TOKENS):
        logits = base(inputs_embeds=embeddings).logits[0, -1]
        best = logits.topk(2)
        if best.values[0] - best.values[1] < 1e-4:
            return tokens, position
        tokens.append(int(best.indices[0]))
        if tokens[-1] == base.generation_config.eos_token_id:
            break
        embeddings = torch.cat([embeddings, embed(torch.tensor([[tokens[-1]]]))], 1)
    return tokens, len(tokens)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@torch.no_grad()
def test_shipped_tasks_mixed_are_token_exact(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from softmux.demo import demo_model
    from softmux.formats.folder import load_folder, read_adapter
    from softmux.formats.layout import TransformersEncoder, lay_out

    model = demo_model()
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    engine = TestEngine(model, max_step_tokens=256)
    spec = engine.engine.spec
    wanted: list[tuple[str, list[int], int]] = []
    inputs: list[tuple[Any, tuple[int, ...]]] = []
    for task, prompts in [*PROMPTS.items(), ("capital", COUNTRIES)]:
        manifest = read_adapter(load_folder(ADAPTERS / task), spec).manifest
        root, _ = engine.adapter(ADAPTERS / task)
        base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        tuned = base if task == "capital" else PeftModel.from_pretrained(base, str(ADAPTERS / task)).eval()
        for prompt in prompts:
            said = {"variables": {"country": prompt}} if task == "capital" else {"prompt": prompt}
            tokens = lay_out(manifest, TransformersEncoder(tokenizer), vocab_size=spec.vocab_size, **said)
            inputs.append((root, tokens))
            if task == "capital":
                wanted.append((task, *_by_hand(base, tokenizer, ADAPTERS / task, prompt)))
            else:
                wanted.append((task, *greedy_reference(tuned, tokenizer(prompt)["input_ids"], NEW_TOKENS)))
    eos = spec.eos_token_ids[0]
    for _ in range(2):  # cold, then cached
        names = [engine.add(list(tokens), root, max_tokens=NEW_TOKENS) for root, tokens in inputs]
        engine.run()
        for name, (task, tokens, certain) in zip(names, wanted, strict=True):
            expected = [token for token in tokens[:certain] if token != eos]
            assert engine.done[name].tokens[: len(expected)] == expected, task
            if certain == len(tokens):
                assert len(engine.done[name].tokens) == len(expected), task
    engine.close()


@pytest.mark.nightly
@pytest.mark.timeout(600)
@torch.no_grad()
def test_shipped_tasks_with_heads_mixed_give_pefts_scores() -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

    from softmux.demo import demo_model

    model = demo_model(model="minilm")
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    engine = TestEngine(model, max_step_tokens=256)
    wanted: dict[str, tuple[str, Any]] = {}
    for task, head in (("sentiment-encoder", "sequence"), ("source-encoder", "sequence"), ("address-tags", "token")):
        labels = json.loads((ADAPTERS / task / "softmux.json").read_text())["labels"]
        kind = AutoModelForTokenClassification if head == "token" else AutoModelForSequenceClassification
        base = kind.from_pretrained(model, num_labels=len(labels), dtype=torch.float32)
        tuned = PeftModel.from_pretrained(base, str(ADAPTERS / task)).eval()
        root, virtual = engine.adapter(ADAPTERS / task)  # refused if it were made for another base
        for prompt in PROMPTS["address" if head == "token" else task.removesuffix("-encoder")]:
            given = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
            ids = given["input_ids"][0].tolist()
            logits = tuned(**given).logits[0]
            name = engine.read(ids, root, virtual, head=head, trained_prefix=True)
            wanted[name] = (task, logits[-len(ids) :] if head == "token" else logits[None])
    engine.run()
    for name, (task, logits) in wanted.items():
        found = torch.frombuffer(bytearray(engine.done[name].scores), dtype=torch.float32).view_as(logits)
        torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-4, msg=lambda said, task=task: f"{task}: {said}")
    engine.close()
