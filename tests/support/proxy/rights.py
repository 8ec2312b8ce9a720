"""What Cloud Storage answers an identity whose role does not permit what it asks; the emulators know no identities."""

from __future__ import annotations

import re
from urllib.parse import quote

from .enforce import gcs_error

_BUCKETS = re.compile(r"^/storage/v1/b/?$")
_BUCKET = re.compile(r"^/storage/v1/b/([^/]+)$")
_OBJECTS = re.compile(r"^(?:/(?:resumable/)?upload|/download)?/storage/v1/b/([^/]+)/o(?:/(.+))?$")


class Rights:
    """A role, and the buckets it is bound to (none: every bucket)."""

    def __init__(self, upstream, permissions, buckets=()):
        self._upstream, self._granted, self._buckets = upstream, frozenset(permissions), frozenset(buckets)

    async def refusal(self, request, name):
        """The answer instead, or None where everything that the request needs is granted."""
        needed, bucket = self._needed(request)
        if needed == "storage.objects.create" and name and await self._is_there(bucket, name):
            # Replacing an object removes the one before.
            wanted = (needed, "storage.objects.delete")
        else:
            wanted = (needed,)
        for permission in wanted:
            if permission not in self._granted or (self._buckets and bucket not in self._buckets):
                message = f"the identity does not have {permission} access to the Google Cloud Storage bucket {bucket}."
                return gcs_error(403, message, "forbidden")
        return None

    @staticmethod
    def _needed(request):
        """The permission that a request takes, by Google's list, and the bucket it is about."""
        method, path = request.method, request.target.partition("?")[0]
        if _BUCKETS.match(path):
            return ("storage.buckets.create" if method == "POST" else "storage.buckets.list"), ""
        if found := _BUCKET.match(path):
            return f"storage.buckets.{ {'GET': 'get', 'DELETE': 'delete'}.get(method, 'update') }", found[1]
        if found := _OBJECTS.match(path):
            bucket, name = found[1], found[2]
        else:
            # The older API, which signed URLs speak: the bucket, then the object.
            bucket, _, name = path[1:].partition("/")
        if method in ("PUT", "POST"):
            return "storage.objects.create", bucket
        kinds = {"GET": "get" if name else "list", "HEAD": "get", "DELETE": "delete"}
        return f"storage.objects.{kinds.get(method, 'update')}", bucket

    async def _is_there(self, bucket, name):
        status, _ = await self._upstream.ask("GET", f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}")
        return status == 200
