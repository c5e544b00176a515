"""`softmux run`: a file of requests, answered once each, whatever happens meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softmux.cli.output import as_json, fail
from softmux.cli.remote import DEFAULT_URL, Key, Url, task_names

if TYPE_CHECKING:
    from softmux.offline.run import Summary
    from softmux.offline.target import Target

_BARE = "-"


def run(
    task: Annotated[
        str,
        typer.Argument(help="The task, task@version or tenant/task; - is the bare model.", autocompletion=task_names),
    ],
    input_: Annotated[Path, typer.Argument(metavar="INPUT", help="A line of JSON for each request.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the answers go, a line each.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    model: Annotated[
        str | None, typer.Option(help="Run this base in this process, without a server: a folder, or a hub id.")
    ] = None,
    adapters: Annotated[
        Path | None, typer.Option(help="With --model: the folder that holds the task's; else TASK is a folder itself.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="For rows that do not say.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="For rows that do not say.")] = None,
    seed: Annotated[int | None, typer.Option(help="For rows that do not say.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="For rows that do not say; several times for several.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Rows that the server has at a time.")] = 64,
    patience: Annotated[float, typer.Option(min=0.0, help="Seconds without any answer after which to give up.")] = 300,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again what failed before.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Forget what the output holds.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Write the summary as JSON.")] = False,
) -> None:
    """Answer a file of requests, by a server or an engine in this process. Run it again to go on where it ended."""
    from softmux.offline.journal import Journal
    from softmux.offline.rows import Input
    from softmux.offline.run import run as work

    if adapters is not None and model is None:
        fail("--adapters goes with --model; a server has its own tasks")
    given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "stop": stop or None}
    defaults = {name: value for name, value in given.items() if value is not None}
    source = Input.of(input_)
    if output.resolve() == input_.resolve():
        fail("the output would overwrite the input: give another -o")
    asked = {"input": source.digest, "task": _name(task), "parameters": defaults}
    if model is not None:
        target = _engine(model, adapters, task)
    else:
        target = _served(url, key, task, concurrency, patience, None if overwrite else _began(output, asked))
    try:
        identity = target.identity
        record = {**asked, "digest": identity.digest, "base_fingerprint": identity.base_fingerprint}
        with Journal(output, record, source.lines, overwrite=overwrite) as journal:
            if retry_failed:
                journal.drop_failed()
            summary = _shown(lambda told: work(source, target, journal, defaults, told), output, quiet=json_)
    finally:
        target.close()
    failed = summary.failed + journal.failed_before
    if json_:
        as_json(
            {
                "task": identity.task, "digest": identity.digest, "output": str(output), "rows": summary.rows,
                "before": summary.before, "answered": summary.answered, "failed": failed,
                "errors": dict(summary.errors), "seconds": round(summary.seconds, 3),
                "prompt_tokens": summary.prompt_tokens, "completion_tokens": summary.completion_tokens,
                "tokens_per_second": round(summary.rate, 1),
            }
        )  # fmt: skip
    else:
        _tell(summary, failed, output)
    if failed:
        raise typer.Exit(1)


def _name(task: str) -> str:
    """By which a file is resumed: a folder's is its last part."""
    return Path(task).resolve().name if Path(task).is_dir() else task


def _began(output: Path, asked: dict[str, Any]) -> str | None:
    """The version by which an output was begun that is now to be gone on with."""
    try:
        before = json.loads(output.with_name(output.name + ".run.json").read_bytes())
        return before["digest"] if all(before[name] == value for name, value in asked.items()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _served(url: str, key: str | None, task: str, concurrency: int, patience: float, digest: str | None) -> Target:
    from softmux.offline.served import ServedTarget

    name = None if task == _BARE else task
    return ServedTarget(url, key, name, concurrency=concurrency, patience=patience, digest=digest)


def _engine(model: str, adapters: Path | None, task: str) -> Target:
    from transformers.utils.logging import disable_progress_bar

    from softmux.formats.folder import load_folder
    from softmux.offline.engine import EngineTarget
    from softmux.settings import Settings

    disable_progress_bar()
    files = None
    if task != _BARE:
        files = load_folder(Path(task) if adapters is None else adapters / task)
    settings = Settings(model=model)
    settings = settings.model_copy(update={"max_waiting": 1 << 20})
    return EngineTarget(settings, None if files is None else _name(task), files)


def _shown(work: Callable[[Callable[[Summary], None]], Summary], output: Path, *, quiet: bool) -> Summary:
    """The work under a progress bar. Interrupted, it ends with 130 and says how to go on."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    try:
        with Progress(*columns, console=console, transient=quiet, disable=not console.is_terminal) as bar:
            shown = bar.add_task(output.name, total=None, rate="")

            def told(summary: Summary) -> None:
                rate = f"{summary.rate:,.0f} tokens/s" + (f", {summary.failed} failed" if summary.failed else "")
                bar.update(shown, total=summary.rows, completed=summary.done, rate=rate)

            return work(told)
    except KeyboardInterrupt:
        typer.secho(f"stopped; what is answered is in {output}: run the same command again to go on", err=True)
        raise typer.Exit(130) from None


def _tell(summary: Summary, failed: int, output: Path) -> None:
    before = f", {summary.before} before" if summary.before else ""
    took = f"{summary.seconds:.1f} s ({summary.rate:,.0f} tokens/s)"
    typer.echo(f"{output}: {summary.answered:,} rows answered in {took}{before}")
    if failed:
        codes = ", ".join(f"{count} {code}" for code, count in summary.errors.most_common()) or "in an earlier run"
        typer.secho(f"{failed:,} rows failed ({codes}): --retry-failed asks them again", err=True, fg="yellow")
