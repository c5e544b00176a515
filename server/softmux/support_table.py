"""The table of what is served: of PEFT's types, for which task, on which kind of base. Each cell is asked of the code
that decides. `python -m softmux.support_table` prints it, or writes it between the marks of a page that it is given."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from softmux import page_table
from softmux.engine.serves import SERVES
from softmux.formats.methods import METHODS
from softmux.formats.parts import PAIR
from softmux.formats.peft_types import FAMILIES, GENERATES, HEADS, INSTEAD, NO_PREFIX, TRANSFORMS, why_not
from softmux.types import Family

BEGIN, END = "<!-- support table: begin -->", "<!-- support table: end -->"

EXACT = frozenset(
    {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "CPT", "PREFIX_TUNING", "CARTRIDGE"}
    | {"LORA", "TRAINABLE_TOKENS"}
)
"""Types whose tokens the tests compare with PEFT's; a test holds this to what they compare."""

EXACT_TRANSFORMS = frozenset({"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "LORA"})
"""The same of an encoder-decoder's tokens; the tests compare a LoRA's pairs with soft prompts, too."""

EXACT_HEADS: Mapping[Family, frozenset[str]] = MappingProxyType(
    {
        "decoder": frozenset({"PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CARTRIDGE", "LORA"}),
        "encoder": frozenset({"PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CARTRIDGE", "LORA"}),
        "encoder-decoder": frozenset(),
    }
)
"""The same of scores, with a head."""

TASKS = (GENERATES, *HEADS, TRANSFORMS, "QUESTION_ANS", "FEATURE_EXTRACTION")
_PAIRED = "`LORA` with a soft prompt"


def table() -> str:
    """Markdown: a row for each served type and task, the reasons below, then the types that are refused."""
    reasons: dict[str, int] = {}
    lines = [
        f"| `peft_type` | `task_type` | {' | '.join(FAMILIES)} |",
        f"| --- | --- |{' --- |' * len(FAMILIES)}",
    ]
    for names, task, cells in _grouped(reasons):
        lines.append(f"| {', '.join(names)} | `{task}` | {' | '.join(cells)} |")
    lines += [
        "",
        "**exact**: served, and the tests hold its tokens, or a head's scores, to PEFT's own. served: by the same "
        "code, not compared. *read*: checked whole, and refused as “not served yet by this version on this base”. no: "
        "refused, because",
    ]
    lines += ["", *(f"{number}. {reason}" for reason, number in reasons.items()), ""]
    prefixes = [f"`{name}`" for name, method in METHODS.items() if "prefix" in method.kinds]
    lines += [
        f"Encoders of type {', '.join(NO_PREFIX)} take no keys and values, in PEFT neither: {' and '.join(prefixes)} "
        "are refused there.",
        "",
    ]
    lines += ["These are refused by name:", ""]
    for instead in dict.fromkeys(INSTEAD.values()):
        types = ", ".join(f"`{name}`" for name in sorted(INSTEAD) if INSTEAD[name] == instead)
        lines.append(f"- {types}: {instead}.")
    return "\n".join(lines)


def _grouped(reasons: dict[str, int]) -> Iterator[tuple[list[str], str, tuple[str, ...]]]:
    """(types, task, cells): neighbouring types of the same task and the same cells share a row."""
    for task in TASKS:
        rows: dict[tuple[str, ...], list[str]] = {}
        for peft_type in METHODS:
            cells = tuple(_cell(peft_type, task, family, METHODS[peft_type].kinds, reasons) for family in FAMILIES)
            rows.setdefault(cells, []).append(f"`{peft_type}`")
        if task in (GENERATES, *HEADS, TRANSFORMS):
            both = frozenset({"lora", "prompt", "prefix", PAIR})
            cells = tuple(_cell("LORA", task, family, both, reasons) for family in FAMILIES)
            rows.setdefault(cells, []).append(_PAIRED)
        for cells, names in rows.items():
            yield names, task, cells


def _cell(peft_type: str, task: str, family: str, kinds: frozenset[str], reasons: dict[str, int]) -> str:
    chosen = next(name for name in FAMILIES if name == family)
    reason = why_not(peft_type, task, chosen)
    if reason is not None:
        return f"no ({reasons.setdefault(reason, len(reasons) + 1)})"
    head = {"SEQ_CLS": {"sequence_head"}, "TOKEN_CLS": {"token_head"}}.get(task, set())
    if not kinds | head <= SERVES[chosen]:
        return "*read*"
    if head:
        exact = peft_type in EXACT_HEADS[chosen] and PAIR not in kinds
    elif chosen == "encoder-decoder":
        exact = peft_type in EXACT_TRANSFORMS
    else:
        exact = peft_type in EXACT
    return "**exact**" if exact else "served"


def written(page: str) -> str:
    """`page` with the table between its marks brought up to date."""
    return page_table.written(page, table(), BEGIN, END)


if __name__ == "__main__":
    page_table.write(sys.argv[1:], written, table)
