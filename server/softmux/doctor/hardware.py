"""The device: driver, torch's CUDA, what it can do, Triton."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from softmux.doctor.check import Check, fail, ok, size, warn
from softmux.settings import Settings

_OLDEST = (7, 0)
_BF16 = (8, 0)


def device_of(settings: Settings) -> str:
    """`cuda` or `cpu`: where the model would run."""
    import torch

    return "cuda" if settings.device in ("auto", "cuda") and torch.cuda.is_available() else "cpu"


def device_memory(device: str) -> int:
    """Bytes that are free there."""
    from softmux.doctor.host import memory_available

    if device == "cpu":
        return memory_available()
    import torch

    return int(torch.cuda.mem_get_info()[0])


def gpu(settings: Settings) -> Iterator[Check]:
    import torch

    wanted = settings.device == "cuda"
    if not torch.cuda.is_available():
        yield _without(torch.version.cuda, wanted, driver=_driver())
        return
    major, minor = torch.cuda.get_device_capability()
    free, total = torch.cuda.mem_get_info()
    name = torch.cuda.get_device_name()
    shown = f"{name}, compute capability {major}.{minor}, {size(free)} of {size(total)} free"
    shown += f", torch for CUDA {torch.version.cuda}"
    if driver := _driver():
        shown += f", driver {driver}"
    if (major, minor) < _OLDEST:
        yield fail("gpu", shown, "this GPU is older than Triton supports: --device cpu")
    elif (major, minor) < _BF16 and settings.dtype in ("auto", "bfloat16"):
        yield warn("gpu", shown, "it has no bfloat16 of its own: --dtype float16 is faster")
    else:
        yield ok("gpu", shown)
    if find_spec("triton") is None:
        yield warn("triton", "not installed", "`pip install triton`: without it the slower torch attention is used")
    else:
        from importlib.metadata import version

        yield ok("triton", version("triton"))


def _without(built_for: str | None, wanted: bool, driver: str | None) -> Check:
    """What to say where torch finds no GPU. `driver` is the one that is loaded."""
    if driver is not None:
        what = "torch is built without CUDA" if built_for is None else f"torch (CUDA {built_for}) can't use it"
        advice = "install the torch for this driver (`make setup` with constraints-torch.txt), or update the driver"
        return (fail if wanted else warn)("gpu", f"a driver is there ({driver}), and {what}", advice)
    if wanted:
        return fail("gpu", "--device cuda, and no GPU or driver is here", "install NVIDIA's driver, or --device cpu")
    return ok("gpu", "none: the model runs on the CPU")


def _driver() -> str | None:
    """The version of NVIDIA's kernel driver, as it says itself."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
    except OSError:
        return None
    return next((word for word in words if word[0].isdigit() and "." in word), "of an unknown version")
