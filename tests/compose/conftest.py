"""Fixtures: the images, and the stack of docker-compose.yml that the tests share."""

import json
import os
import signal

import pytest

import images as catalogue
from harness import BINARY
from stack import FIGURES, Stack, figure, seconds

PORTS = ("RABBITMQ_PORT", "RABBITMQ_MANAGEMENT_PORT", "GCS_PORT", "WORKER_PORT", "S3_PORT", "WORKER_S3_PORT", "REDIS_PORT")


def pytest_sessionstart(session):
    # Told to stop from outside, the tests still remove their containers.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if session.config.option.collectonly:
        return
    if not BINARY.exists():
        raise pytest.UsageError(f"{BINARY} does not exist; run: cargo build")
    fault = catalogue.docker_fault()
    if fault:
        # tests/run has asked before: one that stops answering since then is a failure there.
        pytest.exit(f"not run: {fault}", returncode=int("FILESTORAGE_TEST_DOCKER" in os.environ))


def pytest_terminal_summary(terminalreporter):
    if FIGURES:
        terminalreporter.section("figures")
        for line in FIGURES:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def bases():
    """The images that the stacks stand on, by variable."""
    return catalogue.base_images()


@pytest.fixture(scope="session")
def built(bases):
    """The worker's image and what its build printed."""
    return catalogue.worker_image(bases)


@pytest.fixture(scope="session")
def images(bases, built):
    """Every image by its variable, for the environment of Compose."""
    return {**bases, "FILESTORAGE_IMAGE": built[0]}


@pytest.fixture(scope="session")
def older(images):
    """The same with the generation of RabbitMQ before."""
    return {**images, "RABBITMQ_IMAGE": catalogue.base_images(catalogue.OLDER)["RABBITMQ3_IMAGE"]}


def since_broker(stack):
    """Seconds between the first good health check of the broker and the worker's word that it is ready."""
    checks = json.loads(stack.inspect("rabbitmq", "{{json .State.Health.Log}}"))
    broker = min(seconds(check["End"]) for check in checks if check["ExitCode"] == 0)
    lines = stack.log_lines("worker")
    return next(seconds(line["timestamp"]) for line in lines if line["message"] == "worker ready") - broker


@pytest.fixture(scope="session")
def stack(images):
    """The stack that tests share who leave it as they found it: broker, both buckets, both workers, all healthy."""
    stack = Stack("shared", images, ports=PORTS)
    stack.profiles = ["s3", "demo"]
    try:
        stack.up("worker", "worker-s3")
        stack.wait_healthy("worker", "worker-s3")
        figure(f"compose: worker ready {since_broker(stack):.2f} s after RabbitMQ's first good health check")
        yield stack
    finally:
        stack.close()


@pytest.fixture
def stacks(images):
    """Makes projects of docker-compose.yml that are removed with the test: stacks(**variables)."""
    made = []

    def make(name="test", **environment):
        stack = Stack(name, images, ports=PORTS, **environment)
        made.append(stack)
        return stack

    yield make
    for stack in made:
        stack.close()
