"""The bucket goes away, in every way it can, and comes back: nothing confirmed is lost and nothing wrong is answered."""

import json
import re
import threading
import time

import pytest

from buckets import BucketSite
from harness import QUEUE, Worker, failure, wait_until


@pytest.fixture(params=["gcs", "s3"])
def away(request, broker, tmp_path):
    """A site on a bucket of its own, of either kind; no worker yet."""
    site = BucketSite(broker, tmp_path, request.getfixturevalue(request.param))
    yield site
    site.close()


def value_of(n):
    """Values of every type and many sizes."""
    return [f"text {n}", bytes([n % 256]) * (n * 37 % 5_000), {"n": n, "pad": "x" * (n * 101 % 20_000)}, n][n % 4]


def bytes_of(value):
    """What other tools see of a value."""
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()


def unavailable(result):
    error = failure(result, timeout=60)
    assert type(error).__name__ == "StorageUnavailable", repr(error)
    return error


def all_sent(site, timeout=90):
    """Waits until nothing waits for the bucket any more, by the files and by what the worker says."""
    wait_until(lambda: not site.overlay(), timeout, lambda: f"an empty overlay; waiting: {len(site.overlay())}", step=0.1)
    wait_until(lambda: not site.health()["pending_sync"], 20, lambda: f"no pending_sync: {site.health()}", step=0.1)


def holds(site, wanted):
    """The bucket holds these values under these keys and nothing else; the worker says the same."""
    assert site.names() == sorted(wanted, key=lambda name: name.encode())
    for key, value in wanted.items():
        assert site.server.read(site.bucket, key) == bytes_of(value), key
    assert site.call("list_keys") == sorted(wanted, key=lambda name: name.encode())
    for result, value in [(site.send("retrieve", key), value) for key, value in wanted.items()]:
        assert result.get(timeout=60) == value


class Load(threading.Thread):
    """Stores and deletes on sixty keys, one after the other, until told to stop; knows what must stand in the end."""

    def __init__(self, site):
        super().__init__(daemon=True)
        self.site, self.enough = site, threading.Event()
        self.sent, self.last = [], {}

    def run(self):
        n = 0
        while not self.enough.is_set():
            key = f"load/{n % 60}"
            if n % 7 == 6:
                self.sent.append((key, self.site.send("delete", key)))
                self.last[key] = None
            else:
                self.sent.append((key, self.site.send("store", key, value_of(n))))
                self.last[key] = value_of(n)
            n += 1
            time.sleep(0.01)

    def until(self, more):
        """Waits for so many more commands to be sent."""
        wanted = len(self.sent) + more
        wait_until(lambda: len(self.sent) >= wanted, 60, "load")


def test_the_outage_story(away):
    site = away
    # Before everything: a bucket with values, and a worker that is gone.
    worker = site.start()
    expected = {f"early/{n}": value_of(n) for n in range(8)}
    for result in [site.send("store", key, value) for key, value in {**expected, "doomed/a": 1, "doomed/b": 2}.items()]:
        assert result.get(timeout=60)["pending_sync"] is False
    assert worker.stop() == 0

    # The bucket is down before the worker starts; it is ready all the same and says what is the matter.
    site.proxy.down("refuse")
    worker = site.start()
    assert site.health()["gcs_available"] is False
    for key in (f"night/{n}" for n in range(40)):
        expected[key] = value_of(len(expected))
        receipt = site.call("store", key, expected[key])
        assert (receipt["backend"], receipt["pending_sync"]) == ("local", True)
        assert site.call("retrieve", key) == expected[key]
    assert site.call("stat", "night/0")["pending_sync"] is True
    expected["early/0"] = "newer"
    assert site.call("store", "early/0", "newer")["pending_sync"] is True
    assert site.call("retrieve", "early/0") == "newer"
    for key in ("doomed/a", "doomed/b", "early/7"):
        assert site.call("delete", key) is True
        assert site.call("retrieve", key) is None
        assert site.call("exists", key) is False
        assert site.call("stat", key) is None
        expected.pop(key, None)
    # What only the bucket knows is not known: neither nothing, nor half of it.
    for task in ("retrieve", "exists", "stat"):
        assert "early/1" in str(unavailable(site.send(task, "early/1")))
    unavailable(site.send("list_keys"))
    unavailable(site.send("list_keys", "night/"))
    before = len(site.overlay())
    unavailable(site.send("store", "early/1", "x", if_absent=True))
    unavailable(site.send("store", "unknown", "x", if_absent=True))
    unavailable(site.send("store", "early/1", "x", if_generation="whatever"))
    assert len(site.overlay()) == before, "a condition that cannot be decided writes nothing"
    # What the overlay knows is decided.
    assert type(failure(site.send("store", "night/0", "x", if_absent=True))).__name__ == "PreconditionFailed"
    generation = site.call("stat", "night/1")["generation"]
    expected["night/1"] = "by generation"
    assert site.call("store", "night/1", "by generation", if_generation=generation)["pending_sync"] is True
    health = site.health()
    assert health["pending_sync"] and health["gcs_available"] is False and health["status"] == "degraded"
    answer = site.call("get_health_status")
    assert (answer["status"], answer["gcs_available"]) == ("degraded", False)
    assert answer["pending_sync"] == len(site.overlay())
    text = worker.http("/metrics")[1]
    assert f"filestorage_pending_sync_entries {len(site.overlay())}" in text
    for name in ("pending_sync_bytes", "pending_sync_oldest_age_seconds"):
        assert re.search(rf"^filestorage_{name} (?!0$|0\.0$)[0-9.]+$", text, re.M), (name, text)

    # Back: everything is sent without being asked, with the generations that were answered.
    site.proxy.up()
    all_sent(site)
    assert site.call("stat", "night/2")["backend"] == site.kind
    holds(site, expected)

    # Down in the middle of load, twice; while the first is being made good, the worker is killed.
    load = Load(site)
    load.start()
    try:
        load.until(100)
        site.proxy.down("reset")
        load.until(250)
        assert len(site.overlay()) > 5
        # Nothing of it gets through before the worker is dead.
        held = site.proxy.rule({"hold": True}, object="^load/", method=["POST", "PUT", "DELETE"])
        site.proxy.up()
        wait_until(lambda: site.proxy.applied(held) >= 3, 60, "the sync to begin")
        assert site.overlay(), "the worker is killed after the sync, not during it"
        worker.kill()
        worker = site.start()
        site.proxy.forget(held)
        load.until(100)
        site.proxy.blackhole()
        load.until(60)
        site.proxy.up()
        load.until(60)
    finally:
        load.enough.set()
        load.join(60)
    assert not load.is_alive()
    pending = 0
    for key, result in load.sent:
        answer = result.get(timeout=120)
        assert answer is True or answer["key"] == key
        pending += answer is not True and answer["pending_sync"]
    assert pending > 20, "the outages met nothing"
    all_sent(site)
    expected.update(load.last)
    holds(site, {key: value for key, value in expected.items() if value is not None})
    assert not site.aside(), "nobody else wrote, so there is no conflict"
    assert site.call("store", "after", 1)["backend"] == site.kind
    worker.assert_alive()


def test_entries_are_sent_oldest_first(bucket_site):
    site = bucket_site
    site.proxy.down()
    site.start()
    keys = [f"{n * 7919 % 1000:03}" for n in range(60)]
    for key in keys:
        site.call("store", key, key)
    site.proxy.forget_log()
    site.proxy.up()
    all_sent(site)
    uploads = [entry["object"] for entry in site.proxy.log(method="POST") if entry["status"] == 200]
    assert sorted(uploads) == sorted(keys), "each is sent once"
    # Bounded in parallel: an entry overtakes others only by as much as are under way together.
    for at, key in enumerate(uploads):
        assert abs(at - keys.index(key)) <= 16, (at, keys.index(key))


def test_a_worker_killed_often_during_the_sync_loses_nothing(bucket_site):
    site = bucket_site
    site.proxy.down()
    site.start()
    wanted = {f"k/{n}": value_of(n) for n in range(80)}
    for result in [site.send("store", key, value) for key, value in wanted.items()]:
        result.get(timeout=60)
    # Of each worker nine uploads get through.
    held = site.proxy.rule({"hold": True}, method="POST", nth=10)
    site.proxy.up()
    for _ in range(4):
        wait_until(lambda held=held: site.proxy.applied(held), 60, "the sync to go on")
        assert site.overlay(), "the worker is killed after the sync, not during it"
        site.workers[-1].kill()
        site.proxy.forget(held)
        held = site.proxy.rule({"hold": True}, method="POST", nth=10)
        site.start()
    site.proxy.forget(held)
    all_sent(site)
    holds(site, wanted)


def test_a_newer_write_during_the_upload_wins(bucket_site):
    site = bucket_site
    site.proxy.down()
    site.start()
    site.call("store", "k", "older")
    held = site.proxy.rule({"hold": True}, method="POST", object="^k$", times=1)
    site.proxy.up()
    wait_until(lambda: site.proxy.applied(held), 60, "the upload to begin")
    receipt = site.call("store", "k", "newer")
    assert site.call("retrieve", "k") == "newer"
    site.proxy.forget(held)
    all_sent(site)
    assert site.server.read(site.bucket, "k") == b"newer"
    assert site.call("stat", "k")["generation"] == receipt["generation"]
    assert not site.aside()


def test_a_delete_during_the_upload_wins(bucket_site):
    site = bucket_site
    site.proxy.down()
    site.start()
    site.call("store", "k", "older")
    held = site.proxy.rule({"hold": True}, method="POST", object="^k$", times=1)
    site.proxy.up()
    wait_until(lambda: site.proxy.applied(held), 60, "the upload to begin")
    assert site.call("delete", "k") is True
    assert site.call("retrieve", "k") is None
    site.proxy.forget(held)
    all_sent(site)
    assert site.server.stat(site.bucket, "k") is None
    assert site.call("exists", "k") is False


def test_a_worker_killed_before_its_answer_has_written_once(away):
    """The bucket has the object, nobody was told: the command comes again and finds its own."""
    site = away
    site.start()
    site.call("store", "k", "before")
    upload = {"method": ["POST", "PUT"], "object": "^k$"}
    site.proxy.rule({"stall": 60, "after": 0}, **upload)
    result = site.send("store", "k", "after")
    wait_until(lambda: site.server.read(site.bucket, "k") == b"after", what="the write")
    written = site.server.stat(site.bucket, "k")
    site.workers[-1].kill()
    site.proxy.forget()
    site.proxy.forget_log()
    site.start()
    receipt = result.get(timeout=60)
    assert (receipt["backend"], receipt["pending_sync"]) == (site.kind, False)
    assert site.call("retrieve", "k") == "after"
    assert site.call("stat", "k")["generation"] == receipt["generation"]
    assert not [entry for entry in site.proxy.log(object="k") if entry["method"] in upload["method"]], "written again"
    unchanged = site.server.stat(site.bucket, "k")
    assert unchanged == written or unchanged["LastModified"] == written["LastModified"]


def payload(path):
    """The value in a local file: what follows its first line."""
    return path.read_bytes().partition(b"\n")[2]


def test_a_foreign_change_during_the_outage_loses_neither(away):
    site = away
    worker = site.start()
    site.call("store", "both", "from before")
    site.call("store", "ours alone", "from before")
    site.proxy.down()
    site.call("store", "both", "ours")
    site.call("store", "new to both", "ours")
    site.call("store", "ours alone", "ours")
    # The clock of SeaweedFS has whole seconds.
    time.sleep(2.1)
    site.server.write(site.bucket, "both", b"theirs", "text/plain")
    site.server.write(site.bucket, "new to both", b"theirs", "text/plain")
    site.proxy.up()
    all_sent(site)
    assert site.server.read(site.bucket, "ours alone") == b"ours"
    for key in ("both", "new to both"):
        kept = {site.server.read(site.bucket, key)} | {payload(path) for path in site.aside() if payload(path) == b"ours"}
        assert kept == {b"ours", b"theirs"}, key
        # Later by the bucket's own clock: theirs stands.
        assert site.call("retrieve", key) == "theirs"
    assert len(site.aside()) == 2
    assert site.call("list_keys") == ["both", "new to both", "ours alone"]
    assert site.names() == ["both", "new to both", "ours alone"]
    assert re.search(r'^filestorage_\w+_total\{[^}]*="conflict"[^}]*\} 2$', worker.http("/metrics")[1], re.M)
    warned = [line for line in worker.log_lines() if line.get("level") == "WARN" and line.get("key") in ("both", "new to both")]
    assert {line["key"] for line in warned} == {"both", "new to both"}
    said = site.run("doctor")
    assert "both" in (said.stdout + said.stderr).decode() and "new to both" in (said.stdout + said.stderr).decode()


def test_a_foreign_change_before_ours_is_overwritten(bucket_site):
    """Whoever is later wins; that is what a store without a condition means."""
    site = bucket_site
    site.start()
    site.call("store", "k", "from before")
    site.proxy.down()
    site.server.write(site.bucket, "k", b"theirs", "text/plain")
    site.call("store", "k", "ours")
    site.proxy.up()
    all_sent(site)
    assert site.server.read(site.bucket, "k") == b"ours"
    assert not site.aside()


def test_a_foreign_change_just_before_an_upload_is_kept(bucket_site):
    """The sync replaces exactly the generation that it has looked at."""
    site = bucket_site
    site.start()
    site.call("store", "k", "from before")
    site.proxy.down()
    site.call("store", "k", "ours")
    held = site.proxy.rule({"hold": True}, method="POST", object="^k$", times=1)
    site.proxy.up()
    wait_until(lambda: site.proxy.applied(held), 60, "the upload to begin")
    site.server.write(site.bucket, "k", b"theirs", "text/plain")
    site.proxy.forget(held)
    all_sent(site)
    assert {site.server.read(site.bucket, "k")} | {payload(path) for path in site.aside()} == {b"ours", b"theirs"}


OTHER = "other"


def add_queue(site):
    """Lets everybody use the other queue as well."""
    site.broker.import_definitions(site.broker.definitions(site.vhost, "--queue", QUEUE, "--queue", OTHER))


def second_worker(site, storage, name="second", **env):
    """Another worker on another queue."""
    env = site.env(**{"LOCAL_STORAGE_PATH": storage, **env})
    log = site.folder / f"worker-{len(site.workers)}.log"
    site.workers.append(Worker(env, log, ("-n", f"{name}@%h", "-Q", OTHER)))
    return site.workers[-1].wait_ready()


def wait_looked(site, *queues):
    """Waits until the worker of each queue has found out that the bucket is back."""

    def looked():
        try:
            return all(site.call("exists", "nobody", _queue=queue) is False for queue in queues)
        except Exception as error:
            if type(error).__name__ != "StorageUnavailable":
                raise
            return False

    wait_until(looked, 60, "both workers to reach the bucket", step=0.2)


def test_workers_on_one_overlay_read_each_others_writes(away):
    site = away
    add_queue(site)
    site.proxy.down()
    site.start()
    second_worker(site, site.storage)
    wanted = {}
    for n in range(30):
        key, queues = f"k/{n}", (QUEUE, OTHER) if n % 2 else (OTHER, QUEUE)
        wanted[key] = value_of(n)
        assert site.call("store", key, wanted[key], _queue=queues[0])["pending_sync"] is True
        assert site.call("retrieve", key, _queue=queues[1]) == wanted[key]
    assert site.call("delete", "k/0", _queue=OTHER) is True
    assert site.call("exists", "k/0", _queue=QUEUE) is False
    del wanted["k/0"]
    site.proxy.forget_log()
    site.proxy.up()
    all_sent(site)
    wait_looked(site, QUEUE, OTHER)
    holds(site, wanted)
    assert not site.aside()
    # The one who is killed leaves the other its entries.
    site.proxy.down()
    for n in range(30, 50):
        wanted[f"k/{n}"] = value_of(n)
        site.call("store", f"k/{n}", wanted[f"k/{n}"], _queue=OTHER)
    site.workers[1].kill()
    site.proxy.up()
    wait_until(lambda: not site.overlay(), 90, "an empty overlay", step=0.1)
    wait_looked(site, QUEUE)
    holds(site, wanted)


def test_two_workers_with_overlays_of_their_own_both_hand_back(bucket_site):
    site = bucket_site
    add_queue(site)
    site.proxy.down()
    site.start()
    other = site.folder / "other-storage"
    second_worker(site, other)
    wanted = {}
    for n in range(20):
        wanted[f"k/{n}"] = value_of(n)
        site.call("store", f"k/{n}", wanted[f"k/{n}"], _queue=(QUEUE, OTHER)[n % 2])
    # The one does not know what waits at the other, and says so.
    unavailable(site.send("retrieve", "k/1"))
    unavailable(site.send("retrieve", "k/0", _queue=OTHER))
    site.proxy.up()
    wait_until(lambda: site.names() == sorted(wanted), 90, "everything in the bucket", step=0.1)
    holds(site, wanted)
    all_sent(site)


def test_naming_a_bucket_uploads_nothing_of_a_local_store(bucket_site):
    site = bucket_site
    worker = site.start(STORAGE_BACKEND="local")
    assert site.call("store", "mine", "stays here")["backend"] == "local"
    assert worker.stop() == 0
    site.start()
    assert site.call("retrieve", "mine") is None
    assert site.call("list_keys") == []
    assert site.call("sync") == 0
    assert site.names() == []


def test_an_overlay_of_another_bucket_is_kept_and_reported(bucket_site):
    site = bucket_site
    site.proxy.down()
    worker = site.start()
    site.call("store", "k", "for the first bucket")
    assert worker.stop() == 0
    site.proxy.up()
    other = site.server.bucket()
    site.start(GCS_BUCKET_NAME=other)
    assert site.call("retrieve", "k") is None
    site.call("store", "x", 1)
    said = site.run("doctor", GCS_BUCKET_NAME=other)
    assert "overlay" in (said.stdout + said.stderr).decode()
    site.workers[-1].stop()
    assert len(site.overlay()) == 1 and site.server.names(other) == ["x"]
    site.start()
    all_sent(site)
    holds(site, {"k": "for the first bucket"})
