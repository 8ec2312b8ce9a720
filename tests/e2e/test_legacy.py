"""What the Python class `FileStorage` wrote, in a folder and in a bucket, read by a real Celery client."""

import base64
import datetime
import decimal
import json
import shutil
import uuid

import pytest
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from kombu.utils.json import loads

from harness import ROOT, failure, wait_until

FIXTURES = ROOT / "tests" / "fixtures" / "legacy"


def told():
    """By key, what the class was given, as kombu's JSON has it."""
    return json.loads((FIXTURES / "storage.json").read_text())


def value_of(key, stored):
    """The value that a client must get."""
    # The class kept no trace of whether it was given a text or bytes.
    return "hello" if key == "bytes/utf-8" else loads(json.dumps(stored))


def same(one, other):
    return type(one) is type(other) and one == other


@pytest.fixture
def old(site):
    """A site whose folder is one that the class left."""
    shutil.copytree(FIXTURES / "storage", site.storage)
    return site


def old_files(site):
    own = {"objects", "journal", "spool", "overlay"}
    files = (path.relative_to(site.storage) for path in site.storage.rglob("*") if path.is_file())
    return {str(path) for path in files if path.parts[0] not in own}


def test_a_folder_of_the_class_is_served_as_it_is(old):
    before = old_files(old)
    old.start()
    values = told()
    assert old.call("list_keys") == sorted(values, key=str.encode)
    assert old.call("list_keys", "packed/", limit=2) == ["packed/bytes-without", "packed/dict-with-metadata.json"]
    for key, what in values.items():
        assert old.call("exists", key) is True
        stat = old.call("stat", key)
        assert stat["backend"] == "local" and stat["expires_at"] is None, "`expires_at` in a sidecar expires nothing"
        if not key.startswith("shared/"):
            assert stat["metadata"] == what["metadata"], key
        if key == "model":
            error = failure(old.send("retrieve", key))
            assert type(error).__name__ == "IntegrityError" and "__main__.Model" in str(error)
            assert old.call("retrieve", key, offset=0) == (old.storage / key).read_bytes()
            continue
        assert same(old.call("retrieve", key), value_of(key, what["stored"])), key
    times, exact = old.call("retrieve", "times"), old.call("retrieve", "exact")
    assert times["at"] == datetime.datetime(2026, 1, 2, 3, 4, 5, 678)
    assert exact == [decimal.Decimal("1.50"), uuid.UUID(int=5), datetime.date(2026, 1, 2), datetime.time(3, 4, 5)]
    assert old_files(old) == before, "reading changes nothing"


def test_old_values_are_replaced_and_deleted_like_others(old):
    old.start()
    seen = old.call("stat", "dict")["generation"]
    assert type(failure(old.send("store", "dict", 1, if_absent=True))).__name__ == "PreconditionFailed"
    assert type(failure(old.send("store", "dict", 1, if_generation="other"))).__name__ == "PreconditionFailed"
    assert old.call("store", "dict", {"new": 1}, if_generation=seen)["kind"] == "json"
    assert old.call("retrieve", "dict") == {"new": 1} and "dict" not in old_files(old)
    assert old.call("delete", "dict") is True
    assert old.call("retrieve", "dict") is None, "the old value does not come back"

    assert old.call("delete", "with metadata.txt") is True
    assert not {"with metadata.txt", "with metadata.metadata"} & old_files(old)
    assert old.call("exists", "with metadata.txt") is False

    old.call("store", "list", "short", ttl_seconds=0.5)
    wait_until(lambda: old.call("retrieve", "list") is None, what="the new value expires")
    assert "list" not in old.call("list_keys")

    (old.storage / "tuple").write_bytes((old.storage / "tuple").read_bytes()[:-3])
    error = failure(old.send("retrieve", "tuple"))
    assert type(error).__name__ == "IntegrityError" and "damaged" in str(error)


def test_files_that_python_writes_are_seen_at_once(site):
    site.start()
    assert site.call("list_keys") == []
    for number in range(5):
        (site.storage / f"late-{number}").write_text("from Python")
        assert site.call("retrieve", f"late-{number}") == "from Python"
    assert len(site.call("list_keys")) == 5


def client(server):
    options = ClientOptions(api_endpoint=server.url)
    return storage.Client(project="e2e", credentials=AnonymousCredentials(), client_options=options)


def test_a_bucket_of_the_class_is_read_as_it_is(bucket_site):
    site = bucket_site
    bucket = client(site.server).bucket(site.bucket)
    objects = json.loads((FIXTURES / "bucket.json").read_text())
    for item in objects:
        blob = bucket.blob(item["key"])
        blob.metadata, blob.content_encoding = item["metadata"], item["content_encoding"]
        blob.upload_from_string(base64.b64decode(item["body"]), content_type=item["content_type"])
    site.start()
    assert site.call("list_keys") == sorted((item["key"] for item in objects), key=str.encode)
    for item in objects:
        key = item["key"]
        assert site.call("exists", key) is True
        assert site.call("stat", key)["metadata"] == item["metadata"], key
        if key == "model":
            assert "__main__.Model" in str(failure(site.send("retrieve", key)))
            assert site.call("retrieve", key, offset=0) == base64.b64decode(item["body"])
            continue
        assert same(site.call("retrieve", key), value_of(key, item["stored"])), key


def test_old_files_behind_a_bucket_are_read_and_never_uploaded(bucket_site):
    site = bucket_site
    shutil.copytree(FIXTURES / "storage", site.storage)
    worker = site.start()
    before = old_files(site)
    assert site.call("retrieve", "text.txt") == "hello žluť"
    assert site.call("stat", "dict")["kind"] == "json"
    site.call("store", "mine", "new")
    assert site.call("list_keys") == sorted([*told(), "mine"], key=str.encode)
    assert site.server.names(site.bucket) == ["mine"] and old_files(site) == before

    # The bucket wins, and a delete is a delete in both places.
    assert site.call("store", "text.txt", "in the bucket")["backend"] == site.kind
    assert site.call("retrieve", "text.txt") == "in the bucket" and "text.txt" not in old_files(site)
    assert site.call("delete", "text.txt") is True and site.call("delete", "list") is True
    assert site.call("retrieve", "text.txt") is None and site.call("retrieve", "list") is None

    # A bucket that cannot be asked might have a newer value.
    site.proxy.down("refuse")
    error = failure(site.send("retrieve", "number"))
    assert type(error).__name__ == "StorageUnavailable"
    assert site.call("delete", "set") is True
    assert site.call("store", "number", "pending")["pending_sync"] is True
    assert site.call("retrieve", "number") == "pending"
    site.proxy.up()
    wait_until(lambda: site.call("retrieve", "set") is None, what="the delete was sent")
    wait_until(lambda: site.server.read(site.bucket, "number") == b"pending", what="the write was sent")
    assert not {"set", "number"} & old_files(site)
    worker.assert_alive()
