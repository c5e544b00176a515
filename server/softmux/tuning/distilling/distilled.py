"""What came of a distillation, as a table, as JSON, and as the folder's README."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from softmux.formats.softmux_json import SoftmuxJson
from softmux.tuning import sources
from softmux.tuning.distilling.agreement import Agreement, Cost
from softmux.tuning.recipes.distillation import Distillation
from softmux.tuning.recipes.recipe import Data, PTuning
from softmux.tuning.training.trainer import Trained
from softmux.tuning.write import RECIPE_FILE, method_words

_COLUMNS = ("distilled", "its start", "no prompt")


@dataclass(frozen=True, slots=True)
class Distilled:
    """`student`, `start` (the same prompt, untrained) and `bare` (the base without any) beside the teacher, on the same
    held-out inputs; `rows` to train, to validate, held out; `lengths` the fewest and most real tokens of an input."""

    recipe: Distillation
    base_label: str
    trained: Trained
    student: Agreement
    start: Agreement
    bare: Agreement
    long: Cost
    short: Cost
    rows: tuple[int, int, int]
    lengths: tuple[int, int]
    seconds: float
    device: str

    @property
    def ratio(self) -> float:
        """How many times as many tokens the long prompt is."""
        return self.long.tokens / self.short.tokens


def figures(found: Distilled) -> dict[str, Any]:
    """For `--json`."""
    return {
        "task": found.recipe.task,
        "base": found.base_label,
        "seconds": round(found.seconds, 1),
        "rows": found.rows[2],
        "distilled": asdict(found.student),
        "start": asdict(found.start),
        "no_prompt": asdict(found.bare),
        "teacher_cost": asdict(found.long),
        "cost": asdict(found.short),
        "tokens_saved": found.long.tokens - found.short.tokens,
        "milliseconds_saved": found.long.milliseconds - found.short.milliseconds,
    }


def _rows(found: Distilled) -> list[tuple[str, ...]]:
    held = (found.student, found.start, found.bare)
    return [
        ("KL from the teacher, a token", *(f"{one.divergence:.4f}" for one in held)),
        ("same likeliest token", *(f"{one.same_token:.3f}" for one in held)),
        ("same greedy answer", *(f"{one.same_answer:.3f}" for one in held)),
    ]


def saved(found: Distilled) -> str:
    """What the short prompt saves, in a sentence."""
    return (
        f"{found.long.tokens:.0f} tokens of prompt become {found.short.tokens:.0f} ({found.ratio:.1f} times fewer); "
        f"the prefill of an input of middle length takes {found.short.milliseconds:.1f} ms where it took "
        f"{found.long.milliseconds:.1f} ms ({found.device}, nothing cached)."
    )


def table(found: Distilled) -> Table:
    shown = Table(box=None, pad_edge=False)
    for title in ("", *_COLUMNS):
        shown.add_column(title)
    for row in _rows(found):
        shown.add_row(*row)
    return shown


def softmux_json(found: Distilled) -> SoftmuxJson:
    recipe = found.recipe
    figure = (
        f"Held-out agreement with its teacher: {found.student.same_answer:.3f} of answers, "
        f"{found.student.same_token:.3f} of tokens, over {found.rows[2]} inputs."
    )
    return SoftmuxJson(
        template=recipe.method.template if isinstance(recipe.method, PTuning) else None,
        trained_lengths=list(found.lengths),
        notes=f"{recipe.notes} {figure}" if recipe.notes else figure,
    )


def readme(found: Distilled, notes: str) -> str:
    """What it was distilled from, how near it comes on held-out inputs, what it saves, how to make it again."""
    recipe, trained = found.recipe, found.trained
    train_rows, validation_rows, test_rows = found.rows
    lines = [
        f"# {recipe.task}",
        "",
        recipe.title or recipe.notes or f"A long prompt of {found.base_label}, distilled into a short one.",
        "",
        f"- Base model: {found.base_label}, frozen.",
        f"- Method: {method_words(recipe.method)}.",
        f"- Teacher: the same base with {_teacher(recipe)}, {found.long.tokens:.0f} tokens.",
        f"- Inputs: {_inputs(recipe)}.",
        f"- Made by: `softmux distill {RECIPE_FILE}` ({trained.best_step} of {len(trained.losses)} steps kept, "
        f"{found.seconds:.0f} s on {found.device}).",
        "",
        "## Held-out figures",
        "",
        *(f"| {' | '.join(row)} |" for row in (("figure", *_COLUMNS), ("---",) * (len(_COLUMNS) + 1), *_rows(found))),
        "",
        saved(found),
        "",
        f"{train_rows} inputs to train, {validation_rows} to pick the best step, {test_rows} held out: those where "
        "`int(sha256(text).hexdigest(), 16) % 10 == 0`, never trained or selected on. In float32, over the "
        "whole vocabulary, at every token of the teacher's greedy answers; *same greedy answer*: every token is equal.",
    ]
    if notes:
        lines += ["", "## Notes", "", notes]
    return "\n".join(lines) + "\n"


def _teacher(recipe: Distillation) -> str:
    said = recipe.teacher
    if said.adapter is not None:
        return f"the adapter `{said.adapter.name}`"
    return f"the text in `{said.file.name}`" if said.file is not None else "the recipe's text"


def _inputs(recipe: Distillation) -> str:
    how = recipe.inputs
    if how.path is not None:
        return f"`{how.path.name}`, column `{how.column}`"
    if how.source is not None:
        return f"the texts of `{how.source}`: {sources.about(Data(source=how.source)).removesuffix('.')}"
    after = "after the recipe's instruction" if how.instruction else "after nothing"
    return f"{how.generate} texts that the base sampled {after}, at temperature {how.temperature:g}"
