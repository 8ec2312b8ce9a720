"""What Cloud Storage and S3 refuse and the emulators let pass: preconditions, declared checksums, too much metadata."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import re
import weakref
from urllib.parse import quote, unquote

from .wire import answer_bytes

try:
    from google_crc32c import extend as _extend
except ImportError:  # slow, and the same
    _TABLE = []
    for _byte in range(256):
        for _ in range(8):
            _byte = (_byte >> 1) ^ (0x82F63B78 if _byte & 1 else 0)
        _TABLE.append(_byte)

    def _extend(crc, data):
        crc ^= 0xFFFFFFFF
        for byte in data:
            crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
        return crc ^ 0xFFFFFFFF


# Bodies up to this size are held until they were looked at; longer ones pass as they come.
HELD = 32 << 20
CONDITIONS = ("ifGenerationMatch", "ifGenerationNotMatch", "ifMetagenerationMatch", "ifMetagenerationNotMatch")
_OBJECT = re.compile(r"^(?:/download)?/storage/v1/b/([^/]+)/o/([^?]+)$")
_INTO = re.compile(r"^(.*)/(?:copyTo|rewriteTo)/b/([^/]+)/o/(.*)$")
_UPLOAD = re.compile(r"^/(?:resumable/)?upload/storage/v1/b/([^/]+)/o$")


def object_name(request):
    """The name of the object a request is about, whichever way it is addressed; empty where it is about none."""
    path = request.target.partition("?")[0]
    if found := _OBJECT.match(path):
        return unquote(found[2])
    if _UPLOAD.match(path):
        return request.parameter("name") or ""
    if path.startswith(("/storage/v1", "/_")):
        return ""
    parts = path.split("/", 2)
    return unquote(parts[2]) if len(parts) == 3 else ""


def names_itself(request):
    """Whether the name of the object to be uploaded is in the body, beside the metadata."""
    return request.method == "POST" and bool(_UPLOAD.match(request.target.partition("?")[0])) and not object_name(request)


def name_inside(request, body):
    """The name of the object in the metadata of an upload's body; empty where there is none."""
    if request.parameter("uploadType") == "multipart":
        parts = _parts(request, body)
        metadata = parts[0] if parts else {}
    else:
        try:
            metadata = json.loads(body)
        except ValueError:
            metadata = {}
    return str(metadata.get("name") or "") if isinstance(metadata, dict) else ""


def _b64(number_or_bytes):
    raw = number_or_bytes if isinstance(number_or_bytes, bytes) else number_or_bytes.to_bytes(4, "big")
    return base64.b64encode(raw).decode()


def gcs_error(status, message, reason):
    what = {"message": message, "domain": "global", "reason": reason}
    body = json.dumps({"error": {"code": status, "message": message, "errors": [what]}}).encode()
    return answer_bytes(status, body, {"Content-Type": "application/json; charset=UTF-8"})


PRECONDITION = "At least one of the pre-conditions you specified did not hold."


class Upload:
    """A resumable upload that was begun: what it must meet at its end."""

    def __init__(self, place, conditions, declared):
        self.place, self.conditions, self.declared = place, conditions, declared
        self.sums = {0: 0}  # offset → CRC32C of what lies before it
        self.received = 0  # bytes the emulator has said it holds
        self.resource = None  # what was answered to its last piece

    def take(self, start, data):
        """The CRC32C of everything up to the end of this piece, or None where a gap makes it unknown."""
        known = self.sums.get(start)
        if known is None:
            return None
        self.sums[start + len(data)] = found = _extend(known, data)
        return found


class Gate:
    """One request that the rules are asked about: the lock to hold, whether its body matters, what follows from it."""

    def __init__(self, rules, place, conditions, *, writes, held=False, upload=None, kind=""):
        # One object has one spelling, whichever characters a client encodes.
        self.place = tuple(quote(unquote(part), safe="") for part in place)
        self.rules, self.conditions = rules, conditions
        self.writes, self.held, self.upload, self.kind = writes, held, upload, kind
        self.lock = rules.lock(self.place)
        self.source = None  # of a copy: its place, and the conditions it must meet


class Gcs:
    """The rules of Cloud Storage's JSON API, and of conditions and checksums in headers."""

    keep_host = False

    def __init__(self, upstream, metadata_limit=8192):
        self._upstream, self._limit = upstream, metadata_limit
        self._locks = weakref.WeakValueDictionary()
        self._uploads = {}

    def lock(self, place):
        lock = self._locks.get(place)
        if lock is None:
            self._locks[place] = lock = asyncio.Lock()
        return lock

    def gate(self, request, name):
        """The gate a request about this object has to pass, or None for one that nothing is asked of."""
        method, path = request.method, request.target.partition("?")[0]
        conditions = {name: value for name in CONDITIONS if (value := request.parameter(name)) is not None}
        if found := _UPLOAD.match(path):
            number = request.parameter("upload_id")
            if method == "PUT" and number in self._uploads:
                upload = self._uploads[number]
                return Gate(self, upload.place, upload.conditions, writes=True, held=True, upload=upload, kind="chunk")
            kind = request.parameter("uploadType") or "media"
            place = (found[1], quote(name, safe=""))
            return Gate(self, place, conditions, writes=True, held=True, kind=kind)
        if found := _OBJECT.match(path):
            writes = method in ("DELETE", "PATCH", "PUT", "POST")
            if into := _INTO.match(found[2]):
                gate = Gate(self, (into[2], into[3]), conditions, writes=True)
                if (wanted := request.parameter("ifSourceGenerationMatch")) is not None:
                    gate.source = (found[1], quote(unquote(into[1]), safe="")), {"ifGenerationMatch": wanted}
                return gate
            if writes or conditions:
                return Gate(self, (found[1], found[2]), conditions, writes=writes)
            return None
        return self._header_gate(request, method, path)

    def _header_gate(self, request, method, path):
        """The older API, which signed URLs speak: bucket and object in the path, conditions in headers."""
        parts = path.split("/", 2)
        if len(parts) != 3 or not parts[2] or path.startswith(("/storage/", "/_")):
            return None
        conditions = {}
        for name in ("generation", "metageneration"):
            value = request.get(f"x-goog-if-{name}-match")
            if value:
                conditions[f"if{name.capitalize()}Match"] = value
        writes = method in ("PUT", "POST", "DELETE")
        if not writes and not conditions:
            return None
        return Gate(self, (parts[1], parts[2]), conditions, writes=writes, held=method == "PUT", kind="header")

    async def refusal(self, gate, request, body):
        """The answer that Cloud Storage would give instead, or None, and the body to send on (None: as it comes)."""
        final = True
        if gate.kind == "chunk":
            refused, final = self._chunk(gate.upload, request, body)
        elif gate.kind in ("multipart", "resumable", "media", "header"):
            refused, body = self._declared(gate, request, body)
        else:
            refused = None
        if refused is None and final and gate.conditions:
            refused = await self._unmet(gate.place, gate.conditions, reading=not gate.writes)
        if refused is None and gate.source:
            refused = await self._unmet(*gate.source, reading=False)
        return refused, body

    async def _unmet(self, place, conditions, reading):
        bucket, name = place
        status, body = await self._upstream.ask("GET", f"/storage/v1/b/{bucket}/o/{name}")
        if status == 404:
            present = {"generation": "0", "metageneration": "0"}
        elif status == 200:
            present = json.loads(body)
        else:
            return gcs_error(503, f"the emulator answered {status} when asked for the generation", "backendError")
        for name, wanted in conditions.items():
            found = present["metageneration" if "Meta" in name else "generation"]
            if ("NotMatch" in name) == (int(wanted) == int(found)):
                if reading and "NotMatch" in name:
                    return answer_bytes(304)
                return gcs_error(412, PRECONDITION, "conditionNotMet")
        return None

    def _declared(self, gate, request, body):
        declared, media, metadata = _header_sums(request), body, {}
        if gate.kind == "multipart":
            parts = _parts(request, body)
            if parts is None:
                return gcs_error(400, "the body is no multipart/related of two or three parts", "invalid"), body
            metadata, media, trailing, body = parts
            declared.update({name: trailing[name] for name in ("crc32c", "md5Hash") if name in trailing})
        elif gate.kind == "resumable":
            try:
                metadata = json.loads(body) if body else {}
            except ValueError:
                return gcs_error(400, "Parse Error", "parseError"), body
            media = None
        declared.update({name: metadata[name] for name in ("crc32c", "md5Hash") if name in metadata})
        gate.declared = declared
        kept = dict(metadata.get("metadata") or {})
        kept.update({name[12:]: value for name, value in request.headers.items() if name.startswith("x-goog-meta-")})
        size = sum(len(name.encode()) + len(str(value).encode()) for name, value in kept.items())
        if size > self._limit:
            message = f"Your metadata headers are too large: {size} bytes of at most {self._limit}"
            return gcs_error(400, message, "invalid"), body
        if media is not None and (refused := _mismatch(declared, _extend(0, media), media)):
            return refused, body
        return None, body

    def _chunk(self, upload, request, body):
        """Looks at one piece of a resumable upload; the second answer tells whether it is the last."""
        declared = {**upload.declared, **_header_sums(request)}
        span = re.match(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)$", request.get("content-range") or "bytes 0-0/0")
        if span is None:
            return gcs_error(400, "Invalid Content-Range", "invalid"), True
        if request.get("content-range") and span[1] is None:
            return self._state(upload), False
        start = int(span[1] or 0) if request.get("content-range") else 0
        final = not request.get("content-range") or (span[3] != "*" and int(span[2]) + 1 == int(span[3]))
        if body is None:  # too long to be held: its sum stays unknown
            return None, final
        total = upload.take(start, body)
        if final and total is not None:
            return _mismatch(declared, total, body if start == 0 else None), True
        return None, final

    @staticmethod
    def _state(upload):
        """How far an upload has come; asked for that, the emulator would end it."""
        if upload.resource is not None:
            return answer_bytes(200, upload.resource, {"Content-Type": "application/json; charset=UTF-8"})
        return answer_bytes(308, b"", {"Range": f"bytes=0-{upload.received - 1}"} if upload.received else {})

    def answered(self, gate, answer, text):
        """Learns the name of an upload that was begun, and how far it has come."""
        if gate.kind == "chunk":
            if answer.status == 200:
                gate.upload.resource = text
            elif answer.status == 308 and (held := re.match(r"bytes=0-(\d+)$", answer.get("range"))):
                gate.upload.received = int(held[1]) + 1
        elif gate.kind == "resumable" and answer.status == 200:
            if found := re.search(r"[?&]upload_id=([^&]+)", answer.get("location")):
                self._uploads[found[1]] = Upload(gate.place, gate.conditions, gate.declared)


def _header_sums(request):
    sums = {}
    for part in request.get("x-goog-hash").split(","):
        name, _, value = part.strip().partition("=")
        if name in ("crc32c", "md5"):
            sums["crc32c" if name == "crc32c" else "md5Hash"] = value
    if request.get("content-md5"):
        sums["md5Hash"] = request.get("content-md5")
    return sums


def _mismatch(declared, crc, data):
    if "crc32c" in declared and declared["crc32c"] != _b64(crc):
        found = _b64(crc)
        message = f'Provided CRC32C "{declared["crc32c"]}" doesn\'t match calculated CRC32C "{found}".'
        return gcs_error(400, message, "invalid")
    if "md5Hash" in declared and data is not None and declared["md5Hash"] != _b64(hashlib.md5(data).digest()):
        message = f'Provided MD5 hash "{declared["md5Hash"]}" doesn\'t match calculated MD5 hash.'
        return gcs_error(400, message, "invalid")
    return None


def _parts(request, body):
    """Metadata, media and trailing checksums of a multipart upload, and the body without the latter."""
    found = re.search(r'boundary="?([^";]+)"?', request.get("content-type"))
    if found is None or body is None:
        return None
    mark = b"--" + found[1].encode("latin-1")
    first, end = body.find(mark), body.rfind(b"\r\n" + mark + b"--")
    metadata_end = body.find(b"\r\n" + mark, first + len(mark))
    if first < 0 or end < 0 or metadata_end < 0:
        return None
    media_head = metadata_end + len(mark) + 4
    media_start = body.find(b"\r\n\r\n", media_head - 2) + 4
    # What follows the media is a part of its own only where the mark and the end of its line come after it.
    third = body.rfind(b"\r\n" + mark + b"\r\n", media_start, end)
    media_end = third if third >= 0 else end
    trailing = {}
    try:
        metadata = json.loads(body[body.index(b"\r\n\r\n", first) + 4 : metadata_end])
        if third >= 0:
            trailing = json.loads(body[body.index(b"\r\n\r\n", third + 2) + 4 : end])
            body = body[:third] + body[end:]
    except ValueError:
        return None
    return metadata, body[media_start:media_end], trailing, body


class S3:
    """The rules of S3 that a server of the same protocol may let pass: declared checksums, metadata of 2 KB."""

    # Signatures cover the host.
    keep_host = True

    def __init__(self, upstream, metadata_limit=2048):
        self._limit = metadata_limit
        self._locks = weakref.WeakValueDictionary()

    lock = Gcs.lock

    def gate(self, request, name):
        parts = request.target.partition("?")[0].split("/", 2)
        if request.method != "PUT" or len(parts) != 3 or not parts[2]:
            return None
        return Gate(self, (parts[1], parts[2]), {}, writes=True, held=True)

    async def refusal(self, gate, request, body):
        size = sum(
            len(name[11:]) + len(value) for name, value in request.headers.items() if name.startswith("x-amz-meta-")
        )
        if size > self._limit:
            return _s3_error("MetadataTooLarge", "Your metadata headers exceed the maximum allowed metadata size"), body
        if body is None or request.get("content-encoding").startswith("aws-chunked"):
            return None, body
        sums = {
            "content-md5": lambda: _b64(hashlib.md5(body).digest()),
            "x-amz-checksum-crc32": lambda: _b64(binascii.crc32(body)),
            "x-amz-checksum-crc32c": lambda: _b64(_extend(0, body)),
            "x-amz-checksum-sha256": lambda: _b64(hashlib.sha256(body).digest()),
        }
        for name, found in sums.items():
            if request.get(name) and request.get(name) != found():
                return _s3_error("BadDigest", f"The {name} you specified did not match the calculated checksum."), body
        declared = request.get("x-amz-content-sha256")
        if len(declared) == 64 and declared != hashlib.sha256(body).hexdigest():
            return _s3_error("XAmzContentSHA256Mismatch", "The provided header does not match what was computed."), body
        return None, body

    def answered(self, gate, answer, text):
        pass


def _s3_error(code, message):
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return answer_bytes(400, body.encode(), {"Content-Type": "application/xml"})
