"""`softmux export`: a task's version as a folder that PEFT loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softmux.cli.output import as_json, fail
from softmux.cli.remote import DEFAULT_URL, Json, Key, Remote, Url, task_names

if TYPE_CHECKING:
    from softmux.client import Version


def export(
    task: Annotated[str, typer.Argument(help="The task, or task@version.", autocompletion=task_names)],
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    json_: Json = False,
) -> None:
    """Save a task's version as PEFT wrote it: `PeftModel.from_pretrained` loads it, `softmux upload` brings it back."""
    from softmux.client.folder import check_free, write

    check_free(folder)
    version, files = fetched(Remote(url, key), task)
    write(folder, files)
    notes = _notes(folder, files, version)
    if json_:
        as_json({"task": version.task, "version": version.version, "method": version.method, "digest": version.digest,
                 "folder": str(folder), "files": sorted(files), "notes": notes})  # fmt: skip
        return
    typer.echo(f"{version.task}@{version.version} ({version.method}) is in {folder}")
    for note in notes:
        typer.secho(f"! {note}", fg="yellow")


def fetched(remote: Remote, task: str) -> tuple[Version, dict[str, bytes]]:
    """A version (`task`, `task@2`) and its files, byte for byte."""
    from softmux.client import replies
    from softmux.client.folder import checked

    name, _, number = task.partition("@")
    if number and not number.isdigit():
        fail(f"{task}: a version is a number, as {name}@2")
    place = "shared" if "/" in name else "adapters"
    page = replies.decoded(remote.call("GET", f"/v1/{place}/{name}/versions"), replies.Page)
    version = replies.chosen(page.data, int(number) if number else None)
    path = f"/v1/{place}/{name}/versions/{version.version}/files"
    files = {file.name: checked(file, remote.call("GET", f"{path}/{file.name}").content) for file in version.files}
    return version, files


def _notes(folder: Path, files: dict[str, bytes], version: Version) -> list[str]:
    """What PEFT does not make of it what softmux does; a pair's LoRA gets a folder in which PEFT finds it."""
    from softmux.formats.folder import LORA_FILES, REQUIRED_FILES

    notes = []
    if LORA_FILES[0] in files:
        lora = folder / "lora"
        lora.mkdir()
        for name, own in zip(LORA_FILES, REQUIRED_FILES, strict=True):
            (lora / own).write_bytes(files[name])
        notes.append(
            f"A pair: PEFT has no one adapter for it. Load {lora} onto the base and merge it (merge_and_unload), then "
            f"load {folder}, which has the soft prompt."
        )
    if version.template is not None:
        notes.append("It has a template, which PEFT does not know: lay prompts out as its softmux.json says.")
    if version.labels is not None:
        notes.append("Its labels are in softmux.json, which PEFT does not read.")
    return notes
