"""`softmux serve`: its options are the fields of `Settings`, each a `SOFTMUX_…` variable too."""

from __future__ import annotations

import inspect
import os
from typing import Annotated, Any, Literal, Optional, get_args, get_origin

import structlog
import typer
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from softmux.cli.output import fail
from softmux.settings import Settings
from softmux.variables import unread

log = structlog.stdlib.get_logger(__name__)


def serve(**given: Any) -> None:
    """Serve a base model and the tasks of its registry over HTTP."""
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0])
        fail(f"--{option.replace('_', '-')} (or SOFTMUX_{option.upper()}): {first['msg']}")
    from softmux.api.server import RefusedToStart
    from softmux.api.server import serve as run
    from softmux.telemetry.logs import configure

    configure(settings.log_level, log_prompts=settings.log_prompts, form=settings.log_format)
    for one in unread(os.environ):
        log.warning("a variable that is no setting: nothing reads it", variable=one.name, advice=one.advice)
    try:
        run(settings)
    except RefusedToStart as refusal:
        fail(f"not started: {refusal}")


def option_type(field: FieldInfo) -> Any:
    """The type the command line reads a setting as. Values are checked by `Settings`, which knows their bounds."""
    kinds = [kind for kind in (get_args(field.annotation) or (field.annotation,)) if kind is not type(None)]
    if get_origin(field.annotation) is Literal or kinds[0] is SecretStr:
        return str
    return kinds[0]


def _signature() -> inspect.Signature:
    """One option a setting. Left out, the variable counts, then the default: both are read by `Settings`."""
    parameters = []
    for name, field in Settings.model_fields.items():
        if name == "admin_key":
            continue  # a key on the command line shows in every list of processes
        kind = option_type(field)
        default = "" if field.default in (None, "") else f" Default: {field.default}."
        choices = f" One of {', '.join(get_args(field.annotation))}." if get_origin(field.annotation) is Literal else ""
        flag = "--" + name.replace("_", "-")
        flags = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
        help_ = f"{field.description}{choices}{default} [SOFTMUX_{name.upper()}]"
        option = typer.Option(flags, help=help_, show_default=False)
        annotation: Any = Annotated[Optional[kind], option]  # noqa: UP045 - made at run time
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    return inspect.Signature(parameters)


serve.__signature__ = _signature()  # type: ignore[attr-defined]
serve.__annotations__ = {p.name: p.annotation for p in _signature().parameters.values()} | {"return": None}
