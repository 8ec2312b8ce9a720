"""A worker at work tells no secret: not in its log at trace, its answers, events, dead copies, nor on the admin port."""

import json
import time

import pytest

from harness import DEAD, METRICS, QUEUE, wait_until

# Unlike anything else, in a form that an URL must escape, too.
CANARY = "cAnary+{}/tWeet-7f3a9"
SETTINGS = {
    "AWS_ACCESS_KEY_ID": CANARY.format("id"),
    "AWS_SECRET_ACCESS_KEY": CANARY.format("aws"),
    "AWS_SESSION_TOKEN": CANARY.format("session"),
}


def consumers(site):
    return site.raw.channel.queue_declare(QUEUE, passive=True).consumer_count


@pytest.mark.full_rights("a user with a password of its own is made")
@pytest.mark.parametrize("place", ["local", "a bucket that is away"])
def test_a_worker_at_work_tells_no_secret(site, place):
    password = CANARY.format("broker")
    user = f"{site.broker.prefix}canary"
    site.broker.ctl("add_user", user, password)
    site.broker.ctl("set_permissions", "-p", site.vhost, user, ".*", ".*", ".*")
    url = site.broker.url(site.vhost, user, password.replace("+", "%2B").replace("/", "%2F"))
    settings = dict(SETTINGS)
    if place != "local":
        settings |= {"S3_BUCKET_NAME": "bucket", "S3_ENDPOINT_URL": "http://127.0.0.1:1", "ENABLE_LOCAL_FALLBACK": "true"}
    site.raw.declare(QUEUE)
    reply = site.raw.reply_queue()
    try:
        worker = site.spawn(CELERY_BROKER_URL=url, RUST_LOG="trace", **settings)
        wait_until(lambda: worker.assert_alive() and consumers(site) == 1, what="the worker")
        sent = [
            site.raw.command("store", ["key", "value"], reply_to=reply),
            site.raw.command("retrieve", ["key"], reply_to=reply),
            site.raw.command("store", ["other", {"$ref": "s3://elsewhere/object"}], reply_to=reply),
            site.raw.command("retrieve", ["key"], {"destination": "gs://elsewhere/object"}, reply_to=reply),
            site.raw.command("store", ["key", 1, 2, 3, 4, 5, 6], reply_to=reply),
            site.raw.command("stat", ["none"], reply_to=reply),
            site.raw.command("nothing.known", ["key"], reply_to=reply),
            site.raw.command("store", None, body="{", reply_to=reply),
        ]
        told = []
        wait_until(lambda: told.extend(site.raw.drain(reply)) or len(told) >= len(sent), what="the answers")
        for path in ("/health", "/readyz", "/livez", "/metrics"):
            told.append(json.dumps(worker.http(path)))
        # The broker goes away and comes back: what is said of it is said then.
        if site.broker.can_restart and place == "local":
            site.broker.ctl("close_all_connections", "-p", site.vhost, "canary")
            site.reconnect()
            wait_until(lambda: "CONNECTION_FORCED" in worker.log() and worker.ready(), what="the next session")
        dead = wait_until(lambda: site.raw.count(DEAD) >= 2 and site.raw.drain(DEAD), what="the dead copies")
        events = wait_until(lambda: site.raw.count(METRICS) and site.raw.drain(METRICS), what="events")
        time.sleep(0.2)
        log = worker.log()
        assert worker.stop() == 0
    finally:
        site.broker.ctl("delete_user", user)
    assert '"level":"TRACE"' in log, "trace is on"
    said = [log, worker.log()]
    for message in [*told, *dead, *events]:
        said.append(message if isinstance(message, str) else message.raw.decode("utf-8", "replace") + repr(message.headers))
    for text in said:
        at = text.find("tWeet-7f3a9")
        assert at < 0, f"…{text[max(0, at - 200) : at + 40]}…"
