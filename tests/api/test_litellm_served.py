"""LiteLLM's adapters for OpenAI's API, unchanged, against a real server. LiteLLM stands in an environment of its own on
top of this one: it asks for later packages than those that softmux is tested with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from support.examples import examples
from support.served import Served, make_adapter, make_model, upload_parts
from support.tokenizers_made import CHAT_WITH_TOOLS

ROOT = Path(__file__).parents[2]
PINS = ROOT / "tests" / "support" / "litellm-pins.txt"
CALLS = ROOT / "tests" / "support" / "litellm_calls.py"
PAGE = ROOT / "docs" / "how-to" / "openai-clients.md"
KEY = "an-admin-key-for-litellm"


def _environment(folder: Path) -> Path:
    """A Python that has LiteLLM, and all that this one has."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (Path(own.stdout.strip()) / "parent.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    replaced = {line.partition("==")[0].lower() for line in PINS.read_text("utf-8").splitlines()}
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    kept = folder / "constraints.txt"
    kept.write_text("\n".join(pin for pin in pins if pin.partition("==")[0].lower() not in replaced), encoding="utf-8")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "-c", kept, "-r", PINS]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"LiteLLM could not be installed; is a package index within reach?\n{done.stderr}"
    return python


def _run(command: list[Any], env: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What LiteLLM's calls gave, and what softmux's own route says to the same."""
    folder = tmp_path_factory.mktemp("litellm")
    [shown] = [example for example in examples(PAGE) if "import litellm" in example.text]
    python = _environment(folder / "venv")
    make_adapter(make_model(folder / "model"), "prompt_tuning", folder / "adapter", seed=0)
    (folder / "model" / "chat_template.jinja").write_text(CHAT_WITH_TOOLS)
    env = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it fetches one
    with Served(folder / "model", folder / "data", env={"SOFTMUX_ADMIN_KEY": KEY}, key=KEY) as server:
        parts = upload_parts(folder / "adapter")
        server.http.put("/v1/adapters/sentiment", files=parts).raise_for_status()
        said: dict[str, Any] = json.loads(_run([python, CALLS, server.url, KEY], env).splitlines()[-1])
        page = shown.text.replace("http://127.0.0.1:8000", server.url).replace("KEY", KEY)
        said["page"] = _run([python, "-c", page], env)
        for name, asked in (
            ("own chat", {"messages": [{"role": "user", "content": "The film was a gripping"}]}),
            ("own text", {"prompt": "The film was a gripping"}),
        ):
            body = {**asked, "max_tokens": 6, "ignore_eos": True}
            reply = server.http.post("/v1/generate?task=sentiment", json=body).json()
            said[name] = reply["choices"][0]["text"]
    return said


@pytest.mark.nightly
def test_chats_and_texts_whole_streamed_and_awaited(told: dict[str, Any]) -> None:
    assert told["chat"] == told["chat, streamed"] == [told["own chat"], "length", 6]
    assert told["chat, awaited"] == told["own chat"]
    assert told["text"] == [told["own text"], "length", 6]
    assert told["text, streamed"] == told["own text"]
    assert told["many"] == [6, 6]


@pytest.mark.nightly
def test_what_the_page_shows_runs(told: dict[str, Any]) -> None:
    assert told["page"].strip()


@pytest.mark.nightly
def test_a_form_and_tools(told: dict[str, Any]) -> None:
    form = json.loads(told["form"])
    assert list(form) == ["good"]
    assert isinstance(form["good"], bool)
    (name, arguments), streamed = told["tools"]
    assert [name, arguments] == streamed
    assert name == "weather"
    assert arguments["city"] in ("Bonn", "Rome")


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("failure", "kind", "status", "words"),
    [
        ("no task", "NotFoundError", 404, "there is no task"),
        ("no key", "AuthenticationError", 401, "key"),
        ("no such field", "BadRequestError", 422, "reasoning_depth"),
        ("too long", "ContextWindowExceededError", 400, "maximum context length"),
    ],
)
def test_what_fails_is_of_the_right_class(
    told: dict[str, Any], failure: str, kind: str, status: int, words: str
) -> None:
    assert told[failure][:2] == [kind, status]
    assert words in told[failure][2]
