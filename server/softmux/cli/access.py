"""Tenants and keys, on the registry itself, whether a server runs on it or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from softmux.cli.output import as_json, fail, table

if TYPE_CHECKING:
    from softmux.registry.registry import Registry

tenants = typer.Typer(no_args_is_help=True, help="Tenants of the registry.")
keys = typer.Typer(no_args_is_help=True, help="Keys of tenants.")

Redis = Annotated[str | None, typer.Option(envvar="SOFTMUX_REDIS", help="redis://… of a real server.")]
Data = Annotated[Path, typer.Option(envvar="SOFTMUX_DATA", help="The folder of the embedded one.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
DEFAULT_DATA = Path("softmux-data")
T = TypeVar("T")


def _on_registry(redis: str | None, data: Path, work: Callable[[Registry], Awaitable[T]]) -> T:
    from softmux.registry.registry import Registry

    async def run() -> T:
        registry = await Registry.open(redis, data)
        try:
            return await work(registry)
        finally:
            await registry.close()

    return asyncio.run(run())


@tenants.command("create")
def create_tenant(
    name: Annotated[str, typer.Argument(help="Up to 64 of a-z, 0-9, '.', '_' and '-'.")],
    redis: Redis = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Create a tenant."""
    _, created = _on_registry(redis, data, lambda registry: registry.tenants.create(name, actor="cli"))
    typer.echo(f"tenant {name} is created" if created else f"tenant {name} is there already")


@tenants.command("list")
def list_tenants(redis: Redis = None, data: Data = DEFAULT_DATA, json_: Json = False) -> None:
    """List the tenants."""
    names = [tenant.name for tenant in _on_registry(redis, data, lambda registry: registry.tenants.list())]
    if json_:
        as_json(names)
    else:
        typer.echo("\n".join(names))


@keys.command("create")
def create_key(
    tenant: Annotated[str, typer.Option(help="Whose key it is.")],
    role: Annotated[str, typer.Option(help="user, publisher or admin.")] = "user",
    redis: Redis = None,
    data: Data = DEFAULT_DATA,
    json_: Json = False,
) -> None:
    """Create a key. It is shown this once, with its id."""
    if role not in ("user", "publisher", "admin"):
        fail(f"there is no role {role}: it is one of user, publisher, admin")

    async def create(registry: Registry) -> tuple[str, str]:
        return await registry.keys.create_key(tenant, role, actor="cli")  # type: ignore[arg-type]

    key_id, secret = _on_registry(redis, data, create)
    if json_:
        as_json({"id": key_id, "key": secret, "tenant": tenant, "role": role})
    else:
        typer.echo(f"key  {secret}\nid   {key_id}")


@keys.command("list")
def list_keys(redis: Redis = None, data: Data = DEFAULT_DATA, json_: Json = False) -> None:
    """List the keys, without their secrets."""
    from datetime import UTC, datetime

    found = _on_registry(redis, data, lambda registry: registry.keys.list_keys())
    rows: list[dict[str, Any]] = [
        {
            "id": key.id,
            "tenant": key.tenant,
            "role": key.role,
            "prefix": key.prefix,
            "created": datetime.fromtimestamp(key.created_at, UTC).isoformat(timespec="seconds"),
            "revoked": key.revoked_at is not None,
        }
        for key in found
    ]
    if json_:
        as_json(rows)
    else:
        table(("id", "tenant", "role", "prefix", "created", "revoked"), [tuple(row.values()) for row in rows])


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `softmux key create` and `key list` show it.")],
    redis: Redis = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Revoke a key: it is refused within 5 seconds, everywhere."""
    _on_registry(redis, data, lambda registry: registry.keys.revoke_key(key_id, actor="cli"))
    typer.echo(f"key {key_id} is revoked")
