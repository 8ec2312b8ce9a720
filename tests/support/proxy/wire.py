"""HTTP/1.1 as far as a proxy needs it: heads, bodies in pieces, connections that are kept."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from urllib.parse import unquote

PIECE = 65_536
HEAD_LIMIT = 262_144
REASONS = {
    200: "OK", 204: "No Content", 304: "Not Modified", 400: "Bad Request", 403: "Forbidden", 404: "Not Found",
    412: "Precondition Failed", 429: "Too Many Requests", 500: "Internal Server Error", 502: "Bad Gateway",
    503: "Service Unavailable",
}  # fmt: skip
_HEADER = re.compile(rb"\r\n([^:\r\n]+):[ \t]*([^\r\n]*)")


class Gone(Exception):
    """The other side ended the connection where more was due."""


class Head:
    """A request's or an answer's first line and headers; the bytes are kept as they came."""

    __slots__ = ("raw", "first", "headers")

    def __init__(self, raw):
        self.raw = raw
        self.first = raw[: raw.index(b"\r\n")].decode("latin-1").split(" ", 2)
        self.headers = {
            name.lower().decode("latin-1"): value.strip().decode("latin-1") for name, value in _HEADER.findall(raw)
        }

    def get(self, name, default=""):
        return self.headers.get(name, default)

    def set(self, name, value):
        """Replaces a header, keeping its place; None removes it."""
        line = b"" if value is None else f"\r\n{name}: {value}".encode("latin-1")
        pattern = re.compile(rb"\r\n" + re.escape(name.encode()) + rb":[^\r\n]*", re.IGNORECASE)
        self.raw, found = pattern.subn(lambda _: line, self.raw)
        if not found and line:
            self.raw = self.raw[:-4] + line + b"\r\n\r\n"
        if value is None:
            self.headers.pop(name.lower(), None)
        else:
            self.headers[name.lower()] = str(value)

    @property
    def keeps(self):
        """Whether the connection goes on after this message."""
        return self.get("connection").lower() != "close" and "HTTP/1.0" not in (self.first[0], self.first[-1])


class Request(Head):
    """A request's head, its address taken apart and decoded."""

    __slots__ = ("method", "target", "path", "query")

    def __init__(self, raw):
        super().__init__(raw)
        self.method, self.target = self.first[0], self.first[1]
        path, _, query = self.target.partition("?")
        self.path, self.query = unquote(path), unquote(query.replace("+", " "))

    def parameter(self, name):
        """A query parameter's decoded value, or None."""
        for part in self.target.partition("?")[2].split("&"):
            key, _, value = part.partition("=")
            if key == name:
                return unquote(value.replace("+", " "))
        return None

    @property
    def size(self):
        """Bytes of the body that follows; None when only its pieces say."""
        if self.get("transfer-encoding").lower() == "chunked":
            return None
        return int(self.get("content-length", "0") or 0)


class Answer(Head):
    """An answer's head."""

    __slots__ = ("status",)

    def __init__(self, raw):
        super().__init__(raw)
        self.status = int(self.first[1])

    def size(self, method):
        """Bytes of the body that follows; None when its pieces say, -1 when the end of the connection does."""
        if method == "HEAD" or self.status in (204, 304) or self.status < 200:
            return 0
        if self.get("transfer-encoding").lower() == "chunked":
            return None
        length = self.get("content-length")
        return int(length) if length else -1


async def read_head(reader):
    """The bytes up to the empty line, or None where the other side has ended in good order."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise Gone from error
        return None
    except (OSError, asyncio.LimitOverrunError) as error:
        raise Gone from error


async def pieces(reader, size):
    """The body's bytes as they come, without the framing of chunks; `size` as `Request.size` and `Answer.size` say."""
    try:
        if size is None:
            while True:
                length = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
                left = length
                while left:
                    piece = await reader.read(min(left, PIECE))
                    if not piece:
                        raise Gone
                    left -= len(piece)
                    yield piece
                if length == 0:
                    while await reader.readuntil(b"\r\n") != b"\r\n":
                        pass
                    return
                await reader.readexactly(2)
        while size:
            piece = await reader.read(PIECE if size < 0 else min(size, PIECE))
            if not piece:
                if size < 0:
                    return
                raise Gone
            if size > 0:
                size -= len(piece)
            yield piece
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
        raise Gone from error


async def whole(reader, size):
    """The whole body."""
    if size is not None and 0 < size <= PIECE:
        try:
            return await reader.readexactly(size)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Gone from error
    return b"".join([piece async for piece in pieces(reader, size)])


def answer_bytes(status, body=b"", headers=None, method="GET"):
    """An answer of our own."""
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Answer')}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if status not in (204, 304):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (b"" if method == "HEAD" else body)


def reset(writer):
    """Ends a connection with RST, as a host that went away does."""
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        try:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass  # already gone
    writer.transport.abort()


class Upstream:
    """The server behind the proxy and the idle connections to it."""

    def __init__(self, host, port):
        self.host, self.port = host, port
        self._idle = []

    async def connect(self, fresh=False):
        """Returns (reader, writer, whether it was used before)."""
        while self._idle and not fresh:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer, True
            writer.close()
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=HEAD_LIMIT)
        return reader, writer, False

    def keep(self, reader, writer):
        if len(self._idle) < 64:
            self._idle.append((reader, writer))
        else:
            writer.close()

    async def ask(self, method, target, headers=()):
        """One small exchange of the proxy's own; returns (status, body)."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.host}:{self.port}", "Content-Length: 0"]
        lines += [f"{name}: {value}" for name, value in headers]
        request = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        for fresh in (False, True):
            reader, writer, used = await self.connect(fresh)
            try:
                writer.write(request)
                head = await read_head(reader)
                if head is None:
                    raise Gone
                answer = Answer(head)
                body = await whole(reader, answer.size(method))
            except Gone:
                writer.close()
                if used:
                    continue
                raise
            self.keep(reader, writer)
            return answer.status, body
        raise Gone
