"""`--publish`: what was tuned goes to a server at once, which admits it as it does any upload."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from softmux.cli.output import fail
from softmux.cli.remote import Remote, parts_of, tell_upload

Publish = Annotated[
    bool,
    typer.Option(
        "--publish",
        help="Upload it to the server (--url) as the next version of its task: active, unless its evaluation says not "
        "to ship it, or could not be made.",
    ),
]
DO_NOT_SHIP = "do not ship"


class Publisher:
    """The server that it goes to. It is asked before anything is trained: one that is not there ends the command."""

    def __init__(self, url: str, key: str | None) -> None:
        self._remote = Remote(url, key)
        self._remote.call("GET", "/v1/model")

    def publish(self, folder: Path, task: str, held_back: str | None = None, *, tell: bool) -> dict[str, Any] | None:
        """The server's answer, told where `tell`. It is not made active where something holds it back, in words. None
        where it was refused, which is said: the folder is there."""
        from softmux.errors import SoftmuxError

        active = held_back is None
        try:
            answer: dict[str, Any] = self._remote.call(
                "PUT", f"/v1/adapters/{task}", params={"activate": str(active).lower()}, files=parts_of(folder)
            ).json()
        except SoftmuxError as error:
            typer.secho(f"{task}: tuned, but not published: {error.message}", err=True, fg="red")
            typer.secho(f"when that is mended: softmux upload {folder} --task {task}", err=True)
            return None
        if tell:
            tell_upload(answer, json_=False)
        if not active:
            words = f"{held_back}; softmux activate {task} {answer['version']} makes it active all the same"
            typer.secho(f"  ! {words}", err=True, fg="yellow")
        return answer


def held_back(verdict: str | None) -> str | None:
    """Why what was evaluated so, or could not be (None), is not made active."""
    if verdict is None:
        return "it could not be evaluated"
    return "its evaluation says not to ship it" if verdict == DO_NOT_SHIP else None


def publisher(publish: bool, url: str, key: str | None, *, elsewhere: bool = False) -> Publisher | None:
    """None where nothing is to be published. `elsewhere`: a registry without a server was named."""
    if publish and elsewhere:
        fail("a server tries what it takes: give its --url, and --key, in the place of --data or --redis", "--publish")
    return Publisher(url, key) if publish else None


def told_of(answer: dict[str, Any] | None) -> dict[str, Any]:
    """What a command's JSON says of it."""
    return {"published": {name: answer[name] for name in ("version", "active", "digest")}} if answer else {}
