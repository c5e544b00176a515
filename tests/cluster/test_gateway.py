"""The ingress as an ASGI application, over replicas that are written down here."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="the extra `ray` is not installed: pip install 'softmux[ray]'")

from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError, RequestCancelledError

from softmux.cluster import turn
from softmux.cluster.call import Call, Head, Lost
from softmux.cluster.ingress import Gateway

OK = Head(200, ((b"content-type", b"text/plain"), (b"x-request-id", b"7")))


NOBODY, SLOW = object(), object()


class Answer:
    """As a handle of Serve's gives it. No replica ever has one that begins with `NOBODY`; `SLOW` is a part that comes
    when somebody has looked whether a replica has the request."""

    def __init__(self, script: list[Any]) -> None:
        self._had = NOBODY not in script
        self._items = iter(script)
        self._looked = asyncio.Event()
        self.cancelled = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        for item in self._items:
            if item is NOBODY:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    raise RequestCancelledError("7") from None  # of a request that was cancelled
            if item is SLOW:
                await self._looked.wait()
                continue
            if isinstance(item, Exception):
                raise item
            return item
        raise StopAsyncIteration

    async def _to_object_ref_gen(self) -> None:
        self._looked.set()
        if not self._had:
            await asyncio.Event().wait()

    def cancel(self) -> None:
        self.cancelled = True


class Replicas:
    """Answers each call with the next of `scripts`: items are passed on, exceptions raised."""

    def __init__(self, *scripts: list[Any]) -> None:
        self.scripts = list(scripts)
        self.answers: list[Answer] = []
        self.asked: list[tuple[Call, str | None, tuple[str, ...]]] = []

    def ask(self, call: Call, key: str | None, without: tuple[str, ...]) -> Answer:
        self.asked.append((call, key, without))
        self.answers.append(Answer(self.scripts.pop(0)))
        return self.answers[-1]


def sent(
    replicas: Replicas,
    method: str = "POST",
    target: str = "/v1/generate?task=mood",
    patience: float = 60,
    queue: float = 60,
    **more: Any,
) -> Any:
    gateway = Gateway(replicas.ask, 100, queue, patience=patience)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway), base_url="http://cluster") as http:
            return await http.request(method, target, **more)

    return asyncio.run(ask()), gateway


def test_an_answer_is_passed_on_as_it_is() -> None:
    replicas = Replicas([OK, b"one ", b"two"])
    reply, gateway = sent(replicas, content=b"{}", headers={"authorization": "Bearer key"})
    assert (reply.status_code, reply.text, reply.headers["x-request-id"]) == (200, "one two", "7")
    ((call, key, without),) = replicas.asked
    assert (call.method, call.path, call.query, call.body) == ("POST", "/v1/generate", "task=mood", b"{}")
    assert (b"authorization", b"Bearer key") in call.headers
    assert key is not None
    assert (key.endswith("/mood"), without, gateway.repeated) == (True, (), 0)


def test_a_path_reaches_the_replica_as_it_was_sent() -> None:
    replicas = Replicas([OK])
    sent(replicas, "GET", "/v1/adapters/a%2Fb?prefix=x%20y")
    assert (replicas.asked[0][0].path, replicas.asked[0][0].query) == ("/v1/adapters/a%2Fb", "prefix=x%20y")


def test_another_replica_is_asked_where_one_was_lost_before_its_answer() -> None:
    replicas = Replicas([Lost("r1")], [ActorDiedError()], [Lost("r2")], [OK, b"here"])
    reply, gateway = sent(replicas)
    assert (reply.status_code, reply.text) == (200, "here")
    assert [without for _, _, without in replicas.asked] == [(), ("r1",), ("r1",), ("r1", "r2")]
    assert gateway.repeated == 3


def test_a_cluster_that_has_nobody_left_says_so() -> None:
    reply, _ = sent(Replicas(*[[Lost("r")]] * 4))
    assert reply.status_code == 503
    assert (reply.json()["error"]["code"], reply.json()["error"]["begun"]) == ("engine_down", True)
    assert reply.headers["retry-after"] == "1"


def test_a_request_waits_for_a_replica_that_joins_where_nobody_took_it_from_those_there_are() -> None:
    gone = Lost("r1", reached=False)
    replicas = Replicas(*[[gone]] * 5, [OK, b"here"])
    reply, _ = sent(replicas)
    assert (reply.status_code, reply.text) == (200, "here")


def test_it_does_not_wait_for_ever() -> None:
    replicas = Replicas([Lost("r1", reached=False)], [Lost("r2", reached=False)], [Lost("r1", reached=False)])
    reply, _ = sent(replicas, patience=-1)
    assert (reply.status_code, reply.json()["error"]["begun"]) == (503, False)
    assert [without for _, _, without in replicas.asked] == [(), ("r1",), ("r1", "r2")]


def test_a_request_that_no_replica_takes_is_refused_and_taken_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(turn, "_LOOK_SECONDS", 0.01)
    replicas = Replicas([NOBODY])
    reply, _ = sent(replicas, queue=0.01)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "overloaded")
    assert reply.headers["retry-after"] == "1"
    assert replicas.answers[0].cancelled
    reply, _ = sent(Replicas([NOBODY]), json={"timeout": 0.01})
    assert (reply.status_code, reply.json()["error"]["code"]) == (408, "deadline_exceeded")
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"], "and nobody reads a traceback of it"


def test_one_that_a_replica_has_may_take_longer_than_the_queue() -> None:
    replicas = Replicas([SLOW, OK, b"one ", b"two"], [SLOW, Lost("r1")], [OK, b"here"])
    assert sent(replicas, queue=0.01)[0].text == "one two"
    assert sent(replicas, queue=0.01)[0].text == "here"
    assert not any(answer.cancelled for answer in replicas.answers)


def test_a_deployment_that_serve_gave_up_is_an_engine_that_is_down() -> None:
    replicas = Replicas(*[[DeploymentUnavailableError(DeploymentID("Replica", "softmux"))]] * 4)
    reply, _ = sent(replicas)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_down")


def test_those_that_were_lost_are_asked_again_in_turn() -> None:
    one, two = Lost("r1", reached=False), Lost("r2", reached=False)
    replicas = Replicas([one], [two], [one], [two], [OK, b"here"])
    assert sent(replicas)[0].text == "here"
    assert [without for _, _, without in replicas.asked[2:]] == [("r1", "r2"), ("r2", "r1"), ("r1", "r2")]


def test_a_request_that_replicas_die_of_is_had_by_few_of_them() -> None:
    script = [[Lost("r1", reached=False)], *[[Lost(f"r{number}")] for number in range(2, 9)]]
    replicas = Replicas(*script)
    assert sent(replicas)[0].status_code == 503
    assert len(replicas.asked) == 5


def test_a_change_that_reached_nobody_is_made_by_another() -> None:
    replicas = Replicas([Lost("r1", reached=False)], [Head(204, ())])
    assert sent(replicas, "DELETE", "/v1/adapters/mood")[0].status_code == 204


def test_what_is_sent_again_has_what_is_left_of_its_deadline() -> None:
    replicas = Replicas([Lost("r1")], [ActorDiedError()], [Lost("r1")], [OK, b"here"])
    assert sent(replicas, json={"timeout": 1000})[0].text == "here"
    timeouts = [dict(call.headers).get(b"x-request-timeout") for call, _, _ in replicas.asked]
    assert timeouts[0] is None
    assert 1000 >= float(timeouts[1]) >= float(timeouts[2]) > float(timeouts[3]) > 0  # a pause before the last


def test_an_answer_that_is_there_is_ended_whatever_becomes_of_its_replica() -> None:
    """Left open, its connection would be closed behind it, maybe under the client's next request."""
    replicas = Replicas([Head(200, ((b"content-length", b"5"),), b"whole"), ActorDiedError()])
    messages: list[Any] = []

    async def ask() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"{}"}

        async def send(message: Any) -> None:
            messages.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/generate", "query_string": b"", "headers": []}
        await Gateway(replicas.ask, 100, 60)(scope, receive, send)

    asyncio.run(ask())
    assert messages[1:] == [{"type": "http.response.body", "body": b"whole", "more_body": False}]


def test_an_answer_of_which_only_the_head_was_there_is_another_replicas() -> None:
    replicas = Replicas([OK, ActorDiedError()], [Head(200, ((b"x-request-id", b"8"),)), b"whole"])
    reply, _ = sent(replicas)
    assert (reply.text, reply.headers["x-request-id"]) == ("whole", "8")


@pytest.mark.parametrize("failure", [Lost("r1"), ActorDiedError()])
def test_what_may_have_been_done_is_not_done_again(failure: Any) -> None:
    replicas = Replicas([failure], [OK])
    reply, _ = sent(replicas, "DELETE", "/v1/adapters/mood")
    assert reply.status_code == 503
    assert len(replicas.asked) == 1


def test_an_answer_that_began_is_cut_off_and_not_begun_again() -> None:
    replicas = Replicas([OK, b"half", ActorDiedError()], [OK, b"whole"])
    with pytest.raises(Exception, match="lost"):
        sent(replicas)
    assert len(replicas.asked) == 1


def test_a_request_that_is_too_large_reaches_nobody() -> None:
    replicas = Replicas()
    reply, _ = sent(replicas, content=b"x" * 101)
    assert reply.status_code == 413
    assert "send less" in reply.json()["error"]["message"]
    assert not replicas.asked
