"""`softmux pull` and `softmux push`: between the Hugging Face hub and a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from softmux.cli.output import as_json, fail
from softmux.cli.remote import DEFAULT_URL, Json, Key, Remote, Url, task_names, tell_upload

Repo = Annotated[str, typer.Argument(metavar="REPO", help="ORG/NAME, with @REVISION if wanted.")]


def pull(
    repo: Repo,
    task: Annotated[str | None, typer.Option(help="The task's name; by default the repository's.")] = None,
    activate: Annotated[bool, typer.Option(help="Make it the active version.")] = True,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Only save it in this new folder; no server is asked.")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    json_: Json = False,
) -> None:
    """Fetch an adapter from the Hugging Face hub, look at it, and publish it. Only the adapter's files are fetched."""
    from softmux.client import folder
    from softmux.hub import pull as fetch
    from softmux.inspection.folder import inspect

    name, _, revision = repo.partition("@")
    if out is not None:
        folder.check_free(out)
    pulled = fetch(name, revision or None)
    facts = inspect(pulled.files, repo).facts
    if problem := facts.get("problem"):
        fail(f"{name} at {pulled.commit[:12]} can't be served: {problem}")
    if out is not None:
        folder.write(out, pulled.files)
        if json_:
            as_json({**facts, "folder": str(out), "repo": name, "commit": pulled.commit})
        else:
            typer.echo(f"{name} at {pulled.commit[:12]} is in {out}: {facts['method']}, {facts['bytes']:,} bytes")
        return
    if not json_:
        typer.echo(
            f"{name} at {pulled.commit[:12]}: {facts['method']}, made for {facts['base'] or 'a base it does not name'}"
        )
    answer = Remote(url, key).call(
        "PUT",
        f"/v1/adapters/{task or task_of(name)}",
        params={"activate": str(activate).lower()},
        files={part: (part, data) for part, data in pulled.files.items()},
    )
    tell_upload({**answer.json(), **({"repo": name, "commit": pulled.commit} if json_ else {})}, json_=json_)


def push(
    task: Annotated[str, typer.Argument(help="The task, or task@version.", autocompletion=task_names)],
    repo: Repo,
    private: Annotated[bool, typer.Option("--private", help="If the repository is made: for you alone.")] = False,
    message: Annotated[str | None, typer.Option("--message", "-m", help="The commit's.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    json_: Json = False,
) -> None:
    """Put a task's version on the Hugging Face hub, as one commit. (`softmux upload` sends a folder to a server.)"""
    from softmux.cli.export import fetched
    from softmux.hub import card
    from softmux.hub import push as publish

    version, files = fetched(Remote(url, key), task)
    name, _, revision = repo.partition("@")
    words = card(version.task, files, version.method, version.digest, version.base_model_name_or_path, version.notes)
    said = message or f"{version.task}@{version.version} ({version.method})"
    pushed = publish(name, files, words, said, private=private, revision=revision or None)
    if json_:
        as_json({"task": version.task, "version": version.version, "digest": version.digest, "repo": pushed.repo,
                 "commit": pushed.commit, "url": pushed.url})  # fmt: skip
    else:
        typer.echo(f"{version.task}@{version.version} is at {pushed.url}")


def task_of(repo: str) -> str:
    """A task's name for a repository's."""
    import re

    return re.sub(r"[^a-z0-9._-]+", "-", repo.rpartition("/")[2].lower()).lstrip("._-")[:64]
