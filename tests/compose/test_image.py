"""The image by itself: small, without a shell, not root, and content with the least a container can be given."""

import json
import os
import re
import subprocess
import time
import uuid

import pytest

from harness import ROOT, wait_until
from stack import docker, figure

LEAST = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


@pytest.fixture(scope="module")
def image(built):
    return built[0]


@pytest.fixture(scope="module")
def config(image):
    return json.loads(docker("image", "inspect", "-f", "{{json .Config}}", image))


def run(image, *args, options=(), given=None):
    """Runs a container to its end; returns the finished process."""
    return subprocess.run(
        ["docker", "run", "--rm", "-i", *LEAST, *options, image, *args],
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def volume():
    name = f"fs-image-{uuid.uuid4().hex[:8]}"
    docker("volume", "create", name)
    yield name
    docker("volume", "rm", "-f", name)


@pytest.fixture
def container(image):
    """Starts a container in the background and removes it with the test: container(options…)."""
    made = []

    def start(*options):
        made.append(docker("run", "-d", *LEAST, *options, image).strip())
        return made[-1]

    yield start
    for one in made:
        docker("rm", "-f", "-v", one)


def health(container):
    return docker("inspect", "-f", "{{.State.Health.Status}}", container).strip()


def test_is_small(image, built):
    size = int(docker("image", "inspect", "-f", "{{.Size}}", image))
    figure(f"image: {size / 1e6:.1f} MB with the binary under test ({built[1]})")
    assert size <= 70_000_000


def test_says_what_it_is(config):
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    manifest = (ROOT / "Cargo.toml").read_text()
    for label, field in (("title", "name"), ("description", "description"), ("licenses", "license"), ("version", "version")):
        assert labels[label] == re.search(rf'^{field} = "(.*)"$', manifest, re.M)[1]
    if (ROOT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}", labels["revision"])


def test_a_build_by_compose_has_the_right_version_too():
    version = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    assert f"ARG VERSION={version}\n" in (ROOT / "deploy/image/Dockerfile").read_text()


def test_is_not_root_and_stops_on_sigterm(config):
    assert config["User"] == "65532:65532"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Entrypoint"] == ["/usr/local/bin/filestorage"] and config["Cmd"] == ["worker"]
    # No shell, so the check must not need one.
    assert config["Healthcheck"]["Test"] == ["CMD", "/usr/local/bin/filestorage", "healthcheck"]


def test_holds_no_shell(image):
    tried = run(image, "-c", "true", options=("--entrypoint", "/bin/sh"))
    assert tried.returncode == 127 and "no such file" in tried.stderr
    one = docker("create", image).strip()
    try:
        # Through a pipe: the archive is tens of megabytes.
        with subprocess.Popen(["docker", "export", one], stdout=subprocess.PIPE) as export:
            names = subprocess.run(["tar", "-t"], stdin=export.stdout, capture_output=True, text=True, check=True).stdout.split()
    finally:
        docker("rm", one)
    assert "usr/local/bin/filestorage" in names
    assert [name for name in names if re.fullmatch(r"(usr/)?s?bin/.*(sh|busybox|perl|python.*)", name)] == []


def test_writes_only_to_its_volume(image, volume):
    """A fresh volume belongs to the worker's user, though nothing in the container may change an owner."""
    options = ("-v", f"{volume}:/app/storage")
    stored = run(image, "store", "hello.txt", "-", options=options, given="Hello!")
    assert stored.returncode == 0, stored.stderr
    back = run(image, "retrieve", "hello.txt", options=options)
    assert (back.returncode, back.stdout) == (0, "Hello!")
    without = run(image, "store", "hello.txt", "-", given="Hello!")
    assert without.returncode == 77 and "/app/storage" in without.stderr, without


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"CELERY_WORKER_CONCURRENCY": "many"}, "CELERY_WORKER_CONCURRENCY"),
        ({"CELERY_BROKER_URL": "rabbitmq:5672"}, "CELERY_BROKER_URL"),
        ({"GCS_BUCKET_NAME": "gs://bucket"}, "GCS_BUCKET_NAME"),
        ({"CELERY_BROKER_URL_FILE": "/run/secrets/broker.url"}, "/run/secrets/broker.url"),
    ],
)
def test_a_wrong_setting_ends_it_with_78_and_names_it(image, variables, named):
    done = run(image, options=[word for key, value in variables.items() for word in ("-e", f"{key}={value}")])
    assert done.returncode == 78, done
    faults = done.stderr.strip().splitlines()
    assert faults[0] == "filestorage: the configuration has a fault" and len(faults) == 2 and named in faults[1], faults


def test_is_the_first_process_healthy_and_ends_cleanly(stack, container):
    """In the network of the stack, with a queue of its own."""
    started = time.monotonic()
    one = container(
        "--network", stack.networks("worker")[0], "--tmpfs", "/app/storage:uid=65532",
        "-e", "CELERY_BROKER_URL=amqp://worker:worker@rabbitmq:5672//", "-e", "CELERY_TASK_DEFAULT_QUEUE=filestorage.s3",
        "--health-interval", "1s",
    )  # fmt: skip
    wait_until(lambda: health(one) == "healthy", 60, lambda: docker("logs", one, both=True), 0.1)
    figure(f"image: {time.monotonic() - started:.1f} s from `docker run` to healthy, checked once a second")
    processes = docker("top", one, "-o", "pid,args").strip().splitlines()[1:]
    assert len(processes) == 1 and processes[0].split(None, 1)[1] == "/usr/local/bin/filestorage worker"
    status = docker("exec", one, "/usr/local/bin/filestorage", "healthcheck")
    assert status == "ready\n"

    began = time.monotonic()
    docker("stop", "-t", "60", one)
    figure(f"image: {time.monotonic() - began:.1f} s for `docker stop` of an idle worker")
    assert docker("inspect", "-f", "{{.State.ExitCode}}", one).strip() == "0"


def test_is_not_healthy_without_its_broker(container):
    one = container(
        "--network", "none", "--tmpfs", "/app/storage:uid=65532",
        "--health-interval", "1s", "--health-retries", "1", "--health-start-period", "1s",
    )  # fmt: skip
    wait_until(lambda: health(one) == "unhealthy", 60, lambda: docker("logs", one, both=True), 0.1)

    def told():
        """The last check of a worker whose port is open: the first ones may come before that."""
        last = json.loads(docker("inspect", "-f", "{{json .State.Health.Log}}", one))[-1]
        return last if "not ready" in last["Output"] else None

    last = wait_until(told, 60, lambda: docker("logs", one, both=True), 0.5)
    assert last["ExitCode"] == 69 and "broker" in last["Output"], last


def test_wrong_calls_of_the_build_say_what_is_wrong():
    """One line each, before anything is built."""
    build = ROOT / "deploy" / "image" / "build"
    for arguments, code, text in (
        (["--binary"], 64, "--binary needs a value"),
        (["--quick"], 64, "unknown argument --quick"),
        (["--binary", "/nowhere/filestorage"], 66, "/nowhere/filestorage does not exist"),
        (["--binary", str(build)], 65, "is not a program of this machine"),
    ):
        done = subprocess.run([build, *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code and text in done.stderr, (arguments, done)
    blind = {**os.environ, "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    for script in (build, ROOT / "deploy" / "stand-ins"):
        done = subprocess.run([script], env=blind, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 69 and "docker does not answer" in done.stderr, done
    done = subprocess.run([ROOT / "deploy" / "stand-ins", "postgres"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 64 and "no stand-in is called postgres" in done.stderr, done
