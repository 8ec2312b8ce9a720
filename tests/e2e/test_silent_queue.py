"""Reply queues that neither take nor refuse, as quorum queues without a leader do, hold up nobody but their own clients."""

import json
import time

import pytest

from harness import QUEUE, wait_until

REPLIES = ("replies-of-the-silent", "replies-of-the-mute")
MUTE = "callbacks-of-the-mute"
COMMANDS = 150
# Above all that the worker waits for such a queue before it goes on without it.
PATIENCE = 150


@pytest.fixture
def silent(site):
    """Quorum queues whose processes stand still: nothing they are sent is confirmed. Returns what makes them go on."""

    def process(name):
        queue = f'rabbit_misc:r(<<"{site.vhost}">>, queue, <<"{name}">>)'
        return f"element(1, amqqueue:get_pid(element(2, rabbit_amqqueue:lookup({queue}))))"

    for name in REPLIES:
        site.raw.declare(name, arguments={"x-queue-type": "quorum"})
        site.broker.ctl("eval", f"sys:suspend({process(name)}).")
    stand = list(REPLIES)

    def go_on():
        while stand:
            site.broker.ctl("eval", f"sys:resume({process(stand.pop())}).")

    yield go_on
    go_on()


def test_silent_reply_queues_hold_up_nobody_else(site, silent):
    worker = site.start()
    for n in range(COMMANDS):
        for name in REPLIES:
            site.raw.command("store", [f"{name}/{n}", n], reply_to=name)
    others = [site.send("store", f"other/{n}", n) for n in range(COMMANDS)]
    for n, other in enumerate(others):
        assert other.get(timeout=PATIENCE)["key"] == f"other/{n}"
    # Nothing stays behind: in the end answers to such queues are given up.
    wait_until(lambda: site.queues()[QUEUE] == (0, 0), PATIENCE, lambda: f"an empty queue: {site.queues()}", 0.5)
    apart = {line["routing_key"] for line in worker.log_lines() if "sent apart" in line["message"]}
    assert apart >= {*REPLIES} and worker.ready()
    # Known to be silent, they delay no answer any more.
    sessions = worker.log().count("worker ready")
    for name in REPLIES:
        site.raw.command("exists", ["other/0"], reply_to=name)
        assert [site.call("retrieve", f"{name}/{n}") for n in range(COMMANDS)] == list(range(COMMANDS))
    assert worker.log().count("worker ready") == sessions

    silent()
    for name in REPLIES:
        last = site.raw.command("exists", ["other/0"], reply_to=name)
        answers = {}

        def answered():
            for message in site.raw.drain(name):
                answers.setdefault(message.json["task_id"], set()).add(json.dumps(message.json["result"], sort_keys=True))
            return last in answers

        wait_until(answered, PATIENCE, lambda: f"the last of {len(answers)} answers")
        # Others may have been given up, but none was answered in two ways.
        assert [different for different in answers.values() if len(different) > 1] == []


def test_a_silent_callback_queue_delays_nobody(site):
    """While others are confirmed, it is the queue that is silent and not the broker."""
    site.raw.declare(MUTE, arguments={"x-queue-type": "quorum"})
    queue = f'rabbit_misc:r(<<"{site.vhost}">>, queue, <<"{MUTE}">>)'
    process = f"element(1, amqqueue:get_pid(element(2, rabbit_amqqueue:lookup({queue}))))"
    site.broker.ctl("eval", f"sys:suspend({process}).")
    try:
        worker = site.start("-c", "4", "--prefetch-multiplier", "8")
        callback = site.sig("exists", "k", immutable=True).set(queue=MUTE)
        called = [site.send("store", f"k/{n}", n, _link=callback) for n in range(32)]
        longest, began = 0, time.monotonic()
        while time.monotonic() - began < 25:
            asked = time.monotonic()
            assert site.call("exists", "nothing") is False
            longest = max(longest, time.monotonic() - asked)
            time.sleep(0.02)
        # A second, and what a busy machine adds.
        assert longest < 3, f"{longest} s\n{worker.log()}"
        assert all(result.get(timeout=PATIENCE)["key"] == f"k/{n}" for n, result in enumerate(called))
        assert worker.log().count("worker ready") == 1, worker.log()
    finally:
        site.broker.ctl("eval", f"sys:resume({process}).")
    expected, found = {child.id for result in called for child in result.children}, set()

    def all_called():
        found.update(message.headers["id"] for message in site.raw.drain(MUTE))
        return found >= expected

    wait_until(all_called, PATIENCE, lambda: f"{len(found)} of {len(expected)} callbacks", 0.5)
