"""The machine: variables, packages, port, folders, descriptors."""

from __future__ import annotations

import errno
import os
import platform
import re
import resource
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from softmux.doctor.check import Check, fail, ok, size, warn
from softmux.settings import Settings
from softmux.variables import known, unread

_FEW_DESCRIPTORS, _ENOUGH_DESCRIPTORS = 1024, 4096
_LITTLE_SPACE, _NO_SPACE = 2 << 30, 64 << 20
_TESTED = Path(__file__).parents[3] / "constraints.txt"
"""In a checkout: the versions that the tests ran with."""


def packages(settings: Settings) -> Iterator[Check]:
    from packaging.requirements import Requirement

    yield ok("python", platform.python_version())
    wrong, told = [], []
    for line in metadata.requires("softmux") or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, and softmux needs {requirement.specifier}")
        if requirement.name in ("torch", "transformers", "tokenizers"):
            told.append(f"{requirement.name} {version}")
    if wrong:
        yield fail("packages", "; ".join(wrong), "install them: `pip install -U softmux`, in this Python's environment")
        return
    if other := _untested():
        yield warn("packages", f"{', '.join(told)}; not as tested: {', '.join(other)}",
                   "should anything misbehave: `pip install -c constraints.txt softmux`")  # fmt: skip
    else:
        yield ok("packages", ", ".join(told))


def _untested() -> list[str]:
    """Packages of which another version is installed than was tested, where the list is at hand."""
    if not _TESTED.is_file():
        return []
    from packaging.version import Version

    other = []
    for name, pinned in re.findall(r"^([\w.-]+)==([\w.+-]+)$", _TESTED.read_text(encoding="utf-8"), re.MULTILINE):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # of an extra that is not installed
        if Version(version).public != Version(pinned).public:
            other.append(f"{name} {version} (tested: {pinned})")
    return other


def variables(settings: Settings) -> Iterator[Check]:
    strange = unread(os.environ)
    for one in strange:
        yield warn("variables", f"{one.name} is no setting: nothing reads it", one.advice)
    if not strange:
        count = sum(name.upper() in known() for name in os.environ)
        yield ok("variables", f"{count} of SOFTMUX_… set, all of them known")


def adapters(settings: Settings) -> Iterator[Check]:
    if settings.adapters is None:
        return
    try:
        os.scandir(settings.adapters).close()
    except OSError as error:
        yield fail("adapters", f"{settings.adapters}: {error.strerror}", "check SOFTMUX_ADAPTERS, or leave it out")
    else:
        yield ok("adapters", f"{settings.adapters}, published at start")


def port(settings: Settings) -> Iterator[Check]:
    where = f"{settings.host}:{settings.port}"
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            yield _taken(settings, where) if error.errno == errno.EADDRINUSE else _unusable(where, error)
            return
    yield ok("port", f"{where} is free")


def _taken(settings: Settings, where: str) -> Check:
    from softmux.client import Client, Retry, SoftmuxError
    from softmux.client.calls import get

    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104
    try:
        with Client(f"http://{host}:{settings.port}", timeout=2, retry=Retry(attempts=1)) as client:
            client.send(get("/health/live"))
    except SoftmuxError:
        return fail(
            "port", f"{where} is taken by another program", f"end it (`ss -ltnp | grep {settings.port}`), or --port"
        )
    return warn("port", f"a server answers on {where} already", "nothing, if that is the one you mean; else --port")


def _unusable(where: str, error: OSError) -> Check:
    if error.errno == errno.EACCES:
        return fail(
            "port", f"{where}: {error.strerror}", "take a --port from 1024 on, or let something in front listen there"
        )
    return fail("port", f"{where}: {error.strerror}", "give a --host that this machine has, as 127.0.0.1 or 0.0.0.0")


def data_folder(settings: Settings) -> Iterator[Check]:
    folder = settings.data.absolute()
    there = folder
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        yield fail("data", f"{there} is no folder", "give another --data")
        return
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"x")
            probe.flush()
    except OSError as error:
        yield fail(
            "data", f"{there} can't be written: {error.strerror}", "`chown` it to the user that serves, or --data"
        )
        return
    free = shutil.disk_usage(there).free
    shown = f"{folder}, {size(free)} free"
    if free < _NO_SPACE:
        yield fail("data", shown, "make room: registry, adapters and caches are kept there")
    elif free < _LITTLE_SPACE:
        yield warn(
            "data", shown, f"make room soon, or lower SOFTMUX_DISK_CACHE_BYTES ({size(settings.disk_cache_bytes)})"
        )
    elif folder.exists() and stat.S_IMODE(folder.stat().st_mode) & 0o007:
        yield warn(
            "data",
            f"{shown}; others may look into it",
            f"`chmod o= {folder}`: it holds tenants' adapters and hashed keys",
        )
    else:
        yield ok("data", shown)


def descriptors(settings: Settings) -> Iterator[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = f"{soft:,} file descriptors" if soft != resource.RLIM_INFINITY else "file descriptors without limit"
    if soft == resource.RLIM_INFINITY or soft >= _ENOUGH_DESCRIPTORS:
        yield ok("descriptors", shown)
        return
    advice = f"raise it: `ulimit -n {max(_ENOUGH_DESCRIPTORS, min(hard, 65536))}`, or LimitNOFILE= of the unit"
    kind = fail if soft < _FEW_DESCRIPTORS else warn
    yield kind("descriptors", f"{shown}: each connection takes one", advice)


def memory_available() -> int:
    """Bytes that a new program may have on this host."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
