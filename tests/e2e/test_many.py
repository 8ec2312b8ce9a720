"""Tasks of many items, copies, moves and `verify`, on the local store and in buckets, seen through real Celery."""

import time

import pytest

from buckets import BucketSite
from harness import DEAD, QUEUE, TIMEOUT, Site, events_of, failure, same, wait_events, wait_until
from test_receipts import check_receipt


@pytest.fixture(scope="module", params=["local", "gcs", "s3"])
def place(request, broker, tmp_path_factory):
    """A site with a running worker, whatever keeps its values."""
    folder = tmp_path_factory.mktemp("many")
    site = Site(broker, folder) if request.param == "local" else BucketSite(broker, folder, request.getfixturevalue(request.param))
    try:
        site.start()
        yield site
        site.workers[-1].assert_alive()
    finally:
        site.close()


def kind(place):
    return getattr(place, "kind", "local")


def results(entries):
    assert all(entry["ok"] and set(entry) == {"key", "ok", "result"} for entry in entries), entries
    return [entry["result"] for entry in entries]


def error(entry):
    assert set(entry) == {"key", "ok", "error"} and not entry["ok"] and set(entry["error"]) == {"type", "message"}, entry
    return entry["error"]["type"], entry["error"]["message"]


def test_many_values_come_back_in_their_order(place, key):
    values = ["text", b"\xff\x00", b"ascii", 1, None, True, 1.5, [1, "a"], {"b": {"c": []}}, "", "x" * 100_000, b"y" * 70_000]
    items = [{"key": f"{key}/{n}", "data": value, "metadata": {"n": n}} for n, value in enumerate(values)]
    items[3]["content_type"] = "application/x-one"
    keys = [item["key"] for item in items]
    receipts = results(place.call("store_many", items))
    for name, receipt in zip(keys, receipts, strict=True):
        check_receipt(receipt)
        assert (receipt["key"], receipt["backend"]) == (name, kind(place))
    assert receipts[3]["content_type"] == "application/x-one"
    assert place.call("stat", keys[5])["metadata"] == {"n": 5}
    found = place.call("retrieve_many", [*reversed(keys), f"{key}/none"])
    assert [entry["key"] for entry in found] == [*reversed(keys), f"{key}/none"]
    for value, back in zip([*reversed(values), None], results(found), strict=True):
        assert same(back, value), (back, value)
    assert results(place.call("exists_many", keys=[keys[0], f"{key}/none"])) == [True, False]
    assert results(place.call("delete_many", [keys[0], f"{key}/none", keys[0]])) == [True, True, True]
    assert results(place.call("exists_many", keys)) == [False] + [True] * (len(keys) - 1)
    for task in ("store_many", "retrieve_many", "delete_many", "exists_many"):
        assert place.call(task, []) == []


def test_items_may_be_lists_of_positional_arguments(place, key):
    receipts = results(place.call("store_many", [[f"{key}/a", 1], [f"{key}/b", 2, {"m": 1}]]))
    assert [receipt["key"] for receipt in receipts] == [f"{key}/a", f"{key}/b"]
    assert place.call("stat", f"{key}/b")["metadata"] == {"m": 1}


def test_a_bad_item_fails_no_other(place, key):
    place.call("store", f"{key}/there", 0)
    good = {"key": f"{key}/good", "data": "value"}
    bad = [
        ({"key": f"{key}/x"}, "TypeError", "store() missing 1 required positional argument: 'data'"),
        ({"key": f"{key}/x", "data": 1, "nope": 2}, "TypeError", "store() got an unexpected keyword argument 'nope'"),
        ([f"{key}/x"], "TypeError", "store() missing 1 required positional argument: 'data'"),
        ([f"{key}/x", 1, None, 4], "TypeError", "store() takes from 2 to 3 positional arguments but 4 were given"),
        (7, "TypeError", "store_many() argument 'items[4]' must be dict or list, not int"),
        ({"key": 7, "data": 1}, "TypeError", "store() argument 'key' must be str, not int"),
        ({"key": "a//b", "data": 1}, "ValueError", "empty segment"),
        ({"key": f"{key}/x", "data": 1, "ttl_seconds": -1}, "ValueError", "ttl_seconds"),
        ({"key": f"{key}/x", "data": 1, "metadata": "no"}, "TypeError", "metadata"),
        ({"key": f"{key}/there", "data": 1, "if_absent": True}, "PreconditionFailed", "if_absent"),
        ({"key": f"{key}/x", "data": {"$ref": "file:/tmp/x"}}, "ValueError", "data"),
    ]
    entries = place.call("store_many", [*(item for item, *_ in bad), good])
    assert len(entries) == len(bad) + 1
    for (item, exception, words), entry in zip(bad, entries, strict=False):
        found, message = error(entry)
        assert found == exception and words in message, (item, entry)
        given = item.get("key") if isinstance(item, dict) else item[0] if isinstance(item, list) else None
        assert entry["key"] == (given if isinstance(given, str) else None)
    check_receipt(results(entries[-1:])[0])
    assert place.call("retrieve_many", [f"{key}/good", f"{key}/x"])[1]["result"] is None
    assert place.call("retrieve", f"{key}/there") == 0
    for task in ("retrieve_many", "exists_many", "delete_many"):
        found = place.call(task, [f"{key}/good", 5, "a//b", f"{key}/good"])
        assert [entry["ok"] for entry in found] == [True, False, False, True]
        assert error(found[1]) == ("TypeError", f"{task}() argument 'keys[1]' must be str, not int")
        assert error(found[2])[0] == "ValueError"


@pytest.mark.parametrize(
    "task, args, kwargs, exception, words",
    [
        ("store_many", [{"key": "k", "data": 1}], {}, TypeError, "must be list, not dict"),
        ("store_many", [], {}, TypeError, "store_many() missing 1 required positional argument: 'items'"),
        ("retrieve_many", ["k"], {}, TypeError, "retrieve_many() argument 'keys' must be list, not str"),
        ("delete_many", [None], {}, TypeError, "must be list, not NoneType"),
        ("exists_many", [["k"]], {"limit": 1}, TypeError, "exists_many() got an unexpected keyword argument 'limit'"),
        ("exists_many", [["k"] * 10_001], {}, ValueError, "10001 members, and a command may have 10000"),
        ("copy", ["a"], {}, TypeError, "copy() missing 1 required positional argument: 'destination'"),
        ("move", ["a", "b", True], {}, TypeError, "move() takes 2 positional arguments but 3 were given"),
        ("copy", ["a", "b//c"], {}, ValueError, "destination: "),
        ("copy", [1, "b"], {}, TypeError, "copy() argument 'source' must be str, not int"),
        ("verify", [], {}, TypeError, "verify() missing 1 required positional argument: 'key'"),
    ],
    ids=str,
)
def test_wrong_calls_fail_whole(place, task, args, kwargs, exception, words):
    raised = failure(place.send(task, *args, **kwargs))
    assert type(raised) is exception and words in str(raised), raised


def test_of_doubled_keys_the_last_wins(place, key):
    receipts = results(place.call("store_many", [{"key": key, "data": n} for n in range(20)]))
    assert len({receipt["generation"] for receipt in receipts}) == 20
    assert place.call("retrieve", key) == 19
    assert place.call("stat", key)["generation"] == receipts[-1]["generation"]
    assert results(place.call("retrieve_many", [key] * 3)) == [19] * 3


def test_a_thousand_items_have_an_entry_and_an_event_each(place, key):
    """Every item has its own event, in `filestorage.metrics` and in the queue that the command names."""
    queue = f"notice-{kind(place)}"
    place.raw.declare(queue)
    names = [f"{key}/{n}" for n in range(1_000)]
    items = [{"key": name, "data": {"n": n, "pad": "x" * 150}} for n, name in enumerate(names)]
    items[500] = {"key": names[500]}
    events_of(place.raw)
    stored = place.send("store_many", items, _headers={"metrics_reply_to": queue})
    entries = stored.get(timeout=120)
    assert [entry["key"] for entry in entries] == names
    assert [n for n, entry in enumerate(entries) if not entry["ok"]] == [500]
    mine = lambda found: [event for event in found if event["data"]["task_id"] == stored.id]
    shared = mine(wait_events(place.raw, lambda found: len(mine(found)) >= 1_000, timeout=60))
    own = []

    def told():
        own.extend(message.json for message in place.raw.drain(queue))
        return len(own) >= 1_000

    wait_until(told, 60, lambda: f"1,000 notices, not {len(own)}")
    for found in (shared, own):
        assert len(found) == len({event["id"] for event in found}) == 1_000
        by_key = {event["data"]["key"]: event for event in found}
        failed = by_key.pop(None)
        assert (failed["type"], failed["data"]["error"]["type"]) == ("filestorage.store.failed", "TypeError")
        assert set(by_key) == set(names) - {names[500]}
        for event in by_key.values():
            data = event["data"]
            assert (event["type"], event["subject"]) == ("filestorage.store.succeeded", data["key"])
            assert (data["operation"], data["outcome"], data["error"]) == ("store", "succeeded", None)
            assert data["attempts"] >= 1 and data["size"] > 150 and data["backend"] == kind(place)
    found = place.send("retrieve_many", names).get(timeout=120)
    assert results(found) == [None if n == 500 else items[n]["data"] for n in range(1_000)]
    assert results(place.send("exists_many", names).get(timeout=120)) == [n != 500 for n in range(1_000)]
    assert results(place.send("delete_many", names).get(timeout=120)) == [True] * 1_000
    assert place.call("list_keys", f"{key}/") == []


def test_attempts_are_counted_for_each_item(broker, gcs, tmp_path):
    site = BucketSite(broker, tmp_path, gcs)
    try:
        site.start()
        site.proxy.rule({"status": 503}, times=2, query="name=twice")
        stored = site.send("store_many", [{"key": name, "data": name} for name in ("once", "twice")])
        results(stored.get(timeout=60))
        found = wait_events(site.raw, lambda found: len([e for e in found if e["data"]["task_id"] == stored.id]) == 2)
        assert {event["data"]["key"]: event["data"]["attempts"] for event in found} == {"once": 1, "twice": 3}
    finally:
        site.close()


def test_copies_and_moves_keep_the_value(place, key):
    value = {"a": [1.0, "é", None]}
    stored = place.call("store", f"{key}/a", value, {"m": "ü"}, content_type="application/x-a+json", ttl_seconds=3600)
    copied = place.call("copy", f"{key}/a", f"{key}/b")
    check_receipt(copied)
    assert copied["generation"] != stored["generation"]
    for name in ("size", "stored_size", "checksum", "compression", "encrypted", "content_type", "kind", "expires_at", "backend"):
        assert copied[name] == stored[name], name
    moved = place.call("move", f"{key}/b", f"{key}/c")
    assert place.call("exists_many", [f"{key}/{name}" for name in "abc"]) == [
        {"key": f"{key}/a", "ok": True, "result": True},
        {"key": f"{key}/b", "ok": True, "result": False},
        {"key": f"{key}/c", "ok": True, "result": True},
    ]
    assert same(place.call("retrieve", f"{key}/c"), value) and place.call("stat", f"{key}/c")["metadata"] == {"m": "ü"}
    assert place.call("stat", f"{key}/c")["generation"] == moved["generation"]
    # Onto itself, the value stays.
    for task in ("copy", "move"):
        assert place.call(task, f"{key}/c", f"{key}/c") == moved
        assert type(failure(place.send(task, f"{key}/a", f"{key}/c", if_absent=True))).__name__ == "PreconditionFailed"
        missing = failure(place.send(task, f"{key}/none", f"{key}/d"))
        assert type(missing) is FileNotFoundError and (missing.errno, missing.filename) == (2, f"{key}/none")
    assert same(place.call("retrieve", f"{key}/c"), value)


def test_a_large_value_is_copied(place, key):
    value = bytes(range(256)) * (12 << 12)
    place.send("store", f"{key}/a", value).get(timeout=60)
    copied = place.send("copy", f"{key}/a", f"{key}/b").get(timeout=60)
    assert copied["size"] == len(value)
    assert place.send("retrieve", f"{key}/b", offset=len(value) - 3, length=9).get(timeout=60) == value[-3:]


def test_a_copy_has_an_event_for_each_key(place, key):
    place.call("store", f"{key}/a", "12345")
    moved = place.send("move", f"{key}/a", f"{key}/b")
    moved.get(timeout=TIMEOUT)
    mine = lambda found: [event["data"] for event in found if event["data"]["task_id"] == moved.id]
    found = mine(wait_events(place.raw, lambda found: len(mine(found)) == 2))
    assert [(data["operation"], data["key"], data["size"]) for data in found] == [("move", f"{key}/{name}", 5) for name in "ab"]
    lost = place.send("copy", f"{key}/none", f"{key}/d")
    assert type(failure(lost)) is FileNotFoundError
    mine = lambda found: [event["data"] for event in found if event["data"]["task_id"] == lost.id]
    found = mine(wait_events(place.raw, lambda found: len(mine(found)) == 2))
    assert {data["error"]["type"] for data in found} == {"FileNotFoundError"}


def test_verify_says_whether_all_bytes_are_right(place, key):
    receipt = place.call("store", key, "value " * 1_000)
    verified = place.call("verify", key)
    assert verified == {"key": key, "ok": True, "checksum": receipt["checksum"], "problem": None}
    missing = failure(place.send("verify", f"{key}/none"))
    assert type(missing) is FileNotFoundError and (missing.errno, missing.filename) == (2, f"{key}/none")


def test_verify_finds_damage_and_no_more(site):
    site.start(ENABLE_COMPRESSION="false")
    for name in ("one", "two"):
        site.call("store", name, "x" * 100_000)
    (path,) = [path for path in site.object_files() if path.name == "one.obj"]
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 1
    path.write_bytes(damaged)
    verified = site.call("verify", "one")
    assert not verified["ok"] and "checksum" in verified["problem"] and verified["checksum"].startswith("crc32c:"), verified
    assert site.call("verify", "two")["ok"]
    path.write_bytes(b"no header")
    verified = site.call("verify", "one")
    assert not verified["ok"] and verified["checksum"] is None and "header" in verified["problem"], verified
    entries = site.call("retrieve_many", ["one", "two"])
    assert error(entries[0])[0] == "IntegrityError" and entries[1]["ok"]
    raised = failure(site.send("copy", "one", "three"))
    assert type(raised).__name__ == "IntegrityError"


def test_what_cannot_be_reached_is_not_damaged(broker, gcs, tmp_path):
    site = BucketSite(broker, tmp_path, gcs)
    try:
        site.start(MAX_RETRIES=0, TIMEOUT_SECONDS=1)
        site.call("store", "k", 1)
        site.proxy.down()
        for task in (("verify", "k"), ("copy", "k", "l"), ("move", "k", "l")):
            raised = failure(site.send(*task), 60)
            assert type(raised).__name__ == "StorageUnavailable", (task, raised)
        (entry,) = site.send("exists_many", ["k"]).get(timeout=60)
        assert error(entry)[0] == "StorageUnavailable"
        # What waits in the overlay is copied there.
        (entry,) = site.send("store_many", [["waits", "value"]]).get(timeout=60)
        assert entry["result"]["pending_sync"]
        copied = site.send("copy", "waits", "copy").get(timeout=60)
        assert (copied["backend"], copied["pending_sync"]) == ("local", True)
        assert site.call("retrieve", "copy") == "value"
        site.proxy.up()
        wait_until(lambda: not site.overlay(), 60, "what waited to be sent", step=0.2)
        assert site.names() == ["copy", "k", "waits"]
    finally:
        site.close()


def test_values_too_large_for_one_reply_are_refused(site):
    site.start(MAX_REPLY_BYTES=100_000)
    results(site.call("store_many", [{"key": f"k{n}", "data": "x" * 30_000} for n in range(5)]))
    assert len(results(site.call("retrieve_many", ["k0", "k1", "k2"]))) == 3
    raised = failure(site.send("retrieve_many", [f"k{n}" for n in range(5)]))
    assert type(raised) is ValueError and "150000 bytes" in str(raised) and "max_reply_bytes" in str(raised), raised
    assert "fewer keys" in str(raised) and "destination" in str(raised)
    # One that is too large for any reply fails alone.
    site.call("store", "huge", b"x" * 200_000)
    entries = site.call("retrieve_many", ["k0", "huge", "k1"])
    assert [entry["ok"] for entry in entries] == [True, False, True] and error(entries[1])[0] == "ValueError"
    # Quotes make a text longer than its bytes.
    site.call("store", "quoted", '"' * 45_000)
    raised = failure(site.send("retrieve_many", ["quoted", "k0"]))
    assert type(raised) is ValueError and "max_reply_bytes" in str(raised), raised
    # Nothing is stored that could not be answered.
    raised = failure(site.send("store_many", [{"key": f"never/{n}", "data": n} for n in range(400)]))
    assert type(raised) is ValueError and "nothing was stored" in str(raised), raised
    assert site.call("list_keys", "never/") == []


def test_a_redelivered_store_many_is_answered_not_run(site):
    worker = site.start()
    reply = site.raw.reply_queue()
    items = [{"key": f"again/{n}", "data": n} for n in range(50)]
    ids = [site.raw.command("store_many", [items], reply_to=reply) for _ in range(40)]
    answers = {}

    def gather():
        for message in site.raw.drain(reply):
            answers.setdefault(message.json["task_id"], []).append(message.json)

    for _ in range(4):
        before = len(answers)
        wait_until(lambda before=before: gather() or len(answers) > before or site.raw.count(QUEUE) == 0, what="progress", step=0)
        worker.kill()
        time.sleep(0.1)
        worker = site.spawn()
    wait_until(lambda: gather() or set(answers) == set(ids), 60, "an answer to every command", step=0.05)
    for task_id, replies in answers.items():
        assert {one["status"] for one in replies} == {"SUCCESS"}, replies
        assert all(one["result"] == replies[0]["result"] for one in replies), task_id
    last = answers[ids[-1]][0]["result"]
    for n, entry in enumerate(last):
        assert site.call("stat", f"again/{n}")["generation"] == entry["result"]["generation"]
    assert site.raw.count(DEAD) == 0


def test_a_killed_store_many_keeps_what_it_wrote(site):
    """Each item recognizes its own earlier write, and the rest is written."""
    worker = site.start()
    names = [f"half/{n}" for n in range(64)]
    reply = site.raw.reply_queue()
    with site.held_writes(names[40]):
        site.raw.command("store_many", [[{"key": name, "data": name} for name in names]], reply_to=reply, task_id="half")
        wait_until(lambda: len([path for path in site.object_files() if path.parent.name == "half"]) >= 40, what="half of the items")
        worker.kill()
    before = {path.name: path.read_bytes() for path in site.object_files() if path.parent.name == "half"}
    assert 0 < len(before) < 64
    site.start()
    answer = site.raw.get(reply).json
    assert answer["status"] == "SUCCESS" and len(results(answer["result"])) == 64
    after = {path.name: path.read_bytes() for path in site.object_files() if path.parent.name == "half"}
    assert set(after) == {f"{n}.obj" for n in range(64)}
    assert {name: after[name] for name in before} == before, "no item was written twice"
    for name, receipt in zip(names, results(answer["result"]), strict=True):
        assert site.call("stat", name)["generation"] == receipt["generation"]


def test_a_move_that_was_killed_between_its_halves_is_completed(site):
    """The copy is there, and the source waits for a lock: the worker dies, and the next one removes the source."""
    worker = site.start()
    site.call("store", "from", "value")
    reply = site.raw.reply_queue()
    with site.held_writes("from"):
        site.raw.command("move", ["from", "to"], reply_to=reply, task_id="move")
        wait_until(lambda: (site.storage / "objects" / "to.obj").exists(), what="the first half")
        time.sleep(0.2)
        assert (site.storage / "objects" / "from.obj").exists()
        worker.kill()
    copied = (site.storage / "objects" / "to.obj").read_bytes()
    site.start()
    answer = site.raw.get(reply).json
    assert answer["status"] == "SUCCESS" and answer["result"]["key"] == "to"
    assert site.call("exists_many", ["from", "to"])[0]["result"] is False
    assert (site.storage / "objects" / "to.obj").read_bytes() == copied, "it was not copied again"
    assert site.call("stat", "to")["generation"] == answer["result"]["generation"]


@pytest.mark.parametrize("server", ["gcs", "s3"])
def test_a_move_in_a_bucket_that_was_killed_is_completed(request, broker, tmp_path, server):
    site = BucketSite(broker, tmp_path, request.getfixturevalue(server))
    try:
        worker = site.start()
        site.call("store", "from", "value")
        reply = site.raw.reply_queue()
        held = site.proxy.rule({"hold": True}, method="DELETE", object="^from$")
        site.raw.command("move", ["from", "to"], reply_to=reply, task_id="move")
        wait_until(lambda: site.proxy.applied(held), what="the second half")
        assert site.names() == ["from", "to"]
        worker.kill()
        site.proxy.forget(held)
        site.start()
        answer = site.raw.get(reply).json
        assert answer["status"] == "SUCCESS"
        assert site.names() == ["to"]
        assert site.call("retrieve", "to") == "value"
        assert site.call("stat", "to")["generation"] == answer["result"]["generation"]
    finally:
        site.close()


@pytest.mark.parametrize("server", ["gcs", "s3"])
def test_a_bucket_copies_by_itself(request, broker, tmp_path, server):
    """No byte of the value passes through the worker."""
    site = BucketSite(broker, tmp_path, request.getfixturevalue(server))
    try:
        site.start()
        site.call("store", "a", b"\xff" + b"x" * 1_000_000)
        site.proxy.forget_log()
        site.call("copy", "a", "b")
        assert site.call("stat", "b")["size"] == 1_000_001
        passed = [entry for entry in site.proxy.log() if max(entry["request_size"], entry["response_size"]) > 100_000]
        assert not passed, passed
    finally:
        site.close()
