"""A thousand messages that were recorded from a real Celery, each changed at random: every one has an end, and the worker stays."""

import base64
import json
import random
import re
from pathlib import Path

import pytest

from harness import DEAD, QUEUE, wait_until

FIXTURES = Path(__file__).parents[1] / "fixtures" / "celery"
SEED = 20_261_201
TASKS, OTHERS = 1000, 300
# What stands in the place of a value: other types, sizes and ranges.
ODD = [
    None, True, 0, -1, 2**31, 2**63 - 1, 1.5, float("nan"), "", "x" * 5000, "\u0000", "é" * 100, [], [[[]]], [None, None], {}, {"a": {}},
    "2026-13-40T99:00:00", "1e400", ["a"] * 300, {"__type__": "bytes"}, {"__type__": "nobody", "__value__": 1},
]  # fmt: skip


def fixtures(*prefixes):
    files = sorted(path for prefix in prefixes for path in FIXTURES.glob(f"{prefix}*.json"))
    assert files
    return [json.loads(path.read_text()) for path in files]


def spoil_value(value, chance):
    """Replaces one value somewhere inside."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        key = chance.choice(sorted(value))
        if chance.random() < 0.2:
            return {name: member for name, member in value.items() if name != key}
        return {**value, key: spoil_value(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        place = chance.randrange(len(value))
        return [spoil_value(item, chance) if index == place else item for index, item in enumerate(value)]
    return chance.choice(ODD)


def spoil(fixture, chance):
    """Returns body, headers and properties of a message with one to three faults."""
    body = base64.b64decode(fixture["body_b64"])
    headers, properties = dict(fixture["headers"]), dict(fixture["properties"])
    for _ in range(chance.randint(1, 3)):
        what = chance.randrange(6)
        if what <= 1 and headers:
            name = chance.choice(sorted(headers))
            if chance.random() < 0.25:
                del headers[name]
            else:
                headers[name] = chance.choice([odd for odd in ODD if odd == odd])
        elif what <= 3:
            try:
                body = json.dumps(spoil_value(json.loads(body), chance)).encode()
            except ValueError:
                body = body[: len(body) // 2]
        elif what == 4:
            place = chance.randrange(len(body) + 1)
            body = body[:place] + bytes([chance.randrange(256)]) * chance.randint(1, 3) + body[place:]
        else:
            name = chance.choice(["content_type", "content_encoding", "correlation_id", "reply_to"])
            properties[name] = chance.choice(["", "application/json", "application/x-python-serialize", "binary", "latin-1", "x" * 200])
    allowed = {"content_type", "content_encoding", "correlation_id", "reply_to", "priority", "delivery_mode"}
    properties = {name: value for name, value in properties.items() if name in allowed and value is not None}
    return body, headers, properties


@pytest.mark.full_rights("a producer may not write to the exchanges of monitors and of remote control")
def test_a_thousand_spoiled_messages_have_an_end(site):
    worker = site.start()
    wait_until(lambda: site.app.control.inspect(timeout=1).ping(), 20, "remote control")
    chance = random.Random(SEED)
    recorded, others = fixtures("task_v"), fixtures("control_", "event_")
    # None of them may stop the worker by chance.
    others = [other for other in others if b"shutdown" not in base64.b64decode(other["body_b64"])]
    for number in range(TASKS):
        body, headers, properties = spoil(recorded[number % len(recorded)], chance)
        site.raw.publish(body, {**headers, "x-number": number}, **properties)
    for number in range(OTHERS):
        other = others[number % len(others)]
        body, headers, properties = spoil(other, chance)
        message = site.raw.message(body, headers, **properties)
        site.raw.channel.basic_publish(message, exchange="celery.pidbox", routing_key="")
        # Where they do not belong, too.
        site.raw.publish(body, headers, **properties)

    def counts():
        text = worker.http("/metrics")[1]
        found = re.findall(r'^filestorage_commands_total\{[^}]*outcome="(\w+)"[^}]*\} (\d+)$', text, re.M)
        return {outcome: sum(int(count) for name, count in found if name == outcome) for outcome, _ in found}

    wait_until(lambda: sum(counts().values()) >= TASKS + OTHERS, 60, counts, 0.3)
    wait_until(lambda: site.queues()[QUEUE] == (0, 0), 30, site.queues, 0.3)
    ends = counts()
    assert ends["dead_lettered"] == site.raw.count(DEAD), ends
    assert worker.log().count("worker ready") == 1 and not worker.panics()
    assert site.app.control.inspect(timeout=2).ping() and site.call("store", "k", 1)["key"] == "k"
