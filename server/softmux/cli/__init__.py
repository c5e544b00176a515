"""The command line. A command imports what it needs when it runs, so that `softmux --help` is quick."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from softmux import __version__
from softmux.cli import (
    access,
    doctor,
    evaluation,
    export,
    hub,
    inspection,
    local,
    migrate,
    registry,
    remote,
    run,
    serving,
    sharing,
    tenants,
    top,
    usage,
)
from softmux.cli.output import fail
from softmux.errors import SoftmuxError, Unauthorized


class _Group(TyperGroup):
    """Errors made for people are shown as such; anything else keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Unauthorized as error:
            fail(f"{error.message.rstrip('.')}. A command takes it from --key, or SOFTMUX_KEY.", error.param)
        except SoftmuxError as error:
            fail(error.message, error.param)


_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""For a command with a parser of its own, `--help` included."""

app = typer.Typer(
    cls=_Group, no_args_is_help=True, pretty_exceptions_show_locals=False, help=(
        "softmux: one frozen language model, thousands of soft prompts, one forward pass."
    )
)  # fmt: skip


@app.callback(invoke_without_command=True)
def softmux(version: bool = typer.Option(False, "--version", help="Show the version.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


app.command("serve")(serving.serve)
app.command("upload")(remote.upload)
app.command("list")(remote.list_)
app.command("show")(remote.show)
app.command("activate")(remote.activate)
app.command("delete")(remote.delete)
app.command("share")(sharing.share)
app.command("unshare")(sharing.unshare)
app.command("generate")(remote.generate)
app.command("export")(export.export)
app.command("pull")(hub.pull)
app.command("push")(hub.push)
app.command("run")(run.run)
app.command("top")(top.top)
app.command("doctor")(doctor.doctor)
app.command("usage")(usage.usage)
app.command("inspect")(inspection.inspect)
app.command("compare-methods")(inspection.compare_methods)
app.command("fold")(inspection.fold)
app.command("tune")(local.tune)
app.command("sweep")(local.sweep)
app.command("distill")(local.distill)
app.command("evaluate")(evaluation.evaluate)
app.command("migrate")(migrate.migrate)
app.command("bench", context_settings=_PASSED_ON)(local.bench)
app.add_typer(tenants.tenants, name="tenant")
app.add_typer(access.keys, name="key")
app.command("audit")(access.audit)
app.add_typer(registry.registry, name="registry")
