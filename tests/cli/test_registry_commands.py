"""What commands do without what they need: a registry, a key, somebody to ask."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from softmux.cli import app
from support.redis_server import RedisServer

_BEGIN_NONE = [
    ("audit",),
    ("key", "list"),
    ("key", "revoke", "some"),
    ("tenant", "list"),
    ("tenant", "show", "default"),
    ("tenant", "set", "default", "--weight", "2"),
    ("tenant", "delete", "acme", "--force"),
    ("registry", "verify"),
    ("registry", "backup", "kept.tar"),
]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def unkeyed() -> Iterator[str]:
    """The address of a server that knows no key."""

    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            error = {"message": "Send a key: the header Authorization: Bearer KEY.", "code": "unauthorized"}
            body = json.dumps({"error": {**error, "type": "invalid_request_error", "param": None}}).encode()
            self.send_response(401)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("command", _BEGIN_NONE, ids=" ".join)
def test_a_command_leaves_nothing_where_no_registry_is(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = run(*command)
    assert (refused.exit_code, "error: there is no registry in softmux-data" in refused.output) == (1, True)
    assert not list(tmp_path.iterdir())


def test_a_command_begins_no_registry_on_a_wiped_redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else running servers would take that one for theirs, and refuse every key."""
    with RedisServer(tmp_path / "redis") as server, server.client() as client:
        place = tmp_path / "place"
        place.mkdir()
        monkeypatch.chdir(place)
        assert run("tenant", "create", "acme", "--redis", server.url, "--data", tmp_path / "server").exit_code == 0
        assert run("key", "list", "--redis", server.url).exit_code == 0
        assert run("registry", "verify", "--redis", server.url).exit_code == 0
        assert not list(place.iterdir()), "what lies elsewhere needs no folder here"
        client.flushall()
        for command in _BEGIN_NONE:
            refused = run(*command, "--redis", server.url)
            assert (refused.exit_code, "there is no registry" in refused.output) == (1, True), command
            assert not client.keys(), command
        assert not list(place.iterdir())
        assert run("key", "create", "--tenant", "default", "--redis", server.url).exit_code == 0
        assert client.exists("softmux:id"), "what makes something begins one"


def test_a_refused_key_is_told_with_how_to_give_one(unkeyed: str) -> None:
    refused = run("list", "--url", unkeyed)
    assert refused.exit_code == 1
    assert "Send a key" in refused.output
    assert "--key, or SOFTMUX_KEY" in refused.output


def test_a_deletion_that_nobody_can_confirm_says_how_to_give_it() -> None:
    refused = run("delete", "mood", "--url", "http://127.0.0.1:9")
    assert refused.exit_code == 1
    assert "nothing is deleted: give --yes" in refused.output


def test_a_backups_name_that_can_not_be_had_is_told(tmp_path: Path) -> None:
    refused = run("registry", "backup", tmp_path / ("n" * 300), "--data", tmp_path / "data")
    assert (refused.exit_code, "(File name too long): name another place" in refused.output) == (1, True)


@pytest.mark.parametrize("command", [("restore", "none.tar"), ("verify", "--heal-from", "none.tar")])
def test_a_backup_that_is_not_there_is_told_before_anything_is_made(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = run("registry", *command)
    assert (refused.exit_code, "error: there is no file none.tar: name a backup" in refused.output) == (1, True)
    assert not list(tmp_path.iterdir())
