"""As lenient as Celery's own worker: what other producers write, and what a real Celery worker in a chain with ours sees."""

import json
import uuid
from datetime import datetime, timedelta, timezone

import pytest
from celery import chain

from harness import TIMEOUT, failure

NEVER = datetime.max


@pytest.mark.parametrize("empty", ["[]", "{}", "null", "false", "0", '""'])
def test_empty_parts_are_empty_however_they_are_written(shared, key, empty):
    reply, args = shared.raw.reply_queue(), json.dumps([key])
    for body in (
        f"[{args}, {{}}, {empty}]",
        f"[{args}, {empty}, {{}}]",
        f'[{args}, {empty}, {{"callbacks": {empty}, "errbacks": {empty}, "chain": {empty}, "chord": {empty}}}]',
    ):
        shared.raw.command("exists", [], reply_to=reply, body=body)
        assert shared.raw.get(reply).json["result"] is False, body
    first = {"task": "filestorage.exists", "id": str(uuid.uuid4()), "args": [key]}
    body = json.dumps(first)[:-1] + f', "kwargs": {empty}, "callbacks": {empty}}}'
    shared.raw.publish(body, content_type="application/json", content_encoding="utf-8", reply_to=reply)
    assert shared.raw.get(reply).json["result"] is False


@pytest.mark.parametrize(
    "encoding", ["utf-16", "UTF-16", "utf-16-le", "utf_16_be", "utf-32", "utf-8-sig", "latin-1", "cp1252", "iso8859-15", "shift_jis"]
)
def test_a_body_is_read_in_the_encoding_that_python_uses(shared, key, encoding):
    text = "あ" if encoding == "shift_jis" else "é"
    reply = shared.raw.reply_queue()
    body = json.dumps([[key, text], {}, {}], ensure_ascii=False).encode(encoding)
    shared.raw.command("store", [], reply_to=reply, body=body, content_encoding=encoding)
    assert shared.raw.get(reply).json["status"] == "SUCCESS"
    assert shared.call("retrieve", key) == text


def test_a_wrongly_labelled_body_is_read_as_utf_8_or_answered(shared, key):
    reply = shared.raw.reply_queue()
    for encoding, body in (("klingon", "é"), ("us-ascii", "é"), ("gzip", "é")):
        shared.raw.command("store", [], reply_to=reply, body=json.dumps([[key, body], {}, {}], ensure_ascii=False), content_encoding=encoding)
        assert shared.raw.get(reply).json["status"] == "SUCCESS", encoding
    shared.raw.command("store", [], reply_to=reply, body=b'[["k", "\xe9"], {}, {}]', content_encoding="klingon")
    answer = shared.raw.get(reply).json
    assert answer["result"]["exc_type"] == "DecodeError" and "klingon" in answer["result"]["exc_message"][0]


def test_the_last_day_of_the_calendar_is_never(shared, key):
    reply = shared.raw.reply_queue()
    dead = shared.raw.count("filestorage.dead")
    zones = [timezone.utc, timezone(timedelta(hours=14)), timezone(timedelta(hours=-12)), None]
    for zone in zones:
        text = NEVER.replace(tzinfo=zone).isoformat()
        shared.raw.command("store", [key, 1], reply_to=reply, headers={"expires": text})
        assert shared.raw.get(reply).json["status"] == "SUCCESS", text
        receipt = shared.call("store", key, 1, expires_at=NEVER.replace(tzinfo=zone))
        assert receipt["expires_at"] is None and shared.call("exists", key), text
        # It waits for ever, and holds nothing up.
        shared.raw.command("store", [key + ".never", 1], reply_to=reply, headers={"eta": text})
    assert shared.call("exists", key + ".never") is False
    assert shared.call("retrieve", key) == 1
    assert shared.raw.count("filestorage.dead") == dead
    # A follow-up that never expires has no time to live that the broker would refuse.
    follow = shared.sig("exists", key, immutable=True).set(expires=NEVER.replace(tzinfo=timezone(timedelta(hours=-12))).isoformat())
    done = chain(shared.sig("store", key, 2), follow).apply_async()
    assert done.get(timeout=TIMEOUT) is True
    old = "0001-01-01T00:00:00+14:00"
    assert type(failure(shared.send("exists", key, _headers={"expires": old}))).__name__ == "TaskRevokedError"


PROPERTIES = {"message_id": "m-1", "app_id": "app", "type": "kind", "timestamp": 1790000000}


@pytest.mark.full_rights("a queue of another program")
def test_a_step_s_properties_are_those_that_celery_sends(site, key):
    """Side by side: the same signature, sent by Celery itself and by our worker behind a store."""
    queue = f"others-{uuid.uuid4().hex[:8]}"
    site.raw.declare(queue)
    site.start()
    step = site.app.signature("others.task", args=(key,), immutable=True).set(queue=queue, task_id="step", **PROPERTIES)
    site.app.send_task("others.task", args=(key,), task_id="step", queue=queue, **PROPERTIES)
    theirs = site.raw.get(queue)
    chain(site.sig("store", key, 1), step).apply_async()
    ours = site.raw.get(queue)
    for name in ("message_id", "app_id", "type", "timestamp", "correlation_id", "content_type", "content_encoding", "priority", "delivery_mode"):
        assert ours.properties[name] == theirs.properties[name], name
    assert ours.properties["reply_to"] == theirs.properties["reply_to"], "a frozen step answers to the client"
    # A callback that names no queue for its answer gets one, as every message of Celery has.
    site.app.send_task("filestorage.store", (key, 2), link=site.app.signature("others.task", immutable=True).set(queue=queue))
    callback = site.raw.get(queue)
    assert uuid.UUID(callback.properties["reply_to"])
    assert set(callback.properties) == set(theirs.properties) - {"message_id", "app_id", "type", "timestamp"}


@pytest.mark.parametrize("option", ["heartbeat=30", "heartbeat=0&connect_timeout=4", "login_method=AMQPLAIN", "login_method=PLAIN&insist=1"])
def test_a_worker_starts_with_kombu_s_url_options(site, key, option):
    site.start(CELERY_BROKER_URL=f"{site.url}?{option};")
    assert site.call("exists", key) is False
