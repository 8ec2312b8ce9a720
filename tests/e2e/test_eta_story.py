"""2,000 commands with a countdown live through a killed worker and a restarted broker: each runs once, each is answered.

The broker stops while none of them moves from one queue to another. RabbitMQ moves dead letters of classic queues without
confirmations: one that moves in the moment of the stop may be lost, or be there twice.
"""

import json
import time
from collections import Counter, defaultdict
from datetime import datetime, timedelta, timezone

import pytest

from harness import QUEUE, wait_until

COMMANDS = 2000
# Seconds after which they come due, one half and the other. The first queue of the second half lets go after 25.6 s.
FIRST, SECOND = range(6, 16), range(28, 40)
IN_FLIGHT = 64 * 8  # what the broker hands out at once, by default


def lost(site, keys):
    """Says which commands have no answer, and whether they ran."""
    answered = {message.json["task_id"] for message in site.raw.drain("answers")}
    held = {name: counts for name, counts in site.queues().items() if any(counts)}
    return {key: f"{id} stored: {site.call('exists', key)}" for id, key in keys.items() if id not in answered} | held


def test_two_thousand_countdowns_outlive_a_kill_and_a_restart(site, capsys):
    if not site.broker.can_restart:
        pytest.skip("this broker may not be restarted")
    worker = site.start()
    site.raw.declare("answers")
    answered = lambda: site.raw.count("answers")
    keys, due = {}, {}
    for number in range(COMMANDS):
        # In bursts, so that some run whenever it is that the worker is killed.
        half = FIRST if number < COMMANDS // 2 else SECOND
        countdown = half[number % len(half)]
        at = datetime.now(timezone.utc) + timedelta(seconds=countdown)
        id = site.send("store", f"eta/{number}", number, _countdown=countdown, _reply_to="answers").id
        keys[id], due[f"eta/{number}"] = f"eta/{number}", at
    began = time.monotonic()
    wait_until(lambda: answered() > COMMANDS // 6, 60, lambda: f"a sixth of the answers: {answered()}")
    worker.kill()
    at_kill = answered()
    # Commands come due while nobody consumes.
    time.sleep(3)
    worker = site.start()
    wait_until(lambda: answered() >= COMMANDS // 2, 60, lambda: f"half of the answers: {answered()}")
    at_restart = answered()
    site.broker.restart()
    site.reconnect()
    worker.wait_ready(60)
    settled = lambda: answered() >= COMMANDS and site.queues()[QUEUE] == (0, 0)
    wait_until(settled, 60, lambda: lost(site, keys), 0.5)
    took = time.monotonic() - began
    # One more that comes twice would come now.
    time.sleep(2)
    answers = defaultdict(list)
    for message in site.raw.drain("answers"):
        assert message.json["status"] == "SUCCESS", message.json
        answers[message.json["task_id"]].append(message.json)
    assert answers.keys() == keys.keys()
    doubled = {id: told for id, told in answers.items() if len(told) > 1}
    # The second is the first again, with the same receipt: its command did not run again.
    differ = [told for told in doubled.values() if any(one["result"] != told[0]["result"] for one in told)]
    assert not differ, json.dumps(differ)
    assert all(len(told) <= 3 for told in doubled.values()) and len(doubled) <= 2 * IN_FLIGHT
    receipts = {told[0]["result"]["key"]: told[0]["result"] for told in answers.values()}
    assert {id: told[0]["result"]["key"] for id, told in answers.items()} == keys
    early = [key for key, receipt in receipts.items() if datetime.fromisoformat(receipt["stored_at"]) < due[key] - timedelta(milliseconds=5)]
    assert not early, early
    # What is stored is what the one run of each wrote.
    reply = site.raw.reply_queue()
    for key in receipts:
        site.raw.command("stat", [key], reply_to=reply)
    wait_until(lambda: site.raw.count(reply) == COMMANDS, 60, lambda: f"{site.raw.count(reply)} receipts", 0.2)
    for message in site.raw.drain(reply):
        stored = message.json["result"]
        assert (stored["generation"], stored["stored_at"]) == tuple(receipts[stored["key"]][name] for name in ("generation", "stored_at"))
    left = {name: ready for name, (ready, _) in site.queues().items() if ready and name.startswith("filestorage") and "metrics" not in name}
    assert not left, left
    with capsys.disabled():
        times = Counter(len(told) for told in answers.values())
        print(f"\n  {COMMANDS} countdowns of {FIRST[0]} to {SECOND[-1]} s: killed after {at_kill} answers, broker restarted after {at_restart}, all answered")
        print(f"  {took:.0f} s after the last was sent; answered once {times[1]}, twice under the same id {times[2]}, run twice 0, early 0")
