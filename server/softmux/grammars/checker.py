"""`python -m softmux.grammars.checker`: tries grammars, in a process that may be killed over one.

Standard input and output carry frames (`softmux.grammars.frames`): first a `Vocabulary`, answered by an empty word,
then a `Grammar` each, answered by what is wrong with it, or an empty word.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys

import msgspec

from softmux.errors import InvalidRequest
from softmux.grammars.compiler import GrammarCompiler
from softmux.grammars.frames import Vocabulary, frame, read
from softmux.types import Grammar

_MEMORY = 4 << 30
"""Addresses that it may have, in bytes: a grammar that would need more ends it."""


def main() -> int:
    with contextlib.suppress(OSError):
        os.nice(5)  # what it takes of the processors, the engine does not need
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    asked, told = sys.stdin.buffer, sys.stdout.buffer
    first = read(asked)
    if first is None:
        return 0
    vocabulary = msgspec.msgpack.decode(first, type=Vocabulary)
    try:
        compiler = GrammarCompiler(vocabulary.tokenizer, vocabulary.size, vocabulary.ends)
        said = ""
    except Exception as error:  # whatever the tokenizer does to the library
        said = str(error).strip().split("\n")[0][:300] or "it can't be read"
    told.write(frame(said))
    told.flush()
    while not said and (body := read(asked)) is not None:
        try:
            compiler.compile(msgspec.msgpack.decode(body, type=Grammar))
            wrong = ""
        except InvalidRequest as error:
            wrong = error.message
        told.write(frame(wrong))
        told.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
