"""Events are the same however the stream's bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softmux.bench.clients.events import DONE, EventReader, read_reply

STREAM = (
    'data: {"choices":[{"text":"héllo"}]}\n\n: a comment\n\nevent: x\r\ndata:{"choices":[]}\r\n\r\ndata: [DONE]\n\n'
).encode()


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_cut_gives_the_same_events(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    reader = EventReader()
    found = [data for a, b in pairwise(edges) for data in reader.feed(STREAM[a:b])]
    assert found == ['{"choices":[{"text":"héllo"}]}'.encode(), b'{"choices":[]}', DONE]


def test_a_reply_is_read_as_far_as_it_matters() -> None:
    reply = read_reply(
        b'{"id":"x","choices":[{"text":" a","token_ids":[3],"finish_reason":null,"logprobs":null}],'
        b'"usage":{"prompt_tokens":4,"completion_tokens":1,"total_tokens":5}}'
    )
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == (" a", None)
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (4, 1)
    error = read_reply(b'{"error":{"message":"no","type":"x","code":429}}').error
    assert error is not None
    assert error.code == 429
    with pytest.raises(msgspec.MsgspecError):
        read_reply(b"<html>")
