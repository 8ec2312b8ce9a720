"""What each command answers when it succeeds, and what its options do."""

import base64
import re
import time
from datetime import datetime, timedelta, timezone

import pytest

from harness import TIMEOUT, crc32c, failure, wait_until

RECEIPT = {
    "key": str,
    "backend": str,
    "pending_sync": bool,
    "size": int,
    "stored_size": int,
    "compression": (str, type(None)),
    "encrypted": bool,
    "checksum": str,
    "generation": str,
    "content_type": str,
    "kind": str,
    "stored_at": str,
    "expires_at": (str, type(None)),
}


def check_receipt(receipt, extra=()):
    assert set(receipt) == set(RECEIPT) | set(extra)
    for name, kind in RECEIPT.items():
        assert isinstance(receipt[name], kind), name
    assert datetime.fromisoformat(receipt["stored_at"]).tzinfo is not None
    if receipt["expires_at"] is not None:
        assert datetime.fromisoformat(receipt["expires_at"]).tzinfo is not None
    assert re.fullmatch(r"crc32c:[A-Za-z0-9+/]{6}==", receipt["checksum"])


@pytest.mark.parametrize(
    ("value", "raw"),
    [("žluť", "žluť".encode()), (b"\xff\x00", b"\xff\x00"), ({"a": "é"}, '{"a":"é"}'.encode()), (None, b"null"), ("", b"")],
    ids=["text", "bytes", "json", "none", "empty"],
)
def test_a_receipt_has_exactly_its_fields(shared, key, value, raw):
    receipt = shared.call("store", key, value)
    check_receipt(receipt)
    assert (receipt["key"], receipt["backend"], receipt["pending_sync"]) == (key, "local", False)
    assert (receipt["size"], receipt["encrypted"], receipt["expires_at"]) == (len(raw), False, None)
    assert receipt["checksum"] == "crc32c:" + base64.b64encode(crc32c(raw).to_bytes(4, "big")).decode()
    now = datetime.now(timezone.utc)
    assert abs(datetime.fromisoformat(receipt["stored_at"]) - now) < timedelta(seconds=60)


def test_stat_is_the_receipt_and_the_metadata(shared, key):
    metadata = {"n": 1, "f": 0.5, "big": 2**70, "none": None, "list": [True, {"é": "𝄞"}], "": ""}
    receipt = shared.call("store", key, "value", metadata)
    stat = shared.call("stat", key)
    check_receipt(stat, extra=["metadata"])
    assert stat.pop("metadata") == metadata
    assert stat == receipt
    shared.call("store", key, "value")
    assert not shared.call("stat", key)["metadata"]
    assert shared.call("stat", key + "-missing") is None


def test_metadata_has_a_limit_and_must_be_an_object(shared, key):
    fits = {"k": "x" * (4096 - len('{"k":""}') - 4)}
    shared.call("store", key, 1, fits)
    assert shared.call("stat", key)["metadata"] == fits
    for wrong in ({"k": "x" * 4097}, [1], "text", 5):
        assert isinstance(failure(shared.send("store", key, 2, wrong)), (ValueError, TypeError))
    assert shared.call("retrieve", key) == 1


def test_every_write_has_a_new_generation(shared, key):
    first, second = shared.call("store", key, "same"), shared.call("store", key, "same")
    assert first["generation"] != second["generation"]
    assert first["checksum"] == second["checksum"]


def test_the_content_type_is_kept(shared, key):
    receipt = shared.call("store", key, b"%PDF", content_type="application/pdf")
    assert receipt["content_type"] == shared.call("stat", key)["content_type"] == "application/pdf"
    assert shared.call("retrieve", key) == b"%PDF"


def test_what_has_expired_is_not_there(shared, key):
    receipt = shared.call("store", key, "short", ttl_seconds=2)
    left = datetime.fromisoformat(receipt["expires_at"]) - datetime.fromisoformat(receipt["stored_at"])
    assert abs(left - timedelta(seconds=2)) < timedelta(seconds=0.1)
    at = datetime.now(timezone.utc) + timedelta(seconds=2)
    shared.call("store", key + "-at", "short", expires_at=at.isoformat())
    assert shared.call("retrieve", key) == shared.call("retrieve", key + "-at") == "short"
    for name in (key, key + "-at"):
        wait_until(lambda name=name: shared.call("exists", name) is False, 10, "the expiry", step=0.2)
        assert shared.call("retrieve", name) is None
        assert shared.call("stat", name) is None
        assert name not in shared.call("list_keys", key)
    shared.call("store", key, "again", if_absent=True)
    assert shared.call("retrieve", key) == "again"


def test_a_typed_datetime_is_an_expiry_too(shared, key):
    at = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(hours=1)
    receipt = shared.call("store", key, "later", expires_at=at)
    assert datetime.fromisoformat(receipt["expires_at"]) == at


@pytest.mark.parametrize(
    "options",
    [
        {"ttl_seconds": -1},
        {"ttl_seconds": "soon"},
        {"expires_at": "tomorrow"},
        {"ttl_seconds": 1, "expires_at": "2030-01-01T00:00:00+00:00"},
    ],
    ids=str,
)
def test_a_wrong_expiry_is_refused(shared, key, options):
    assert isinstance(failure(shared.send("store", key, "x", **options)), (ValueError, TypeError))
    assert shared.call("exists", key) is False


def test_if_absent_writes_only_the_first_time(shared, key):
    shared.call("store", key, "first", if_absent=True)
    error = failure(shared.send("store", key, "second", if_absent=True))
    assert type(error).__name__ == "PreconditionFailed"
    assert key in str(error)
    assert shared.call("retrieve", key) == "first"


def test_if_generation_guards_writes_and_deletes(shared, key):
    old = shared.call("store", key, 1)["generation"]
    new = shared.call("store", key, 2, if_generation=old)["generation"]
    for result in (
        shared.send("store", key, 3, if_generation=old),
        shared.send("delete", key, if_generation=old),
        shared.send("store", key + "-missing", 3, if_generation=old),
    ):
        assert type(failure(result)).__name__ == "PreconditionFailed"
    assert shared.call("retrieve", key) == 2
    assert shared.call("delete", key, if_generation=new) is True
    assert shared.call("delete", key, if_generation=new) is True


def test_delete_is_true_whoever_removed_it(shared, key):
    shared.call("store", key, "x")
    assert shared.call("exists", key) is True
    assert shared.call("delete", key) is True
    assert shared.call("delete", key) is True
    assert shared.call("exists", key) is False
    assert shared.call("retrieve", key) is None


@pytest.mark.parametrize("value", ["aé𝄞z", bytes(range(20))], ids=["text", "bytes"])
def test_a_range_counts_and_answers_in_bytes(shared, key, value):
    raw = value.encode() if isinstance(value, str) else value
    shared.call("store", key, value)
    for offset, length in [(0, 1), (1, 3), (2, None), (None, 4), (5, 1_000), (len(raw), 5), (0, 0)]:
        options = {name: n for name, n in (("offset", offset), ("length", length)) if n is not None}
        start = offset or 0
        wanted = raw[start : None if length is None else start + length]
        assert shared.call("retrieve", key, **options) == wanted, options
    for wrong in ({"offset": -1}, {"length": -1}, {"offset": "x"}):
        assert isinstance(failure(shared.send("retrieve", key, **wrong)), (ValueError, TypeError))


def test_keys_are_listed_sorted_by_prefix_and_page(shared):
    names = ["list/b", "list/a", "list/a/b", "list/ž", "list/A", "list/a.b", "list/𝄞", "listed"]
    for name in names:
        shared.call("store", name, 1)
    ours = sorted(name for name in names if name.startswith("list/"))
    assert shared.call("list_keys", "list/") == ours
    assert shared.call("list_keys", prefix="list/", limit=3) == ours[:3]
    assert shared.call("list_keys", prefix="list/", limit=3, start_after=ours[2]) == ours[3:6]
    assert shared.call("list_keys", prefix="list/", start_after="list/a") == [n for n in ours if n > "list/a"]
    assert shared.call("list_keys", prefix="nowhere/") == []
    assert shared.call("list_keys", prefix="list/", limit=0) == []
    everything = shared.call("list_keys")
    assert everything == sorted(everything)
    assert set(names) <= set(everything)


def test_a_key_and_a_key_below_it_both_exist(shared):
    shared.call("store", "tree", "parent")
    shared.call("store", "tree/child", "child")
    assert shared.call("retrieve", "tree") == "parent"
    assert shared.call("delete", "tree") is True
    assert shared.call("retrieve", "tree/child") == "child"


@pytest.mark.parametrize(
    "name", ["x" * 1024, "é" * 512, "a/" * 500 + "b", " spaces  ", "-dash", "%2F", "~", "con", "a:b*?<>|", "🗂/📄"], ids=len
)
def test_every_legal_key_works(shared, name):
    shared.call("store", name, name)
    assert shared.call("retrieve", name) == name
    assert shared.call("list_keys", prefix=name) == [name]
    assert shared.call("delete", name) is True


def test_clear_cache_answers_how_many_entries_it_dropped(shared, key):
    shared.call("store", key, 1)
    shared.call("clear_cache")
    assert shared.call("clear_cache") == 0
    assert shared.call("retrieve", key) == 1


def test_statistics_count_since_the_start(shared, key):
    before = shared.call("get_stats")
    shared.call("store", key, "x" * 100)
    shared.call("retrieve", key)
    after = shared.call("get_stats")
    assert {"initialized", "gcs_available", "local_fallback_enabled", "cache_enabled", "cache_size", "metrics"} <= set(after)
    assert (after["initialized"], after["gcs_available"]) == (True, False)
    assert {
        "total_operations",
        "successful_operations",
        "cache_hits",
        "cache_misses",
        "compression_savings",
        "total_data_size",
    } <= set(after["metrics"])
    assert after["metrics"]["total_operations"] >= before["metrics"]["total_operations"] + 2
    assert after["metrics"]["successful_operations"] >= before["metrics"]["successful_operations"] + 2


def test_commands_on_one_key_run_in_the_order_they_arrived(shared, key):
    sent = [shared.send("store", key, n) for n in range(100)]
    last = shared.send("retrieve", key)
    for result in sent:
        result.get(timeout=TIMEOUT)
    assert last.get(timeout=TIMEOUT) == 99


def test_a_slow_answer_does_not_hold_up_other_keys(shared, key):
    big = shared.send("store", key, "x" * 8_000_000)
    started = time.monotonic()
    small = [shared.send("store", f"{key}-{n}", n) for n in range(20)]
    assert all(result.get(timeout=TIMEOUT)["key"] for result in small)
    assert big.get(timeout=TIMEOUT)["size"] == 8_000_000
    assert time.monotonic() - started < 2 * TIMEOUT


def test_an_answer_too_large_for_a_message_names_the_way_out(site, key):
    site.start(MAX_REPLY_BYTES=10_000)
    site.call("store", key, b"x" * 20_000)
    error = failure(site.send("retrieve", key))
    assert isinstance(error, ValueError)
    assert "offset" in str(error) and "length" in str(error)
    assert site.call("retrieve", key, offset=0, length=1_000) == b"x" * 1_000
