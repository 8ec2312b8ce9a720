"""The Celery application both peers run in.

Settings follow what filestorage promises where Celery has a setting for it (late acknowledgement, persistent results,
JSON) and favour Celery where it has none: results are not confirmed, nothing is logged per task, no events are sent.
"""

import os

from celery import Celery

app = Celery("peer", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ.get("CELERY_RESULT_BACKEND", "rpc://"))
app.conf.update(
    task_default_queue=os.environ["CELERY_TASK_DEFAULT_QUEUE"],
    task_acks_late=True,
    result_persistent=True,
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    broker_connection_retry_on_startup=True,
)
