"""Each finished operation is one CloudEvent in `filestorage.metrics`."""

import re
import uuid
from datetime import datetime, timezone

import pytest

from harness import METRICS, TIMEOUT, events_of, failure, wait_events

FIELDS = {
    "operation",
    "key",
    "outcome",
    "error",
    "backend",
    "cache",
    "size",
    "stored_size",
    "compression",
    "attempts",
    "pending_sync",
    "queue_seconds",
    "duration_seconds",
    "task_id",
    "worker",
}


def check_event(event):
    assert event["specversion"] == "1.0"
    for name in ("id", "source", "type"):
        assert isinstance(event[name], str) and event[name]
    # Nanoseconds are more than an older Python reads.
    assert datetime.strptime(event["time"][:19], "%Y-%m-%dT%H:%M:%S") and re.fullmatch(r"(\.\d+)?Z", event["time"][19:]), event["time"]
    data = event["data"]
    assert set(data) == FIELDS
    assert data["worker"].startswith("e2e@")
    assert isinstance(data["duration_seconds"], (int, float)) and data["duration_seconds"] >= 0
    assert data["cache"] in ("hit", "miss", None)
    return data


def of(events, task_id):
    return [event for event in events if event["data"]["task_id"] == task_id]


def has(*ids):
    return lambda found: all(of(found, task_id) for task_id in ids)


def test_a_success_tells_everything(shared, key):
    stored = shared.send("store", key, "x" * 100)
    receipt = stored.get(timeout=TIMEOUT)
    read = shared.send("retrieve", key)
    read.get(timeout=TIMEOUT)
    removed = shared.send("delete", key)
    removed.get(timeout=TIMEOUT)
    found = wait_events(shared.raw, has(stored.id, read.id, removed.id))
    for result, operation in ((stored, "store"), (read, "retrieve"), (removed, "delete")):
        (event,) = of(found, result.id)
        data = check_event(event)
        assert (data["operation"], data["key"], data["outcome"], data["error"]) == (operation, key, "succeeded", None)
        assert (data["backend"], data["pending_sync"], data["queue_seconds"]) == ("local", False, None)
    data = of(found, stored.id)[0]["data"]
    assert (data["size"], data["stored_size"]) == (100, receipt["stored_size"])


def test_a_failure_tells_the_error(shared, key):
    shared.call("store", key, 1)
    result = shared.send("store", key, 2, if_absent=True)
    assert type(failure(result)).__name__ == "PreconditionFailed"
    (event,) = of(wait_events(shared.raw, has(result.id)), result.id)
    data = check_event(event)
    assert (data["operation"], data["key"], data["outcome"]) == ("store", key, "failed")
    assert "PreconditionFailed" in str(data["error"])


def test_the_event_is_there_before_the_command_is_acknowledged(shared, key):
    events_of(shared.raw)
    result = shared.send("store", key, 1)
    result.get(timeout=TIMEOUT)
    assert of(wait_events(shared.raw, has(result.id)), result.id)


def test_events_are_routed_by_operation_and_outcome(shared, key):
    shared.raw.channel.queue_declare("only-failures", durable=False, auto_delete=False)
    shared.raw.channel.queue_bind("only-failures", "filestorage.events", "store.failed")
    shared.call("store", key, 1)
    result = shared.send("store", key, 2, if_absent=True)
    failure(result)
    found = wait_events(shared.raw, 1, queue="only-failures")
    assert [event["data"]["task_id"] for event in found] == [result.id]


def test_a_header_sends_a_copy_to_a_queue_of_ones_own(shared, key):
    queue = shared.raw.reply_queue()
    headers = {"metrics_reply_to": queue}
    results = [shared.send("store", f"{key}/{n}", n, _headers=headers) for n in range(20)]
    for result in results:
        result.get(timeout=TIMEOUT)
    messages = [shared.raw.get(queue) for _ in results]
    assert {message.properties["content_type"] for message in messages} == {"application/cloudevents+json"}
    assert {message.json["data"]["task_id"] for message in messages} == {result.id for result in results}
    assert wait_events(shared.raw, has(*[result.id for result in results]))


def test_under_load_events_travel_together_and_none_is_lost(shared, key):
    events_of(shared.raw)
    results = [shared.send("store", f"{key}/{n}", n) for n in range(500)]
    for result in results:
        result.get(timeout=TIMEOUT)
    found = wait_events(shared.raw, has(*[result.id for result in results]))
    assert len({event["id"] for event in found}) == len(found)
    for event in found:
        check_event(event)


def test_batches_can_be_turned_off(site, key):
    site.start(EVENTS_MAX_BATCH=1)
    results = [site.send("store", f"{key}/{n}", n) for n in range(100)]
    for result in results:
        result.get(timeout=TIMEOUT)
    messages = [site.raw.get(METRICS) for _ in results]
    assert {message.properties["content_type"] for message in messages} == {"application/cloudevents+json"}
    assert {message.json["data"]["task_id"] for message in messages} == {result.id for result in results}


def test_events_are_persistent_and_their_queue_is_bounded(shared, key):
    shared.call("store", key, 1)
    message = shared.raw.get(METRICS)
    assert message.properties["delivery_mode"] == 2
    rows = shared.broker.ctl("list_queues", "-p", shared.vhost, "name", "durable", "arguments")
    (row,) = [line for line in rows.splitlines() if line.startswith(METRICS + "\t")]
    assert "true" in row and "x-max-length" in row


def test_an_event_id_comes_from_the_task_id_and_the_outcome(shared, key):
    task_id = str(uuid.uuid4())
    reply = shared.raw.reply_queue()
    for _ in range(2):
        shared.raw.command("store", [key, 1], task_id=task_id, reply_to=reply)
        shared.raw.get(reply)
    found = of(wait_events(shared.raw, lambda found: len(of(found, task_id)) == 2), task_id)
    assert found[0]["id"] == found[1]["id"]
    other = shared.send("store", key, 1)
    other.get(timeout=TIMEOUT)
    assert of(wait_events(shared.raw, has(other.id)), other.id)[0]["id"] != found[0]["id"]


@pytest.mark.parametrize("timestamp", [True, False])
def test_an_event_tells_the_queue_wait_of_a_dated_message(shared, key, timestamp):
    reply = shared.raw.reply_queue()
    properties = {"timestamp": int(datetime.now(timezone.utc).timestamp()) - 5} if timestamp else {}
    task_id = shared.raw.command("store", [key, 1], reply_to=reply, **properties)
    shared.raw.get(reply)
    (event,) = of(wait_events(shared.raw, has(task_id)), task_id)
    waited = event["data"]["queue_seconds"]
    assert (4 <= waited <= 60) if timestamp else waited is None


def test_no_event_holds_the_payload(shared, key):
    secret = f"secret-{uuid.uuid4()}"
    result = shared.send("store", key, secret, {"m": secret})
    result.get(timeout=TIMEOUT)
    found = wait_events(shared.raw, has(result.id))
    assert secret not in str(found)
