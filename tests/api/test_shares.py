"""What each of several replicas gets of the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from softmux.api import shares
from softmux.api.shares import replica_data, replica_environment, replica_settings
from softmux.errors import SelfTestFailed
from softmux.settings import Settings

NAMES = {"host_cache_bytes", "disk_cache_bytes", "threads", "max_rows"}


def test_one_has_all() -> None:
    settings = Settings(device="cuda", host_cache_bytes=100, disk_cache_bytes=10, data=Path("d"))
    assert replica_environment(settings, 0) is None
    assert replica_data(settings, 0) == Path("d")
    assert replica_settings(settings, NAMES) == settings.model_dump(mode="json", include=NAMES)


def test_each_has_a_gpu_a_folder_and_its_part_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(shares, "gpus_present", lambda: 4)
    settings = Settings(device="cuda", replicas=4, host_cache_bytes=100, disk_cache_bytes=10, data=Path("d"))
    said = [replica_environment(settings, number) for number in range(4)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in said if env is not None] == ["0", "1", "2", "3"]
    assert len({replica_data(settings, number) for number in range(4)}) == 4
    part = replica_settings(settings, NAMES)
    assert (part["host_cache_bytes"], part["disk_cache_bytes"], part["threads"]) == (25, 2, None)
    assert part["max_rows"] == settings.max_rows


def test_gpus_are_those_that_the_server_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6, 7")
    said = [replica_environment(Settings(device="cuda", replicas=2), number) for number in range(2)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in said if env is not None] == ["6", "7"]


def test_on_a_cpu_its_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    settings = Settings(device="cpu", replicas=3)
    assert replica_environment(settings, 2) is None
    assert replica_settings(settings, NAMES)["threads"] == 2
    assert replica_settings(Settings(device="cpu", replicas=3, threads=5), NAMES)["threads"] == 5


def test_replicas_over_several_gpus_have_as_many_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    settings = Settings(device="cuda", replicas=2, tensor_parallel=2)
    said = [replica_environment(settings, number) for number in range(2)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in said if env is not None] == ["4,5", "6,7"]
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert replica_settings(settings.model_copy(update={"device": "cpu"}), NAMES)["threads"] == 2


def test_gpus_that_the_server_was_not_given_are_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas beyond the list would take the machine's GPUs by number, whoever uses them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(SelfTestFailed, match="--replicas 3, of 1 each, need 3 GPUs, and CUDA_VISIBLE_DEVICES names 2"):
        replica_environment(Settings(device="cuda", replicas=3), 0)
    with pytest.raises(SelfTestFailed, match="of 2 each, need 4 GPUs"):
        replica_environment(Settings(device="cuda", replicas=2, tensor_parallel=2), 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(shares, "gpus_present", lambda: 1)
    with pytest.raises(SelfTestFailed, match="this machine shows 1"):
        replica_environment(Settings(device="cuda", replicas=2), 0)


def test_gpus_that_are_hidden_stay_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/nvidiactl")
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert replica_environment(Settings(device="auto", replicas=2), 1) is None
