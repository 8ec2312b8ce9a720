"""The profile `redis`: an unmodified client on the host finds its answers in the Redis of the stack, also after that was killed."""

import redis
from celery import Celery, chord
from harness import wait_until

from stack import call


def test_a_client_gets_its_answers_from_the_redis(stacks):
    stack = stacks("redis", CELERY_RESULT_BACKEND="redis://:filestorage@redis:6379/0", REDIS_PASSWORD="filestorage")
    stack.profiles = ["redis"]
    stack.up("redis", "worker")
    stack.wait_healthy("redis", "worker")
    url = f"redis://:filestorage@127.0.0.1:{stack.ports['REDIS_PORT']}/0"
    app = Celery("client", broker=f"amqp://producer:producer@127.0.0.1:{stack.ports['RABBITMQ_PORT']}//", backend=url, set_as_current=False)
    app.conf.task_default_queue = "filestorage"
    client = redis.Redis.from_url(url)
    try:
        assert call(app, "store", "a", "b")["key"] == "a"
        assert call(app, "store", "b", [1, 2.5])["key"] == "b"
        result = app.send_task("filestorage.retrieve", ["b"])
        assert result.get(timeout=30) == [1, 2.5]
        members = [app.signature("filestorage.retrieve", args=["a"]), app.signature("filestorage.copy", args=["b", "c"])]
        body = app.signature("filestorage.exists", args=["c"], immutable=True)
        assert chord(members, body).apply_async().get(timeout=30) is True
        # What was kept outlives a kill, and what comes then is kept as well.
        stack.compose("kill", "-s", "KILL", "redis")
        sent = app.send_task("filestorage.retrieve", ["a"])
        stack.up("redis")
        stack.wait_healthy("redis")
        wait_until(lambda: client.exists(f"celery-task-meta-{result.id}"), 30, "what was kept is there")
        assert sent.get(timeout=60) == "b" and call(app, "retrieve", "a") == "b"
    finally:
        client.close()
        app.close()
