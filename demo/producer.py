"""A plain Celery producer: nothing of filestorage is installed here, only Celery."""

import json
import os
import time
import uuid
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path

from celery import Celery, chain
from kombu import Connection

queue = os.environ["DEMO_QUEUE"]
app = Celery("demo", broker=os.environ["CELERY_BROKER_URL"], backend="rpc://")
app.conf.task_default_queue = queue


def call(task, *args, **kwargs):
    """Sends a command and waits for its answer."""
    return app.send_task(f"filestorage.{task}", args, kwargs).get(timeout=20)


def show(what, value):
    print(f"  {what:<44} {value!r}")


print("\nvalues keep their types")
values = {
    "text": "hello",
    "digits": "123",
    "bytes": b"hello",
    "binary": bytes([0, 159, 255]),
    "none": None,
    "integer": 2**70,
    "float": 0.1,
    "nested": {"list": [1, 2.5, True, None], "é": {"deep": "𝄞"}},
    "datetime": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
    "date": date(2026, 1, 2),
    "decimal": Decimal("12.50"),
    "uuid": uuid.UUID(int=7),
}
for name, value in values.items():
    call("store", f"demo/{name}", value)
for name, value in values.items():
    back = call("retrieve", f"demo/{name}")
    assert back == value and type(back) is type(value), (name, value, back)
    show(f"retrieve demo/{name}", back)

print("\nwhat store answers: the receipt")
receipt = call("store", "demo/report.pdf", b"%PDF-1.7 ...", {"author": "Ada"}, content_type="application/pdf")
for name, value in receipt.items():
    show(name, value)

print("\nlooking around")
show("exists demo/report.pdf", call("exists", "demo/report.pdf"))
show("stat demo/report.pdf → metadata", call("stat", "demo/report.pdf")["metadata"])
show("list_keys demo/d", call("list_keys", prefix="demo/d"))
show("retrieve demo/report.pdf, 4 bytes from 1", call("retrieve", "demo/report.pdf", offset=1, length=4))
show("delete demo/report.pdf", call("delete", "demo/report.pdf"))
show("retrieve demo/report.pdf", call("retrieve", "demo/report.pdf"))

print("\nfailures are Python exceptions")
try:
    call("store", "../etc/passwd", "x")
except ValueError as error:
    show("except ValueError", str(error))
try:
    call("store", "demo/text")
except TypeError as error:
    show("except TypeError", str(error))
try:
    call("store", "demo/text", "again", if_absent=True)
except Exception as error:
    show(f"except {type(error).__name__}", str(error))

print("\na chain: each step gets the answer of the step before")
call("store", "demo/pointer", "demo/target")
steps = chain(
    app.signature("filestorage.retrieve", args=["demo/pointer"]),
    app.signature("filestorage.store", args=["written by step 2"]),
    app.signature("filestorage.retrieve", args=["demo/target"], immutable=True),
)
show("retrieve | store | retrieve", steps.apply_async().get(timeout=20))

print("\nthe metric event of one command, asked for with the header metrics_reply_to")
with app.connection_for_read() as connection:
    # Exclusive: it goes away with its connection. The events of everybody else stay in filestorage.metrics.
    events = connection.default_channel.queue_declare("", exclusive=True).queue
    app.send_task("filestorage.store", ["demo/watched", "x" * 1000], headers={"metrics_reply_to": events}).get(timeout=20)
    deadline = time.monotonic() + 20
    while (message := connection.default_channel.basic_get(events, no_ack=True)) is None:
        assert time.monotonic() < deadline, f"no event came into {events}"
        time.sleep(0.05)
    print("  " + json.dumps(json.loads(message.body), indent=2).replace("\n", "\n  "))

if metrics := os.environ.get("DEMO_METRICS_URL"):
    print("\nthe metric events of all commands, taken from the queue filestorage.metrics")
    with Connection(metrics) as connection:
        channel = connection.default_channel
        count = 0
        while (message := channel.basic_get("filestorage.metrics", no_ack=True)) is not None:
            # Events that end together travel as one message, an array.
            body = json.loads(message.body)
            for event in body if isinstance(body, list) else [body]:
                data = event["data"]
                count += 1
                what = f"{data['operation']} {data['key'] or ''} {data['outcome']}"
                print(f"  {what:<44} {data['duration_seconds'] * 1000:.1f} ms, {data['error'] or 'no error'}")
    assert count, "no event in filestorage.metrics"

if folder := os.environ.get("DEMO_STORAGE"):
    found = (path for path in Path(folder, "objects").rglob("*") if path.is_file())
    file = next(path for path in found if b"hello" in path.read_bytes())
    print("\none of the files, as it lies on disk")
    print(f"  {file}")
    print("  " + file.read_bytes().decode("utf-8", "replace").replace("\n", "\n  "))
