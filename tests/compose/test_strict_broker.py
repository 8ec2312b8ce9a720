"""RabbitMQ 4 that refuses what is deprecated: Celery's tools, canvas, retries, parking and dead messages hold there as on 3.10."""

import os
import re
import subprocess
import sys
import time

import amqp
import pytest

from harness import ROOT, wait_until
from images import rabbitmq_major
from stack import docker, figure, free_port

FILES = ["remote", "message_retry", "outcome", "parking", "dead", "canvas", "flower", "canvas_table"]
# Those that take their time wherever they run, and measure no more here.
SLOW = ["uses_up_no_retries", "known_to_be_full", "two_thousand", "while_the_worker_is_busy", "longest_age"]
SECONDS = 1000  # more than enough beside other suites


@pytest.fixture
def strict(bases, tmp_path):
    """A container of the newest generation in which queues must be durable or exclusive; its name and its port."""
    conf = tmp_path / "strict.conf"
    conf.write_text("deprecated_features.permit.transient_nonexcl_queues = false\nloopback_users.guest = false\n")
    conf.chmod(0o644)
    port = free_port()
    container = docker(
        "run", "-d", "--rm", "-v", f"{conf}:/etc/rabbitmq/conf.d/90-strict.conf:ro", "-p", f"127.0.0.1:{port}:5672", bases["RABBITMQ_IMAGE"]
    ).strip()
    try:
        wait_until(lambda: connected(port), 120, lambda: docker("logs", "--tail", "20", container, both=True), 0.5)
        yield container, port
    finally:
        docker("rm", "-f", container)


def connected(port):
    """A connection, or None as long as the broker takes none."""
    connection = amqp.Connection(f"127.0.0.1:{port}", "guest", "guest", connect_timeout=5)
    try:
        connection.connect()
    except (OSError, amqp.AMQPError):
        return None
    return connection


def test_celery_holds_where_nothing_deprecated_is_permitted(bases, strict):
    container, port = strict
    assert rabbitmq_major(bases["RABBITMQ_IMAGE"]) >= 4
    with pytest.raises(amqp.AMQPError, match="transient_nonexcl_queues"):
        connected(port).channel().queue_declare("transient", durable=False, exclusive=False, auto_delete=False)
    env = {
        **os.environ,
        "FILESTORAGE_TEST_BROKER_URL": f"amqp://guest:guest@127.0.0.1:{port}//",
        "FILESTORAGE_TEST_RABBITMQCTL": f"docker exec {container} rabbitmqctl",
        # Servers of its own, where this run has none.
        "DEV_GCS_DIR": str(ROOT / "target" / "strict-gcs"),
        "DEV_S3_DIR": str(ROOT / "target" / "strict-s3"),
    }
    files = [f"tests/e2e/test_{name}.py" for name in FILES]
    command = [sys.executable, "-m", "pytest", "-c", "tests/e2e/pytest.ini", "-n", "3", "--dist", "loadfile", "-k",
               " and ".join(f"not {name}" for name in SLOW), *files]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=SECONDS, check=False)
    took = time.monotonic() - began
    assert done.returncode == 0, done.stdout[-20_000:]
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    figure(f"RabbitMQ 4 without transient queues: {passed} end-to-end tests passed in {took:.0f} s")
    assert passed > 70
