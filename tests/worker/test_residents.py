"""Which tasks a worker says it has at hand: bounded, the last used first, and only while they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from softmux.scheduler.radix import RootKey
from softmux.worker.residents import Residents


class _Tiers:
    def __init__(self) -> None:
        self.host: set[RootKey] = set()

    def at_hand(self, root: RootKey) -> bool:
        return root in self.host


def _root(number: int, tenant: str = "default") -> RootKey:
    return RootKey(tenant, f"sha256:{number}", "base", "kv")


def _scene() -> tuple[Any, Residents]:
    engine: Any = SimpleNamespace(tiers=_Tiers(), scheduler=SimpleNamespace(waiting=[]))
    return engine, Residents(engine, 3)


def _comes(engine: Any, residents: Residents, number: int, name: str | None = None) -> None:
    engine.tiers.host.add(_root(number))
    residents.began(SimpleNamespace(root=_root(number), task=name or f"task-{number}"))  # type: ignore[arg-type]


def test_the_last_used_are_told_first_and_no_more_than_there_is_room_for() -> None:
    engine, residents = _scene()
    for number in (1, 2, 3, 4, 2):
        _comes(engine, residents, number)
    assert residents.told() == {
        "max_lora": "3",
        "running_lora_adapters": "task-2,task-4,task-3",
        "waiting_lora_adapters": "",
    }


def test_what_left_the_memory_is_not_told_and_what_waits_is() -> None:
    engine, residents = _scene()
    for number in (1, 2):
        _comes(engine, residents, number)
    engine.tiers.host.discard(_root(2))
    engine.scheduler.waiting = [SimpleNamespace(task=name) for name in ("b", "", "b", "a", "c", "d")]
    told = residents.told()
    assert told["running_lora_adapters"] == "task-1"
    assert told["waiting_lora_adapters"] == "b,a,c"


def test_tasks_of_one_name_are_one_name() -> None:
    engine, residents = _scene()
    for number in (1, 2):
        _comes(engine, residents, number, "sentiment")
    assert residents.told()["running_lora_adapters"] == "sentiment"


def test_however_many_come_few_are_remembered() -> None:
    engine, residents = _scene()
    for number in range(500):
        _comes(engine, residents, number)
    assert len(residents._names) == 24
    assert residents.told()["running_lora_adapters"] == "task-499,task-498,task-497"
