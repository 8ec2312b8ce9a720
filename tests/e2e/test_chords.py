"""Chords over a Redis: members, bodies and failures, by our workers, by Python workers, and by both together."""

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone

import pytest
from celery import chord
from celery.exceptions import ChordError

from harness import QUEUE, TIMEOUT, wait_until
from redis_server import RedisSite

PEER = """
import json, sys
from celery import Celery
app = Celery("peer", broker=sys.argv[1], backend=sys.argv[2])
app.conf.update(task_default_queue=sys.argv[4], worker_enable_remote_control=False, worker_hijack_root_logger=False,
                result_backend_transport_options=json.loads(sys.argv[3]))

@app.task(name="peer.echo")
def echo(value):
    return value

@app.task(name="peer.total")
def total(values):
    return {"all": values}

@app.task(name="peer.fail")
def fail(*args):
    raise KeyError("peer")

@app.task(name="filestorage.retrieve")
def retrieve(key):
    return "value of " + key

app.worker_main(["worker", "-P", "solo", "-l", "warning", "-n", "peer@%h", "--without-gossip", "--without-mingle",
                 "--without-heartbeat"])
"""


@contextmanager
def peer_worker(site, queue="peer"):
    """Runs a Python worker on a queue of its own, or on ours."""
    script = site.folder / "peer.py"
    script.write_text(PEER)
    command = [sys.executable, str(script), site.broker.url(site.vhost), site.server.url, json.dumps(site.options), queue]
    with open(site.folder / "peer.log", "ab") as log:
        worker = subprocess.Popen(command, stdout=log, stderr=log, cwd=site.folder)
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()


@pytest.fixture(scope="module")
def shared(broker, server, tmp_path_factory):
    """A site with one of our workers and a Python worker, on queues of their own."""
    site = RedisSite(broker, tmp_path_factory.mktemp("shared"), server, full_rights=True)
    try:
        with peer_worker(site):
            worker = site.start()
            yield site
            worker.assert_alive()
    finally:
        site.close()


def peer(site, task, *args):
    return site.app.signature(f"peer.{task}", args=args, queue="peer")


def ours(site, task, *args, **options):
    return site.app.signature(f"filestorage.{task}", args=args, queue=QUEUE, **options)


def pointers(site, key, count):
    """Keys whose values are the names of other keys, whose values are numbers."""
    for n in range(count):
        site.call("store", f"{key}/{n}", n)
        site.call("store", f"{key}/p{n}", f"{key}/{n}")
    return [f"{key}/p{n}" for n in range(count)]


def left(site, result):
    """The keys of a chord that are still there but for the note that it is done."""
    group = result.parent.id
    return sorted(key.decode() for key in site.server.client.scan_iter(f"*celery-taskset-meta-{group}*") if not key.endswith(b".c"))


def test_our_members_and_our_body(shared, key):
    names = pointers(shared, key, 5)
    result = chord([ours(shared, "retrieve", name) for name in names], ours(shared, "retrieve_many")).apply_async()
    assert [entry["result"] for entry in result.get(timeout=TIMEOUT)] == [0, 1, 2, 3, 4]
    assert result.parent.get(timeout=TIMEOUT) == [f"{key}/{n}" for n in range(5)]
    wait_until(lambda: not left(shared, result), what="the keys of the chord are removed")


def test_values_of_all_kinds_reach_the_body(shared, key):
    values = ["é", b"\xff", None, 2**70, {"a": [1.5]}]
    for n, value in enumerate(values):
        shared.call("store", f"{key}/{n}", value)
    members = [ours(shared, "retrieve", f"{key}/{n}") for n in range(len(values))]
    assert chord(members, peer(shared, "total")).apply_async().get(timeout=60) == {"all": values}


def test_members_of_both_kinds_of_workers(shared, key):
    names = pointers(shared, key, 3)
    for body in [ours(shared, "retrieve_many"), peer(shared, "total")]:
        members = [ours(shared, "retrieve", names[0]), peer(shared, "echo", f"{key}/1"), ours(shared, "retrieve", names[2])]
        found = chord(members, body).apply_async().get(timeout=60)
        if body.task == "peer.total":
            assert found == {"all": [f"{key}/{n}" for n in range(3)]}
        else:
            assert [entry["result"] for entry in found] == [0, 1, 2]


def test_a_body_followed_by_others(shared, key):
    names = pointers(shared, key, 2)
    members = [ours(shared, "retrieve", name) for name in names]
    result = (chord(members, peer(shared, "total")) | peer(shared, "echo")).apply_async()
    assert result.get(timeout=60) == {"all": [f"{key}/0", f"{key}/1"]}
    result = (chord(members, ours(shared, "retrieve_many")) | peer(shared, "echo")).apply_async()
    assert [entry["ok"] for entry in result.get(timeout=60)] == [True, True]


def test_a_member_that_ignores_its_result_counts(shared, key):
    names = pointers(shared, key, 2)
    members = [ours(shared, "retrieve", name, options={"ignore_result": True}) for name in names]
    assert chord(members, peer(shared, "total")).apply_async().get(timeout=60) == {"all": [f"{key}/0", f"{key}/1"]}


def told(site, failing, errors):
    """The error of a chord with a failing member, and what its errback was told."""
    body = peer(site, "total").set(queue="nobody").on_error(site.app.signature("errback", queue=errors))
    result = chord([ours(site, "exists", "x"), failing], body).apply_async()
    wait_until(result.ready, 60, "the body fails")
    message = site.raw.get(errors)
    assert type(result.result) is ChordError
    return str(result.result), json.loads(message.body)[0], result.id


def test_a_failing_member_fails_the_body_as_in_python(shared):
    for queue in ["nobody", "errors-1", "errors-2", "errors-3"]:
        shared.raw.declare(queue)
    for failing, text, errors in [
        (ours(shared, "retrieve", "../bad"), "raised ValueError(", "errors-1"),
        (ours(shared, "verify", "not there"), "raised FileNotFoundError(2, 'No such file or directory')", "errors-2"),
        (peer(shared, "fail"), "raised KeyError('peer')", "errors-3"),
    ]:
        error, args, body = told(shared, failing, errors)
        assert error.startswith("Dependency ") and text in error, error
        assert args == [body], "the errback is told whose failure it is"
    assert shared.raw.count("nobody") == 0, "no body runs"


def doomed(site, task, count, name, **options):
    """A chord of members of ours that never begin, with its body, and the ids of those members."""
    ids = [f"{name}-{n}" for n in range(count)]
    value = "x" * (200 << 10)
    members = [ours(site, task, f"{name}/{n}", value).set(task_id=task_id, **options) for n, task_id in enumerate(ids)]
    return ids, chord([ours(site, "exists", "x"), *members], peer(site, "total").set(queue="nobody"))


def past():
    return datetime.now(timezone.utc) - timedelta(seconds=1)


def fails_as_chord(site, result, text):
    wait_until(result.ready, 60, "the body fails")
    assert type(result.result) is ChordError and text in str(result.result), result.result
    wait_until(lambda: site.queues()[QUEUE] == (0, 0), 60, "all is acknowledged")
    assert site.raw.count("nobody") == 0, "no body runs"


@pytest.mark.parametrize("count", [1, 50])
def test_large_members_that_expire_fail_the_body(shared, key, count):
    shared.raw.declare("nobody")
    ids, workflow = doomed(shared, "store", count, key, expires=past())
    result = workflow.apply_async()
    fails_as_chord(shared, result, "raised TaskRevokedError('expired')")
    assert {shared.app.AsyncResult(task_id).state for task_id in ids} == {"REVOKED"}
    # As a Python worker says it, and as we say it of a small one.
    for member in [peer(shared, "echo", 1), ours(shared, "exists", "x")]:
        result = chord([ours(shared, "exists", "x"), member.set(expires=past())], peer(shared, "total").set(queue="nobody")).apply_async()
        fails_as_chord(shared, result, "raised TaskRevokedError('expired')")


@pytest.mark.parametrize("count", [1, 50])
def test_large_members_that_are_revoked_fail_the_body(shared, key, count):
    shared.raw.declare("nobody")
    ids, workflow = doomed(shared, "store", count, key)
    shared.app.control.revoke(ids, reply=True)
    fails_as_chord(shared, workflow.apply_async(), "raised TaskRevokedError('revoked')")
    assert {shared.app.AsyncResult(task_id).state for task_id in ids} == {"REVOKED"}
    assert not any(shared.call("exists", f"{key}/{n}") for n in range(count)), "none ran"


def test_a_large_member_that_no_worker_knows_fails_the_body(shared, key):
    shared.raw.declare("nobody")
    body = peer(shared, "total").set(queue="nobody")
    result = chord([ours(shared, "exists", "x"), ours(shared, "unheard", "x" * (200 << 10))], body).apply_async()
    fails_as_chord(shared, result, "raised NotRegistered('filestorage.unheard')")


@pytest.mark.full_rights("the application asks the workers for their replies")
def test_large_members_revoked_while_they_wait_fail_the_body(own, key):
    """They were received: the worker finds them revoked when their turn comes."""
    own.start(CELERY_WORKER_CONCURRENCY="1")
    own.raw.declare("nobody")
    with own.held_writes(f"{key}/held"):
        held = own.send("store", f"{key}/held", 1)
        ids, workflow = doomed(own, "store", 5, key)
        result = workflow.apply_async()
        wait_until(lambda: own.queues()[QUEUE][0] == 0 and own.queues()[QUEUE][1] >= 6, what="they were received")
        own.app.control.revoke(ids, reply=True)
    held.get(timeout=TIMEOUT)
    fails_as_chord(own, result, "raised TaskRevokedError('revoked')")


@pytest.mark.parametrize(
    "options",
    [{"global_keyprefix": "app1"}, {"result_chord_ordered": False}, {"global_keyprefix": "app2:", "result_chord_ordered": False}],
    ids=["prefix", "unordered", "both"],
)
def test_options_mean_what_they_mean_to_a_python_worker(broker, server, tmp_path, key, options):
    site = RedisSite(broker, tmp_path, server, full_rights=True, options=options)
    try:
        with peer_worker(site):
            site.start()
            names = pointers(site, key, 6)
            for first, second in [(ours, peer), (peer, ours)]:
                members = [
                    (first if n % 2 else second)(site, "retrieve" if (first if n % 2 else second) is ours else "echo", names[n])
                    for n in range(6)
                ]
                result = chord(members, peer(site, "total")).apply_async()
                found = result.get(timeout=60)["all"]
                of_peer = {n for n in range(6) if (first if n % 2 else second) is peer}
                expected = [names[n] if n in of_peer else f"{key}/{n}" for n in range(6)]
                assert (found if options.get("result_chord_ordered", True) else sorted(found)) == (
                    expected if options.get("result_chord_ordered", True) else sorted(expected)
                )
                wait_until(lambda: not left(site, result), what="the keys of the chord are removed")
                prefix = {"app1": "app1_"}.get(options.get("global_keyprefix"), options.get("global_keyprefix", ""))
                assert server.client.exists(f"{prefix}celery-task-meta-{result.id}")
                assert server.client.exists(f"{prefix}celery-taskset-meta-{result.parent.id}.c")
            site.raw.declare("errors")
            error, _, _ = told(site, ours(site, "retrieve", "../bad"), "errors")
            assert "raised ValueError(" in error
    finally:
        site.close()


def test_a_chain_within_a_header(shared, key):
    from celery import chain

    names = pointers(shared, key, 2)
    members = [chain(ours(shared, "retrieve", names[0]), ours(shared, "retrieve")), ours(shared, "retrieve", names[1])]
    assert chord(members, peer(shared, "total")).apply_async().get(timeout=60) == {"all": [0, f"{key}/1"]}


def test_a_group_within_a_header(shared, key):
    from celery import group

    names = pointers(shared, key, 3)
    nested = [group(ours(shared, "retrieve", names[0]), ours(shared, "retrieve", names[1])), ours(shared, "retrieve", names[2])]
    found = chord(nested, peer(shared, "total")).apply_async().get(timeout=60)["all"]
    assert sorted(found) == [f"{key}/{n}" for n in range(3)]


def test_a_group_is_a_body(shared, key):
    from celery import group

    names = pointers(shared, key, 2)
    body = group(peer(shared, "echo"), ours(shared, "retrieve_many"))
    found = chord([ours(shared, "retrieve", name) for name in names], body).apply_async().get(timeout=60)
    assert found[0] == [f"{key}/0", f"{key}/1"] and [entry["result"] for entry in found[1]] == [0, 1]


def test_a_group_between_two_steps(shared, key):
    from celery import chain, group

    pointers(shared, key, 1)
    first, members = ours(shared, "retrieve", f"{key}/p0"), group(ours(shared, "retrieve"), peer(shared, "echo"))
    result = chain(first, members, peer(shared, "total"), peer(shared, "echo")).apply_async()
    assert result.get(timeout=60) == {"all": [0, f"{key}/0"]}
    result = chain(first, members).apply_async()
    assert result.get(timeout=60) == [0, f"{key}/0"]


def test_chords_one_after_another(shared, key):
    from celery import chain, group

    names = pointers(shared, key, 2)
    result = chain(
        group(ours(shared, "retrieve", name) for name in names),
        group(ours(shared, "retrieve_many"), peer(shared, "echo")),
        peer(shared, "total"),
    ).apply_async()
    found = result.get(timeout=60)["all"]
    assert [entry["result"] for entry in found[0]] == [0, 1] and found[1] == [f"{key}/0", f"{key}/1"]


def test_a_chord_in_a_link(own, key):
    own.start()
    own.raw.declare("bodies")
    own.call("store", key, "value")
    linked = chord([ours(own, "exists"), ours(own, "exists", "other", immutable=True)], own.app.signature("body", queue="bodies"))
    first = ours(own, "retrieve", key)
    first.link(linked)
    result = first.apply_async()
    assert result.get(timeout=TIMEOUT) == "value"
    assert json.loads(own.raw.get("bodies").body)[0] == [[False, False]]
    assert [[member.id for member in child.results] for child in result.children] and len(result.children[0].results) == 2


def test_two_hundred_members_have_one_body(own, key):
    for name in ["a", "b"]:
        own.spawn(name=name, METRICS_PORT="0")
    for worker in own.workers:
        worker.wait_ready()
    own.raw.declare("bodies")
    body = own.app.signature("nobody.runs.this", queue="bodies")
    chord([ours(own, "store", f"{key}/{n}", n) for n in range(200)], body).apply_async()
    message = own.raw.get("bodies", 60)
    results = json.loads(message.body)[0][0]
    assert [receipt["key"] for receipt in results] == [f"{key}/{n}" for n in range(200)]
    wait_until(lambda: own.queues()[QUEUE] == (0, 0), 60, "all is acknowledged")
    assert own.raw.count("bodies") == 0, "one body"


def member(own, key, task_id, index, group, queue="bodies"):
    body = {"task": "nobody.runs.this", "args": [], "kwargs": {}, "options": {"task_id": f"body-{group}", "queue": queue},
            "subtask_type": None, "immutable": False}
    own.raw.command(
        "filestorage.exists", [key], task_id=task_id, headers={"group": group, "group_index": index}, embed={"chord": body}
    )


def test_a_member_that_comes_twice_counts_once(own, key):
    own.start()
    own.raw.declare("bodies")
    own.server.client.set("celery-taskset-meta-g.s", 2)
    for _ in range(3):
        member(own, key, "one", 0, "g")
    wait_until(lambda: own.queues()[QUEUE] == (0, 0), what="all is acknowledged")
    assert own.raw.count("bodies") == 0
    member(own, key, "two", 1, "g")
    assert json.loads(own.raw.get("bodies").body)[0] == [[False, False]]
    member(own, key, "two", 1, "g")
    wait_until(lambda: own.queues()[QUEUE] == (0, 0), what="all is acknowledged")
    assert own.raw.count("bodies") == 0, "a late member starts nothing again"


def test_the_claim_of_a_dead_worker_is_taken_over(own, key):
    own.start()
    own.raw.declare("bodies")
    own.server.client.set("celery-taskset-meta-g.s", 1)
    own.server.client.set("celery-taskset-meta-g.c", "somebody else", ex=8)
    begun = time.monotonic()
    member(own, key, "one", 0, "g")
    assert json.loads(own.raw.get("bodies", 60).body)[0] == [[False]]
    assert time.monotonic() - begun > 5, "a worker that lives has its time"


def test_a_body_waits_for_its_queue(own, key):
    own.start()
    own.server.client.set("celery-taskset-meta-g.s", 1)
    member(own, key, "one", 0, "g", queue="later")
    time.sleep(1)
    assert own.call("exists", key) is False, "other commands go on"
    own.raw.declare("later")
    assert json.loads(own.raw.get("later", 60).body)[0] == [[False]]


@pytest.mark.parametrize("victim", ["worker", "redis"])
def test_a_kill_amid_a_chord(own, key, victim):
    worker = own.spawn(name="same")
    worker.wait_ready()
    own.raw.declare("bodies")
    body = own.app.signature("nobody.runs.this", queue="bodies")
    chord([ours(own, "store", f"{key}/{n}", n) for n in range(150)], body).apply_async()
    wait_until(lambda: len(own.object_files()) > 20, what="some members are done")
    if victim == "worker":
        worker.kill()
        own.spawn(name="same").wait_ready()
    else:
        own.server.kill()
        time.sleep(2)
        own.server.start()
    results = json.loads(own.raw.get("bodies", 90).body)[0][0]
    assert [receipt["key"] for receipt in results] == [f"{key}/{n}" for n in range(150)]
    wait_until(lambda: own.queues()[QUEUE] == (0, 0), 90, "all is acknowledged")


@pytest.mark.full_rights("the Python worker declares what it likes")
def test_a_hundred_chords_while_one_of_three_workers_is_killed(own, key):
    """Two of our workers and a Python worker take from the same queue. Each chord sends its body with the right results; one that is
    sent again has the same id and the same results."""
    names = [f"{key}/{n}" for n in range(20)]
    victim = own.start(name="a")
    for name in names:
        own.call("store", name, f"value of {name}")
    own.spawn(name="b", METRICS_PORT="0").wait_ready()
    own.raw.declare("bodies")
    with peer_worker(own, QUEUE):
        consumers = lambda: own.raw.channel.queue_declare(QUEUE, passive=True).consumer_count  # noqa: E731
        wait_until(lambda: consumers() == 3, 60, "all three workers take from the queue")
        body, chords = own.app.signature("nobody.runs.this", queue="bodies"), []
        is_killed = False
        for n in range(100):
            chords.append(chord([ours(own, "retrieve", name) for name in names], body).apply_async())
            if n >= 40 and not is_killed and own.queues()[QUEUE][1] > 0:
                victim.kill()
                is_killed = True
        assert is_killed, "members were under way"
        bodies = []
        deadline = time.monotonic() + 90
        while len({message.headers["id"] for message in bodies}) < 100 and time.monotonic() < deadline:
            bodies.append(own.raw.get("bodies", 60))
        wait_until(lambda: own.queues()[QUEUE] == (0, 0), 60, "all is acknowledged")
        bodies += [own.raw.get("bodies") for _ in range(own.raw.count("bodies"))]
    assert {message.headers["id"] for message in bodies} == {result.id for result in chords}
    assert all(json.loads(message.body)[0] == [[f"value of {name}" for name in names]] for message in bodies)
    print(f"{len(bodies)} bodies of 100 chords with 20 members")
    # Only the body of a chord whose last member the victim had may be sent again.
    assert len(bodies) <= 105
    assert not [left(own, result) for result in chords if left(own, result)]
