"""Malformed messages of more than 200 shapes: each has the end it should have, and the worker does not even blink."""

import json
import random
import sys
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import pytest

from harness import DEAD, QUEUE, TIMEOUT, wait_until

JSON = {"content_type": "application/json", "content_encoding": "utf-8"}


@dataclass(frozen=True)
class End:
    """What is to become of a message: the answer (an exception, `SUCCESS`, or none) and the reason of the dead copy."""

    answer: str | None
    dead: str | None

    def unanswered(self):
        return End(None, self.dead)


FINE = End("SUCCESS", None)
DECODE = End("DecodeError", "decode-error")
INVALID = End("DecodeError", "invalid-task")
NO_TASK = End("DecodeError", "not-a-task")
NO_ID = End(None, "missing-id")
DISALLOWED = End("ContentDisallowed", "content-disallowed")
UNKNOWN = End("NotRegistered", "not-registered")
CANVAS = End("NotImplementedError", "unsupported-canvas")
PYTHON_ONLY = End("ValueError", None)
BAD_KEY = End("ValueError", None)
WRONG_CALL = End("TypeError", None)


def good_headers(**more):
    return {"task": "filestorage.exists", "id": str(uuid.uuid4()), **more}


def good_body(key="k"):
    return json.dumps([[key], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])


def shapes():
    """Yields (end, body, headers, properties): every one odd in a way of its own."""
    for end, bodies in (
        (DECODE, ("", "[[], {}, {}] trailing", "[[], {}, {}", "{", "nul", '[["\\u12"], {}, {}]', "\ufeff" + good_body())),
        (
            INVALID,
            (
                "null",
                "0",
                '"text"',
                "{}",
                "[]",
                "[[]]",
                "[[], {}]",
                "[[], {}, {}, {}]",
                '["abc", {}, {}]',
                '[{"a": 1}, {}, {}]',
                "[[], [1], {}]",
                '[[], "x", {}]',
                "[[], {}, [1]]",
                '[[], {}, "x"]',
            ),
        ),
        (DECODE, ("[[" + "9" * 50_000 + "], {}, {}]",)),
        # What is empty is empty however it is written: PHP writes empty maps as lists.
        (WRONG_CALL, ("[null, {}, {}]", "[[], null, {}]", "[{}, {}, {}]", "[[], [], {}]", "[[], {}, []]")),
        (WRONG_CALL, ('[["k"], {"' + "x" * 100_000 + '": 1}, {}]',)),
        (
            PYTHON_ONLY,
            (
                '[["\\ud800"], {}, {}]',
                "[" * 100_000,
                "[" * 5_000 + "]" * 5_000,
                "[[" + '{"a":' * 5_000 + "1" + "}" * 5_000 + "], {}, {}]",
            ),
        ),
        (BAD_KEY, ('[["' + "x" * 2_000_000 + '"], {}, {}]',)),
        # These are read; what they hold is no text and so no key.
        (
            WRONG_CALL,
            (
                "[[1e999999], {}, {}]",
                "[[NaN], {}, {}]",
                '[[{"__type__": "nope", "__value__": 1}], {}, {}]',
                '[[{"__type__": "base64", "__value__": "!"}], {}, {}]',
                '[[{"__type__": "uuid", "__value__": "x"}], {}, {}]',
                '[[{"__type__": "datetime", "__value__": 5}], {}, {}]',
                '[[{"__type__": null, "__value__": null}], {}, {}]',
            ),
        ),
    ):
        for body in bodies:
            yield end, body, good_headers(), JSON
    yield DECODE, b"\x00" * 1_000, good_headers(), JSON
    yield DECODE, b"\xff\xfe" + good_body().encode("utf-16-le"), good_headers(), JSON
    dice = random.Random(1)
    yield DECODE, dice.randbytes(1_000), good_headers(), JSON
    for _ in range(40):
        broken = bytearray(good_body().encode())
        broken[dice.randrange(len(broken))] = dice.randrange(256)
        del broken[dice.randrange(len(broken)) :]
        yield DECODE, bytes(broken), good_headers(), JSON
    # what follows a command
    for end, embed in (
        (INVALID, {"callbacks": "x"}),
        (INVALID, {"callbacks": [1]}),
        (INVALID, {"callbacks": [{}]}),
        (INVALID, {"callbacks": [{"task": 5}]}),
        (INVALID, {"callbacks": [{"task": "t", "args": "x", "kwargs": [], "options": 3}]}),
        (INVALID, {"errbacks": {"task": None}}),
        (INVALID, {"errbacks": [None]}),
        (INVALID, {"chain": 5}),
        (INVALID, {"chain": [[]]}),
        (INVALID, {"chain": [{"task": "t", "options": {"reply_to": 5, "task_id": []}}]}),
        (FINE, {"chain": [{"task": "celery.chain", "subtask_type": "chain", "kwargs": {}}]}),
        (CANVAS, {"chain": [{"task": "celery.group", "subtask_type": "group", "kwargs": {"tasks": 1}}]}),
        (INVALID, {"chain": [{"task": "t", "subtask_type": {}}]}),
        (CANVAS, {"chord": "x"}),
        (CANVAS, {"chord": {"task": "celery.chord"}}),
        (INVALID, {"callbacks": [{"task": "t", "options": {"countdown": "x", "expires": {}, "priority": "high"}}]}),
    ):
        yield end, json.dumps([["k"], {}, embed]), good_headers(), JSON
    # headers
    for end, headers in (
        (NO_TASK.unanswered(), {}),
        (NO_ID, {"task": "filestorage.exists"}),
        (End("DecodeError", "not-a-task"), {"id": "x"}),
        (NO_TASK.unanswered(), {"task": None, "id": None}),
        (NO_TASK, {"task": 5, "id": "x"}),
        (NO_ID, {"task": "filestorage.exists", "id": 5}),
        (NO_TASK, {"task": ["filestorage.exists"], "id": "x"}),
        (NO_TASK.unanswered(), {"task": {"a": 1}, "id": {"a": 1}}),
        (NO_TASK.unanswered(), {"task": "", "id": ""}),
        (UNKNOWN, {"task": "x" * 60_000, "id": "x"}),
        (FINE, {"task": "filestorage.exists", "id": "x" * 255}),
        (UNKNOWN, {"task": "filestorage.exists\0", "id": "a\0b"}),
    ):
        yield end, good_body(), headers, JSON
    for name, end, values in (
        ("eta", INVALID, ("", "yesterday", 5, True, ["x"], {"a": 1}, "9999-99-99T00:00:00", "2026-01-01T00:00:00+99:99", 1.5)),
        ("expires", INVALID, ("", "soon", 5, -1.5, ["x"], {"a": 1}, "0000-00-00")),
        ("timelimit", FINE, (5, "x", [], [1], [1, 2, 3], ["a", "b"], [-1, -1], {"a": 1}, [1e308, None], [True, False])),
        ("retries", FINE, ("x", -1, 2**40, 1.5, [], {"a": 1})),
        ("root_id", FINE, (5, [], {"a": 1})),
        ("parent_id", FINE, (5, [])),
        ("group", FINE, (5, [], {"a": 1})),
        ("group_index", FINE, ("x", -1, [])),
        ("ignore_result", FINE, ("x", [], {"a": 1})),
        ("ignore_result", FINE.unanswered(), (5,)),
        ("argsrepr", FINE, (5, [], "x" * 50_000)),
        ("kwargsrepr", FINE, (5, {"a": 1})),
        ("origin", FINE, (5, [])),
        ("lang", FINE, (5, [], "cobol")),
        ("shadow", FINE, (5, [], {"a": 1})),
        ("stamped_headers", FINE, (5, "x", {"a": 1}, [1, None])),
        ("stamps", FINE, (5, "x", [1])),
        ("replaced_task_nesting", FINE, ("x", -1, [])),
        (
            "compression",
            DECODE,
            ("nope", "application/x-gzip", "application/x-bz2", "application/x-lzma", "application/zstd", 5, []),
        ),
        ("metrics_reply_to", FINE, (5, [], "x" * 300, "no-such-queue", "")),
        ("x-death", FINE, (5, "x", [1], [{"count": "x"}], {"a": 1})),
        ("when", FINE, (datetime.now(timezone.utc),)),
    ):
        for value in values:
            yield end, good_body(), good_headers(**{name: value}), JSON
    yield FINE, good_body(), good_headers(**{f"h{n}": "x" * 100 for n in range(1_000)}), JSON
    deep = {"a": 1}
    for _ in range(100):
        deep = {"a": deep}
    yield FINE, good_body(), good_headers(deep=deep), JSON
    # properties
    for end, properties in (
        (DISALLOWED, {}),
        (FINE, {"content_type": "application/json"}),
        (DISALLOWED, {"content_type": ""}),
        (DISALLOWED, {"content_type": "application/json; charset=utf-8", "content_encoding": "utf-8"}),
        (DISALLOWED, {"content_type": "application/nope", "content_encoding": "utf-8"}),
        (DISALLOWED, {"content_type": "application/x-python-serialize", "content_encoding": "binary"}),
        (DISALLOWED, {"content_type": "application/data", "content_encoding": "binary"}),
        (FINE, {"content_type": "application/json", "content_encoding": "ebcdic"}),
        (DECODE, {"content_type": "application/json", "content_encoding": "utf-16"}),
        (DISALLOWED, {"content_type": "x" * 200, "content_encoding": "y" * 200}),
        (FINE.unanswered(), {**JSON, "reply_to": "no-such-queue"}),
        (FINE.unanswered(), {**JSON, "reply_to": "amq.rabbitmq.reply-to.nope"}),
        (FINE.unanswered(), {**JSON, "reply_to": "x" * 255}),
        (FINE.unanswered(), {**JSON, "reply_to": "é\n"}),
        (FINE, {**JSON, "correlation_id": "x" * 255}),
        (FINE, {**JSON, "priority": 255}),
        (FINE, {**JSON, "type": "x" * 255, "app_id": "y" * 255}),
        (FINE, {**JSON, "timestamp": 2**62}),
    ):
        yield end, good_body(), good_headers(), properties
    # protocol 1
    for end, body in (
        (NO_ID, {"task": "filestorage.exists"}),
        (NO_TASK.unanswered(), {"task": 5, "id": "x"}),
        (NO_ID, {"task": "filestorage.exists", "id": 5, "args": "x"}),
        (WRONG_CALL, {"task": "filestorage.exists", "id": "x", "args": {}, "kwargs": []}),
        (INVALID, {"task": "filestorage.exists", "id": "x", "args": {"a": 1}, "kwargs": []}),
        (INVALID, {"task": "filestorage.exists", "id": "x", "args": [], "kwargs": None, "eta": 5}),
        (INVALID, {"task": "filestorage.exists", "id": "x", "args": ["k"], "timelimit": 5, "callbacks": 5, "errbacks": "x"}),
        (INVALID, {"task": "filestorage.exists", "id": "x", "args": ["k"], "expires": "never", "retries": "x", "utc": "x"}),
        (NO_TASK.unanswered(), {"id": "x", "args": []}),
    ):
        yield end, json.dumps(body), {}, JSON


def empty(site):
    return site.queues().get(QUEUE) == (0, 0)


def seen(replies, copies):
    """What became of a message, in the form it is expected in."""
    answers = [reply.json["status"] if reply.json["status"] != "FAILURE" else reply.json["result"]["exc_type"] for reply in replies]
    reasons = [copy.headers["x-filestorage-dead-reason"] for copy in copies]
    assert len(answers) <= 1 and len(reasons) <= 1, (answers, reasons)
    return End(*(answers or [None]), *(reasons or [None]))


def check_dead(copy, body, exception, sent):
    headers = copy.headers
    assert copy.raw == body
    assert headers["x-filestorage-dead-queue"] == headers["x-filestorage-dead-routing-key"] == QUEUE
    assert headers["x-filestorage-dead-worker"].startswith("e2e@")
    assert headers["x-filestorage-dead-redelivered"] is False
    at = datetime.fromisoformat(headers["x-filestorage-dead-at"])
    assert sent <= at <= datetime.now(timezone.utc)
    assert exception is None or headers["x-filestorage-dead-exception"].startswith(f"{exception}(")
    assert copy.properties["delivery_mode"] == 2


def test_every_malformed_message_has_the_end_it_should_have(site):
    worker = site.start()
    sent = datetime.now(timezone.utc) - timedelta(seconds=1)
    messages = []
    for number, (end, body, headers, properties) in enumerate(shapes()):
        body = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
        reply = site.raw.reply_queue()
        site.raw.publish(body, headers, **{"reply_to": reply, "message_id": str(number), **properties})
        messages.append((end, body, headers, properties, reply))
    assert len(messages) >= 200
    assert site.call("store", "after", "still here")["key"] == "after"
    assert site.call("retrieve", "after") == "still here"
    wait_until(lambda: empty(site), TIMEOUT, "an empty command queue", step=0.3)
    copies = {}
    for copy in site.raw.drain(DEAD):
        copies.setdefault(int(copy.properties["message_id"]), []).append(copy)
    wrong = []
    for number, (end, body, headers, properties, reply) in enumerate(messages):
        replies, dead = site.raw.drain(reply), copies.pop(number, [])
        came = seen(replies, dead)
        if came != end:
            told = [reply.json["result"] for reply in replies]
            wrong.append(f"{number}: {body[:60]} {str(headers)[:120]} {properties}: {came}, not {end}; {str(told)[:300]}")
            continue
        for message in replies:
            task_id = headers.get("id") or json.loads(body)["id"]
            assert message.json["task_id"] == task_id
            assert message.properties["correlation_id"] == properties.get("correlation_id", task_id)
        for copy in dead:
            check_dead(copy, body, end.answer, sent)
    assert not wrong, "\n".join(wrong)
    assert not copies
    worker.assert_alive()
    assert worker.http("/livez")[0] == 200
    assert worker.ready()


@pytest.mark.parametrize("length", [256, 60_000])
def test_an_id_too_long_for_an_answer_is_not_lost(site, length):
    """An answer names the id in a property of at most 255 bytes; without one the command is at least kept."""
    site.start()
    reply = site.raw.reply_queue()
    headers = {"task": "filestorage.store", "id": "x" * length}
    site.raw.publish('[["long", 1], {}, {}]', headers, reply_to=reply, message_id="long", **JSON)
    assert site.call("store", "after", 1)["key"] == "after"
    wait_until(lambda: empty(site), TIMEOUT, "an empty command queue", step=0.3)
    answers, copies = site.raw.drain(reply), site.raw.drain(DEAD)
    assert len(answers) + len(copies) > 0
    assert all(copy.properties["message_id"] == "long" for copy in copies)
    assert site.call("exists", "long") is any(answer.json["status"] == "SUCCESS" for answer in answers)


def test_a_flood_of_them_does_not_keep_good_commands_waiting(site):
    worker = site.start()
    bad = [shape[1:] for shape in shapes() if len(shape[1]) < 10_000]
    results = []
    for n in range(600):
        body, headers, properties = bad[n % len(bad)]
        site.raw.publish(body, {**headers, **({"id": str(uuid.uuid4())} if "id" in headers else {})}, **properties)
        if n % 20 == 0:
            results.append(site.send("store", f"flood/{n}", n))
    assert all(result.get(timeout=TIMEOUT)["key"] for result in results)
    assert worker.assert_alive()


# What py-amqp makes of it, b"\xed\xa0\x80", is not UTF-8.
SURROGATE = "\ud800"
# One for each byte.
REPLACED = "???"


def connections(site):
    rows = json.loads(site.broker.ctl("list_connections", "pid", "vhost", "--formatter", "json"))
    return {row["pid"] for row in rows if row["vhost"] == site.vhost}


def test_names_not_in_utf_8_are_answered_and_cost_no_session(site):
    worker = site.start()
    raw = site.raw
    replies = raw.reply_queue()
    before = connections(site)
    assert len(before) == 3, "two of the worker, one of the test"

    def ask(headers=None, **more):
        return raw.command("exists", ["k"], headers=headers, reply_to=replies, **more)

    plain = [
        ask({SURROGATE: "x", "nested": {SURROGATE: [{SURROGATE: 1}, [{SURROGATE: None}]]}}),
        ask({"stamps": {SURROGATE: SURROGATE}, "argsrepr": SURROGATE}),
        ask(type=SURROGATE, message_id=SURROGATE, app_id=SURROGATE, cluster_id=SURROGATE),
    ]
    raw.channel.queue_bind(QUEUE, "amq.direct", routing_key=SURROGATE)
    message = raw.message(good_body(), good_headers(), correlation_id="routed", reply_to=replies, **JSON)
    raw.channel.basic_publish(message, exchange="amq.direct", routing_key=SURROGATE)
    ask(correlation_id=SURROGATE)
    ask(task_id=SURROGATE)
    # No charset of that name: the body is taken for UTF-8, as Celery's own worker does.
    plain.append(ask(content_encoding=SURROGATE))
    # Names the type of nothing we know.
    unreadable = [ask(content_type=SURROGATE)]
    # An answer that nobody can get.
    raw.command("store", ["unanswered", 1], reply_to=SURROGATE)

    answers = {}
    while len(answers) < len(plain) + 2 + len(unreadable) or len(answers[REPLACED]) < 2:
        answer = raw.get(replies)
        answers.setdefault(answer.properties["correlation_id"], []).append(answer.json)
    for task_id in [*plain, "routed", REPLACED]:
        assert all((answer["status"], answer["result"]) == ("SUCCESS", False) for answer in answers[task_id]), answers
    for task_id in unreadable:
        assert [answer["status"] for answer in answers[task_id]] == ["FAILURE"], answers
    # The long strings of the headers are decoded, not replaced.
    assert {answer["task_id"] for answer in answers[REPLACED]} >= {"\ufffd" * 3}

    assert site.call("retrieve", "unanswered") == 1
    wait_until(lambda: site.queues().get(QUEUE) == (0, 0), TIMEOUT, "an empty command queue", step=0.3)
    assert before <= connections(site), "the worker lost its session"
    worker.assert_alive()


def test_headers_nested_deeper_than_any_stack_are_answered(site):
    worker = site.start()
    raw = site.raw
    replies = raw.reply_queue()
    before = connections(site)
    tables, lists = {}, []
    for _ in range(8_000):
        tables, lists = {"a": tables}, [lists]
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        asked = [raw.command("exists", ["k"], headers={"deep": deep}, reply_to=replies) for deep in (tables, lists)]
    finally:
        sys.setrecursionlimit(limit)
    answers = [raw.get(replies) for _ in asked]
    assert {answer.properties["correlation_id"] for answer in answers} == set(asked)
    assert all(answer.json["status"] == "SUCCESS" for answer in answers)
    wait_until(lambda: site.queues().get(QUEUE) == (0, 0), TIMEOUT, "an empty command queue", step=0.3)
    assert before <= connections(site), "the worker lost its session"
    worker.assert_alive()
