"""A tuned task as a folder: PEFT's two files, `softmux.json`, the recipe, and a README with the held-out figures."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from softmux.formats.softmux_json import SOFTMUX_FILE, SoftmuxJson
from softmux.tuning import sources
from softmux.tuning.evaluate import Figures
from softmux.tuning.methods import Learned
from softmux.tuning.recipe import PrefixTuning, PromptTuning, Recipe
from softmux.tuning.trainer import Trained

RECIPE_FILE = "recipe.toml"
README_FILE = "README.md"

_METRICS = {
    "exact": "the greedy text is the answer, character for character",
    "starts with": "the greedy text begins with the answer",
    "label accuracy": "the likeliest of the task's answers is the right one",
    "field F1": "F1 over the (label, value) pairs of all rows together, a pair being right where both are equal; "
    "invalid JSON has no pairs",
    "valid JSON": "the greedy text is a JSON object",
}


@dataclass(frozen=True, slots=True)
class Report:
    """What a tuning run found. `lengths` are the fewest and most prompt tokens of a training row; `device` is words."""

    recipe: Recipe
    base_label: str
    trained: Trained
    tuned: Figures
    bare: Figures | None
    rows: tuple[int, int, int]
    lengths: tuple[int, int]
    seconds: float
    device: str


def write_folder(out: Path, recipe_path: Path, learned: Learned, report: Report) -> None:
    """Writes the folder `out`, whole or not at all: one that is there already is replaced once the new one is ready.

    A README's part under "Notes" is the author's, and is kept.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write_peft(scratch, learned)
        said = softmux_json(report).model_dump(exclude_none=True)
        (scratch / SOFTMUX_FILE).write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.copyfile(recipe_path, scratch / RECIPE_FILE)
        (scratch / README_FILE).write_text(readme(report, _notes(out / README_FILE)), encoding="utf-8")
        scratch.chmod(0o755)
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
            out.rename(old / out.name)
            scratch.rename(out)
            shutil.rmtree(old)
        else:
            scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def softmux_json(report: Report) -> SoftmuxJson:
    recipe, metric = report.recipe, next(iter(report.tuned.values))
    figure = f"Held-out {metric} {report.tuned.values[metric]:.3f} over {report.tuned.rows} rows."
    return SoftmuxJson(
        template=recipe.template,
        labels=recipe.labels,
        trained_lengths=list(report.lengths),
        notes=f"{recipe.notes} {figure}" if recipe.notes else figure,
    )


def readme(report: Report, notes: str) -> str:
    """The task's README: what it does, its held-out figures, how they were measured, how to make it again."""
    recipe, trained = report.recipe, report.trained
    train_rows, validation_rows, test_rows = report.rows
    lines = [
        f"# {recipe.task}",
        "",
        recipe.title or recipe.notes or f"A task tuned over {report.base_label}.",
        "",
        f"- Base model: {report.base_label}, frozen.",
        f"- Method: {_method(recipe)}.",
        f"- Data: {sources.about(recipe.data)}",
        f"- Made by: `softmux tune {RECIPE_FILE}` ({trained.best_step} of {len(trained.losses)} steps kept, "
        f"{report.seconds:.0f} s on {report.device}).",
        "",
        "## Held-out figures",
        "",
        *_table(report),
        "",
        f"{train_rows} rows to train, {validation_rows} to pick the best step, {test_rows} held out: those where "
        "`int(sha256(text).hexdigest(), 16) % 10 == 0`, never trained or selected on. Greedy generation in float32. "
        + " ".join(f"*{name}*: {_METRICS[name]}." for name in report.tuned.values),
    ]
    if notes:
        lines += ["", "## Notes", "", notes]
    return "\n".join(lines) + "\n"


def _table(report: Report) -> list[str]:
    bare = report.bare
    words = "the same words without learned tokens" if report.recipe.template else "the bare model"
    head = "| figure | tuned |" + (f" {words} |" if bare else "")
    lines = [head, "| --- | --- |" + (" --- |" if bare else "")]
    for name, value in report.tuned.values.items():
        lines.append(f"| {name} | {value:.3f} |" + (f" {bare.values[name]:.3f} |" if bare else ""))
    return lines


def _method(recipe: Recipe) -> str:
    method = recipe.method
    count = f"{method.virtual_tokens} learned vectors"
    if isinstance(method, PromptTuning):
        return f"prompt tuning, {count}, begun from " + ("a text" if method.init_text else "random tokens")
    if isinstance(method, PrefixTuning):
        how = "through a two-layer MLP that is folded away" if method.projection else "directly"
        return f"prefix tuning, {method.virtual_tokens} learned keys and values a layer, trained {how}"
    where = f" at the places of the template `{method.template}`" if method.template else ""
    return f"P-tuning ({method.encoder} encoder, folded away), {count}{where}"


def _notes(readme_path: Path) -> str:
    if not readme_path.is_file():
        return ""
    return readme_path.read_text(encoding="utf-8").partition("\n## Notes\n")[2].strip()


def _write_peft(folder: Path, learned: Learned) -> None:
    """The adapter as PEFT saves it. Where a config names the base or a tokenizer it is a label, no path."""
    for config in learned.peft.peft_config.values():
        config.base_model_name_or_path = learned.base.label
        if getattr(config, "tokenizer_name_or_path", None):
            config.tokenizer_name_or_path = learned.base.label
    learned.peft.save_pretrained(folder, save_embedding_layers=False)
    (folder / README_FILE).unlink(missing_ok=True)  # PEFT's model card; ours takes its place
    for file in folder.iterdir():
        file.chmod(0o644)
