"""What the worker refuses by itself, whatever an API process sends."""

from __future__ import annotations

import pytest

from softmux.errors import InvalidRequest
from softmux.types import AdapterRef, SamplingParams
from softmux.worker.messages import Generate
from softmux.worker.process import _check_layout


def request(method: str, tokens: tuple[int, ...]) -> Generate:
    adapter = AdapterRef("default", "task", 1, "sha256:0", method, 3)  # type: ignore[arg-type]
    return Generate(id="1", tenant="default", tokens=tokens, sampling=SamplingParams(), adapter=adapter)


def test_a_virtual_token_the_adapter_does_not_have() -> None:
    with pytest.raises(InvalidRequest, match="virtual token 3"):
        _check_layout(request("prompt_tuning", (-1, -2, -3, -4, 7)))


def test_a_trained_prefix_with_nothing_behind_it() -> None:
    with pytest.raises(InvalidRequest, match="prefix needs a prompt"):
        _check_layout(request("prefix_tuning", (-1, -2, -3)))


@pytest.mark.parametrize("tokens", [(-1, -2, -3), (-1, -2, -3, 5), (5,), (-1, 5, -3)])
def test_layouts_that_can_run_pass(tokens: tuple[int, ...]) -> None:
    _check_layout(request("prompt_tuning", tokens))
