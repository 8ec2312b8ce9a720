"""The caches of several workers on one bucket: what one of them changes, the others do not answer any more."""

import json
import re

import pytest

from buckets import BucketSite
from harness import wait_until

ROUNDS = 1000
EXCHANGE = "filestorage.invalidations"
QUEUES = ["w0", "w1", "w2"]
# What the definitions gave a worker before there were caches.
OLD_RIGHTS = ("^$", r"^(amq\.default|filestorage\.events|filestorage\.delay\.[0-9]+)$", "^(w0|w1|w2)$")


class Trio(BucketSite):
    """Three workers on one bucket, each with a folder, a queue and a cache of its own."""

    def __init__(self, *given, **settings):
        super().__init__(*given, **settings)
        if self.url != self.broker.url(self.vhost):
            self.broker.import_definitions(self.broker.definitions(self.vhost, *(part for name in QUEUES for part in ("--queue", name))))

    def start_all(self, count=3, **env):
        for number in range(count):
            self.spawn_one(number, **env)
        for worker in self.workers:
            worker.wait_ready()
        self.wait_cached(count)

    def spawn_one(self, number, folder=None, **env):
        folder = self.folder / (folder or f"storage-{number}")
        return self.spawn(name=f"w{number}", queues=QUEUES[number], LOCAL_STORAGE_PATH=folder, **env)

    def wait_cached(self, count=3):
        """Waits until the caches are on, and have nothing to catch up with."""
        for number in range(count):
            wait_until(lambda number=number: self.stats(number)["cache_enabled"], 60, f"the cache of worker {number}")

    def at(self, number, task, *args, **kwargs):
        return self.call(task, *args, _queue=QUEUES[number], **kwargs)

    def stats(self, number):
        return self.at(number, "get_stats")

    def change_behind(self, key, text):
        """Changes an object as another tool does, of which no worker is told."""
        self.server.write(self.bucket, key, text.encode(), "text/plain")

    def fill(self, key, *numbers):
        """Has workers keep the value `cached`, while the bucket has `behind`."""

        def kept():
            self.change_behind(key, "cached")
            self.at(numbers[0], "clear_cache")
            # The first message of a sibling that was not heard before empties a cache once more.
            wait_until(lambda: all(self.at(number, "retrieve", key) == "cached" for number in numbers), what="a value to keep")
            self.change_behind(key, "behind")
            return all(self.at(number, "retrieve", key) == "cached" for number in numbers)

        wait_until(kept, what=f"a cached value at the workers {numbers}")


@pytest.fixture(params=["gcs", "s3"])
def trio(request, broker, tmp_path):
    rights = request.node.get_closest_marker("full_rights") is not None
    site = Trio(broker, tmp_path, request.getfixturevalue(request.param), full_rights=rights)
    yield site
    site.close()


def test_a_sibling_answers_the_new_value(trio):
    """Writes and reads by turns; with the TTL alone, only the time that a message takes remains."""
    trio.start_all()
    old = 0
    before = sum(trio.stats(number)["metrics"]["cache_hits"] for number in range(3))
    for number in range(ROUNDS):
        trio.at(number % 3, "store", "k", number)
        # It was told before the store was answered, and may be busy.
        if trio.at((number + 1) % 3, "retrieve", "k") != number:
            old += 1
            wait_until(lambda number=number: trio.at((number + 1) % 3, "retrieve", "k") == number, what="the new value")
        if number % 10 == 0:
            assert trio.at((number + 1) % 3, "retrieve", "k") == number
    hits = sum(trio.stats(number)["metrics"]["cache_hits"] for number in range(3)) - before
    assert hits >= ROUNDS // 20, "the caches kept values"
    print(f"{trio.kind}: {old} old values of {ROUNDS} with the TTL alone")
    # A worker that is not told answers old values until the TTL ends, and fails the wait above.
    assert old <= ROUNDS // 10


def test_no_old_value_when_every_hit_is_compared(trio):
    trio.start_all(CACHE_REVALIDATE_SECONDS=0)
    old = []
    for number in range(ROUNDS):
        trio.at(number % 3, "store", "k", number)
        if trio.at((number + 1) % 3, "retrieve", "k") != number:
            old.append(number)
    print(f"{trio.kind}: {len(old)} old values of {ROUNDS} with cache_revalidate_seconds=0")
    assert old == []


def test_every_write_is_heard_by_a_cache_that_has_the_key(trio):
    trio.start_all()
    for task, args in {"store": ("k", "new"), "delete": ("k",)}.items():
        trio.fill("k", 1, 2)
        trio.at(0, task, *args)
        wanted = "new" if task == "store" else None
        for number in (1, 2):
            wait_until(lambda number=number: trio.at(number, "retrieve", "k") == wanted, what=f"what {task} left at worker {number}")


def test_clear_cache_empties_every_cache(trio):
    trio.start_all()
    trio.fill("k", 0, 1, 2)
    assert trio.at(0, "clear_cache") >= 1
    assert trio.at(0, "retrieve", "k") == "behind"
    for number in (1, 2):
        wait_until(lambda number=number: trio.at(number, "retrieve", "k") == "behind", what=f"an empty cache at worker {number}")


def test_a_worker_that_lost_the_broker_has_an_empty_cache(trio):
    trio.start_all(2)
    trio.fill("k", 0, 1)
    trio.broker.ctl("close_all_connections", "-p", trio.vhost, "tested")
    for worker in trio.workers:
        wait_until(lambda worker=worker: worker.log().count("worker ready") > 1, 60, worker.log)
    client = trio.client()
    for queue in QUEUES[:2]:
        assert client.send_task("filestorage.retrieve", ["k"], queue=queue).get(timeout=60) == "behind"
    client.close()


def test_a_sibling_of_a_killed_writer_hears_of_the_write(trio):
    """The value is in the bucket and nobody was told when the writer dies: whoever answers the command tells it."""
    trio.start_all(2)
    trio.fill("k", 1)
    # The upload happens, its answer is lost, and the writer hangs at its next look.
    rule = trio.proxy.rule({"swallow": True}, times=1, method=["POST", "PUT"], object="^k$")
    trio.proxy.rule({"stall": 60}, object="^k$")
    result = trio.send("store", "k", "new", _queue=QUEUES[0])
    wait_until(lambda: trio.proxy.applied(rule), what="the upload")
    wait_until(lambda: b"new" in (trio.server.read(trio.bucket, "k") or b""), what="the new value in the bucket")
    trio.workers[0].kill()
    assert trio.at(1, "retrieve", "k") == "cached", "nobody could tell it"
    trio.proxy.forget()
    trio.proxy.forget_log()
    # On a folder of its own, as on another host: what it knows is in the bucket.
    trio.spawn_one(0, folder="another").wait_ready()
    assert result.get(timeout=60)["key"] == "k"
    assert not [one for one in trio.proxy.log(object="k") if one["method"] in ("POST", "PUT")], "it was not written again"
    wait_until(lambda: trio.at(1, "retrieve", "k") == "new", what="the new value at the sibling")


def test_an_answer_from_the_journal_is_announced_again(trio):
    trio.start_all(2)
    trio.raw.declare("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    trio.raw.publish("in the way", queue="full")
    trio.raw.command("store", ["k", "new"], reply_to="full", queue=QUEUES[0])
    wait_until(lambda: "held back" in trio.workers[0].log(), what="an answer that is not taken")
    trio.workers[0].kill()
    # As if the sibling had never been told.
    trio.fill("k", 1)
    trio.raw.drain("full")
    again = trio.spawn_one(0).wait_ready()
    assert trio.raw.get("full").json["status"] == "SUCCESS"
    assert "answered again from the journal" in again.log()
    wait_until(lambda: trio.at(1, "retrieve", "k") == "behind", what="the value of the bucket at the sibling")


def test_without_the_right_to_listen_the_cache_is_off(trio):
    user = trio.broker.prefix + "worker"
    trio.broker.ctl("set_permissions", "-p", trio.vhost, user, *OLD_RIGHTS)
    worker = trio.spawn_one(0).wait_ready()
    trio.at(0, "store", "k", "cached")
    wait_until(lambda: "filestorage.invalidations" in worker.http("/readyz")[1], what="the missing right on /readyz")
    status, ready = worker.http("/readyz")
    assert status == 200 and "the cache is off" in ready and "configure permission" in ready, ready
    assert trio.stats(0)["cache_enabled"] is False
    assert trio.at(0, "retrieve", "k") == "cached"
    trio.change_behind("k", "behind")
    assert trio.at(0, "retrieve", "k") == "behind"
    assert trio.at(0, "clear_cache") == 0
    said = [line for line in worker.log_lines() if "the cache is off" in str(line)]
    assert len(said) == 1, said


@pytest.mark.full_rights("it deletes the exchange and a worker makes it again")
def test_a_deleted_exchange_is_made_again(trio):
    trio.start_all(2)
    trio.fill("k", 0, 1)
    trio.raw.channel.exchange_delete(EXCHANGE)
    trio.at(0, "store", "k", "new")
    for number in (0, 1):
        wait_until(lambda number=number: trio.at(number, "retrieve", "k") == "new", 60, f"the new value at worker {number}", step=0.5)
    wait_until(lambda: all(worker.http("/readyz")[1].count("degraded") == 0 for worker in trio.workers), 90, "all to be well", step=0.5)
    trio.wait_cached(2)
    trio.fill("k", 1)
    trio.at(0, "store", "k", "newer")
    wait_until(lambda: trio.at(1, "retrieve", "k") == "newer", what="the newer value")


def test_a_message_that_cannot_be_read_empties_the_cache(trio):
    trio.start_all(1)
    worker = trio.workers[0]
    for body in (b"\xff", b"{}", b"[" * 100_000, json.dumps({"version": 1, "worker": "x", "number": 0, "keys": ["//"]}).encode()):
        trio.fill("k", 0)
        trio.raw.channel.basic_publish(trio.raw.message(body), EXCHANGE, "")
        wait_until(lambda: trio.at(0, "retrieve", "k") == "behind", what="an empty cache")
    worker.assert_alive()
    assert len(re.findall("cannot be read, so the cache is emptied", worker.log())) == 1
