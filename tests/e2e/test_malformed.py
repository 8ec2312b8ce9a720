"""200 malformed messages of many shapes, and the worker does not even blink."""

import json
import random
import sys
import uuid
from datetime import datetime, timezone

from harness import DEAD, QUEUE, TIMEOUT, wait_until

JSON = {"content_type": "application/json", "content_encoding": "utf-8"}


def good_headers(**more):
    return {"task": "filestorage.exists", "id": str(uuid.uuid4()), **more}


def good_body(key="k"):
    return json.dumps([[key], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])


def shapes():
    """Yields (body, headers, properties): every one wrong in a way of its own."""
    # bodies
    for body in (
        "",
        "null",
        "0",
        '"text"',
        "{}",
        "[]",
        "[[]]",
        "[[], {}]",
        "[[], {}, {}, {}]",
        '["abc", {}, {}]',
        "[{}, {}, {}]",
        "[null, {}, {}]",
        "[[], [], {}]",
        "[[], null, {}]",
        '[[], "x", {}]',
        "[[], {}, []]",
        '[[], {}, "x"]',
        "[[], {}, {}] trailing",
        "[[], {}, {}",
        "{",
        "nul",
        "[[1e999999], {}, {}]",
        "[[NaN], {}, {}]",
        '[["\\ud800"], {}, {}]',
        '[["\\u12"], {}, {}]',
        '[[{"__type__": "nope", "__value__": 1}], {}, {}]',
        '[[{"__type__": "base64", "__value__": "!"}], {}, {}]',
        '[[{"__type__": "uuid", "__value__": "x"}], {}, {}]',
        '[[{"__type__": "datetime", "__value__": 5}], {}, {}]',
        '[[{"__type__": null, "__value__": null}], {}, {}]',
        "[" * 100_000,
        "[" * 5_000 + "]" * 5_000,
        '[[' + '{"a":' * 5_000 + "1" + "}" * 5_000 + "], {}, {}]",
        "[[" + "9" * 50_000 + "], {}, {}]",
        '[["' + "x" * 2_000_000 + '"], {}, {}]',
        '[["k"], {"' + "x" * 100_000 + '": 1}, {}]',
        "\ufeff" + good_body(),
    ):
        yield body, good_headers(), dict(JSON)
    yield b"\x00" * 1_000, good_headers(), dict(JSON)
    yield b"\xff\xfe" + good_body().encode("utf-16-le"), good_headers(), dict(JSON)
    dice = random.Random(1)
    yield dice.randbytes(1_000), good_headers(), dict(JSON)
    for _ in range(40):
        broken = bytearray(good_body().encode())
        broken[dice.randrange(len(broken))] = dice.randrange(256)
        del broken[dice.randrange(len(broken)) :]
        yield bytes(broken), good_headers(), dict(JSON)
    # what follows a command
    for embed in (
        {"callbacks": "x"},
        {"callbacks": [1]},
        {"callbacks": [{}]},
        {"callbacks": [{"task": 5}]},
        {"callbacks": [{"task": "t", "args": "x", "kwargs": [], "options": 3}]},
        {"errbacks": {"task": None}},
        {"errbacks": [None]},
        {"chain": 5},
        {"chain": [[]]},
        {"chain": [{"task": "t", "options": {"reply_to": 5, "task_id": []}}]},
        {"chain": [{"task": "celery.chain", "subtask_type": "chain", "kwargs": {}}]},
        {"chain": [{"task": "celery.group", "subtask_type": "group", "kwargs": {"tasks": 1}}]},
        {"chain": [{"task": "t", "subtask_type": {}}]},
        {"chord": "x"},
        {"chord": {"task": "celery.chord"}},
        {"callbacks": [{"task": "t", "options": {"countdown": "x", "expires": {}, "priority": "high"}}]},
    ):
        yield json.dumps([["k"], {}, embed]), good_headers(), dict(JSON)
    # headers
    for headers in (
        {},
        {"task": "filestorage.exists"},
        {"id": "x"},
        {"task": None, "id": None},
        {"task": 5, "id": "x"},
        {"task": "filestorage.exists", "id": 5},
        {"task": ["filestorage.exists"], "id": "x"},
        {"task": {"a": 1}, "id": {"a": 1}},
        {"task": "", "id": ""},
        {"task": "x" * 60_000, "id": "x"},
        {"task": "filestorage.exists", "id": "x" * 60_000},
        {"task": "filestorage.exists\0", "id": "a\0b"},
    ):
        yield good_body(), headers, dict(JSON)
    for name, wrong in (
        ("eta", ("", "yesterday", 5, True, ["x"], {"a": 1}, "9999-99-99T00:00:00", "2026-01-01T00:00:00+99:99", 1.5)),
        ("expires", ("", "soon", 5, -1.5, ["x"], {"a": 1}, "0000-00-00")),
        ("timelimit", (5, "x", [], [1], [1, 2, 3], ["a", "b"], [-1, -1], {"a": 1}, [1e308, None], [True, False])),
        ("retries", ("x", -1, 2**40, 1.5, [], {"a": 1})),
        ("root_id", (5, [], {"a": 1})),
        ("parent_id", (5, [])),
        ("group", (5, [], {"a": 1})),
        ("group_index", ("x", -1, [])),
        ("ignore_result", ("x", 5, [], {"a": 1})),
        ("argsrepr", (5, [], "x" * 50_000)),
        ("kwargsrepr", (5, {"a": 1})),
        ("origin", (5, [])),
        ("lang", (5, [], "cobol")),
        ("shadow", (5, [], {"a": 1})),
        ("stamped_headers", (5, "x", {"a": 1}, [1, None])),
        ("stamps", (5, "x", [1])),
        ("replaced_task_nesting", ("x", -1, [])),
        ("compression", ("nope", "application/x-gzip", "application/x-bz2", "application/x-lzma", "application/zstd", 5, [])),
        ("metrics_reply_to", (5, [], "x" * 300, "no-such-queue", "")),
        ("x-death", (5, "x", [1], [{"count": "x"}], {"a": 1})),
        ("when", (datetime.now(timezone.utc),)),
    ):
        for value in wrong:
            yield good_body(), good_headers(**{name: value}), dict(JSON)
    yield good_body(), good_headers(**{f"h{n}": "x" * 100 for n in range(1_000)}), dict(JSON)
    deep = {"a": 1}
    for _ in range(100):
        deep = {"a": deep}
    yield good_body(), good_headers(deep=deep), dict(JSON)
    # properties
    for properties in (
        {},
        {"content_type": "application/json"},
        {"content_type": ""},
        {"content_type": "application/json; charset=utf-8", "content_encoding": "utf-8"},
        {"content_type": "application/nope", "content_encoding": "utf-8"},
        {"content_type": "application/x-python-serialize", "content_encoding": "binary"},
        {"content_type": "application/data", "content_encoding": "binary"},
        {"content_type": "application/json", "content_encoding": "ebcdic"},
        {"content_type": "application/json", "content_encoding": "utf-16"},
        {"content_type": "x" * 200, "content_encoding": "y" * 200},
        {**JSON, "reply_to": "no-such-queue"},
        {**JSON, "reply_to": "amq.rabbitmq.reply-to.nope"},
        {**JSON, "reply_to": "x" * 255},
        {**JSON, "reply_to": "é\n"},
        {**JSON, "correlation_id": "x" * 255, "reply_to": "gone"},
        {**JSON, "priority": 255},
        {**JSON, "type": "x" * 255, "app_id": "y" * 255, "message_id": "z" * 255},
        {**JSON, "timestamp": 2**62},
    ):
        yield good_body(), good_headers(), properties
    # protocol 1
    for body in (
        {"task": "filestorage.exists"},
        {"task": 5, "id": "x"},
        {"task": "filestorage.exists", "id": 5, "args": "x"},
        {"task": "filestorage.exists", "id": "x", "args": {}, "kwargs": []},
        {"task": "filestorage.exists", "id": "x", "args": [], "kwargs": None, "eta": 5},
        {"task": "filestorage.exists", "id": "x", "args": ["k"], "timelimit": 5, "callbacks": 5, "errbacks": "x"},
        {"task": "filestorage.exists", "id": "x", "args": ["k"], "expires": "never", "retries": "x", "utc": "x"},
        {"id": "x", "args": []},
    ):
        yield json.dumps(body), {}, dict(JSON)


def test_malformed_messages_never_stop_the_worker(site):
    worker = site.start()
    messages = list(shapes())
    assert len(messages) >= 200
    for body, headers, properties in messages:
        site.raw.publish(body, headers, **properties)
    assert site.call("store", "after", "still here")["key"] == "after"
    assert site.call("retrieve", "after") == "still here"

    def settled():
        counts = site.queues()
        return counts.get(QUEUE) == (0, 0)

    wait_until(settled, TIMEOUT, "an empty command queue", step=0.3)
    worker.assert_alive()
    assert worker.http("/livez")[0] == 200
    assert worker.ready()
    assert "panicked" not in worker.log()
    assert site.raw.count(DEAD) > 0


def test_a_flood_of_them_does_not_keep_good_commands_waiting(site):
    worker = site.start()
    bad = [shape for shape in shapes() if len(shape[0]) < 10_000]
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
MENDED = "???"


def connections(site):
    rows = json.loads(site.broker.ctl("list_connections", "pid", "vhost", "--formatter", "json"))
    return {row["pid"] for row in rows if row["vhost"] == site.vhost}


def test_names_that_are_not_utf_8_are_answered_and_cost_no_session(site):
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
    # Names the encoding of nothing we know.
    unreadable = [ask(content_type=SURROGATE), ask(content_encoding=SURROGATE)]
    # An answer that nobody can get.
    raw.command("store", ["unanswered", 1], reply_to=SURROGATE)

    answers = {}
    while len(answers) < len(plain) + 2 + len(unreadable) or len(answers[MENDED]) < 2:
        answer = raw.get(replies)
        answers.setdefault(answer.properties["correlation_id"], []).append(answer.json)
    for task_id in [*plain, "routed", MENDED]:
        assert all((answer["status"], answer["result"]) == ("SUCCESS", False) for answer in answers[task_id]), answers
    for task_id in unreadable:
        assert [answer["status"] for answer in answers[task_id]] == ["FAILURE"], answers
    # The long strings of the headers are decoded, not mended.
    assert {answer["task_id"] for answer in answers[MENDED]} >= {"\ufffd" * 3}

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
