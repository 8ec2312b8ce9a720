"""What follows a command: callbacks, errbacks, chains, and what may be asked of a command's time."""

import time
from datetime import datetime, timedelta, timezone

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery import chain, group

from harness import DEAD, QUEUE, TIMEOUT, failure, wait_until
from test_remote import python_worker


def pointers(site, key, value):
    """Three keys, each the name of the next; the last holds the value."""
    for name, data in [(key + "/1", key + "/2"), (key + "/2", key + "/3"), (key + "/3", value)]:
        site.call("store", name, data)


@pytest.mark.parametrize("value", ["text", b"bytes \xff", {"a": [1, b"x"]}, None, 2**70], ids=repr)
def test_a_chain_hands_each_result_on(shared, key, value):
    pointers(shared, key, value)
    steps = chain(shared.sig("retrieve", key + "/1"), shared.sig("retrieve"), shared.sig("retrieve"))
    result = steps.apply_async()
    assert result.get(timeout=TIMEOUT) == value
    assert result.parent.get(timeout=TIMEOUT) == key + "/3"
    assert result.parent.parent.get(timeout=TIMEOUT) == key + "/2"


def test_a_result_is_the_first_argument_even_bytes(shared, key):
    shared.call("store", key + "/name", key + "/target")
    steps = chain(
        shared.sig("retrieve", key + "/name"),
        shared.sig("store", b"written by \xff the chain", {"step": 2}, if_absent=True),
    )
    assert steps.apply_async().get(timeout=TIMEOUT)["key"] == key + "/target"
    assert shared.call("retrieve", key + "/target") == b"written by \xff the chain"
    assert shared.call("stat", key + "/target")["metadata"] == {"step": 2}


def test_an_immutable_step_keeps_its_own_arguments(shared, key):
    steps = chain(
        shared.sig("store", key, "first"),
        shared.sig("store", key, "second", immutable=True),
        shared.sig("retrieve", key, immutable=True),
    )
    assert steps.apply_async().get(timeout=TIMEOUT) == "second"


def test_a_failing_chain_fails_at_its_last_step(shared, key):
    steps = chain(
        shared.sig("retrieve", "../bad"),
        shared.sig("store", "never", immutable=True),
        shared.sig("store", key, "never", immutable=True),
    )
    result = steps.apply_async()
    assert type(failure(result)) is ValueError
    assert type(failure(result.parent)) is ValueError
    assert shared.call("exists", key) is False


def test_a_later_step_may_fail_too(shared, key):
    shared.call("store", key, "../bad")
    result = chain(shared.sig("retrieve", key), shared.sig("retrieve"), shared.sig("stat")).apply_async()
    assert type(failure(result)) is ValueError
    assert result.parent.parent.get(timeout=TIMEOUT) == "../bad"


def test_a_callback_runs_with_the_result(shared, key):
    shared.call("store", key, key + "/called")
    result = shared.send("retrieve", key, _link=shared.sig("store", "by the callback"))
    assert result.get(timeout=TIMEOUT) == key + "/called"
    wait_until(lambda: shared.call("retrieve", key + "/called") == "by the callback", what="the callback")


def test_two_callbacks_both_run(shared, key):
    shared.call("store", key, "x")
    links = [shared.sig("store", f"{key}/{n}", n, immutable=True) for n in (1, 2)]
    shared.send("retrieve", key, _link=links).get(timeout=TIMEOUT)
    for n in (1, 2):
        wait_until(lambda n=n: shared.call("retrieve", f"{key}/{n}") == n, what=f"callback {n}")


def test_a_callback_of_a_failed_command_does_not_run(shared, key):
    result = shared.send("retrieve", "../bad", _link=shared.sig("store", key, "never", immutable=True))
    assert type(failure(result)) is ValueError
    assert shared.call("exists", key) is False


def test_an_errback_for_another_worker_is_sent_to_its_queue(shared):
    shared.raw.declare("errbacks")
    errback = shared.app.signature("errors.handle", args=("extra",), queue="errbacks")
    result = shared.send("retrieve", "../bad", _link_error=errback)
    assert type(failure(result)) is ValueError
    message = shared.raw.get("errbacks")
    assert message.headers["task"] == "errors.handle"
    assert message.headers["parent_id"] == result.id
    assert message.json[0] == [result.id, "extra"]
    assert message.properties["content_type"] == "application/json"
    shared.send("exists", "fine", _link_error=errback).get(timeout=TIMEOUT)
    assert shared.raw.drain("errbacks") == []


def test_a_step_of_another_worker_is_sent_to_its_queue(shared, key):
    shared.raw.declare("elsewhere")
    shared.call("store", key, b"\xff value")
    step = shared.app.signature("images.resize", args=(100,), kwargs={"keep": True}, queue="elsewhere", priority=3)
    last = shared.app.signature("images.publish", queue="elsewhere")
    result = chain(shared.sig("retrieve", key), step, last).apply_async()
    assert result.parent.parent.get(timeout=TIMEOUT) == b"\xff value"
    message = shared.raw.get("elsewhere")
    assert message.headers["task"] == "images.resize"
    assert message.headers["id"] == message.properties["correlation_id"] == result.parent.id
    assert message.headers["parent_id"] == message.headers["root_id"] == result.parent.parent.id
    assert message.properties["priority"] == 3
    args, kwargs, embed = message.json
    assert args == [{"__type__": "base64", "__value__": "/yB2YWx1ZQ=="}, 100]
    assert kwargs == {"keep": True}
    assert [later["task"] for later in embed["chain"]] == ["images.publish"]


def test_members_of_a_group_are_commands_like_any_other(shared, key):
    members = group(shared.sig("store", f"{key}/{n}", n) for n in range(10))
    receipts = members.apply_async().get(timeout=TIMEOUT)
    assert [receipt["key"] for receipt in receipts] == [f"{key}/{n}" for n in range(10)]


def test_a_group_behind_a_command_gets_its_result(shared, key):
    shared.call("store", key, key + "/x")
    # Members have no order, so that another one looks for what is there already.
    shared.call("store", key + "/x", 0)
    steps = chain(shared.sig("retrieve", key), group(shared.sig("store", 1), shared.sig("exists"), shared.sig("stat", immutable=True, key=key)))
    stored, exists, stat = steps.apply_async().get(timeout=TIMEOUT)
    assert stored["key"] == key + "/x" and stat["key"] == key
    assert exists is True
    shared.send("retrieve", key, _link=group(shared.sig("store", "by a link", if_absent=False))).get(timeout=TIMEOUT)
    wait_until(lambda: shared.call("retrieve", key + "/x") == "by a link", what="the group in a link")


def signature(task, kind=None, **kwargs):
    return {"task": task, "args": [], "kwargs": kwargs, "options": {}, "subtask_type": kind, "immutable": False}


PLAIN = signature("filestorage.exists")
CHORD = signature("celery.chord", "chord", header=[PLAIN], body=PLAIN, kwargs={})
GROUP = signature("celery.group", "group", tasks=[PLAIN, CHORD])


@pytest.mark.parametrize(
    "embed",
    [{"chain": [CHORD]}, {"callbacks": [CHORD]}, {"chain": [GROUP]}, {"chord": PLAIN}],
    ids=["chord in a chain", "chord as callback", "chord in a group", "member of a chord"],
)
def test_a_chord_inside_is_refused_and_kept(shared, key, embed):
    reply = shared.raw.reply_queue()
    task_id = shared.raw.command("exists", [key], reply_to=reply, embed=embed)
    answer = shared.raw.get(reply).json
    assert (answer["status"], answer["task_id"]) == ("FAILURE", task_id)
    assert (answer["result"]["exc_type"], answer["result"]["exc_module"]) == ("NotImplementedError", "builtins")
    dead = shared.raw.get(DEAD)
    assert dead.headers["id"] == task_id
    assert dead.json[2] == embed


def test_an_ignored_result_is_not_sent(shared, key):
    reply = shared.raw.reply_queue()
    shared.raw.command("store", [key, 1], reply_to=reply, headers={"ignore_result": True})
    shared.raw.command("store", ["../bad", 1], reply_to=reply, headers={"ignore_result": True})
    asked = shared.raw.command("retrieve", [key], reply_to=reply)
    answer = shared.raw.get(reply).json
    assert (answer["task_id"], answer["result"]) == (asked, 1)
    assert shared.raw.drain(reply) == []


def test_a_caller_that_is_gone_hurts_nobody(shared, key):
    shared.raw.command("store", [key, 1], reply_to="queue-of-nobody")
    wait_until(lambda: shared.call("retrieve", key) == 1, what="the store")


@pytest.mark.parametrize("protocol", [1, 2])
def test_an_expired_command_is_revoked_not_run(shared, key, protocol):
    past = (datetime.now(timezone.utc) - timedelta(minutes=1)).isoformat()
    reply = shared.raw.reply_queue()
    # Without the property `expiration`, which would make the broker drop it first.
    if protocol == 2:
        task_id = shared.raw.command("store", [key, 1], reply_to=reply, headers={"expires": past})
    else:
        task_id = f"v1-{key}"
        body = f'{{"task": "filestorage.store", "id": "{task_id}", "args": ["{key}", 1], "expires": "{past}"}}'
        shared.raw.publish(body, content_type="application/json", content_encoding="utf-8", reply_to=reply)
    answer = shared.raw.get(reply).json
    assert (answer["status"], answer["task_id"]) == ("REVOKED", task_id)
    assert answer["result"]["exc_type"] == "TaskRevokedError"
    assert answer["result"]["exc_message"] == ["expired"]
    assert shared.call("exists", key) is False


def test_a_command_that_expires_while_parked_is_revoked_not_run(shared, key):
    now = datetime.now(timezone.utc)
    reply = shared.raw.reply_queue()
    times = {"eta": (now + timedelta(seconds=2)).isoformat(), "expires": (now + timedelta(seconds=1)).isoformat()}
    task_id = shared.raw.command("store", [key, 1], reply_to=reply, headers=times)
    answer = shared.raw.get(reply).json
    assert (answer["status"], answer["task_id"]) == ("REVOKED", task_id)
    assert shared.call("exists", key) is False


def test_a_command_that_expires_later_runs(shared, key):
    assert shared.send("store", key, 1, _expires=60).get(timeout=TIMEOUT)["key"] == key


@pytest.mark.parametrize("option", ["countdown", "eta"])
def test_a_command_with_an_eta_waits_in_the_broker(shared, key, option):
    due = datetime.now(timezone.utc) + timedelta(seconds=3)
    result = shared.send("store", key, 1, **({"_countdown": 3} if option == "countdown" else {"_eta": due}))
    wait_until(lambda: shared.queues()[QUEUE] == (0, 0), 2.5, "the command to be parked", step=0.1)
    receipt = result.get(timeout=TIMEOUT)
    assert datetime.fromisoformat(receipt["stored_at"]) >= due - timedelta(milliseconds=5)


def test_many_parked_commands_do_not_stop_the_queue(shared, key):
    parked = [shared.send("store", f"{key}/{n}", n, _countdown=4) for n in range(1_000)]
    assert shared.call("store", key, "at once")["key"] == key
    assert shared.call("exists", f"{key}/999") is False
    assert {result.get(timeout=2 * TIMEOUT)["key"] for result in parked} == {f"{key}/{n}" for n in range(1_000)}


def test_a_time_in_the_past_is_now(shared, key):
    past = datetime.now(timezone.utc) - timedelta(days=1)
    assert shared.send("store", key, 1, _eta=past).get(timeout=TIMEOUT)["key"] == key


def test_a_parked_command_outlives_worker_and_broker(site, key):
    if not site.broker.can_restart:
        pytest.skip("this broker may not be restarted")
    worker = site.start()
    sent = time.monotonic()
    result = site.send("store", key, "parked", _countdown=8)
    wait_until(lambda: site.queues().get(QUEUE) == (0, 0), what="the command to be parked", step=0.1)
    worker.kill()
    site.broker.restart()
    site.start()
    assert result.get(timeout=2 * TIMEOUT)["key"] == key
    assert time.monotonic() - sent >= 8
    site.reconnect()
    assert site.call("retrieve", key) == "parked"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"_time_limit": 0.5}, TimeLimitExceeded),
        ({"_soft_time_limit": 0.5}, SoftTimeLimitExceeded),
        ({"_time_limit": 30, "_soft_time_limit": 0.5}, SoftTimeLimitExceeded),
    ],
    ids=["hard", "soft", "soft before hard"],
)
def test_a_time_limit_ends_the_command_and_nothing_of_it_stays(shared, key, options, error):
    with shared.held_writes(key):
        raised = failure(shared.send("store", key, "too slow", **options))
        assert type(raised) is error
        if error is TimeLimitExceeded:
            assert raised.args == (0.5,)
    # The lock is free now; a write that was given up must not complete late.
    assert shared.call("exists", key) is False
    assert shared.call("store", key, "in time")["key"] == key
    assert shared.call("retrieve", key) == "in time"


def test_time_limits_that_are_not_reached_change_nothing(shared, key):
    assert shared.send("store", key, 1, _time_limit=30, _soft_time_limit=20).get(timeout=TIMEOUT)["key"] == key


@pytest.mark.full_rights("a Python worker declares its queues itself")
def test_chains_go_from_python_to_this_worker_and_back(site):
    site.start()
    app = site.client(task_routes={"filestorage.*": {"queue": QUEUE}, "peer.*": {"queue": "peer"}})
    with python_worker(site):
        for number in range(200):
            site.send("store", f"pointer/{number}", f"value/{number}", _ignore_result=True)
        step = lambda task, *args, **options: app.signature(task, args=args, queue="peer" if task.startswith("peer") else QUEUE, **options)
        # Each step takes the result of the one before: a name, what it points to, the same again, and what that holds.
        steps = [
            chain(step("peer.echo", f"pointer/{number}"), step("filestorage.retrieve"), step("peer.echo"), step("filestorage.store", number))
            for number in range(200)
        ]
        results = [whole.apply_async() for whole in steps]
        assert [result.get(timeout=2 * TIMEOUT)["key"] for result in results] == [f"value/{number}" for number in range(200)]
        assert all(result.parent.get(timeout=TIMEOUT) == f"value/{number}" for number, result in enumerate(results))
        # A failure in the middle reaches who waits for the end, whichever worker failed.
        for first, expected in [("../bad", ValueError), ("missing", TypeError)]:
            failing = chain(step("peer.echo", first), step("filestorage.retrieve"), step("peer.echo"), step("filestorage.store", 1))
            assert type(failure(failing.apply_async())) is expected
        mixed = chain(step("filestorage.exists", "x"), step("peer.fail", immutable=True), step("filestorage.exists", "y", immutable=True))
        assert type(failure(mixed.apply_async())) is ValueError
    app.close()
    assert sorted(site.call("list_keys", prefix="value/", limit=1000)) == sorted(f"value/{number}" for number in range(200))
