"""A tuned task as a folder: PEFT's two files, `softmux.json`, the recipe, and a README with the held-out figures."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from softmux.evaluation.report import JSON_FILE, PAGE_FILE
from softmux.evaluation.scores import METRICS
from softmux.formats.config import CONFIG_FILE
from softmux.formats.folder import ALLOWED_FILES, LORA_FILES
from softmux.formats.softmux_json import SOFTMUX_FILE, SoftmuxJson
from softmux.formats.tensors import WEIGHTS_FILE
from softmux.tuning import sources
from softmux.tuning.evaluate import Figures
from softmux.tuning.recipes.recipe import (
    Lora,
    LoraPrefixTuning,
    MethodRecipe,
    PrefixTuning,
    PromptTuning,
    PTuningV2,
    Recipe,
)
from softmux.tuning.starts.bank import ROWS as BANK_ROWS
from softmux.tuning.starts.bank import Score
from softmux.tuning.training.trainer import Trained
from softmux.tuning.whole_folder import whole_folder

RECIPE_FILE = "recipe.toml"
README_FILE = "README.md"
TRIED = 12
"""So many starts that were tried are in a README."""

_BEGUN = {"text": "a text", "sampled": "random tokens", "labels": "the labels' words", "random": "noise"}
_BESIDE = {
    "linear probe": "logistic regression on the frozen encoder's last hidden states (their mean over a sequence, or "
    "each token's own) of the rows to train that are not made up, its weight decay picked on the validation rows",
    "full fine-tuning": "the whole encoder trained on the same rows, its best step picked on the validation rows",
}


class Saved(Protocol):
    """What was learned: PEFT's model of it, which saves it, and that of the LoRA trained with it. `base.label` names
    the base."""

    @property
    def base(self) -> Any: ...

    @property
    def peft(self) -> Any: ...

    @property
    def lora(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Report:
    """What a tuning run found. `lengths` are the fewest and most prompt tokens of a training row; `device` is words.
    `beside`: the same held-out rows by other means; `labels` are a head's, `base_fingerprint` its encoder's. `begun`:
    what its start has of another adapter, in words; `tried`: the losses of all starts that it was picked from."""

    recipe: Recipe
    base_label: str
    trained: Trained
    tuned: Figures
    beside: dict[str, Figures]
    rows: tuple[int, int, int]
    lengths: tuple[int, int]
    seconds: float
    device: str
    labels: list[str] = field(default_factory=list)
    base_fingerprint: str | None = None
    begun: str = ""
    tried: tuple[Score, ...] = ()


def write_folder(out: Path, recipe_path: Path, learned: Saved, report: Report) -> None:
    """The folder of a tuned task: `put_folder`, with its README."""
    put_folder(out, recipe_path, learned, softmux_json(report), lambda notes: readme(report, notes))


def put_folder(
    out: Path, recipe_path: Path, learned: Saved, said: SoftmuxJson, readme_of: Callable[[str], str]
) -> None:
    """Writes the folder `out`, whole or not at all: one that is there already is replaced once the new one is ready.

    A README's part under "Notes" is the author's, and is kept (`readme_of` is given it), as are files that are no
    adapter's, such as the rows it is made of. The evaluation of what was there goes.
    """
    out = out.resolve()
    with whole_folder(out) as made:
        write_peft(made, learned)
        json_said = json.dumps(said.model_dump(exclude_none=True), indent=2, ensure_ascii=False)
        (made / SOFTMUX_FILE).write_text(json_said + "\n", encoding="utf-8")
        shutil.copyfile(recipe_path, made / RECIPE_FILE)
        (made / README_FILE).write_text(readme_of(_notes(out / README_FILE)), encoding="utf-8")
        made.chmod(0o755)
        if out.exists():
            _keep_others(out, made)


def _keep_others(out: Path, made: Path) -> None:
    """What lies in the folder beside the files that a run writes. Linked, where the disk can: rows may be many."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    for path in out.iterdir():
        if path.name not in (*ALLOWED_FILES, RECIPE_FILE, README_FILE, PAGE_FILE, JSON_FILE):
            if path.is_symlink():
                (made / path.name).symlink_to(path.readlink())
            elif path.is_dir():
                shutil.copytree(path, made / path.name, symlinks=True, copy_function=link)
            else:
                link(str(path), str(made / path.name))


def softmux_json(report: Report) -> SoftmuxJson:
    recipe, metric = report.recipe, next(iter(report.tuned.values))
    figure = f"Held-out {metric} {report.tuned.values[metric]:.3f} over {report.tuned.rows} rows."
    if report.begun:
        figure += f" Begun from {report.begun}."
    return SoftmuxJson(
        template=recipe.template,
        labels=report.labels or recipe.labels,
        base_fingerprint=report.base_fingerprint,
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
        f"- Method: {method_words(recipe.method)}.",
        *([f"- Begun from: {report.begun}."] if report.begun else []),
        f"- Data: {sources.about(recipe.data)}",
        f"- Made by: `softmux tune {RECIPE_FILE}` ({trained.best_step} of {len(trained.losses)} steps kept, "
        f"{report.seconds:.0f} s on {report.device}).",
        "",
        "## Held-out figures",
        "",
        *_table(report),
        "",
        f"{train_rows} rows to train, {validation_rows} to pick the best step, {test_rows} held out: those where "
        "`int(sha256(text).hexdigest(), 16) % 10 == 0`, never trained or selected on. "
        + ("" if isinstance(recipe.method, PTuningV2) else "Greedy generation in float32. ")
        + " ".join(f"*{name}*: {METRICS[name]}." for name in report.tuned.values)
        + "".join(f" *{name}*: {_BESIDE[name]}." for name in report.beside if name in _BESIDE),
    ]
    lines += _tried(report.tried)
    if notes:
        lines += ["", "## Notes", "", notes]
    return "\n".join(lines) + "\n"


def _tried(scores: Sequence[Score]) -> list[str]:
    """What `init_from = "auto"` had to choose from."""
    if not scores:
        return []
    rows = [(score.name, f"{score.loss:.4f}", score.digest) for score in scores[:TRIED]]
    more = [f"{len(scores) - TRIED} more were worse."] if len(scores) > TRIED else []
    return [
        "",
        "## Starts tried",
        "",
        f"The mean loss a token on validation rows ({BANK_ROWS} at most), before any step. It began from the first.",
        "",
        "| start | loss | digest |",
        "| --- | --- | --- |",
        *(_row(name, cells) for name, *cells in rows),
        *(["", *more] if more else []),
    ]


def _table(report: Report) -> list[str]:
    columns = {"tuned": report.tuned} | report.beside
    lines = [_row("figure", columns), _row("---", ["---"] * len(columns))]
    for name in report.tuned.values:
        lines.append(_row(name, [f"{figures.values[name]:.3f}" for figures in columns.values()]))
    if report.tuned.parameters is not None:
        lines.append(_row("numbers trained", [f"{figures.parameters:,}" for figures in columns.values()]))
    return lines


def _row(name: str, cells: Iterable[str]) -> str:
    return f"| {' | '.join([name, *cells])} |"


def method_words(method: MethodRecipe) -> str:
    """What is learned, as a README says it."""
    if isinstance(method, PromptTuning):
        begun = "" if method.init_from else f", begun from {_BEGUN[method.begins]}"
        return f"prompt tuning, {method.virtual_tokens} learned vectors{begun}"
    if isinstance(method, PrefixTuning):
        how = "through a two-layer MLP that is folded away" if method.projected else "directly"
        return f"prefix tuning, {method.virtual_tokens} learned keys and values a layer, trained {how}"
    if isinstance(method, PTuningV2):
        folded = ", trained through a two-layer MLP that is folded away" if method.projection else ""
        return (
            f"P-tuning v2, {method.virtual_tokens} learned keys and values a layer{folded}, under a {method.head} head"
            + (" and a pooler" if method.pooler else "")
        )
    if isinstance(method, Lora | LoraPrefixTuning):
        low_rank = f"LoRA of rank {method.rank}, alpha {method.alpha:g}"
        if isinstance(method, Lora):
            return low_rank
        return f"{low_rank}, trained together with {method.virtual_tokens} learned keys and values a layer"
    where = f" at the places of the template `{method.template}`" if method.template else ""
    return f"P-tuning ({method.encoder} encoder, folded away), {method.virtual_tokens} learned vectors{where}"


def _notes(readme_path: Path) -> str:
    if not readme_path.is_file():
        return ""
    return readme_path.read_text(encoding="utf-8").partition("\n## Notes\n")[2].strip()


def write_peft(folder: Path, learned: Saved) -> None:
    """The adapter as PEFT saves it, a LoRA beside a soft prompt under the names of a pair's. Where a config names the
    base or a tokenizer it is a label, no path."""
    if learned.lora is not None:
        _save(folder, learned.lora, learned.base.label)
        for name, paired in zip((CONFIG_FILE, WEIGHTS_FILE), LORA_FILES, strict=True):
            (folder / name).rename(folder / paired)
    _save(folder, learned.peft, learned.base.label)
    for file in folder.iterdir():
        file.chmod(0o644)


def _save(folder: Path, peft: Any, label: str) -> None:
    for config in peft.peft_config.values():
        config.base_model_name_or_path = label
        if getattr(config, "tokenizer_name_or_path", None):
            config.tokenizer_name_or_path = label
    peft.save_pretrained(folder, save_embedding_layers=False)
    (folder / README_FILE).unlink(missing_ok=True)  # PEFT's model card; ours takes its place
