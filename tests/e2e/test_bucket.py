"""The main job over buckets: what holds for the local store holds for Cloud Storage and S3, seen through real Celery."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from buckets import BucketSite
from harness import TIMEOUT, events_of, failure, same, wait_events, wait_until
from test_events import check_event, has, of
from test_receipts import check_receipt
from test_types import VALUES


@pytest.fixture(scope="module", params=["gcs", "s3"])
def place(request, broker, tmp_path_factory):
    """A site whose running worker keeps its values in a bucket; the tests of this file share it."""
    server = request.getfixturevalue(request.param)
    site = BucketSite(broker, tmp_path_factory.mktemp("bucket"), server)
    try:
        worker = site.start()
        yield site
        worker.assert_alive()
        assert not site.overlay(), "the bucket was there all the time"
    finally:
        site.close()


@pytest.fixture(autouse=True)
def unharmed(place):
    place.proxy.clear()


def test_values_come_back_as_themselves(place):
    sent = {name: place.send("store", f"types/{name}", value) for name, value in VALUES.items()}
    for name, result in sent.items():
        assert result.get(timeout=60)["backend"] == place.kind, name
    read = {name: place.send("retrieve", f"types/{name}") for name in VALUES}
    for name, result in read.items():
        assert same(result.get(timeout=60), VALUES[name]), name


def test_values_come_back_as_themselves_from_another_worker(place, broker, tmp_path):
    """Nothing of a value is kept beside the bucket."""
    sent = {name: place.send("store", f"again/{name}", value) for name, value in VALUES.items()}
    for result in sent.values():
        result.get(timeout=60)
    other = BucketSite(broker, tmp_path, place.server, bucket=place.bucket)
    try:
        other.start()
        for name, value in VALUES.items():
            assert same(other.call("retrieve", f"again/{name}"), value), name
            assert other.call("stat", f"again/{name}")["generation"] == sent[name].get()["generation"]
    finally:
        other.close()


@pytest.mark.parametrize("size", [0, 1, 8191, 262_144, 262_145, 8 << 20], ids=str)
def test_sizes_around_every_border_come_back(place, key, size):
    value = (bytes(range(256)) * (size // 256 + 1))[:size]
    receipt = place.send("store", key, value).get(timeout=60)
    assert (receipt["size"], receipt["kind"]) == (size, "bytes")
    assert place.send("retrieve", key).get(timeout=60) == value
    if size:
        assert place.call("retrieve", key, offset=size - 1, length=5) == value[-1:]


def test_stat_is_the_receipt_and_the_metadata(place, key):
    metadata = {"n": 1, "f": 0.5, "big": 2**70, "none": None, "list": [True, {"é": "𝄞"}], "": "", "plain": "text"}
    receipt = place.call("store", key, "value", metadata, content_type="text/x-test")
    check_receipt(receipt)
    assert (receipt["backend"], receipt["pending_sync"], receipt["content_type"]) == (place.kind, False, "text/x-test")
    stat = place.call("stat", key)
    check_receipt(stat, extra=["metadata"])
    assert same(stat.pop("metadata"), metadata)
    assert stat == receipt
    assert place.call("stat", key + "-missing") is None
    assert place.call("retrieve", key + "-missing") is None


def test_metadata_fits_up_to_its_limit_and_not_beyond(place, key):
    limit = 4096 if place.kind == "gcs" else 1024
    fits = {"k": "x" * (limit - len('{"k":""}'))}
    place.call("store", key, 1, fits)
    assert place.call("stat", key)["metadata"] == fits
    # An escaped character is six bytes of ASCII.
    fits = {"k": "é" * ((limit - len('{"k":""}')) // 6)}
    place.call("store", key, 2, fits)
    assert place.call("stat", key)["metadata"] == fits
    for wrong in ({"k": "x" * limit}, {"k": "é" * (limit // 6)}):
        assert isinstance(failure(place.send("store", key, 3, wrong)), ValueError)
    assert place.call("retrieve", key) == 2


def test_conditions_are_kept(place, key):
    first = place.call("store", key, 1, if_absent=True)
    for result in (
        place.send("store", key, 2, if_absent=True),
        place.send("store", key, 2, if_generation="other"),
        place.send("store", key + "-missing", 2, if_generation=first["generation"]),
    ):
        assert type(failure(result)).__name__ == "PreconditionFailed"
    second = place.call("store", key, 2, if_generation=first["generation"])
    assert second["generation"] != first["generation"]
    assert place.call("retrieve", key) == 2
    assert type(failure(place.send("delete", key, if_generation=first["generation"]))).__name__ == "PreconditionFailed"
    assert place.call("retrieve", key) == 2
    assert place.call("delete", key, if_generation=second["generation"]) is True
    assert place.call("delete", key, if_generation=second["generation"]) is True
    assert place.call("exists", key) is False


def test_of_many_who_want_to_be_first_one_is(place, key):
    """Through two workers on one bucket, whose folders have nothing in common."""
    results = [place.send("store", f"{key}/{n % 5}", n, if_absent=True) for n in range(50)]
    winners = {}
    for n, result in enumerate(results):
        answer = result.get(timeout=60, propagate=False)
        if result.state == "SUCCESS":
            assert n % 5 not in winners
            winners[n % 5] = n
        else:
            assert type(answer).__name__ == "PreconditionFailed"
    assert {n: place.call("retrieve", f"{key}/{n}") for n in range(5)} == winners


def test_what_has_expired_is_not_there(place, key):
    place.call("store", key, "short", ttl_seconds=1)
    wait_until(lambda: place.call("exists", key) is False, 10, "the expiry", step=0.2)
    assert place.call("retrieve", key) is None
    assert place.call("stat", key) is None
    assert place.call("list_keys", key) == []
    assert place.call("store", key, "again", if_absent=True)["key"] == key
    assert place.call("retrieve", key) == "again"


NAMES = [
    "list/b", "list/a", "list/a/b", "list/ž", "list/A", "list/a.b", "list/𝄞", "listed", "list/q?x=1&y#z", "list/100%",
    "list/a+b c", "list/%2F", "list/~", "list/日本", "list/'\"<>&", "list/e\u0301", "list/é",
]  # fmt: skip


def test_keys_are_listed_sorted_by_prefix_and_page(place):
    for result in [place.send("store", name, name) for name in NAMES]:
        result.get(timeout=60)
    for name in NAMES:
        assert place.call("retrieve", name) == name
        assert place.call("list_keys", name)[0] == name
    ours = sorted((name for name in NAMES if name.startswith("list/")), key=lambda name: name.encode())
    assert place.call("list_keys", "list/") == ours
    assert place.call("list_keys", "list/", limit=3) == ours[:3]
    assert place.call("list_keys", "list/", limit=3, start_after=ours[2]) == ours[3:6]
    assert place.call("list_keys", "list/", start_after="list/a") == [n for n in ours if n.encode() > b"list/a"]
    assert place.call("list_keys", "list/", limit=0) == []
    assert set(NAMES) <= set(place.names())


def test_more_keys_than_fit_on_a_page_are_all_listed(place):
    names = sorted(f"many/{n:04}" for n in range(1_100))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: place.server.write(place.bucket, name, b"x"), names))
    assert place.call("list_keys", "many/") == names
    assert place.call("list_keys", "many/", limit=50, start_after=names[999]) == names[1_000:1_050]


def test_foreign_names_outside_the_key_rule_are_skipped(place):
    for name in ("odd/\x7f", "odd/x/", "odd/fine") if place.kind == "s3" else ("odd/a//b", "odd/../x", "odd/\x7f", "odd/fine"):
        place.server.write(place.bucket, name, b"x")
    assert place.call("list_keys", "odd/") == ["odd/fine"]


def test_a_delete_is_true_whoever_removed_it(place, key):
    place.call("store", key, 1)
    assert place.call("delete", key) is True
    assert place.call("delete", key) is True
    assert place.server.stat(place.bucket, key) is None
    place.call("store", key, 1)
    place.server.delete(place.bucket, key)
    assert place.call("exists", key) is False
    assert place.call("delete", key) is True


def test_events_tell_the_bucket_and_the_attempts(place, key):
    results = {
        "store": place.send("store", key, "x" * 100),
        "retrieve": place.send("retrieve", key),
        "stat": place.send("stat", key),
        "delete": place.send("delete", key),
    }
    for result in results.values():
        result.get(timeout=TIMEOUT)
    found = wait_events(place.raw, has(*[result.id for result in results.values()]))
    for operation, result in results.items():
        (event,) = of(found, result.id)
        data = check_event(event)
        assert (data["operation"], data["outcome"]) == (operation, "succeeded")
        assert (data["backend"], data["attempts"], data["pending_sync"]) == (place.kind, 1, False)


def test_a_small_store_is_one_request_and_so_is_its_retrieve(place, key):
    place.call("store", key + "-before", 1)
    place.proxy.forget_log()
    place.call("store", key, "x" * 200)
    (entry,) = place.proxy.log()
    assert entry["object"] == key and entry["method"] in ("POST", "PUT")
    place.proxy.forget_log()
    place.call("retrieve", key)
    assert place.proxy.log() == [], "what was stored is in the cache"
    place.call("clear_cache")
    place.call("retrieve", key)
    place.call("retrieve", key)
    assert [(entry["method"], entry["object"]) for entry in place.proxy.log()] == [("GET", key)]


def test_many_commands_share_few_connections(place, key):
    events_of(place.raw)
    before = place.proxy.counters().get("connections", 0)
    for result in [place.send("store", f"{key}/{n}", n) for n in range(500)]:
        result.get(timeout=60)
    counters = place.proxy.counters()
    assert counters["requests"] >= 500
    # 64 commands are in flight at once. All of them may go over connections that are open already.
    assert counters.get("connections", 0) - before <= 80


def test_health_and_statistics_speak_of_the_bucket(place):
    health = place.health()
    assert health["gcs_available"] is (place.kind == "gcs")
    assert health["local_fallback_enabled"] is True
    assert (health["status"], health["pending_sync"], health["breaker"]) == ("healthy", 0, "closed")
    stats = place.call("get_stats")
    assert (stats["gcs_available"], stats["local_fallback_enabled"]) == (place.kind == "gcs", True)
    answer = place.call("get_health_status")
    assert answer.keys() == health.keys() and {**answer, "metrics": None} == {**health, "metrics": None}
    assert answer["metrics"].keys() == stats["metrics"].keys()


def test_the_command_line_and_the_worker_see_the_same_bucket(place):
    assert place.run("store", "cli/a", "-", stdin=b"from the shell").returncode == 0
    assert place.call("retrieve", "cli/a") in (b"from the shell", "from the shell")
    place.call("store", "cli/b", "from Celery")
    assert place.run("retrieve", "cli/b").stdout == b"from Celery"
    assert place.run("exists", "cli/a").returncode == 0
    assert "cli/b" in place.run("list", "--json").stdout.decode()
    assert place.run("delete", "cli/a").returncode == 0
    assert place.call("exists", "cli/a") is False
    assert place.run("retrieve", "cli/a").returncode == 66


def test_commands_on_one_key_run_in_the_order_they_arrived(place, key):
    sent = [place.send("store", key, n) for n in range(40)]
    last = place.send("retrieve", key)
    for result in sent:
        result.get(timeout=60)
    assert last.get(timeout=60) == 39
