"""What a grammar can't say."""

from __future__ import annotations

import pytest

from softmux.errors import InvalidRequest
from softmux.grammars.compiler import GrammarCompiler
from softmux.types import Grammar
from support.tokenizers_made import byte_level


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("choice", '["a", "</s>"]'),
        Grammar("json_schema", '{"enum":["a</s>b"]}'),
        Grammar("regex", "x</s>"),
        Grammar("regex", "x<pad>"),
    ],
)
def test_a_mark_that_no_text_shows_is_refused(grammar: Grammar) -> None:
    """It would be written as its token: the reply ended there, and was no whole one."""
    compiler = GrammarCompiler(byte_level().to_str(), 420, (2,))
    compiler.compile(Grammar(grammar.kind, grammar.text.replace("</s>", "</a>").replace("<pad>", "<b>")))
    with pytest.raises(InvalidRequest, match="a mark of the model's"):
        compiler.compile(grammar)
