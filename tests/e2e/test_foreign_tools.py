"""Buckets are shared with other tools: Google's own Python client, boto3 and plain HTTP read what we write, and we theirs."""

import base64
import hashlib
import json
import urllib.parse
from datetime import datetime, timedelta, timezone

import google_crc32c
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from buckets import BucketSite, http
from harness import failure, same
from test_types import VALUES


class GoogleTool:
    """google-cloud-storage for Python."""

    def __init__(self, server, bucket):
        options = {"api_endpoint": server.url}
        self.client = storage.Client(project="e2e", credentials=AnonymousCredentials(), client_options=options)
        self.bucket = self.client.bucket(bucket)

    def read(self, name):
        """Returns (bytes, content type, metadata)."""
        blob = self.bucket.get_blob(name)
        return blob.download_as_bytes(checksum="crc32c"), blob.content_type, blob.metadata or {}

    def write(self, name, data, content_type, metadata=None):
        """Returns the state's own generation."""
        blob = self.bucket.blob(name)
        blob.metadata = metadata
        blob.upload_from_string(data, content_type=content_type, checksum="crc32c")
        return str(blob.generation)

    def copy(self, source, target):
        self.bucket.copy_blob(self.bucket.blob(source), self.bucket, target)

    def names(self, prefix):
        return sorted(blob.name for blob in self.client.list_blobs(self.bucket, prefix=prefix))

    def delete(self, name):
        self.bucket.blob(name).delete()


class BotoTool:
    """boto3."""

    def __init__(self, server, bucket):
        self.bucket = bucket
        self.client = server.client

    def read(self, name):
        answer = self.client.get_object(Bucket=self.bucket, Key=name)
        return answer["Body"].read(), answer["ContentType"], answer["Metadata"]

    def write(self, name, data, content_type, metadata=None):
        data = data.encode() if isinstance(data, str) else data
        answer = self.client.put_object(
            Bucket=self.bucket, Key=name, Body=data, ContentType=content_type, Metadata=metadata or {}
        )
        return answer["ETag"]

    def copy(self, source, target):
        self.client.copy_object(Bucket=self.bucket, Key=target, CopySource={"Bucket": self.bucket, "Key": source})

    def names(self, prefix):
        answer = self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix)
        return sorted(item["Key"] for item in answer.get("Contents", []))

    def delete(self, name):
        self.client.delete_object(Bucket=self.bucket, Key=name)


TOOLS = {"gcs": GoogleTool, "s3": BotoTool}


@pytest.fixture(scope="module", params=["gcs", "s3"])
def place(request, broker, tmp_path_factory):
    """A site with a running worker and, as `tool`, the other program on its bucket."""
    server = request.getfixturevalue(request.param)
    site = BucketSite(broker, tmp_path_factory.mktemp("foreign"), server)
    try:
        site.tool = TOOLS[site.kind](server, site.bucket)
        # What other tools write is seen at once.
        site.start(CACHE_REVALIDATE_SECONDS=0)
        yield site
        site.workers[-1].assert_alive()
    finally:
        site.close()


def seen_by_others(value):
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def test_what_we_write_others_read(place):
    for name in ("digits", "unicode", "bytes", "empty bytes", "every byte", "none", "2**70", "nested list", "random bytes"):
        value = VALUES.get(name, [1, "é", {"a": None}])
        receipt = place.call("store", f"ours/{name}", value, {"author": "Ada", "n": 1, "über": "ä"})
        data, content_type, metadata = place.tool.read(f"ours/{name}")
        assert data == seen_by_others(value), name
        assert content_type == receipt["content_type"]
        checksum = base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
        assert receipt["checksum"] == f"crc32c:{checksum}"
        # Plain text is there for whoever looks; the whole truth is in one value of ours.
        assert metadata["author"] == "Ada"
        assert "n" not in metadata and "über" not in metadata
        assert "ä" not in str(metadata), "names and values are ASCII"


def test_content_types_are_real(place, key):
    for value, given, wanted in [
        ("x", None, "text/plain"),
        (b"x", None, "application/octet-stream"),
        ({"a": 1}, None, "application/json"),
        (b"%PDF", "application/pdf", "application/pdf"),
        ("<p>", "text/html; charset=utf-8", "text/html; charset=utf-8"),
    ]:
        place.call("store", key, value, **({"content_type": given} if given else {}))
        content_type = place.tool.read(key)[1]
        assert content_type == wanted or content_type.startswith(wanted + ";")
        assert same(place.call("retrieve", key), value)


@pytest.mark.parametrize(
    ("data", "content_type", "value"),
    [
        ("123", "text/plain", "123"),
        ("žluť", "text/plain; charset=utf-8", "žluť"),
        ("a,b", "text/csv", "a,b"),
        ('{"a": [1, 2.50, null]}', "application/json", {"a": [1, 2.5, None]}),
        ("null", "application/json", None),
        ("123", "application/json", 123),
        ("123", "application/octet-stream", b"123"),
        (b"\xff\xfe\x00", "image/png", b"\xff\xfe\x00"),
        (b"", "application/octet-stream", b""),
    ],
    ids=str,
)
def test_what_others_write_we_read_by_its_content_type(place, key, data, content_type, value):
    generation = place.tool.write(key, data, content_type, {"author": "Ada"})
    assert same(place.call("retrieve", key), value)
    stat = place.call("stat", key)
    raw = data.encode() if isinstance(data, str) else data
    assert (stat["backend"], stat["size"], stat["content_type"]) == (place.kind, len(raw), content_type)
    assert stat["metadata"] == {"author": "Ada"}
    checksum = base64.b64encode(google_crc32c.value(raw).to_bytes(4, "big")).decode()
    assert stat["checksum"] == f"crc32c:{checksum}"
    assert place.call("exists", key) is True
    assert place.call("list_keys", key) == [key]
    # The place's own generation is the token.
    assert stat["generation"].strip('"') == generation.strip('"')
    if place.kind == "gcs" or raw:
        assert place.call("store", key, "ours", if_generation=stat["generation"])["generation"] != stat["generation"]
        assert place.call("retrieve", key) == "ours"
        assert type(failure(place.send("store", key, "late", if_generation=stat["generation"]))).__name__ == "PreconditionFailed"


@pytest.mark.parametrize(
    ("data", "content_type", "kind"),
    [
        # The bytes may be all right, and the charset wrong: they are to be had as bytes.
        (b"\xff", "text/plain", "ValueError"),
        (b"{", "application/json", "IntegrityError"),
        (b"", "application/json", "IntegrityError"),
    ],
    ids=str,
)
def test_what_is_not_what_its_type_says_is_an_error(place, key, data, content_type, kind):
    place.tool.write(key, data, content_type)
    error = failure(place.send("retrieve", key))
    assert type(error).__name__ == kind and key in str(error)
    assert place.call("exists", key) is True
    place.call("store", key, "replaced")
    assert place.call("retrieve", key) == "replaced"


def test_others_see_our_overwrites_and_deletes_and_we_theirs(place, key):
    place.tool.write(key, "theirs", "text/plain")
    assert place.call("retrieve", key) == "theirs"
    assert type(failure(place.send("store", key, "ours", if_absent=True))).__name__ == "PreconditionFailed"
    place.call("store", key, "ours")
    assert place.tool.read(key)[0] == b"ours"
    place.tool.write(key, "theirs again", "text/plain")
    assert place.call("retrieve", key) == "theirs again"
    assert place.call("delete", key) is True
    assert place.tool.names(key) == []
    place.call("store", key, "ours")
    place.tool.delete(key)
    assert place.call("retrieve", key) is None


def test_a_copy_that_others_made_is_read_as_what_it_is(place, key):
    value, metadata = {"a": [1, 2.0, b"bytes"], "b": None}, {"n": 1}
    place.call("store", key, value, metadata)
    place.tool.copy(key, key + "-copy")
    assert same(place.call("retrieve", key + "-copy"), value)
    assert place.call("stat", key + "-copy")["metadata"] == metadata


def test_other_bytes_under_our_label_are_not_taken_for_ours(place, key):
    place.call("store", key, "ours, and long enough")
    metadata = place.tool.read(key)[2]
    place.tool.write(key, "theirs under our metadata", "text/plain", metadata)
    outcome = place.send("retrieve", key).get(timeout=60, propagate=False)
    assert outcome == "theirs under our metadata" or type(outcome).__name__ == "IntegrityError"


def test_names_of_every_kind_are_the_same_for_both(place):
    names = ["n/a b", "n/é", "n/🦀", "n/100%", "n/a+b", "n/q?x#y", "n/%2F", "n/&amp;"]
    for name in names:
        place.call("store", name, name)
    assert place.tool.names("n/") == sorted(names)
    for name in names:
        assert place.tool.read(name)[0] == name.encode()
        place.tool.write(name + "!", name, "text/plain")
        assert place.call("retrieve", name + "!") == name


# --- signed URLs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signer(place, tmp_path_factory):
    """A worker that can sign: on Cloud Storage it needs a service account's key. Returns the public half, if any."""
    if place.kind == "s3":
        yield None
        return
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    path = tmp_path_factory.mktemp("key") / "key.json"
    path.write_text(json.dumps({
        "type": "service_account", "project_id": "e2e", "private_key_id": "1", "private_key": pem,
        "client_email": "signer@e2e.iam.gserviceaccount.com", "client_id": "1",
        "token_uri": "http://127.0.0.1:1/token",
    }))  # fmt: skip
    place.workers[-1].stop()
    place.start(GCS_CREDENTIALS_PATH=path, CACHE_REVALIDATE_SECONDS=0)
    yield key.public_key()
    place.workers[-1].stop()
    place.start(CACHE_REVALIDATE_SECONDS=0)


def check_v4(url, method, public):
    """Recomputes what Google's V4 signature covers and checks it; the emulator does not."""
    parts = urllib.parse.urlsplit(url)
    query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    signature = bytes.fromhex(query.pop("X-Goog-Signature"))
    quote = lambda text: urllib.parse.quote(text, safe="-_.~")  # noqa: E731
    canonical_query = "&".join(f"{quote(name)}={quote(value)}" for name, value in sorted(query.items()))
    assert query["X-Goog-SignedHeaders"] == "host"
    # Without the port, as in Google's own conformance vectors ("Simple GET with non-default hostname").
    canonical = "\n".join([method, parts.path, canonical_query, f"host:{parts.hostname}", "", "host", "UNSIGNED-PAYLOAD"])
    scope = query["X-Goog-Credential"].partition("/")[2]
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join(["GOOG4-RSA-SHA256", query["X-Goog-Date"], scope, digest])
    public.verify(signature, text.encode(), padding.PKCS1v15(), hashes.SHA256())


def test_a_signed_url_is_read_by_anyone(place, signer, key):
    key += " é+"
    place.call("store", key, "for whoever has the URL")
    answer = place.call("signed_url", key, expires_in=60)
    assert set(answer) == {"url", "method", "expires_at"} and answer["method"] == "GET"
    left = datetime.fromisoformat(answer["expires_at"]) - datetime.now(timezone.utc)
    assert timedelta(seconds=30) < left <= timedelta(seconds=61)
    status, _, body = http("GET", answer["url"])
    assert (status, body) == (200, b"for whoever has the URL")
    if signer is not None:
        check_v4(answer["url"], "GET", signer)
    else:
        # SeaweedFS looks at the signature itself.
        assert http("GET", answer["url"] + "0")[0] == 403
        assert http("PUT", answer["url"], b"x")[0] == 403


def test_what_is_put_through_a_signed_url_is_retrieved(place, signer, key):
    answer = place.call("signed_url", key, method="PUT", expires_in=60)
    assert answer["method"] == "PUT"
    status, _, text = http("PUT", answer["url"], b"from outside", {"Content-Type": "text/plain"})
    assert status == 200, text
    assert place.call("retrieve", key) == "from outside"
    if signer is not None:
        check_v4(answer["url"], "PUT", signer)


def test_a_url_is_a_secret(place, signer, key):
    url = place.call("signed_url", key)["url"]
    signature = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query)).popitem()[1]
    assert len(signature) > 20 and signature not in place.workers[-1].log()


def test_without_a_bucket_or_a_key_there_is_no_signed_url(shared, bucket_site, key):
    error = failure(shared.send("signed_url", key))
    assert type(error) is ValueError and key in str(error)
    bucket_site.start()
    assert type(failure(bucket_site.send("signed_url", key))) in (ValueError, PermissionError)
    for wrong in ({"method": "DELETE"}, {"expires_in": 0}, {"expires_in": 604_801}):
        assert isinstance(failure(shared.send("signed_url", key, **wrong)), (ValueError, TypeError))
