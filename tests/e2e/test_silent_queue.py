"""A reply queue that neither takes nor refuses, as a quorum queue without a leader does, holds up nobody but its own client."""

import json

import pytest

from harness import QUEUE, wait_until

REPLIES = "replies-of-the-silent"
COMMANDS = 150
# Above all that the worker waits for such a queue before it goes on without it.
PATIENCE = 150


@pytest.fixture
def silent(site):
    """A quorum queue whose process stands still: nothing it is sent is confirmed. Returns what makes it go on."""
    site.raw.declare(REPLIES, arguments={"x-queue-type": "quorum"})
    process = (
        f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{site.vhost}">>, queue, <<"{REPLIES}">>)),'
        " {Name, _} = amqqueue:get_pid(Q)"
    )
    site.broker.ctl("eval", f"{process}, sys:suspend(Name).")
    stands = [True]

    def go_on():
        if stands.pop():
            site.broker.ctl("eval", f"{process}, sys:resume(Name).")

    yield go_on
    if stands:
        go_on()


def test_a_silent_reply_queue_holds_up_nobody_else(site, silent):
    worker = site.start()
    ids = [site.raw.command("store", [f"silent/{n}", n], reply_to=REPLIES) for n in range(COMMANDS)]
    others = [site.send("store", f"other/{n}", n) for n in range(COMMANDS)]
    for n, other in enumerate(others):
        assert other.get(timeout=PATIENCE)["key"] == f"other/{n}"
    # Nothing stays behind: in the end answers to such a queue are given up.
    wait_until(lambda: site.queues()[QUEUE] == (0, 0), PATIENCE, lambda: f"an empty queue: {site.queues()}", 0.5)
    assert [site.call("retrieve", f"silent/{n}") for n in range(COMMANDS)] == list(range(COMMANDS))
    assert worker.ready() and any(line.get("routing_key") == REPLIES for line in worker.log_lines())

    silent()
    last = site.raw.command("exists", ["silent/0"], reply_to=REPLIES)
    answers = {}

    def answered():
        for message in site.raw.drain(REPLIES):
            answers.setdefault(message.json["task_id"], set()).add(json.dumps(message.json["result"], sort_keys=True))
        return last in answers

    wait_until(answered, PATIENCE, lambda: f"the last of {len(answers)} answers")
    # Others may have been given up.
    assert answers.keys() <= {*ids, last}
    assert [different for different in answers.values() if len(different) > 1] == []
