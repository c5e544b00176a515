"""The Hugging Face hub's endpoints that an upload and a download of a few files take, over HTTP, in memory.

As the hub has them: repositories made by name, files named by commit, large ones put aside by their hash (LFS) before
the commit that names them, errors told in `X-Error-Code`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"
Files = dict[str, bytes]


class HubServer:
    """`repos` has of each repository its commits, oldest first, the last one `main`."""

    def __init__(self) -> None:
        self.repos: dict[str, list[tuple[str, Files]]] = {}
        self.large: dict[str, bytes] = {}
        self.gated: set[str] = set()
        self.fetched: list[str] = []
        """Names of files whose content was asked for."""
        self.refuse_commits = False
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def add(self, repo: str, files: Files) -> str:
        """A commit that holds these files; its name."""
        commits = self.repos.setdefault(repo, [])
        content = b"".join(name.encode() + data for name, data in sorted(files.items()))
        commit = hashlib.sha1(f"{repo}{len(commits)}".encode() + content).hexdigest()
        commits.append((commit, dict(files)))
        return commit

    def at(self, repo: str, revision: str) -> tuple[str, Files] | None:
        commits = self.repos[repo]
        if revision == "main":
            return commits[-1] if commits else ("0" * 40, {})
        return next((commit for commit in commits if commit[0] == revision), None)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*found.groups())
        else:
            self._send(404, {"error": "no such page"})

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def do_PUT(self) -> None:
        data = self._body()
        self.hub.large[hashlib.sha256(data).hexdigest()] = data
        self._send(200, {})

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        if path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            files = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                 "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]  # fmt: skip
            self._send(200, {"files": files})
        elif found := re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}}
                for wanted in json.loads(body)["objects"]
            ]
            self._send(200, {"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._send(404, {"error": "no such page"})

    def _create(self, body: dict[str, Any]) -> None:
        repo = f"{body['organization']}/{body['name']}"
        status = 409 if repo in self.hub.repos else 200
        self.hub.repos.setdefault(repo, [])
        self._send(status, {"url": f"{self.hub.url}/{repo}", "error": "there already"})

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        if self.hub.refuse_commits:
            self._send(403, {"error": "You may not write here."})
            return
        commits = self.hub.repos[repo]
        files = dict(commits[-1][1]) if commits else {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        commit = self.hub.add(repo, files)
        self._send(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit, "hookOutput": ""})

    def _found(self, repo: str, revision: str) -> tuple[str, Files] | None:
        if repo not in self.hub.repos:
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        if repo in self.hub.gated:
            self._send(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
            return None
        found = self.hub.at(repo, revision)
        if found is None:
            self._send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        return found

    def _info(self, repo: str, revision: str) -> None:
        found = self._found(repo, revision)
        if found is not None:
            siblings = [{"rfilename": name, "size": len(data)} for name, data in found[1].items()]
            self._send(200, {"id": repo, "modelId": repo, "sha": found[0], "siblings": siblings, "private": False})

    def _file(self, repo: str, revision: str, name: str) -> None:
        found = self._found(repo, revision)
        if found is None:
            return
        if name not in found[1]:
            self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        if self.command == "GET":
            self.hub.fetched.append(name)
        etag = hashlib.sha1(found[1][name]).hexdigest()
        self._bytes(200, found[1][name], {"X-Repo-Commit": found[0], "ETag": f'"{etag}"'})

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._bytes(status, json.dumps(value).encode(), {"content-type": "application/json", **(headers or {})})

    def _bytes(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
