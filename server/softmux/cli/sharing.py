"""Who else may use a task, told to a running server."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from softmux.cli.output import as_json, done
from softmux.cli.remote import DEFAULT_URL, Json, Key, Remote, Task, Url


def share(
    task: Task,
    with_: Annotated[list[str] | None, typer.Option("--with", help="A tenant; may be given several times.")] = None,
    everyone: Annotated[bool, typer.Option("--everyone", help="All tenants.")] = False,
    files: Annotated[bool, typer.Option("--files", help="They may fetch its files, too.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    json_: Json = False,
) -> None:
    """Share a task with those named and nobody else, to be used and not changed; without any, say who may use it."""
    remote, path = Remote(url, key), f"/v1/adapters/{task}/shares"
    if with_ or everyone:
        body = {"tenants": with_ or [], "everyone": everyone, "files": files}
        answer = remote.call("PUT", path, json=body).json()
    else:
        answer = remote.call("GET", path).json()
    if json_:
        as_json(answer)
    else:
        typer.echo(f"{task} is shared with {_words(answer)}")


def unshare(task: Task, url: Url = DEFAULT_URL, key: Key = None, json_: Json = False) -> None:
    """Share a task with nobody any more."""
    Remote(url, key).call("DELETE", f"/v1/adapters/{task}/shares")
    done(f"{task} is shared with nobody", json_, task=task, tenants=[], everyone=False, files=False)


def _words(share: dict[str, Any]) -> str:
    whom = "everyone" if share["everyone"] else ", ".join(share["tenants"]) or "nobody"
    return whom + (", its files too" if share["files"] else "")
