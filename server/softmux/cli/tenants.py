"""`softmux tenant`: tenants, their weights and limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from softmux.cli.on_registry import ACTOR, DEFAULT_DATA, Data, Json, Redis, on_registry, time_of
from softmux.cli.output import as_json, done, facts, fail, table

if TYPE_CHECKING:
    from softmux.registry.tenants import TenantRecord

tenants = typer.Typer(no_args_is_help=True, help="Tenants of the registry.")

Name = Annotated[str, typer.Argument(help="Up to 64 of a-z, 0-9, '.', '_' and '-'.")]
_LIMIT = "A whole number, or none."


@tenants.command("create")
def create(name: Name, redis: Redis = None, data: Data = DEFAULT_DATA, json_: Json = False) -> None:
    """Create a tenant, of weight 1 and without limits."""
    _, created = on_registry(redis, data, lambda registry: registry.tenants.create(name, actor=ACTOR), begin=True)
    words = f"tenant {name} is created" if created else f"tenant {name} is there already"
    done(words, json_, name=name, created=created)


@tenants.command("list")
def list_(redis: Redis = None, data: Data = DEFAULT_DATA, json_: Json = False) -> None:
    """List the tenants."""
    found = on_registry(redis, data, lambda registry: registry.tenants.list())
    if json_:
        as_json([tenant.name for tenant in found])
    else:
        typer.echo("\n".join(tenant.name for tenant in found))


@tenants.command("show")
def show(name: Name, redis: Redis = None, data: Data = DEFAULT_DATA, json_: Json = False) -> None:
    """Show a tenant's weight and limits."""
    _tell(on_registry(redis, data, lambda registry: registry.tenants.find(name)), json_=json_)


@tenants.command("set")
def set_(
    name: Name,
    weight: Annotated[float | None, typer.Option(help="Its share of the engine beside other tenants.")] = None,
    requests_per_minute: Annotated[str | None, typer.Option(help=_LIMIT)] = None,
    tokens_per_minute: Annotated[str | None, typer.Option(help=_LIMIT)] = None,
    tokens_in_flight: Annotated[str | None, typer.Option(help=_LIMIT)] = None,
    stored_bytes: Annotated[str | None, typer.Option(help=_LIMIT)] = None,
    adapters: Annotated[str | None, typer.Option(help=_LIMIT)] = None,
    redis: Redis = None,
    data: Data = DEFAULT_DATA,
    json_: Json = False,
) -> None:
    """Change a tenant's weight or limits: those given, and nothing else."""
    given = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "tokens_in_flight": tokens_in_flight,
        "stored_bytes": stored_bytes,
        "adapters": adapters,
    }
    limits = {field: _limit(field, text) for field, text in given.items() if text is not None}
    if weight is None and not limits:
        fail("nothing to set: give --weight, or a limit as --requests-per-minute 60")
    record = on_registry(
        redis, data, lambda registry: registry.tenants.set(name, weight=weight, limits=limits, actor=ACTOR)
    )
    _tell(record, json_=json_)


@tenants.command("delete")
def delete(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Revoke its keys and delete its tasks first.")] = False,
    redis: Redis = None,
    data: Data = DEFAULT_DATA,
    json_: Json = False,
) -> None:
    """Delete a tenant that has no tasks and no keys. Its name is never given again."""
    on_registry(redis, data, lambda registry: registry.delete_tenant(name, force=force, actor=ACTOR))
    done(f"tenant {name} is deleted", json_, name=name, deleted=True)


def _limit(field: str, text: str) -> int | None:
    if text == "none":
        return None
    if not (text.isascii() and text.isdigit()):
        fail(f"--{field.replace('_', '-')} {text}: give a whole number, or none")
    return int(text)


def _tell(record: TenantRecord, *, json_: bool) -> None:
    import msgspec

    shown: dict[str, Any] = msgspec.structs.asdict(record)
    limits = shown.pop("limits")
    if json_:
        as_json({**shown, "limits": msgspec.structs.asdict(limits)})
        return
    facts([("tenant", record.name), ("created", time_of(record.created_at)), ("weight", f"{record.weight:g}")])
    rows = [(field, "none" if limit is None else limit) for field, limit in msgspec.structs.asdict(limits).items()]
    table(("limit", ""), rows)
