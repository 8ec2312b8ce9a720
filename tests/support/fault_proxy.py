#!/usr/bin/env python3
"""An HTTP proxy between the program under test and its bucket: passes on, and does harm when told to.

    tests/support/fault_proxy.py --upstream http://127.0.0.1:4443 [--port 0] [--enforce gcs|s3]
                                 [--permit PERMISSION,…] [--on BUCKET,…] [--keep-host] [--until-eof]

Plain Python 3.10, nothing to install (with google-crc32c importable, checksums of large bodies cost less). Listens on
127.0.0.1 and prints two lines once it does:

    ready http://127.0.0.1:PORT
    control http://127.0.0.1:OTHER

Both answer what is below `/__proxy/`, everything else on PORT goes to the server:

    GET    /__proxy/            mode, rules, counters
    POST   /__proxy/rules       adds one rule or a list; answers {"ids": [...]}
    GET    /__proxy/rules       all rules with how often each matched and was applied
    DELETE /__proxy/rules[/ID]  removes all or one
    GET    /__proxy/log         every request since the last clear: number, time, method, path, query, object, status
                                (null: none was given), fault, sizes, seconds
    DELETE /__proxy/log         empties it
    POST   /__proxy/down        resets every connection, open or new; `?how=refuse`: new ones are refused by the kernel,
                                so that only OTHER can be asked for `up`
    POST   /__proxy/blackhole   takes connections and requests and never answers
    POST   /__proxy/up          ends either
    POST   /__proxy/clear       no rules, up, empty log, counters at zero

A rule is {"match": {...}, "action": {...}} and any of "nth" (begin with the nth match, from 1), "times" (stop after so
many), "probability" and "seed". The first rule that applies is the request's.

    match:  "method" (a name or a list), "path", "query", "object" (searched in the decoded text with a regular
            expression; `object` is the object's name wherever the request has it), "headers" {name: expression},
            "min_size", "max_size" (bytes of the request's body where they are declared); all of them must hold
    action: "status" with "headers" and "body"    answers that instead of passing the request on
            "reset": true        takes the request and resets the connection; the server never hears of it
            "stall": seconds     takes the request and says nothing for so long, then resets; with "after": n passes the
                                 request on and stalls after n bytes of the answer's body
            "swallow": true      passes the request on, takes the whole answer and resets: it happened, nobody knows
            "truncate": n        ends the connection after n bytes of the answer's body, its declared length kept
            "flip": {"side": "request"|"response", "offset": n, "bit": b} or with "find": "text" instead of the offset
            "delay": seconds     waits before passing on
            "hold": true         takes the request and passes it on once the rule is removed; never, if its client is
                                 gone by then
            "patch": {name: value}  replaces headers of the answer; null takes one off

`--enforce gcs` adds what the emulator leaves out: the preconditions of uploads (of resumable ones at the end as well),
deletes and reads, atomically for each object; declared checksums; at most 8 KiB of metadata. `--enforce s3`: declared
checksums, at most 2 KB of metadata, and `--keep-host`: the Host header stays, since signatures cover it. `--permit` names
the permissions of Cloud Storage that are granted, on the buckets `--on` or on all: what needs another is answered 403.
`--until-eof` ends the proxy when its standard input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import socket
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent))

from proxy.enforce import HELD, S3, Gcs, name_inside, names_itself, object_name  # noqa: E402
from proxy.rights import Rights  # noqa: E402
from proxy.rules import Rules  # noqa: E402
from proxy.wire import (  # noqa: E402
    HEAD_LIMIT,
    PIECE,
    Answer,
    Gone,
    Request,
    Upstream,
    answer_bytes,
    pieces,
    read_head,
    reset,
    whole,
)

LOG_LENGTH = 200_000


class Proxy:
    def __init__(self, upstream, enforce, rights, keep_host, port):
        self.upstream, self.enforce, self.rights = upstream, enforce, rights
        self.keep_host = keep_host or (enforce is not None and enforce.keep_host)
        self.rules, self.mode, self.server = Rules(), "up", None
        self.listening = bound(port)
        self.port = self.listening.getsockname()[1]
        self.log, self.counters = collections.deque(maxlen=LOG_LENGTH), collections.Counter()
        self.open = set()
        self.changed = asyncio.Event()

    # --- connections ----------------------------------------------------------------------------------------------

    async def listen(self):
        self.server = await asyncio.start_server(self.serve, sock=self.listening, limit=HEAD_LIMIT, backlog=1024)

    async def serve(self, reader, writer):
        self.counters["connections"] += 1
        self.open.add(writer)
        try:
            while (raw := await read_head(reader)) is not None:
                request = Request(raw)
                if request.path.startswith("/__proxy/"):
                    self.open.discard(writer)  # whoever says `down` still hears the answer
                    await self.control(request, reader, writer)
                    self.open.add(writer)
                else:
                    await self.passage()
                    await self.handle(request, reader, writer)
                if not request.keeps:
                    break
            writer.close()
        except (Gone, OSError):
            reset(writer)
        except asyncio.CancelledError:
            writer.close()
        except Exception:  # the proxy itself is at fault: say so, where the test's log is
            import traceback

            traceback.print_exc()
            reset(writer)
        finally:
            self.open.discard(writer)

    async def serve_control(self, reader, writer):
        try:
            while (raw := await read_head(reader)) is not None:
                await self.control(Request(raw), reader, writer)
        except (Gone, OSError):
            pass
        finally:
            writer.close()

    async def passage(self):
        """Lets nothing through while the server is away."""
        if self.mode == "down":
            raise Gone
        if self.mode == "blackhole":
            await self.changed.wait()
            raise Gone

    # --- one request ----------------------------------------------------------------------------------------------

    async def handle(self, request, reader, writer):
        name, body = object_name(request), pieces(reader, request.size)
        if request.get("expect").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.set("Expect", None)
        if names_itself(request):
            held, _ = await hold(body, sys.maxsize)
            name, body = name_inside(request, held), once(held)
        action = self.rules.find(request, name) if self.rules else None
        begun = time.time()
        entry = {
            "number": self.counters["requests"], "at": begun, "method": request.method, "path": request.path,
            "query": request.query, "object": name, "status": None, "fault": action, "request_size": 0,
            "response_size": 0, "seconds": None,
        }  # fmt: skip
        self.counters["requests"] += 1
        self.log.append(entry)
        if action is not None:
            self.counters["faults"] += 1
        try:
            await self.perform(request, self.counted(body, entry), reader, writer, action or {}, entry)
        finally:
            entry["seconds"] = round(time.time() - begun, 6)
            if entry["status"] is not None:
                self.counters[f"status {entry['status']}"] += 1

    async def perform(self, request, body, reader, writer, action, entry):
        if "delay" in action:
            await asyncio.sleep(action["delay"])
        if "hold" in action:
            held, _ = await hold(body, sys.maxsize)
            while self.rules.stands(action):
                await asyncio.sleep(0.02)
                # Also when the rule has just gone: whoever left before that gets nothing done.
                if reader.at_eof():
                    raise Gone
            body = once(held)
        ends_here = "status" in action or "reset" in action and "truncate" not in action
        if ends_here or ("stall" in action and "after" not in action):
            async for _ in body:
                pass
            if "stall" in action:
                await self.stall(action["stall"], reader)
            if "status" not in action:
                raise Gone
            text = action.get("body", f"a fault of the test: {action['status']}")
            text = text if isinstance(text, str) else json.dumps(text)
            entry["status"] = action["status"]
            writer.write(answer_bytes(action["status"], text.encode(), action.get("headers"), request.method))
            await writer.drain()
            return
        refused = await self.rights.refusal(request, entry["object"]) if self.rights else None
        if refused is not None:
            async for _ in body:
                pass
            await self.refuse(refused, writer, entry)
            return
        flip = action.get("flip")
        if flip and flip["side"] == "request":
            body = flipped(body, flip)
        gate = self.enforce.gate(request, entry["object"]) if self.enforce else None
        if gate is None:
            size = request.size
            if size is None:
                held, body = await hold(body, PIECE)
                if held is not None:
                    body, size = once(held), len(held)
            answer, upstream = await self.send(request, body, size)
            await self.deliver(request, answer, upstream, reader, writer, action, entry)
        else:
            await self.gated(gate, request, body, reader, writer, action, entry)

    async def counted(self, body, entry):
        async for piece in body:
            entry["request_size"] += len(piece)
            yield piece

    async def gated(self, gate, request, body, reader, writer, action, entry):
        """Passes on under the object's lock what the rules of the real service allow."""
        size = request.size
        held, body = await hold(body, HELD if gate.held and gate.kind != "multipart" else sys.maxsize)
        async with gate.lock:
            refused, instead = await self.enforce.refusal(gate, request, held)
            if refused is not None:
                async for _ in body:
                    pass
            else:
                if instead is not None:
                    body, size = once(instead), len(instead)
                answer, upstream = await self.send(request, body, size)
                if gate.writes:
                    # What was written is written before the next one is let in; the client may be slow.
                    text = await whole(upstream[0], answer.size(request.method))
                    if answer.size(request.method) is None:
                        answer.set("Transfer-Encoding", None)
                    if answer.size(request.method) != 0:
                        answer.set("Content-Length", len(text))
                    self.done_with(answer, upstream)
                    self.enforce.answered(gate, answer, text)
                    upstream = text
        if refused is not None:
            await self.refuse(refused, writer, entry)
            return
        await self.deliver(request, answer, upstream, reader, writer, action, entry)

    async def refuse(self, refused, writer, entry):
        entry["status"] = int(refused[9:12])
        self.counters["refused"] += 1
        writer.write(refused)
        await writer.drain()

    async def send(self, request, body, size):
        """Passes the request on; returns the answer's head and the connection its body is on."""
        if not self.keep_host:
            request.set("Host", f"{self.upstream.host}:{self.upstream.port}")
        if request.size is None and size is not None:
            request.set("Transfer-Encoding", None)
            request.set("Content-Length", size)
        elif size is not None and size != request.size:
            request.set("Content-Length", size)
        small = b"".join([piece async for piece in body]) if size is not None and size <= PIECE else None
        # A connection that the server has ended meanwhile can be told only by using it, once what is sent can be sent again.
        for fresh in (small is None, True):
            reader, writer, used = await self.upstream.connect(fresh)
            try:
                if small is not None:
                    writer.write(request.raw + small)
                else:
                    writer.write(request.raw)
                    await self.stream(body, writer, chunked=size is None)
                raw = await read_head(reader)
                while raw is not None and raw.startswith(b"HTTP/1.1 1"):
                    raw = await read_head(reader)
                if raw is None:
                    raise Gone
            except (Gone, OSError):
                writer.close()
                if used and small is not None:
                    continue
                raise Gone from None
            return Answer(raw), (reader, writer)
        raise Gone

    @staticmethod
    async def stream(body, writer, chunked):
        async for piece in body:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await writer.drain()
        if chunked:
            writer.write(b"0\r\n\r\n")

    def done_with(self, answer, upstream):
        if answer.keeps and answer.get("connection").lower() != "close":
            self.upstream.keep(*upstream)
        else:
            upstream[1].close()

    async def deliver(self, request, answer, upstream, reader, writer, action, entry):
        """Hands the answer to the client, harmed as the action says; `upstream` is a connection or the body itself."""
        try:
            await self.passage()
        except Gone:
            if not isinstance(upstream, bytes):
                upstream[1].close()
            raise
        size = answer.size(request.method)
        location = answer.get("location")
        if location.startswith("http") and not self.keep_host:
            answer.set("Location", f"http://127.0.0.1:{self.port}" + location.split("/", 3)[3].join(("/", "")))
        for name, value in action.get("patch", {}).items():
            answer.set(name, value)
        entry["status"] = answer.status
        held = upstream if isinstance(upstream, bytes) else None
        if held is None and size is not None and 0 <= size <= PIECE:
            held = await whole(upstream[0], size)
            self.done_with(answer, upstream)
            upstream = held
        if held is not None and not action:
            entry["response_size"] = len(held)
            writer.write(answer.raw + held)
            await writer.drain()
            return
        body = once(held) if held is not None else pieces(upstream[0], size)
        flip = action.get("flip")
        if flip and flip["side"] == "response":
            body = flipped(body, flip)
        if "swallow" in action:
            async for piece in body:
                entry["response_size"] += len(piece)
            entry["status"] = None
            if held is None:
                self.done_with(answer, upstream)
            raise Gone
        writer.write(answer.raw)
        stop = action.get("truncate", action.get("after"))
        chunked = size is None and held is None
        async for piece in body:
            if stop is not None and entry["response_size"] + len(piece) > stop:
                piece = piece[: stop - entry["response_size"]]
            entry["response_size"] += len(piece)
            if piece:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                await writer.drain()
            if entry["response_size"] == stop:
                break
        else:
            if chunked:
                writer.write(b"0\r\n\r\n")
            await writer.drain()
            if held is None:
                self.done_with(answer, upstream)
            if size == -1:
                writer.close()
                raise Gone
            return
        if held is None:
            upstream[1].close()
        if "stall" in action:
            await self.stall(action["stall"], reader)
        if "truncate" in action and "reset" not in action:
            # In good order, so that what was sent before arrives.
            writer.close()
            await writer.wait_closed()
        raise Gone

    async def stall(self, seconds, reader):
        """Says nothing for so long, or until the client has had enough."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not reader.at_eof():
            await asyncio.sleep(0.02)

    # --- control --------------------------------------------------------------------------------------------------

    async def control(self, request, reader, writer):
        body = await whole(reader, request.size)
        what = request.path.removeprefix("/__proxy/").strip("/")
        try:
            answer, status = await self.command(request, what, body), 200
        except (ValueError, KeyError, TypeError) as error:
            answer, status = {"error": f"{type(error).__name__}: {error}"}, 400
        text = json.dumps(answer).encode()
        writer.write(answer_bytes(status, text, {"Content-Type": "application/json"}))
        await writer.drain()

    async def command(self, request, what, body):
        method = request.method
        if what == "rules" and method == "POST":
            return {"ids": self.rules.add(json.loads(body))}
        if what.startswith("rules") and method == "DELETE":
            number = what.partition("/")[2]
            self.rules.remove(int(number) if number else None)
        elif what == "rules":
            return self.rules.report()
        elif what == "log" and method == "DELETE":
            self.log.clear()
        elif what == "log":
            return list(self.log)
        elif what == "clear":
            self.rules.remove()
            self.log.clear()
            self.counters.clear()
            await self.change("up")
        elif what in ("down", "up", "blackhole"):
            await self.change(what, refuse=request.parameter("how") == "refuse")
        elif what:
            raise ValueError(f"nothing is called {what}")
        return {"mode": self.mode, "rules": self.rules.report(), "counters": dict(self.counters)}

    async def change(self, mode, refuse=False):
        self.mode = mode
        # Whoever waits in the black hole learns that the connection is gone.
        self.changed.set()
        self.changed = asyncio.Event()
        if mode == "down":
            for writer in list(self.open):
                reset(writer)
            if refuse and self.server.is_serving():
                self.server.close()
                # A port that is bound and not listened on refuses, and nobody else gets it.
                self.listening = bound(self.port)
        elif not self.server.is_serving():
            await self.listen()


def bound(port):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock


async def hold(body, limit):
    """The whole body, or None where it is longer than that, and what is left to be read of it."""
    taken, size = [], 0
    async for piece in body:
        taken.append(piece)
        size += len(piece)
        if size > limit:
            return None, chain(taken, body)
    return b"".join(taken), once(b"")


async def chain(taken, rest):
    for piece in taken:
        yield piece
    async for piece in rest:
        yield piece


async def once(data):
    if data:
        yield data


async def flipped(body, flip):
    """The same body with one bit turned over."""
    bit = 1 << flip.get("bit", 0)
    if "find" in flip:
        data = bytearray(b"".join([piece async for piece in body]))
        at = data.find(flip["find"].encode())
        if at >= 0:
            data[at] ^= bit
        yield bytes(data)
        return
    left = flip["offset"]
    async for piece in body:
        if 0 <= left < len(piece):
            piece = piece[:left] + bytes([piece[left] ^ bit]) + piece[left + 1 :]
            left = -1
        elif left >= 0:
            left -= len(piece)
        yield piece


async def run(arguments):
    address = urlsplit(arguments.upstream)
    upstream = Upstream(address.hostname, address.port or 80)
    enforce = {"gcs": Gcs, "s3": S3}[arguments.enforce](upstream) if arguments.enforce else None
    rights = Rights(upstream, arguments.permit.split(","), filter(None, arguments.on.split(","))) if arguments.permit else None
    proxy = Proxy(upstream, enforce, rights, arguments.keep_host, arguments.port)
    await proxy.listen()
    control = await asyncio.start_server(proxy.serve_control, "127.0.0.1", 0)
    print(f"ready http://127.0.0.1:{proxy.port}")
    print(f"control http://127.0.0.1:{control.sockets[0].getsockname()[1]}", flush=True)
    if arguments.until_eof:
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    else:
        await asyncio.Event().wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--upstream", required=True, help="the server, http://host:port")
    parser.add_argument("--port", type=int, default=0, help="where to listen; 0 takes a free port")
    parser.add_argument("--enforce", choices=["gcs", "s3"], help="whose rules to enforce")
    parser.add_argument("--permit", help="the permissions of Cloud Storage that are granted, joined by commas")
    parser.add_argument("--on", default="", help="the buckets on which they are; all unless named")
    parser.add_argument("--keep-host", action="store_true", help="leave the Host header as it is")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input ends")
    try:
        asyncio.run(run(parser.parse_args()))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
