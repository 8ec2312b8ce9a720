"""Both Compose files on the generation of RabbitMQ before; every other test runs them on the newest."""

import json

import pytest

from cluster import BROKERS, QUEUE, WORKERS, Cluster
from images import rabbitmq_major
from stack import call


@pytest.fixture(scope="module")
def cluster(older):
    cluster = Cluster(older)
    try:
        yield cluster.up(timeout=400)
    finally:
        cluster.close()


def main_job(app):
    """Stores, retrieves and deletes; a command with a countdown waits in the broker."""
    receipt = call(app, "store", "older/1", {"n": 1}, {"author": "Ada"})
    assert (receipt["backend"], receipt["pending_sync"]) == ("gcs", False)
    assert call(app, "retrieve", "older/1") == {"n": 1}
    delayed = app.send_task("filestorage.store", ["older/2", "x"], countdown=0.5)
    assert delayed.get(timeout=20)["key"] == "older/2"
    assert call(app, "delete", "older/1") is True
    assert call(app, "retrieve", "older/1") is None


def test_one_broker(older, stacks):
    stack = stacks(RABBITMQ_IMAGE=older["RABBITMQ_IMAGE"]).up("rabbitmq", "gcs", "worker")
    stack.wait_healthy("worker")
    assert stack.exec("rabbitmq", "rabbitmqctl", "-q", "version").startswith("3.")
    main_job(stack.app(f"amqp://producer:producer@127.0.0.1:{stack.ports['RABBITMQ_PORT']}//"))


def test_the_cluster(cluster):
    assert rabbitmq_major(cluster.environment["RABBITMQ_IMAGE"]) == 3
    assert cluster.wait_exited("setup") == 0, cluster.logs("setup")
    cluster.wait_healthy(*BROKERS, *WORKERS)
    queues = json.loads(cluster.ctl("list_queues", "name", "members", "--formatter", "json"))
    assert {queue["name"]: len(queue["members"]) for queue in queues}[QUEUE] == len(BROKERS)
    # Version 3 would have refused -1, and all policies with it.
    assert cluster.policies()["filestorage"] == {"queue-leader-locator": "balanced"}
    main_job(cluster.app(";".join(cluster.urls()), task_default_queue_type="quorum"))


def test_the_cookie_is_nobody_else_s(cluster):
    """It opens every node: neither an environment nor a command line shows it, nor can another user read its file."""
    cookie = (cluster.secrets / "cookie").read_text().strip()
    for service in (*BROKERS, "setup"):
        assert cookie not in cluster.inspect(service, "{{json .}}"), service
    for broker in BROKERS:
        seen = cluster.exec(broker, "sh", "-c", "stat -c %a ~/.erlang.cookie; cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        assert seen.startswith("400\n") and "beam.smp" in seen and cookie not in seen, broker
