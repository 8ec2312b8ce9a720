"""A quorum queue of commands that is there but gives no consumer, as one without a majority does, holds up no other."""

import json

import pytest

from harness import QUEUE, running_undisturbed, wait_until

SECOND = f"{QUEUE}.second"
THIRD = f"{QUEUE}.third"
# Above the longest time between two trials, and what the broker needs to give back what was asked of the queue meanwhile.
PATIENCE = 150
pytestmark = pytest.mark.full_rights("the users of `definitions` have one queue of commands")

# What stalls a queue, what makes it whole again, and what the worker is told.
STALLS = {
    "it says nothing": ("sys:suspend(Server)", "sys:resume(Server)", "no answer within 10 s"),
    "it says 541": ("ra:stop_server(quorum_queues, Server)", "ra:restart_server(quorum_queues, Server)", "541 INTERNAL_ERROR"),
}


@pytest.fixture
def stall(site):
    """Stalls a quorum queue in one of these ways; returns what makes it whole again."""
    stalled = {}

    def do(name, what):
        queue = f'rabbit_misc:r(<<"{site.vhost}">>, queue, <<"{name}">>)'
        found = f"{{ok, Queue}} = rabbit_amqqueue:lookup({queue}), Server = amqqueue:get_pid(Queue)"
        site.broker.ctl("eval", f"{found}, ok = {what}.")

    def whole(*names):
        for name in names or list(stalled):
            do(name, stalled.pop(name))

    def stall(name, how):
        do(name, STALLS[how][0])
        stalled[name] = STALLS[how][1]
        return whole

    yield stall
    whole()


def fill(site, count):
    """Makes the second queue, with so many commands in it; returns their ids and where they are answered."""
    site.raw.declare(SECOND, arguments={"x-queue-type": "quorum"})
    answers = site.raw.reply_queue()
    return {site.raw.command("store", [f"second/{n}", n], reply_to=answers, queue=SECOND) for n in range(count)}, answers


def wait_answers(site, ids, queue):
    """Waits until each of these commands is answered, and none twice."""
    answered = []

    def all_of_them():
        answered.extend((message.json["task_id"], message.json["status"]) for message in site.raw.drain(queue))
        return len(answered) >= len(ids)

    wait_until(all_of_them, PATIENCE, lambda: f"{len(ids)} answers: {answered}", 0.2)
    assert sorted(answered) == sorted((id, "SUCCESS") for id in ids)


def reason(worker, component):
    return json.loads(worker.http("/readyz")[1])["components"][component].get("reason") or ""


@pytest.mark.parametrize("how", STALLS)
def test_a_queue_that_gives_no_consumer_delays_no_other(site, stall, how):
    ids, answers = fill(site, 20)
    whole = stall(SECOND, how)
    worker = site.spawn(queues=f"{SECOND},{QUEUE}", LOG_LEVEL="debug").wait_ready(60)
    assert site.call("store", "k", 1)["key"] == "k"
    for word in (f"queue '{SECOND}' is down", STALLS[how][2], "majority"):
        assert word in reason(worker, "queues")
    assert [SECOND in line["reason"] for line in worker.log_lines() if "not all queues" in line["message"]] == [True]
    if "541" in STALLS[how][2]:
        wait_until(lambda: "trying a queue" in worker.log(), PATIENCE, "a trial")
    # Trials cost nobody else their session.
    assert site.call("retrieve", "k") == 1 and worker.log().count("worker ready") == 1

    whole()
    wait_answers(site, ids, answers)
    wait_until(lambda: reason(worker, "queues") == "", PATIENCE, lambda: worker.http("/readyz")[1])
    # It is consumed in the session that serves the others.
    assert site.call("retrieve", "second/0") == 0 and worker.log().count("worker ready") == 1


def test_a_stalled_queue_that_is_back_ends_nothing_that_runs(site, stall):
    ids, answers = fill(site, 3)
    whole = stall(SECOND, "it says 541")
    worker = site.spawn(queues=f"{SECOND},{QUEUE}", LOG_LEVEL="debug").wait_ready(60)
    wait_until(lambda: f"queue '{SECOND}' is down" in reason(worker, "queues"), PATIENCE, lambda: worker.http("/readyz")[1])
    with running_undisturbed(site, worker):
        whole()
        wait_answers(site, ids, answers)
        wait_until(lambda: reason(worker, "queues") == "", PATIENCE, lambda: worker.http("/readyz")[1])
        assert site.call("retrieve", "second/0") == 0


def test_of_stalled_queues_the_first_to_be_back_is_served(site, stall):
    ids, answers = fill(site, 3)
    site.raw.declare(THIRD, arguments={"x-queue-type": "quorum"})
    stall(THIRD, "it says 541")
    whole = stall(SECOND, "it says 541")
    worker = site.spawn(queues=f"{THIRD},{SECOND}")

    def tried():
        faults = [line["reason"] for line in worker.log_lines() if "no session with the broker" in line["message"]]
        return all(sum(f"'{name}': the broker" in fault for fault in faults) > 1 for name in (SECOND, THIRD))

    wait_until(tried, PATIENCE, worker.log)
    assert not worker.ready() and "majority" in reason(worker, "broker")
    whole(SECOND)
    wait_answers(site, ids, answers)
    assert worker.ready() and f"queue '{THIRD}' is down" in reason(worker, "queues")
    whole()
    wait_until(lambda: reason(worker, "queues") == "", PATIENCE, lambda: worker.http("/readyz")[1])
