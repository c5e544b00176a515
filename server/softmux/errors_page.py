"""The table of errors, asked of the classes. `python -m softmux.errors_page` prints it, or writes it between the marks
of a page that it is given."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from softmux import page_table
from softmux.api.errors import error_body, error_response
from softmux.client import calls
from softmux.client import errors as told_by_client
from softmux.errors import SoftmuxError

BEGIN, END = "<!-- errors: begin -->", "<!-- errors: end -->"


def answered(cls: type[SoftmuxError] = SoftmuxError) -> Iterator[type[SoftmuxError]]:
    """The classes that have a code of their own, a parent before its children."""
    for child in cls.__subclasses__():
        if child.__module__ == SoftmuxError.__module__:
            if "code" in vars(child):
                yield child
            yield from answered(child)


def table() -> str:
    """Markdown: a row for each code that a server answers with, then what the client raises of its own."""
    lines = [
        "| status | `code` | class | `type` | `x-should-retry: false` | the client repeats |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for cls in sorted(answered(), key=lambda one: (one.status, one.code)):
        error = cls("")
        kind = error_body(error)["error"]["type"]
        vain = "yes" if error_response(error).headers.get("x-should-retry") == "false" else ""
        lines.append(f"| {cls.status} | `{cls.code}` | `{cls.__name__}` | `{kind}` | {vain} | {_again(cls.code)} |")
    lines += ["", "| class of `softmux.client` | what it means |", "| --- | --- |"]
    for own in (told_by_client.NoAnswer, told_by_client.UnexpectedAnswer, *told_by_client.NoAnswer.__subclasses__()):
        if own.__doc__ and own is not told_by_client.NoAnswer:
            lines.append(f"| `{own.__name__}` | {' '.join(own.__doc__.split())} |")
    return "\n".join(lines)


def _again(code: str) -> str:
    """Which calls of the Python client are made again after it."""
    for codes, said in ((calls.REFUSED, "any call"), (calls.WORKS, "all but changes"), (calls.READS, "reads, uploads")):
        if code in codes:
            return said
    return ""


def written(page: str) -> str:
    """`page` with the table between its marks brought up to date."""
    return page_table.written(page, table(), BEGIN, END)


if __name__ == "__main__":
    page_table.write(sys.argv[1:], written, table)
