"""`/openapi.json`: the routes as they are declared, and how a key is sent to them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from softmux.api.auth import is_open

KEY = "key"
"""The scheme's name. `/docs` and generated clients send by it what they are given."""


class Described(FastAPI):
    """An application whose description says which routes take a key."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            schemes = document["components"].setdefault("securitySchemes", {})
            schemes[KEY] = {"type": "http", "scheme": "bearer", "description": "A key of a tenant of this server."}
            document["security"] = [{KEY: []}]
            for path, operations in document["paths"].items():
                if is_open(path):
                    for operation in operations.values():
                        operation["security"] = []
        return self.openapi_schema or {}
