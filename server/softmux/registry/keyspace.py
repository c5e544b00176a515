"""Where everything lies in Redis. Every key of a tenant's data carries the tenant.

softmux:id                          string  random name of this registry, made once; another one means another registry
softmux:seq                         string  counts changes, one up with each
softmux:changes                     stream  one entry a change, `<seq>-0`: kind (task | tenant | keys), tenant, task, at
softmux:audit                       stream  one entry a change that somebody made, who and what; never trimmed
softmux:tenants                     hash    tenant -> TenantRecord (JSON; older ones just the time they were made)
softmux:tenants:deleted             hash    tenant -> id of its deletion; the name is never given again
softmux:keys                        hash    key id -> KeyRecord (JSON; a key is looked up before its tenant is known)
softmux:usage:flushed:<process>     string  number of the API process's last batch of usage that is booked
softmux:processes                   zset    API process -> when it was last heard of, while any tenant has limits

softmux:t:<tenant>:tasks            zset    names of the tasks that have versions, all of score 0 (so: by name)
softmux:t:<tenant>:counters         hash    task -> last version number given; outlives the task
softmux:t:<tenant>:tombstones       hash    task -> id of the deletion that removed it last
softmux:t:<tenant>:versions:<task>  hash    version number -> StoredVersion (JSON)
softmux:t:<tenant>:active:<task>    hash    base fingerprint -> version number: the pointer that moves
softmux:t:<tenant>:digests:<task>   hash    version digest -> version number
softmux:t:<tenant>:manifests        hash    version digest -> Manifest (JSON)
softmux:t:<tenant>:shares           hash    task -> Share (JSON): who else may use it
softmux:t:<tenant>:refs             hash    version digest -> how many versions have it
softmux:t:<tenant>:sizes            hash    version digest that a version has -> bytes of its files
softmux:t:<tenant>:garbage          zset    version digest that no version has -> since when
softmux:t:<tenant>:files            hash    file's sha256 -> its bytes, where it is small
softmux:t:<tenant>:filerefs         hash    file's sha256 -> how many manifests have it
softmux:t:<tenant>:loose            zset    blob that no manifest has -> when it was last touched (an upload's lease)
softmux:t:<tenant>:deleting         hash    blob being deleted from the store -> since when
softmux:t:<tenant>:limits:requests  hash    half second -> requests drawn from the limit then; `limits:tokens` likewise
softmux:t:<tenant>:limits:in_flight hash    API process -> the tokens in flight that it holds
softmux:t:<tenant>:usage:<day>      hash    `task:counter` -> what was used on that day (UTC)
softmux:t:<tenant>:usage_days       zset    the days there is usage of -> their numbers
"""

from __future__ import annotations

import re

from softmux.errors import InvalidRequest

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
_NAME = re.compile(NAME_PATTERN.removesuffix("$") + r"\Z")

ID = "softmux:id"
SEQ = "softmux:seq"
CHANGES = "softmux:changes"
AUDIT = "softmux:audit"
TENANTS = "softmux:tenants"
DELETED_TENANTS = "softmux:tenants:deleted"
KEYS = "softmux:keys"
PROCESSES = "softmux:processes"

INLINE_BYTES = 64 << 10
"""A file of at most this many bytes lies in Redis beside its metadata, a larger one in the blob store."""


def check_name(name: str, what: str) -> str:
    """`name`, if it may name a task or a tenant. Raises `InvalidRequest`."""
    if not _NAME.match(name):
        raise InvalidRequest(
            f"{what} name {name!r} is not allowed: up to 64 of a-z, 0-9, '.', '_' and '-', first a letter or digit",
            param=what,
        )
    return name


def of_tenant(tenant: str, kind: str) -> str:
    """The key of a tenant's `kind` (`tasks`, `counters`, …)."""
    return f"softmux:t:{tenant}:{kind}"


def of_task(tenant: str, kind: str, task: str) -> str:
    """The key of a task's `kind` (`versions`, `active`, `digests`)."""
    return f"softmux:t:{tenant}:{kind}:{task}"


def flushed(process: str) -> str:
    """The key of an API process's last batch of usage."""
    return f"softmux:usage:flushed:{process}"
