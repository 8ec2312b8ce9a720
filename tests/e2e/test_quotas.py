"""Quotas as clients see them: over the local store and both buckets, with one worker and with two."""

import pytest

from buckets import BucketSite
from harness import TIMEOUT, Site, failure, wait_until

QUOTAS = "users/=5000,40; big/=1MiB"


@pytest.fixture(params=["local", "gcs", "s3"])
def place(request, broker, tmp_path):
    if request.param == "local":
        site = Site(broker, tmp_path)
    else:
        site = BucketSite(broker, tmp_path, request.getfixturevalue(request.param))
    yield site
    site.close()


def outcomes(results):
    return [result.get(timeout=TIMEOUT, propagate=False) for result in results]


def is_quota(error):
    return type(error).__name__ == "QuotaExceeded"


def test_a_quota_is_never_exceeded(place):
    place.start(QUOTAS=QUOTAS)
    got = outcomes([place.send("store", f"users/{n}", b"x" * 100) for n in range(100)])
    assert sum(isinstance(one, dict) for one in got) == 40
    assert all(is_quota(one) for one in got if not isinstance(one, dict))
    assert len(place.call("list_keys", "users/")) == 40
    error = failure(place.send("store", "users/more", b"x"))
    assert is_quota(error) and "40 objects" in str(error) and "users/more" in str(error)
    place.call("store", "elsewhere", b"x" * 10_000)
    # Room that is given back can be used again.
    place.call("delete", "users/" + next(iter(place.call("list_keys", "users/"))).removeprefix("users/"))
    place.call("store", "users/more", b"x")
    error = failure(place.send("store", "users/more", b"y" * 2000, content_type="image/png"))
    assert is_quota(error) and "5000 stored bytes" in str(error)
    assert place.call("retrieve", "users/more") == b"x"


def test_a_restart_counts_what_is_there(place):
    first = place.start()
    for n in range(39):
        place.call("store", f"users/{n}", b"x" * 100)
    first.stop()
    place.start(QUOTAS=QUOTAS)
    place.call("store", "users/a", b"x")
    assert is_quota(failure(place.send("store", "users/b", b"x")))


def test_compressed_bytes_are_what_counts(place):
    place.start(QUOTAS="users/=5000")
    receipt = place.call("store", "users/a", "x" * 100_000)
    assert receipt["stored_size"] < 5000
    assert is_quota(failure(place.send("store", "users/b", bytes(range(256)) * 20, content_type="image/png")))


def test_two_workers_exceed_by_no_more_than_one_window(place):
    workers = [place.spawn(name=name, QUOTAS="users/=1GiB,50", QUOTA_RECOUNT_SECONDS=1) for name in ("one", "two")]
    for worker in workers:
        worker.wait_ready()
    got = outcomes([place.send("store", f"users/{n}", n) for n in range(200)])
    stored = sum(isinstance(one, dict) for one in got)
    assert 50 <= stored <= 100, "each worker keeps the quota by itself"
    assert len(place.call("list_keys", "users/")) == stored
    assert all(is_quota(one) for one in got if not isinstance(one, dict))
    # Once both have counted again, neither takes more.
    def refused():
        return all(is_quota(one) for one in outcomes([place.send("store", "users/new", 1) for _ in range(8)]))

    wait_until(refused, what="the next count of both")
    for key in place.call("list_keys", "users/")[49:]:
        place.call("delete", key)
    wait_until(lambda: isinstance(outcomes([place.send("store", "users/new", 1)])[0], dict), what="room for one")


def test_an_outage_does_not_lift_a_quota(bucket_site):
    bucket_site.start(QUOTAS="users/=1GiB,10")
    for n in range(5):
        bucket_site.call("store", f"users/{n}", n)
    bucket_site.proxy.down()
    got = outcomes([bucket_site.send("store", f"users/later/{n}", n) for n in range(20)])
    assert sum(isinstance(one, dict) and one["pending_sync"] for one in got) == 5
    assert sum(is_quota(one) for one in got) == 15
    bucket_site.proxy.up()
    wait_until(lambda: not bucket_site.overlay(), timeout=60, what="the sync")
    assert len(bucket_site.call("list_keys", "users/")) == 10
    assert is_quota(failure(bucket_site.send("store", "users/x", 1)))
