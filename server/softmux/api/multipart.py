"""Adapter uploads: multipart bodies of named files, read as they come, within bounds."""

from __future__ import annotations

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from softmux.api.body import body_chunks
from softmux.errors import BadRequest, InvalidAdapter, UnsupportedMediaType

_MOST_PARTS = 16
_LONGEST_HEADERS = 8 << 10


class _Parts:
    """The parser's callbacks: a part's name is its file's name. Raises on what no upload may hold."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}
        self.ended = False
        self._field, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = 0
        self._body: bytearray | None = None

    def part_begin(self) -> None:
        self._headers, self._header_bytes = {}, 0
        self._body = None

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._field += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._value += data[start:end]

    def header_end(self) -> None:
        self._headers[bytes(self._field).lower()] = bytes(self._value)
        self._field, self._value = bytearray(), bytearray()

    def headers_finished(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if kind != b"form-data" or b"name" not in options:
            raise BadRequest("A part has no name: send each file with `Content-Disposition: form-data; name=…`.")
        if self._headers.get(b"content-transfer-encoding", b"binary").lower() not in (b"binary", b"8bit", b"7bit"):
            raise BadRequest("Send the files as they are, without a content-transfer-encoding.")
        name = options[b"name"].decode("utf-8", errors="replace")
        if name in self.files:
            raise InvalidAdapter(f"The part “{name[:100]}” was sent twice; send each file once.", param=name[:100])
        if len(self.files) >= _MOST_PARTS:
            raise InvalidAdapter(f"The upload has more than {_MOST_PARTS} parts; an adapter has a few files.")
        self._body = self.files[name] = bytearray()

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self._body is not None:
            self._body += data[start:end]

    def end(self) -> None:
        self.ended = True

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > _LONGEST_HEADERS:
            raise BadRequest("The headers of a part are too long; a name is all they need.")


async def read_upload(request: Request, max_bytes: int) -> dict[str, bytes]:
    """The body's parts, by name. Raises `UnsupportedMediaType`, `BadRequest` (no multipart), `InvalidAdapter` for a
    part sent twice, or as `body_chunks` does."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise UnsupportedMediaType("Send the adapter's files as multipart/form-data, one part for each file.")
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 200:
        raise BadRequest("The multipart body has no usable boundary; let your HTTP client write the header.")
    parts = _Parts()
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": parts.part_begin,
            "on_part_data": parts.part_data,
            "on_header_field": parts.header_field,
            "on_header_value": parts.header_value,
            "on_header_end": parts.header_end,
            "on_headers_finished": parts.headers_finished,
            "on_end": parts.end,
        },
    )
    try:
        async for chunk in body_chunks(request, max_bytes):
            if chunk:
                parser.write(chunk)
        parser.finalize()
    except MultipartParseError as error:
        raise BadRequest(f"The body is not valid multipart/form-data: {str(error)[:200]}.") from None
    if not parts.ended:
        raise BadRequest("The multipart body ends before its last boundary; send it whole.")
    return {name: bytes(data) for name, data in parts.files.items()}
