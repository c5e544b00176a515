"""Commands that talk to a running server: `--url` and `--key`, or SOFTMUX_URL and SOFTMUX_KEY."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softmux.cli.output import as_json, done, facts, fail, table

if TYPE_CHECKING:
    import httpx

    from softmux.client import Stream

Url = Annotated[str, typer.Option(envvar="SOFTMUX_URL", help="The server's address.")]
Key = Annotated[str | None, typer.Option(envvar="SOFTMUX_KEY", help="Your key.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Write the server's answer as JSON.")]
DEFAULT_URL = "http://127.0.0.1:8000"


class Remote:
    """One server, by its own client. What it refuses ends the command with its words, and a name like the one meant."""

    def __init__(self, url: str, key: str | None) -> None:
        from softmux.client import Client, Retry

        self.client = Client(url, key=key, retry=Retry(attempts=4, unreachable=False))

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._send(method, path, stream=False, **options)

    def chunks(self, path: str, **options: Any) -> Stream:
        """A streamed answer, as it comes."""
        from softmux.client import Stream

        return Stream(self._send("POST", path, stream=True, **options), self.client.base_url)

    def _send(self, method: str, path: str, *, stream: bool, **options: Any) -> httpx.Response:
        from softmux.client.calls import READS, WORKS, Call
        from softmux.errors import TaskNotFound

        again = method in ("GET", "PUT")
        call = Call(method, path, repeat=READS if again else WORKS, idempotent=again, **options)
        try:
            return self.client.send(call, stream=stream)
        except TaskNotFound as error:
            task = (options.get("params") or {}).get("task") or path.removeprefix("/v1/adapters/").split("/")[0]
            fail(error.message + self.meant(task), error.param)

    def meant(self, task: str) -> str:
        """Names like one that is not there, as a sentence; empty where there are none."""
        from difflib import get_close_matches

        from softmux.errors import SoftmuxError

        try:
            names = [version.task for version in self.client.adapters.list()]
        except SoftmuxError:
            return ""
        close = get_close_matches(task.partition("@")[0], names, n=3, cutoff=0.6)
        return f" Did you mean {' or '.join(close)}?" if close else ""


def task_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """For the shell's completion: the server's tasks that begin so, if it answers within a second."""
    from softmux.client import Client, Retry, SoftmuxError
    from softmux.client.calls import get

    url, key = ctx.params.get("url") or None, ctx.params.get("key") or None
    try:
        with Client(url, key=key, timeout=1.0, retry=Retry(attempts=1)) as client:
            page = client.send(get("/v1/adapters", limit="50", prefix=incomplete)).json()
    except SoftmuxError:
        return []
    return [str(version["task"]) for version in page["data"]]


Task = Annotated[str, typer.Argument(help="The task's name.", autocompletion=task_names)]


def upload(
    folder: Annotated[Path, typer.Argument(help="A folder as PEFT's save_pretrained writes it.")],
    task: Annotated[str | None, typer.Option(help="The task's name; by default the folder's.")] = None,
    activate: Annotated[bool, typer.Option(help="Make it the active version.")] = True,
    url: Url = DEFAULT_URL,
    key: Key = None,
    json_: Json = False,
) -> None:
    """Upload an adapter: a new version of its task."""
    name = task or folder.resolve().name
    answer = (
        Remote(url, key)
        .call(
            "PUT",
            f"/v1/adapters/{name}",
            params={"activate": str(activate).lower()},
            files=parts_of(folder),
        )
        .json()
    )
    tell_upload(answer, json_=json_)


def parts_of(folder: Path) -> dict[str, tuple[str, bytes]]:
    """An adapter's files as the parts of an upload. Raises what is wrong with the folder."""
    from softmux.formats.folder import load_folder

    return {part: (part, data) for part, data in load_folder(folder).items()}


def tell_upload(answer: dict[str, Any], *, json_: bool) -> None:
    if json_:
        as_json(answer)
        return
    for check in answer["checks"]:
        typer.echo(f"  ✓ {check}")
    for warning in answer["warnings"]:
        typer.secho(f"  ! {warning}", fg="yellow")
    state = "now active" if answer["active"] else "not active"
    typer.echo(f"{answer['task']}@{answer['version']} {answer['method']} {answer['digest']}: {state}")


def list_(
    prefix: Annotated[str, typer.Option(help="Only tasks whose names begin so.")] = "",
    shared: Annotated[
        bool, typer.Option("--shared", help="What other tenants share with you, as tenant/task.")
    ] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    json_: Json = False,
) -> None:
    """List the tasks and their active versions."""
    remote, cursor, found = Remote(url, key), None, []
    while True:
        params = {"limit": "1000", "prefix": prefix, **({"cursor": cursor} if cursor else {})}
        page = remote.call("GET", "/v1/shared" if shared else "/v1/adapters", params=params).json()
        found += page["data"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    if json_:
        as_json(found)
        return
    table(
        ("task", "version", "method", "virtual tokens", "parameters", "bytes", "digest"),
        [
            (v["task"], v["version"], v["method"], v["virtual_tokens"], f"{v['parameters']:,}", f"{v['bytes']:,}",
             v["digest"][:19] + "…")
            for v in found
        ],
    )  # fmt: skip


def show(task: Task, url: Url = DEFAULT_URL, key: Key = None, json_: Json = False) -> None:
    """Show a task (tenant/task if another tenant shares it): its active version, and all the others."""
    remote = Remote(url, key)
    place = "shared" if "/" in task else "adapters"
    versions = remote.call("GET", f"/v1/{place}/{task}/versions").json()["data"]
    if json_:
        as_json(versions)
        return
    shown = next((version for version in versions if version["active"]), versions[0])
    facts((name, _words(value)) for name, value in shown.items() if name not in ("files", "warnings"))
    for file in shown["files"]:
        typer.echo(f"file  {file['name']}  {file['bytes']:,} bytes  {file['sha256']}")
    for warning in shown["warnings"]:
        typer.secho(f"! {warning}", fg="yellow")
    if len(versions) > 1:
        rows = [(v["version"], "active" if v["active"] else "", v["method"], v["digest"][:19] + "…") for v in versions]
        table(("version", "", "method", "digest"), rows)


def activate(
    task: Task,
    version: Annotated[int, typer.Argument(min=1, help="The version's number.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    json_: Json = False,
) -> None:
    """Make a version the active one: roll back, or forward."""
    answer = Remote(url, key).call("POST", f"/v1/adapters/{task}/activate", json={"version": version}).json()
    if json_:
        as_json(answer)
    else:
        typer.echo(f"{answer['task']}@{answer['version']} is active ({answer['digest']})")


def delete(
    task: Task,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    json_: Json = False,
) -> None:
    """Delete a task with all its versions."""
    if not yes:
        _ask(f"Delete the task {task} with all its versions?")
    Remote(url, key).call("DELETE", f"/v1/adapters/{task}")
    done(f"{task} is deleted", json_, task=task, deleted=True)


def _ask(question: str) -> None:
    """Ends the command unless the answer is yes."""
    try:
        typer.confirm(question, abort=True, err=True)
    except typer.Abort:
        if sys.stdin.isatty():
            raise
        typer.echo(err=True)
        fail("that was not confirmed, and nothing is deleted: give --yes where nobody can be asked")


def generate(
    prompt: Annotated[str | None, typer.Argument(help="The prompt.")] = None,
    task: Annotated[
        str | None,
        typer.Option(help="The task, or task@version; without it the bare model.", autocompletion=task_names),
    ] = None,
    var: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for a slot of the task's template.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens at most.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="For the same tokens again.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the text; may be given several times.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    json_: Json = False,
) -> None:
    """Generate text, shown as it comes."""
    body: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    if prompt is not None:
        body["prompt"] = prompt
    if var:
        body["variables"] = dict(_pair(text) for text in var)
    if seed is not None:
        body["seed"] = seed
    if stop:
        body["stop"] = stop
    remote, params = Remote(url, key), {"task": task} if task else {}
    if json_:
        as_json(remote.call("POST", "/v1/generate", params=params, json=body).json())
        return
    with remote.chunks("/v1/generate", params=params, json={**body, "stream": True}) as stream:
        for chunk in stream:
            typer.echo(chunk.text, nl=False)
    typer.echo()


def _pair(text: str) -> tuple[str, str]:
    name, given, value = text.partition("=")
    if not given:
        fail(f"--var {text}: write NAME=VALUE")
    return name, value


def _words(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
