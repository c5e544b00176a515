"""Keys, and the log of who changed what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from softmux.cli.on_registry import ACTOR, DEFAULT_DATA, Data, Json, Redis, on_registry, time_of
from softmux.cli.output import as_json, done, fail, table

if TYPE_CHECKING:
    from softmux.registry.audit import AuditEntry
    from softmux.registry.registry import Registry

keys = typer.Typer(no_args_is_help=True, help="Keys of tenants.")


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
        return await registry.keys.create_key(tenant, role, actor=ACTOR)  # type: ignore[arg-type]

    key_id, secret = on_registry(redis, data, create, begin=True)
    if json_:
        as_json({"id": key_id, "key": secret, "tenant": tenant, "role": role})
    else:
        typer.echo(f"key  {secret}\nid   {key_id}")


@keys.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Of this tenant alone.")] = None,
    redis: Redis = None,
    data: Data = DEFAULT_DATA,
    json_: Json = False,
) -> None:
    """List the keys, without their secrets."""
    found = on_registry(redis, data, lambda registry: registry.keys.list_keys(tenant))
    rows: list[dict[str, Any]] = [
        {
            "id": key.id,
            "tenant": key.tenant,
            "role": key.role,
            "prefix": key.prefix,
            "created": time_of(key.created_at),
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
    json_: Json = False,
) -> None:
    """Revoke a key: it is refused within 5 seconds, everywhere."""
    on_registry(redis, data, lambda registry: registry.keys.revoke_key(key_id, actor=ACTOR))
    done(f"key {key_id} is revoked", json_, id=key_id, revoked=True)


def audit(
    tenant: Annotated[str | None, typer.Option(help="Changes of this tenant's things alone.")] = None,
    after: Annotated[str | None, typer.Option(help="Only what came after the entry of this id.")] = None,
    redis: Redis = None,
    data: Data = DEFAULT_DATA,
    json_: Annotated[bool, typer.Option("--json", help="Write a line of JSON an entry.")] = False,
) -> None:
    """Show the log of every change to tasks, versions, shares, keys and tenants, oldest first."""
    import msgspec

    async def read(registry: Registry) -> list[AuditEntry]:
        found: list[AuditEntry] = []
        beyond = after
        while True:
            page = await registry.audit.read(after=beyond, limit=1000, tenant=tenant)
            found += page.data
            if page.next_after is None:
                return found
            beyond = page.next_after

    entries = on_registry(redis, data, read)
    if json_:
        for entry in entries:
            typer.echo(msgspec.json.encode(entry).decode())
        return
    table(
        ("when", "who", "what", "tenant", "task", "digest", ""),
        [
            (
                time_of(entry.at),
                entry.actor,
                entry.action,
                entry.tenant,
                (entry.task or "") + (f"@{entry.version}" if entry.version else ""),
                (entry.digest or "")[:19],
                msgspec.json.encode(entry.detail).decode() if entry.detail else "",
            )
            for entry in entries
        ],
    )
