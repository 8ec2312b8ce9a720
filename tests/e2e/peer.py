"""A Celery application whose Python worker stands beside ours: `celery -A peer worker`."""

import os
import time

from celery import Celery

app = Celery("peer", broker=os.environ["PEER_BROKER_URL"], backend="rpc://")
app.conf.task_default_queue = os.environ.get("PEER_QUEUE", "peer")
app.conf.task_inherit_parent_priority = bool(os.environ.get("PEER_INHERIT_PRIORITY"))
app.conf.broker_connection_retry_on_startup = True


@app.task(name="peer.echo")
def echo(value, *, key=None):
    return value


@app.task(name="peer.slow")
def slow(seconds, *, key=None):
    time.sleep(seconds)
    return seconds


@app.task(name="peer.fail")
def fail(*, key=None):
    raise ValueError("as asked", key)
