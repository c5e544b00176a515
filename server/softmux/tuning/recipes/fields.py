"""The tables of a recipe's fields, made from its schema. `python -m softmux.tuning.recipes.fields` prints them, or
writes them between the marks of a page that it is given."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from softmux import page_table
from softmux.tuning.recipes.distillation import Distillation, Inputs, Teacher
from softmux.tuning.recipes.recipe import (
    Data,
    Evaluate,
    Lora,
    LoraPrefixTuning,
    PrefixTuning,
    PromptTuning,
    PTuning,
    PTuningV2,
    Recipe,
    Sweep,
    Train,
)

BEGIN, END = "<!-- recipe fields: begin -->", "<!-- recipe fields: end -->"
SECTIONS: dict[str, tuple[type[BaseModel], ...]] = {
    "The recipe itself": (Recipe,),
    "`[data]`": (Data,),
    "`[method]`": (PromptTuning, PTuning, PrefixTuning, Lora, LoraPrefixTuning, PTuningV2),
    "`[train]`": (Train,),
    "`[evaluate]`": (Evaluate,),
    "`[sweep]`": (Sweep,),
    "The recipe of `softmux distill`": (Distillation,),
    "`[teacher]` of `softmux distill`": (Teacher,),
    "`[inputs]` of `softmux distill`": (Inputs,),
}


def tables() -> str:
    """Markdown: for each section its fields, what they are by default, and what they do."""
    lines: list[str] = []
    for title, models in SECTIONS.items():
        lines += [f"### {title}", ""]
        for model in models:
            kind = f'`kind = "{model.model_fields["kind"].annotation.__args__[0]}"`: ' if len(models) > 1 else ""  # type: ignore[union-attr]
            lines += [kind + _one_line(model.__doc__ or ""), "", "| field | default | |", "| --- | --- | --- |"]
            lines += [*_rows(model), ""]
    return "\n".join(lines).rstrip()


def _rows(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if name == "kind":
            continue
        value = field.default
        if field.is_required() or value is PydanticUndefined:
            default = "required"
        elif value is None or isinstance(value, BaseModel):
            default = "none" if value is None else "its own"
        else:
            default = f"`{_said(value)}`"
        yield f"| `{name}` | {default} | {_one_line(field.description or '')} |"


def _said(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value == ():
        return "[]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def written(page: str) -> str:
    """`page` with the tables between its marks."""
    return page_table.written(page, tables(), BEGIN, END)


if __name__ == "__main__":
    page_table.write(sys.argv[1:], written, tables)
