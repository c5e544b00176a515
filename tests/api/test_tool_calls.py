"""Calls of tools in a reply's text: told from it however it comes in pieces, and grammars of calls that must come."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softmux.api.chat import ChatTemplate
from softmux.api.openai.tools import Call, CallReader, NamedTool, Tool, ToolCall, calls_grammar, check_tools, offered
from softmux.errors import InvalidRequest

WEATHER = Tool.model_validate(
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
)
CLOCK = Tool.model_validate({"type": "function", "function": {"name": "clock"}})


def call(name: str, **arguments: str) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


TEXTS = {
    "no call at all": ("no call at all", []),
    call("clock"): ("", [Call("clock", "{}")]),
    f"Let me see.\n\n{call('weather', city='Bonn')}\n{call('clock')}": (
        "Let me see.",
        [Call("weather", '{"city": "Bonn"}'), Call("clock", "{}")],
    ),
    "a <tool_call>\nno json\n</tool_call> b": ("a <tool_call>\nno json\n</tool_call> b", []),
    '<tool_call>{"name": 3}</tool_call>': ('<tool_call>{"name": 3}</tool_call>', []),
    'cut <tool_call>{"name": "clo': ('cut <tool_call>{"name": "clo', []),
    "ends in a mark's beginning <tool_": ("ends in a mark's beginning <tool_", []),
    "lines\n\nstay\n": ("lines\n\nstay\n", []),
    '<tool_call>{"name": "f", "arguments": "[1]"}</tool_call>': ("", [Call("f", "[1]")]),
    '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>': (
        '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
        [],
    ),
}


@settings(max_examples=60, deadline=None)
@given(text=st.sampled_from(list(TEXTS)), cuts=st.lists(st.integers(0, 120)))
def test_calls_are_told_from_text_whatever_the_pieces(text: str, cuts: list[int]) -> None:
    reader, said, calls, at = CallReader(), "", list[Call](), 0
    for cut in [*sorted(cuts), len(text)]:
        said += reader.push(text[at : max(at, cut)])
        calls += reader.called()
        at = max(at, cut)
    assert (said + reader.flush(), calls) == TEXTS[text]


def test_of_several_calls_the_first_alone_where_one_is_asked_for() -> None:
    reader = CallReader(one=True)
    assert reader.push(f"Now.\n{call('clock')}\n{call('weather', city='Bonn')}") + reader.flush() == "Now."
    assert reader.called() == [Call("clock", "{}")]


@pytest.mark.parametrize("arguments", ['{"a": "\\ud800"}', '{"a": NaN}', "[" * 100_000])
def test_arguments_that_no_template_can_show_are_no_json(arguments: str) -> None:
    told = ToolCall.model_validate({"id": "call_1", "function": {"name": "f", "arguments": arguments}})
    with pytest.raises(InvalidRequest, match="no JSON"):
        told.as_turn()


def test_a_call_that_must_come_has_a_grammar() -> None:
    named = NamedTool.model_validate({"type": "function", "function": {"name": "clock"}})
    for choice in ("none", "auto"):
        assert calls_grammar([WEATHER, CLOCK], choice, several=True) is None
    any_of_them = calls_grammar([WEATHER, CLOCK], "required", several=False)
    assert any_of_them is not None
    assert "weather" in any_of_them.text
    one = calls_grammar([WEATHER, CLOCK], named, several=True)
    assert one is not None
    assert "weather" not in one.text
    assert one.param == "tools"


def test_choices_that_fit_no_tools_are_refused() -> None:
    unknown = NamedTool.model_validate({"type": "function", "function": {"name": "other"}})
    for tools, choice, param in (
        ([], "auto", "tool_choice"),
        ([], "required", "tool_choice"),
        ([CLOCK], unknown, "tool_choice"),
        ([CLOCK, CLOCK], "auto", "tools"),
    ):
        with pytest.raises(InvalidRequest) as refusal:
            check_tools(tools, choice)
        assert refusal.value.param == param
    check_tools([CLOCK], "required")
    assert offered([CLOCK], "none") is None


def test_a_template_that_knows_no_tools_says_so() -> None:
    plain = ChatTemplate("{% for message in messages %}{{ message.content }}{% endfor %}", {})
    knowing = ChatTemplate("{% if tools %}{{ tools | tojson }}{% endif %}{{ messages[0].content }}", {})
    told = offered([CLOCK], "auto")
    turns = [{"role": "user", "content": "Hi"}]
    with pytest.raises(InvalidRequest) as refusal:
        plain.render(turns, told)
    assert refusal.value.param == "tools"
    with pytest.raises(InvalidRequest) as refusal:
        plain.render([*turns, {"role": "tool", "content": "12:00", "tool_call_id": "a"}])
    assert refusal.value.param == "messages"
    assert '"clock"' in knowing.render(turns, told)
    assert knowing.render(turns) == "Hi"


def test_a_templates_own_variables_are_given_and_no_others() -> None:
    """A misspelt one would leave the template's default in force, and nobody would know."""
    template = (
        "{{ bos_token }}{% if not date is defined %}{% set date = 'today' %}{% endif %}{{ date }}: "
        "{{ messages[0].content }}"
        "{% if add_generation_prompt and enable_thinking is false %}<think></think>{% endif %}"
        "{% for _ in range(2) %}.{% endfor %}{% if tools %}{{ raise_exception('no tools') }}{% endif %}"
    )
    knowing = ChatTemplate(template, {"bos_token": "<s>"})
    turns = [{"role": "user", "content": "Hi"}]
    assert knowing.render(turns) == "<s>today: Hi.."
    assert knowing.render(turns, None, {"enable_thinking": False, "date": "1999"}) == "<s>1999: Hi<think></think>.."
    for name in (
        "enable_thnking",
        "messages",
        "tools",
        "add_generation_prompt",
        "bos_token",
        "range",
        "raise_exception",
    ):
        with pytest.raises(InvalidRequest, match=f"reads no “{name}”.*What it reads: date, enable_thinking") as refusal:
            knowing.render(turns, None, {name: False})
        assert refusal.value.param == "chat_template_kwargs"
    with pytest.raises(InvalidRequest, match="What it reads: none"):
        ChatTemplate("{{ messages[0].content }}", {}).render(turns, None, {"enable_thinking": False})
