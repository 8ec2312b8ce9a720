"""Earlier versions of a value, in buckets that keep them: found by the generation of their receipt, whatever came after."""

import base64
import json
import os

import pytest

from buckets import BucketSite
from harness import failure, wait_until

KEY, OTHER = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))
NEIGHBOURS = ("models/m!", "models/m.bin", "models/m/part", "models/m0", "models")


@pytest.fixture(params=["gcs", "s3"])
def versioned(request, broker, tmp_path):
    """A site on a bucket of its own that keeps versions, of either kind; no worker yet."""
    server = request.getfixturevalue(request.param)
    site = BucketSite(broker, tmp_path, server, bucket=server.versioned_bucket())
    yield site
    site.close()


def model(epoch):
    """Bytes of which about half can be compressed."""
    return bytes([epoch]) * 100_000 + os.urandom(100_000)


def stored(site, key, count):
    """Stores so many values under the key; returns them by generation, the oldest first."""
    made = {}
    for epoch in range(count):
        value = model(epoch)
        made[site.call("store", key, value, metadata={"epoch": epoch})["generation"]] = value
    return made


def test_each_of_five_models_is_read_by_its_generation(versioned):
    exchange = versioned.folder / "exchange"
    exchange.mkdir()
    versioned.start(EXCHANGE_DIRECTORIES=exchange)
    for name in NEIGHBOURS:
        stored(versioned, name, 2)
    models = stored(versioned, "models/m", 5)
    for epoch, (generation, value) in enumerate(models.items()):
        assert versioned.call("retrieve", "models/m", generation=generation) == value
        assert versioned.call("retrieve", "models/m", offset=99_990, length=20, generation=generation) == value[99_990:100_010]
        stat = versioned.call("stat", "models/m", generation=generation)
        assert (stat["generation"], stat["size"], stat["metadata"]) == (generation, len(value), {"epoch": epoch})
        assert stat["compression"] == "gzip"
        target = exchange / str(epoch)
        receipt = versioned.call("retrieve", "models/m", destination=target.as_uri(), generation=generation)
        assert receipt["generation"] == generation and target.read_bytes() == value
    versions = versioned.call("versions", "models/m")
    assert [one["generation"] for one in versions] == list(reversed(models))
    assert [one["is_current"] for one in versions] == [True, False, False, False, False]
    stat = versioned.call("stat", "models/m")
    assert {**versions[0], "metadata": {"epoch": 4}} == {**stat, "is_current": True}
    assert versioned.call("versions", "models/m", 2) == versions[:2] == versioned.call("versions", "models/m", limit=2)

    assert versioned.call("retrieve", "models/m", generation="nobody's") is None
    assert versioned.call("stat", "models/m", generation=versioned.call("stat", "models/m0")["generation"]) is None
    assert versioned.call("versions", "models/never") == []

    oldest = list(models)[0]
    expired = versioned.call("store", "models/m", "soon gone", expires_at="2001-01-01T00:00:00+00:00")["generation"]
    assert versioned.call("retrieve", "models/m", generation=expired) is None
    assert versioned.call("delete", "models/m") is True
    assert versioned.call("retrieve", "models/m") is None
    assert versioned.call("retrieve", "models/m", generation=oldest) == models[oldest]
    assert [one["is_current"] for one in versioned.call("versions", "models/m")] == [False] * 5


def test_versions_in_the_shell(versioned):
    versioned.start()
    models = stored(versioned, "models/m", 3)
    newest_first = list(reversed(models))
    lines = versioned.run("versions", "models/m").stdout.decode().splitlines()
    assert [line.split()[-4:-3] for line in lines[1:]] == [[generation] for generation in newest_first], lines
    assert [line.startswith("*") for line in lines] == [False, True, False, False]
    told = json.loads(versioned.run("versions", "models/m", "--json").stdout)
    assert told == versioned.call("versions", "models/m")
    assert json.loads(versioned.run("versions", "models/m", "--limit", "1", "--json").stdout) == told[:1]
    for generation, value in models.items():
        assert versioned.run("retrieve", "models/m", "--generation", generation).stdout == value
        shown = json.loads(versioned.run("stat", "models/m", "--generation", generation, "--json").stdout)
        assert shown == versioned.call("stat", "models/m", generation=generation)
    for missing in (("versions", "never"), ("retrieve", "models/m", "--generation", "x"), ("stat", "models/m", "--generation", "x")):
        assert versioned.run(*missing).returncode == 66, missing


def test_versions_of_other_tools(versioned):
    versioned.start()
    for text in (b"one", b"two"):
        versioned.server.write(versioned.bucket, "theirs", text, "text/plain; charset=utf-8")
    new, old = versioned.call("versions", "theirs")
    assert (new["is_current"], old["is_current"]) == (True, False)
    assert versioned.call("retrieve", "theirs", generation=old["generation"]) == "one"
    assert versioned.call("retrieve", "theirs", generation=new["generation"]) == "two"
    stat = versioned.call("stat", "theirs", generation=old["generation"])
    assert (stat["size"], stat["checksum"]) == (3, old["checksum"])
    # A value of ours over theirs leaves theirs readable.
    versioned.call("store", "theirs", {"now": "ours"})
    assert versioned.call("retrieve", "theirs", generation=new["generation"]) == "two"


def test_an_old_version_needs_the_key_it_was_encrypted_with(versioned):
    versioned.start(ENABLE_ENCRYPTION="true", ENCRYPTION_KEY=KEY)
    old = versioned.call("store", "k", "old", metadata={"owner": "me"})
    versioned.workers[-1].stop()
    versioned.start(ENABLE_ENCRYPTION="true", ENCRYPTION_KEY=f"{OTHER},{KEY}")
    new = versioned.call("store", "k", "new")
    assert versioned.call("retrieve", "k", generation=old["generation"]) == "old"
    assert versioned.call("stat", "k", generation=old["generation"]) == {**old, "metadata": {"owner": "me"}}
    versioned.workers[-1].stop()
    versioned.start(ENABLE_ENCRYPTION="true", ENCRYPTION_KEY=OTHER)
    assert versioned.call("retrieve", "k", generation=new["generation"]) == "new"
    for task in ("retrieve", "stat"):
        error = failure(versioned.send(task, "k", generation=old["generation"]))
        assert type(error).__name__ == "IntegrityError" and "encryption_key" in str(error), error
    listed = versioned.call("versions", "k")
    assert [one["generation"] for one in listed] == [new["generation"], old["generation"]]
    assert (listed[0]["checksum"], listed[1]["checksum"]) == (new["checksum"], None)


def test_an_outage_is_no_missing_version(versioned):
    versioned.start(MAX_RETRIES=0)
    [old, present] = stored(versioned, "k", 2)
    versioned.proxy.down()
    for task, arguments in (("retrieve", {"generation": old}), ("stat", {"generation": old}), ("versions", {})):
        error = failure(versioned.send(task, "k", **arguments), timeout=60)
        assert type(error).__name__ == "StorageUnavailable", repr(error)
    # What waits to be sent is the present state; the state that it replaces is in the bucket.
    waiting = versioned.send("store", "k", "waiting").get(timeout=60)
    assert waiting["pending_sync"] is True
    assert versioned.send("retrieve", "k", generation=waiting["generation"]).get(timeout=60) == "waiting"
    error = failure(versioned.send("retrieve", "k", generation=present), timeout=60)
    assert type(error).__name__ == "StorageUnavailable", repr(error)
    versioned.proxy.up()
    wait_until(lambda: not versioned.overlay(), 90, "an empty overlay")
    assert versioned.call("versions", "k")[0] == {**waiting, "backend": versioned.kind, "pending_sync": False, "is_current": True}
    assert versioned.call("retrieve", "k", generation=present) is not None


def test_a_bucket_without_versions(request, broker, tmp_path, gcs, s3):
    for server in (gcs, s3):
        folder = tmp_path / server.script
        folder.mkdir()
        site = BucketSite(broker, folder, server)
        try:
            site.start()
            old, new = site.call("store", "k", 1), site.call("store", "k", 2)
            assert site.call("versions", "k") == [{**new, "is_current": True}]
            assert site.call("retrieve", "k", generation=new["generation"]) == 2
            if site.kind == "s3":
                # The ids of its objects show that it keeps none.
                error = failure(site.send("retrieve", "k", generation=old["generation"]))
                assert type(error) is ValueError and "put-bucket-versioning" in str(error), error
            else:
                assert site.call("retrieve", "k", generation=old["generation"]) is None
        finally:
            site.close()


def test_a_local_store_keeps_no_versions(site):
    site.start()
    old, new = site.call("store", "k", 1), site.call("store", "k", 2)
    assert site.call("retrieve", "k", generation=new["generation"]) == 2
    for task, arguments in (("retrieve", {"generation": old["generation"]}), ("stat", {"generation": "x"}), ("versions", {})):
        error = failure(site.send(task, "k", **arguments))
        assert type(error) is ValueError and "keeps no earlier versions" in str(error), error
