"""Expired and old values go, and what is stored is counted, over the local store and both buckets."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from buckets import BucketSite
from harness import Site, failure, wait_until


@pytest.fixture(scope="module", params=["local", "gcs", "s3"])
def place(request, broker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("housekeeping")
    if request.param == "local":
        site = Site(broker, folder)
    else:
        site = BucketSite(broker, folder, request.getfixturevalue(request.param))
    try:
        worker = site.start(SWEEP_INTERVAL_SECONDS=0)
        yield site
        worker.assert_alive()
    finally:
        site.close()


def test_usage_counts_what_lives(place):
    empty = {"file_count": 0, "total_size_bytes": 0, "total_size_mb": 0.0, "stored_size_bytes": 0}
    assert place.call("get_storage_usage", "used/") == empty
    place.call("store", "used/a", "x" * 4096)
    place.call("store", "used/b", b"12345")
    place.call("store", "used/gone", "12345", ttl_seconds=0.2)
    wait_until(lambda: place.call("exists", "used/gone") is False, what="the expiry")
    usage = place.call("get_storage_usage", prefix="used/")
    assert usage["file_count"] == 2 and usage["total_size_bytes"] == 4101
    assert usage["total_size_mb"] == pytest.approx(4101 / 2**20)
    stored = sum(place.call("stat", key)["stored_size"] for key in ("used/a", "used/b"))
    assert usage["stored_size_bytes"] == stored < 4101
    assert place.call("get_storage_usage")["file_count"] >= 2


def test_cleanup_removes_what_has_expired(place):
    for n in range(20):
        place.call("store", f"gone/{n:02}", "1234", ttl_seconds=0.2)
    place.call("store", "gone/live", "1234", ttl_seconds=3600)
    wait_until(lambda: place.call("list_keys", "gone/") == ["gone/live"], what="the expiry")
    keys = [f"gone/{n:02}" for n in range(20)]
    dry = place.call("cleanup", "gone/", dry_run=True)
    assert dry == {"deleted": 20, "bytes": 80, "keys": keys}
    assert place.call("cleanup", "gone/", expired=False) == {"deleted": 0, "bytes": 0, "keys": []}
    done = place.call("cleanup", prefix="gone/")
    assert (done["deleted"], done["bytes"], sorted(done["keys"])) == (20, 80, keys)
    assert place.call("cleanup", "gone/")["deleted"] == 0
    assert place.call("retrieve", "gone/live") == "1234"


def test_cleanup_removes_what_is_old(place):
    for n in range(5):
        place.call("store", f"old/{n}", n)
    assert place.call("cleanup", "old/", 3600)["deleted"] == 0
    # The old ones are older than half a second, the new one is not.
    time.sleep(0.6)
    assert place.call("cleanup", "old/", 0.5, False, True)["deleted"] == 5
    place.call("store", "old/0", "new")
    assert place.call("cleanup", "old/1", 0.5)["keys"] == ["old/1"]
    assert place.call("cleanup", "old/", older_than_seconds=0)["deleted"] == 4


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        ((None, 5), ValueError, 'prefix=""'),
        (("x/", -1), ValueError, "at least 0"),
        (("x/", float("nan")), ValueError, "at least 0"),
        (("x/", "5"), TypeError, "int, float or None, not str"),
        (("x/", None, 1), TypeError, "'expired' must be bool"),
        ((5,), TypeError, "'prefix' must be str or None"),
    ],
    ids=str,
)
def test_wrong_arguments_remove_nothing(place, args, error, words):
    raised = failure(place.send("cleanup", *args))
    assert type(raised) is error and words in str(raised)


def test_objects_of_other_tools_stay(place, tmp_path):
    if not isinstance(place, BucketSite):
        # In the local store, other tools have no objects; a file of the Python class is one.
        (place.storage / "foreign").mkdir()
        (place.storage / "foreign" / "b").write_bytes(b"other")
    else:
        place.server.write(place.bucket, "foreign/b", b"other")
    place.call("store", "foreign/a", "1")
    assert place.call("list_keys", "foreign/") == ["foreign/a", "foreign/b"]
    assert place.call("get_storage_usage", "foreign/")["total_size_bytes"] == 6
    assert place.call("cleanup", "foreign/", 0)["keys"] == ["foreign/a"]
    assert place.call("list_keys", "foreign/") == ["foreign/b"]


def test_two_workers_sweep(broker, tmp_path):
    site = Site(broker, tmp_path)
    try:
        workers = [site.spawn(name=name, SWEEP_INTERVAL_SECONDS=0.3).wait_ready() for name in ("one", "two")]
        for n in range(60):
            site.call("store", f"gone/{n}", "12", expires_at="2020-01-01T00:00:00+00:00")
            site.call("store", f"live/{n}", "12")
        wait_until(lambda: not [path for path in site.object_files() if "gone" in path.parts], what="the sweep")
        assert len(site.call("list_keys")) == 60

        def swept(name):
            lines = [line for worker in workers for line in worker.http("/metrics")[1].splitlines()]
            return sum(int(line.split()[1]) for line in lines if line.startswith(f"filestorage_swept_{name}_total "))

        wait_until(lambda: swept("objects") == 60, what="the count of all removals")
        assert swept("bytes") == 120
        assert any("removed expired objects" in worker.log() for worker in workers)
    finally:
        site.close()


def test_the_sweeper_waits_out_an_outage(bucket_site):
    worker = bucket_site.start(SWEEP_INTERVAL_SECONDS=0.3)
    # The sweeper leaves alone what has been expired for less than five minutes.
    soon = (datetime.now(UTC) - timedelta(seconds=299)).isoformat()
    bucket_site.call("store", "gone", "1", expires_at=soon)
    bucket_site.proxy.down()
    assert bucket_site.call("store", "later", "1", expires_at=soon)["pending_sync"] is True
    time.sleep(1.5)
    worker.assert_alive()
    assert bucket_site.call("retrieve", "later") is None
    bucket_site.proxy.up()
    wait_until(lambda: bucket_site.names() == [] and not bucket_site.overlay(), timeout=60, what="the sweep")
