"""The measurement of structured output: it counts what it says, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from softmux.bench.peers import structured
from softmux.bench.peers.schemas import random_schema
from support.served import make_model


def test_schemas_are_schemas_and_each_its_own() -> None:
    made = [random_schema(number) for number in range(100)]
    for schema in made:
        Draft202012Validator.check_schema(schema)
    assert len({json.dumps(schema) for schema in made}) == 100
    assert random_schema(3) == random_schema(3) != random_schema(3, seed=1)


def test_documents_are_counted_and_pairs_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    make_model(model)
    told = tmp_path / "figures.json"
    options = ["--schemas", "6", "--block", "3", "--pairs", "1", "--bound", "2", "--free", "2", "--threads", "1"]
    status = structured.main(["--model", str(model), "--device", "cpu", "--json", str(told), *options])
    figures = json.loads(told.read_text())
    documents = figures["documents"]
    assert documents["valid"] + documents["cut_by_max_tokens"] == 6
    assert documents["valid"] > 0
    assert (documents["invalid"], documents["failed"], status) == ([], [], 0)
    assert len(figures["throughput_loss"]) == len(figures["processor_cost"]) == 1
    [rates] = figures["free_tokens_per_second"]
    assert min(rates.values()) > 0
    assert "documents valid" in capsys.readouterr().out
