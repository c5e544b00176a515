"""A client of a softmux server: `Client`, and `AsyncClient` for asyncio.

It needs httpx and msgspec alone. What a server refuses is raised as the errors of `softmux.errors`, by their codes, and
what never came to an answer as `NoAnswer`: all of them are `SoftmuxError`s.
"""

from softmux.client.aio import AsyncClient, AsyncStream
from softmux.client.client import Client, Stream
from softmux.client.errors import Broken, NoAnswer, TimedOut, UnexpectedAnswer, Unreachable
from softmux.client.replies import (
    Adapter,
    Choice,
    Chunk,
    Classification,
    File,
    Generation,
    Logprobs,
    Model,
    Result,
    TokenLabel,
    Usage,
    Version,
)
from softmux.client.retry import Retry
from softmux.errors import SoftmuxError

__all__ = [
    "Adapter",
    "AsyncClient",
    "AsyncStream",
    "Broken",
    "Choice",
    "Chunk",
    "Classification",
    "Client",
    "File",
    "Generation",
    "Logprobs",
    "Model",
    "NoAnswer",
    "Result",
    "Retry",
    "SoftmuxError",
    "Stream",
    "TimedOut",
    "TokenLabel",
    "UnexpectedAnswer",
    "Unreachable",
    "Usage",
    "Version",
]
