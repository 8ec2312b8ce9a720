"""What finished commands owe to queues that take nothing is parked in the broker: no command keeps its place for it."""

import json
import subprocess

import pytest
from celery.exceptions import NotRegistered

from harness import BINARY, DEAD, QUEUE, TIMEOUT, Site, failure, wait_until

PARKED = "filestorage.parked"
STEPS = [f"{PARKED}.{wait}" for wait in (5_000, 30_000, 300_000)]
FULL = "callbacks-of-the-full"
# Something is parked after 5 s, and comes back after 5 and then 30 s.
PATIENCE = 120


def full_queue(site, name=FULL, length=0, **arguments):
    site.raw.declare(name, arguments={"x-max-length": length, "x-overflow": "reject-publish", **arguments})
    return name


def make_room(site, name=FULL):
    """Lets a full queue take everything, as a reader does."""
    site.raw.channel.queue_delete(name)
    site.raw.declare(name)


def metric(worker, name, **labels):
    """The value of one series."""
    wanted = name + ("{" + ",".join(f'{label}="{value}"' for label, value in labels.items()) + "}" if labels else "")
    for line in worker.http("/metrics")[1].splitlines():
        series, _, value = line.rpartition(" ")
        if series == wanted:
            return float(value)
    raise AssertionError(f"no series {wanted}")


def component(worker, name):
    return json.loads(worker.http("/readyz")[1])["components"].get(name, {})


def parked(site):
    """Publications that wait, over all queues of parked ones."""
    queues = site.queues()
    return sum(sum(queues.get(name, (0, 0))) for name in (PARKED, *STEPS))


def is_free(site):
    return site.queues()[QUEUE] == (0, 0)


def send_with_callback(site, key, queue=FULL, **options):
    """A store whose callback goes to that queue; the result."""
    callback = site.sig("exists", immutable=True).clone(args=(key,)).set(queue=queue, **options)
    return site.send("store", key, 1, _link=callback)


def children(results):
    """The ids of the callbacks, as the answers name them."""
    return [[child.id for child in result.children] for result in results]


def drain(site, queue, count):
    """Takes callbacks until so many different ones have come; returns their ids as they came."""
    found = []

    def more():
        found.extend(message.headers["id"] for message in site.raw.drain(queue))
        return len(set(found)) >= count

    wait_until(more, PATIENCE, lambda: f"{len(set(found))} of {count} callbacks; {site.queues()}", 0.5)
    return found


@pytest.mark.parametrize("count", [32, 200])
def test_callbacks_to_a_full_queue_all_arrive_once(site, count):
    worker = site.start("-c", "4", "--prefetch-multiplier", "8")
    full_queue(site)
    results = [send_with_callback(site, f"k/{n}") for n in range(count)]
    for n in range(20):
        assert site.send("store", f"other/{n}", n).get(timeout=TIMEOUT)["key"] == f"other/{n}"
    assert all(result.get(timeout=PATIENCE)["key"] == f"k/{n}" for n, result in enumerate(results))
    wait_until(lambda: is_free(site), PATIENCE, site.queues, 0.3)
    assert metric(worker, "filestorage_parked_publications_total", outcome="parked") >= count
    wait_until(lambda: metric(worker, "filestorage_commands_held") == 0, what="the count of held commands")
    assert component(worker, "delivery").get("reason") is None and worker.ready()
    make_room(site)
    ids = drain(site, FULL, count)
    assert len(ids) == count and sorted([id] for id in ids) == sorted(children(results))
    wait_until(lambda: parked(site) == 0, PATIENCE, site.queues, 0.3)
    assert metric(worker, "filestorage_parked_publications_total", outcome="delivered") == count
    assert site.raw.drain(FULL) == []


@pytest.mark.full_rights("a user of `definitions` may not read the queues of the waits")
def test_doctor_lists_what_is_parked_and_leaves_it(site):
    worker = site.start()
    full_queue(site)
    result = send_with_callback(site, "k")
    result.get(timeout=PATIENCE)
    wait_until(lambda: parked(site) == 1, PATIENCE, site.queues, 0.3)
    assert worker.stop() == 0

    def listed():
        done = subprocess.run(
            [str(BINARY), "doctor", "--json"], env=site.env(), cwd=site.folder, capture_output=True, timeout=60, check=False
        )
        return [line["text"] for line in json.loads(done.stdout)["checks"] if line["check"] == "parked"]

    for _ in range(2):
        count, note = listed()
        assert "1 publications are parked" in count
        assert note.startswith(f"follow-up of task {result.id} for '{FULL}', parked since 2")
    assert parked(site) == 1


def test_known_to_be_full_a_queue_costs_others_nothing(site):
    worker = site.start("-c", "4", "--prefetch-multiplier", "8")
    full_queue(site)
    first = send_with_callback(site, "first")
    wait_until(lambda: metric(worker, "filestorage_parked_publications_total", outcome="parked") == 1, what="the first")
    results = [first]
    for n in range(50):
        results += [send_with_callback(site, f"k/{n}/{m}") for m in range(8)]
        assert site.call("exists", f"other/{n}") is False
    wait_until(lambda: is_free(site), PATIENCE, site.queues, 0.3)


def test_a_killed_worker_leaves_what_is_parked_to_the_next(site):
    worker = site.start("-c", "4", "--prefetch-multiplier", "8")
    full_queue(site)
    results = [send_with_callback(site, f"k/{n}") for n in range(64)]
    wait_until(lambda: metric(worker, "filestorage_parked_publications_total", outcome="parked") > 0, what="parking")
    worker.kill()
    site.start("-c", "4", "--prefetch-multiplier", "8", name="other")
    assert all(result.get(timeout=PATIENCE)["key"] == f"k/{n}" for n, result in enumerate(results))
    wait_until(lambda: is_free(site), PATIENCE, site.queues, 0.3)
    make_room(site)
    ids = drain(site, FULL, 64)
    assert sorted(set(ids)) == sorted(child for [child] in children(results)), "twice is under one id"


def test_a_queue_that_is_made_later_gets_its_callback(site):
    worker = site.start()
    result = send_with_callback(site, "k", queue="made-later")
    assert result.get(timeout=PATIENCE)["key"] == "k"
    wait_until(lambda: is_free(site), PATIENCE, site.queues, 0.3)
    assert metric(worker, "filestorage_parked_publications_total", outcome="parked") == 1
    site.raw.declare("made-later")
    assert [[id] for id in drain(site, "made-later", 1)] == children([result])


def test_a_callback_to_a_silent_queue_is_parked_and_arrives(site):
    """A quorum queue whose process stands still neither takes nor refuses."""
    worker = site.start()
    site.raw.declare("silent", arguments={"x-queue-type": "quorum"})
    queue = f'rabbit_misc:r(<<"{site.vhost}">>, queue, <<"silent">>)'
    process = f"element(1, amqqueue:get_pid(element(2, rabbit_amqqueue:lookup({queue}))))"
    site.broker.ctl("eval", f"sys:suspend({process}).")
    try:
        result = send_with_callback(site, "k", queue="silent")
        assert result.get(timeout=PATIENCE)["key"] == "k"
        wait_until(lambda: is_free(site), PATIENCE, site.queues, 0.5)
        assert metric(worker, "filestorage_parked_publications_total", outcome="parked") == 1
    finally:
        site.broker.ctl("eval", f"sys:resume({process}).")
    assert [[id] for id in set(drain(site, "silent", 1))] == children([result])


def test_a_dead_copy_and_its_command_part(site):
    """With the dead queue full, the failure is answered, and the copy arrives once there is room."""
    worker = site.start()
    site.raw.channel.queue_delete(DEAD)
    full_queue(site, DEAD)
    result = site.app.send_task("nobody.knows.it")
    assert isinstance(failure(result), NotRegistered)
    wait_until(lambda: is_free(site), PATIENCE, site.queues, 0.3)
    make_room(site, DEAD)
    copy = site.raw.get(DEAD, PATIENCE)
    assert copy.headers["task"] == "nobody.knows.it" and copy.headers["x-filestorage-dead-reason"] == "not-registered"
    assert not [name for name in copy.headers if "parked" in name]
    wait_until(lambda: component(worker, "dead_queue").get("reason") is None, PATIENCE, lambda: worker.http("/readyz"))


def test_what_a_queue_would_strip_comes_back(site):
    site.start()
    full_queue(site)
    callback = site.sig("exists", "k", immutable=True).set(queue=FULL, expiration=600, priority=3, headers={"mine": "stays"})
    result = site.send("store", "k", 1, _link=callback)
    result.get(timeout=PATIENCE)
    wait_until(lambda: parked(site) == 1, PATIENCE, site.queues, 0.3)
    # As it waits, it has no time to live of its own.
    make_room(site)
    message = site.raw.get(FULL, PATIENCE)
    assert [[message.headers["id"]]] == children([result])
    assert not [name for name in message.headers if name.startswith(("x-filestorage-parked", "x-death", "x-first-death"))]
    assert message.properties["priority"] == 3
    assert 0 < int(message.properties["expiration"]) <= 600_000 - 4_000


def test_after_the_longest_age_a_callback_is_kept_as_dead(site):
    worker = site.start(PARKED_MAX_AGE_SECONDS="1")
    full_queue(site)
    result = send_with_callback(site, "k")
    result.get(timeout=PATIENCE)
    copy = site.raw.get(DEAD, PATIENCE)
    assert copy.headers["x-filestorage-dead-reason"] == "undeliverable"
    assert copy.headers["x-filestorage-dead-routing-key"] == FULL
    assert [[copy.headers["id"]]] == children([result])
    # It is counted once the broker has confirmed the copy.
    wait_until(lambda: metric(worker, "filestorage_parked_publications_total", outcome="undeliverable") == 1, what="the count")
    wait_until(lambda: parked(site) == 0, PATIENCE, site.queues, 0.3)


def test_what_cannot_be_read_is_kept_as_dead(site):
    site.start()
    site.raw.publish("of a later version", {"x-filestorage-parked-version": 99, "mine": "stays"}, queue=PARKED)
    copy = site.raw.get(DEAD, PATIENCE)
    assert copy.raw == b"of a later version" and copy.headers["mine"] == "stays"
    assert copy.headers["x-filestorage-dead-reason"] == "undeliverable"
    assert "version 99" in copy.headers["x-filestorage-dead-exception"]


@pytest.mark.full_rights("the worker makes the queues, with its own bound")
def test_above_the_bound_commands_keep_their_slots(site):
    worker = site.start("-c", "4", "--prefetch-multiplier", "8", PARKED_MAX_BYTES=str(1 << 20))
    full_queue(site)
    text = "x" * 40_000
    results = []
    for n in range(32):
        callback = site.sig("store", f"c/{n}", text, immutable=True).set(queue=FULL)
        results.append(site.send("store", f"k/{n}", 1, _link=callback))

    def says():
        reason = component(worker, "delivery").get("reason") or ""
        return FULL in reason and "keep their slots" in reason and PARKED in reason

    wait_until(says, PATIENCE, lambda: worker.http("/readyz"), 0.2)
    assert metric(worker, "filestorage_commands_held") > 0
    make_room(site)
    ids = drain(site, FULL, 32)
    assert all(result.get(timeout=PATIENCE)["key"] == f"k/{n}" for n, result in enumerate(results))
    assert len(ids) == 32 and sorted([id] for id in ids) == sorted(children(results))
    wait_until(lambda: component(worker, "delivery").get("reason") is None, PATIENCE, lambda: worker.http("/readyz"), 0.2)


def test_without_the_right_to_park_a_slot_is_kept(site):
    for name in (PARKED, *STEPS):
        site.raw.channel.queue_delete(name)
    worker = site.start()
    wait_until(lambda: PARKED in (component(worker, "parking").get("reason") or ""), what=lambda: worker.http("/readyz"))
    assert worker.ready()
    full_queue(site)
    result = send_with_callback(site, "k")
    wait_until(lambda: FULL in (component(worker, "delivery").get("reason") or ""), PATIENCE, lambda: worker.http("/readyz"))
    assert site.call("store", "other", 1)["key"] == "other"
    assert site.queues()[QUEUE] == (0, 1)
    make_room(site)
    assert [[id] for id in drain(site, FULL, 1)] == [[child.id for child in (result.get(timeout=PATIENCE), result)[1].children]]
    wait_until(lambda: is_free(site), PATIENCE, site.queues, 0.3)


def test_a_restarted_broker_keeps_what_is_parked(broker, tmp_path):
    if not broker.can_restart:
        pytest.skip("this broker is not the tests' own")
    site = Site(broker, tmp_path)
    try:
        worker = site.start()
        full_queue(site)
        results = [send_with_callback(site, f"k/{n}") for n in range(10)]
        assert all(result.get(timeout=PATIENCE)["key"] == f"k/{n}" for n, result in enumerate(results))
        ids = children(results)
        wait_until(lambda: is_free(site), PATIENCE, site.queues, 0.3)
        site.app.close()
        broker.restart()
        site.reconnect()
        worker.wait_ready(60)
        make_room(site)
        assert sorted([id] for id in set(drain(site, FULL, 10))) == sorted(ids)
    finally:
        site.close()
