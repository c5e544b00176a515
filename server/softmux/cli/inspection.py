"""Commands that look at adapters and bases without running either."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from softmux.cli.output import as_json, done, facts, fail, table

if TYPE_CHECKING:
    from softmux.inspection.compare import Cost
    from softmux.inspection.folder import Report

Folder = Annotated[Path, typer.Argument(help="A folder as PEFT's save_pretrained writes it.")]
Quantization = Literal["fp8", "int8", "nf4"]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]


def inspect(
    folder: Folder,
    model: Annotated[str | None, typer.Option(help="The base to hold it against: a folder, or a hub id.")] = None,
    quantization: Annotated[
        Quantization | None, typer.Option(help="Of the server that is to take it; int8 and nf4 are bases of their own.")
    ] = None,
    nearest: Annotated[int, typer.Option(min=0, max=50, help="Tokens to show beside each learned vector.")] = 3,
    json_: Json = False,
) -> None:
    """Say what an adapter is: where it acts, what it costs, and with --model whether it fits. Nothing of it is run."""
    from softmux.formats.folder import load_folder
    from softmux.inspection.folder import inspect as look

    files = load_folder(folder)
    spec = None
    if model is not None:
        from softmux.inspection.base import describe

        spec = describe(model, fingerprints=True, quantization=quantization)
    report = look(files, str(folder), spec)
    if spec is not None and model is not None and nearest and Path(model).is_dir():
        _add_nearest(report, Path(model), spec, nearest)
    if json_:
        as_json({**report.facts, **({"nearest": report.nearest} if report.nearest else {})})
        return
    facts((name, _words(value)) for name, value in report.facts.items())
    for row in report.nearest:
        found = ", ".join(f"{token['text'] or token['id']!r} {token['cosine']:.2f}" for token in row["tokens"])
        typer.echo(f"vector {row['vector']}  {found}")


def _add_nearest(report: Report, folder: Path, spec: Any, count: int) -> None:
    from softmux.formats.parts import PromptPart
    from softmux.inspection.nearest import nearest, read_embedding, words

    for part in report.adapter.parts if report.adapter is not None and report.facts.get("fits") else ():
        if isinstance(part, PromptPart) and any(folder.glob("*.safetensors")):
            says = words(folder)
            for index, found in enumerate(nearest(part.vectors, read_embedding(folder, spec), count)):
                tokens = [{"id": token, "text": says(token), "cosine": cosine} for token, cosine in found]
                report.nearest.append({"vector": index, "tokens": tokens})


def compare_methods(
    model: Annotated[str, typer.Option(help="The base: a folder with its config.json, or a hub id.")],
    virtual_tokens: Annotated[int, typer.Option(min=1, help="Learned positions of the prompt methods.")] = 20,
    rank: Annotated[int, typer.Option(min=1, help="The LoRA's rank, on queries and values.")] = 8,
    labels: Annotated[int, typer.Option(min=1, help="Labels of P-tuning v2's head.")] = 2,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks to store, for the sums.")] = 50,
    json_: Json = False,
) -> None:
    """Compare what the methods cost on a base. Its config is enough; no weights are read."""
    from softmux.inspection.base import describe
    from softmux.inspection.compare import costs, guide

    spec = describe(model)
    found = costs(spec, virtual_tokens=virtual_tokens, rank=rank, labels=labels)
    advice = guide(spec, found)
    if json_:
        methods = [{**asdict(cost), "all_tasks_bytes_float32": tasks * cost.bytes_float32} for cost in found]
        as_json(
            {
                "model": spec.model_id,
                "base_parameters": spec.parameters,
                "hidden_size": spec.hidden_size,
                "layers": len(spec.layers),
                "virtual_tokens": virtual_tokens,
                "rank": rank,
                "tasks": tasks,
                "methods": methods,
                "guide": advice,
            }
        )
        return
    typer.echo(f"{spec.model_id}: {spec.parameters:,} parameters, {len(spec.layers)} layers of {spec.hidden_size}")
    columns = ("method", "acts on", "parameters", "share", "fp32", "bf16", "resident", "base", "tokens")
    table((*columns, f"{tasks} tasks, fp32"), [_row(cost, tasks) for cost in found])
    for line in advice:
        typer.echo(f"{line['use']}: where {line['when']}. {line['because'][0].upper()}{line['because'][1:]}.")


def fold(
    folder: Folder,
    task_id: Annotated[int, typer.Option(min=0, help="The task's number in the training.")],
    out: Annotated[Path, typer.Option(help="Where the new folder goes; it must not be there.")],
    json_: Json = False,
) -> None:
    """Take one task out of a multitask prompt: a folder of prompt tuning, for that task alone."""
    from softmux.formats.folder import load_folder
    from softmux.inspection.multitask import one_task

    if out.exists():
        fail(f"{out} is there already; give a new folder")
    files = one_task(load_folder(folder), task_id)
    out.mkdir(parents=True)
    for name, data in files.items():
        (out / name).write_bytes(data)
    done(f"task {task_id} is in {out}: `softmux upload {out}` publishes it", json_, task_id=task_id, folder=str(out))


def _row(cost: Cost, tasks: int) -> tuple[str, ...]:
    sizes = (cost.bytes_float32, cost.bytes_bfloat16, cost.resident_bytes, cost.base_bytes)
    learned = (cost.method, cost.acts_on, f"{cost.parameters:,}", f"{cost.share:.4%}")
    return (*learned, *map(_size, sizes), f"+{cost.added_tokens}", _size(tasks * cost.bytes_float32))


def _size(count: int) -> str:
    """Decimal units, three figures, as the papers count."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _words(value: Any) -> Any:
    if isinstance(value, list) and not value:
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
