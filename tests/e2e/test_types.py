"""What is stored comes back with the type it had, whoever sent it and however it was packed."""

import random
import uuid
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal

import pytest
from kombu.compression import _aliases as compressions

from harness import TIMEOUT, same

VALUES = {
    "digits": "123",
    "null text": "null",
    "true text": "true",
    "quoted text": '"x"',
    "empty text": "",
    "unicode": "žluťoučký kůň, 日本語, \u0000, \u2028",
    "astral": "𝄞 😀 𐐷",
    "bytes": b"hello",
    "bytes of digits": b"123",
    "empty bytes": b"",
    "random bytes": random.Random(7).randbytes(70_000),
    "every byte": bytes(range(256)),
    "none": None,
    "true": True,
    "false": False,
    "zero": 0,
    "minus one": -1,
    "2**53+1": 2**53 + 1,
    "2**63": 2**63,
    "2**70": 2**70,
    "-2**200": -(2**200),
    "0.1": 0.1,
    "1e300": 1e300,
    "5e-324": 5e-324,
    "1e16": 1e16,
    "1.0": 1.0,
    "-0.0": -0.0,
    "empty list": [],
    "empty dict": {},
    "nested": {"a": [1, 2.5, None, {"b": [True, b"x", b"\xff", "123"]}], "": {"é": []}, "big": [2**70, -0.0]},
    "big nested": {f"key {n}": [{"n": n, "text": "x" * 50, "list": list(range(10))}] for n in range(2_000)},
    "deep": [[[[[[[[[[["bottom"]]]]]]]]]]],
    "aware datetime": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc),
    "offset datetime": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    "naive datetime": datetime(2026, 1, 2, 3, 4, 5),
    "date": date(2026, 1, 2),
    "time": time(3, 4, 5, 600),
    "decimal": Decimal("123.4500"),
    "uuid": uuid.UUID("12345678123456781234567812345678"),
    "typed nested": {"when": date(2026, 1, 2), "price": [Decimal("0.10")], "id": uuid.UUID(int=1)},
    "looks typed": {"__type__": "bytes", "__value__": "x", "extra": 1},
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back_as_itself(shared, name):
    shared.call("store", f"types/{name}", VALUES[name])
    assert same(shared.call("retrieve", f"types/{name}"), VALUES[name])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), [1, float("nan")]], ids=repr)
def test_nan_and_infinity_come_back(shared, value):
    shared.call("store", "types/special", value)
    assert same(shared.call("retrieve", "types/special"), value)


def test_values_come_back_as_themselves_after_a_restart(site):
    worker = site.start()
    sent = [site.send("store", f"restart/{name}", value) for name, value in VALUES.items()]
    for result in sent:
        result.get(timeout=TIMEOUT)
    assert worker.stop() == 0
    site.start()
    for name, value in VALUES.items():
        assert same(site.call("retrieve", f"restart/{name}"), value), name


def test_the_receipt_tells_the_kind(shared):
    for value, kind in [("123", "text"), (b"123", "bytes"), (123, "json"), (None, "json"), ({"a": 1}, "json")]:
        assert shared.call("store", "types/kind", value)["kind"] == kind


@pytest.mark.parametrize(
    ("form", "value"),
    [
        ({"bytes": "hello", "__bytes__": True}, b"hello"),
        ({"bytes": "/wA=", "__base64__": True}, b"\xff\x00"),
        ({"__type__": "bytes", "__value__": "hello"}, b"hello"),
        ({"__type__": "base64", "__value__": "/wA="}, b"\xff\x00"),
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
    ],
    ids=["kombu 5.3 beta bytes", "kombu 5.3 beta base64", "kombu 5.3 bytes", "kombu 5.3 base64", "kombu 5.2 datetime"],
)
def test_forms_of_other_producers_are_read(shared, form, value):
    reply = shared.raw.reply_queue()
    task_id = shared.raw.command("store", ["types/older", form], reply_to=reply)
    answer = shared.raw.get(reply).json
    assert (answer["status"], answer["task_id"]) == ("SUCCESS", task_id)
    assert same(shared.call("retrieve", "types/older"), value)


def test_arguments_bind_by_position_and_by_name(shared):
    shared.call("store", "types/bound", "positional", {"n": 1})
    assert shared.call("stat", "types/bound")["metadata"] == {"n": 1}
    shared.call("store", key="types/bound", data="named", metadata={"n": 2}, content_type="text/x-test")
    stat = shared.call("stat", key="types/bound")
    assert (stat["metadata"], stat["content_type"]) == ({"n": 2}, "text/x-test")
    assert shared.call("retrieve", key="types/bound") == "named"
    shared.call("store", "types/bound", data="mixed")
    assert shared.call("retrieve", "types/bound") == "mixed"


@pytest.mark.parametrize("value", ["text", b"bytes \xff", {"a": [1, b"x"]}], ids=["text", "bytes", "json"])
def test_protocol_1_producers_are_served(shared, value):
    app = shared.client(task_protocol=1)
    for args, kwargs in [(("types/v1", value), {}), ((), {"key": "types/v1", "data": value})]:
        receipt = app.send_task("filestorage.store", args, kwargs).get(timeout=TIMEOUT)
        assert receipt["key"] == "types/v1"
        assert same(app.send_task("filestorage.retrieve", ("types/v1",)).get(timeout=TIMEOUT), value)
    app.close()


@pytest.mark.parametrize("codec", sorted(compressions))
@pytest.mark.parametrize("protocol", [1, 2])
def test_compressed_commands_are_read(shared, codec, protocol):
    app = shared.client(task_protocol=protocol)
    value = "compressible " * 1_000 + codec
    app.send_task("filestorage.store", ("types/codec", value), compression=codec).get(timeout=TIMEOUT)
    assert app.send_task("filestorage.retrieve", ("types/codec",)).get(timeout=TIMEOUT) == value
    app.close()


def test_a_producer_in_another_language_needs_only_task_and_id(shared):
    reply = shared.raw.reply_queue()
    task_id = str(uuid.uuid4())
    shared.raw.publish(
        '[["types/raw", "žluť 😀"], {}, null]'.encode(),
        {"task": "filestorage.store", "id": task_id},
        content_type="application/json",
        reply_to=reply,
    )
    answer = shared.raw.get(reply)
    assert answer.json["status"] == "SUCCESS"
    assert answer.json["task_id"] == task_id
    assert answer.properties["content_type"] == "application/json"
    assert shared.call("retrieve", "types/raw") == "žluť 😀"
