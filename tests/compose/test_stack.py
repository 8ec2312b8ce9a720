"""docker-compose.yml as a user meets it: a client on the host, the buckets behind it, the demo, and wrong settings."""

import json
import random
import subprocess
import time

import boto3
import pytest
from amqp.exceptions import AccessRefused
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from kombu import Connection

from harness import wait_until
from stack import call, figure, seconds

METRICS = "filestorage.metrics"


def url(stack, user):
    return f"amqp://{user}:{user}@127.0.0.1:{stack.ports['RABBITMQ_PORT']}//"


@pytest.fixture
def app(stack):
    return stack.app(url(stack, "producer"))


@pytest.fixture
def bucket(stack, monkeypatch):
    """The emulator's bucket, by Google's own client from the host."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{stack.ports['GCS_PORT']}")
    return storage.Client(project="filestorage", credentials=AnonymousCredentials()).bucket("filestorage")


def test_the_main_job(app, bucket):
    receipt = call(app, "store", "reports/1.txt", "Hello!", {"author": "Ada"}, content_type="text/plain")
    assert (receipt["backend"], receipt["pending_sync"]) == ("gcs", False)
    # What is confirmed lies in the bucket, as an ordinary object that other tools read.
    blob = bucket.blob("reports/1.txt")
    blob.reload()
    assert (blob.content_type, blob.metadata["author"]) == ("text/plain", "Ada")
    # Not by the link that the emulator names: that one leads into the stack's own network.
    assert bucket.blob("reports/1.txt").download_as_bytes() == b"Hello!"
    assert call(app, "retrieve", "reports/1.txt") == "Hello!"
    assert call(app, "delete", "reports/1.txt") is True
    assert not bucket.blob("reports/1.txt").exists()
    assert call(app, "retrieve", "reports/1.txt") is None


def test_a_command_with_a_countdown_waits_in_the_broker(app):
    """The worker may declare nothing: the queues of delayed commands are there."""
    delayed = app.send_task("filestorage.store", ["later/1", "x"], countdown=0.5)
    assert delayed.get(timeout=20)["key"] == "later/1"


def test_a_large_value_goes_by_an_upload_session(stack, app, bucket):
    """The emulator names the session's address: the worker must be able to reach it.

    Sessions begin at 16 MiB, which is more than one message holds: the value comes by the shell, in a stream.
    """
    # Of bytes that no codec makes smaller.
    value = random.Random(1).randbytes(17 << 20)
    command = ["docker", "exec", "-i", stack.container("worker"), "filestorage", "store", "large/1", "-"]
    done = subprocess.run(command, input=value, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert call(app, "stat", "large/1")["size"] == len(value) >= 16 << 20
    assert bucket.blob("large/1").download_as_bytes() == value
    assert call(app, "delete", "large/1") is True


def test_metric_events_come_into_their_queue(stack, app):
    receipt = app.send_task("filestorage.store", ["events/1", b"x" * 100])
    receipt.get(timeout=20)
    found = []

    def mine():
        while (message := queue.basic_get(METRICS, no_ack=True)) is not None:
            body = json.loads(message.body)
            found.extend(body if isinstance(body, list) else [body])
        return [event for event in found if event["data"]["task_id"] == receipt.id]

    with Connection(url(stack, "monitor")) as connection:
        queue = connection.default_channel
        event = wait_until(mine, what=lambda: f"the event of {receipt.id} in {found}")[0]
    assert event["type"] == "filestorage.store.succeeded"
    assert (event["data"]["key"], event["data"]["size"], event["data"]["backend"]) == ("events/1", 100, "gcs")


def test_the_profile_s3_serves_a_queue_of_its_own(stack):
    app = stack.app(url(stack, "producer"), queue="filestorage.s3")
    assert call(app, "store", "a/b", b"\x00\x01")["backend"] == "s3"
    s3 = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{stack.ports['S3_PORT']}",
        aws_access_key_id="filestorage",
        aws_secret_access_key="filestorage-secret",
        region_name="us-east-1",
    )
    assert s3.get_object(Bucket="filestorage", Key="a/b")["Body"].read() == b"\x00\x01"
    assert call(app, "retrieve", "a/b") == b"\x00\x01"
    assert call(app, "delete", "a/b") is True
    assert s3.list_objects_v2(Bucket="filestorage")["KeyCount"] == 0


def test_the_profile_demo_shows_it_all_and_ends_with_0(stack):
    stack.compose("build", "demo", timeout=600)
    shown = stack.compose("run", "--rm", "demo").stdout
    for line in (
        "retrieve demo/decimal                        Decimal('12.50')",
        "backend                                      'gcs'",
        "delete demo/report.pdf                       True",
        "except ValueError ",
        "retrieve | store | retrieve                  'written by step 2'",
        '"type": "filestorage.store.succeeded"',
        "delete demo/report.pdf succeeded ",
    ):
        assert line in shown, f"{line!r} is not in\n{shown}"


def test_nothing_has_more_than_it_needs(stack):
    """Ports on the loopback interface only, root file systems that cannot be written, no capability, no further right."""
    for service in ("rabbitmq", "gcs", "worker", "s3", "worker-s3"):
        of = json.loads(stack.inspect(service, "{{json .HostConfig}}"))
        assert (of["ReadonlyRootfs"], of["CapDrop"], of["SecurityOpt"]) == (True, ["ALL"], ["no-new-privileges:true"]), service
        addresses = {binding["HostIp"] for bindings in of["PortBindings"].values() for binding in bindings}
        assert addresses == {"127.0.0.1"}, service
    with pytest.raises(AccessRefused), Connection(url(stack, "guest")) as connection:
        connection.connect()


def test_a_crashed_worker_comes_back(stack, app):
    call(app, "store", "crash/1", "before")
    stack.signal("worker")
    wait_until(lambda: stack.inspect("worker", "{{.RestartCount}}") == "1", what=stack.tail)
    stack.wait_healthy("worker")
    assert call(app, "retrieve", "crash/1") == "before"


def test_what_a_worker_holds_back_survives_its_container(stack, app):
    """The overlay and the journal are on the volume."""
    stack.stop("gcs", 1)
    try:
        receipt = call(app, "store", "overlay/1", "while the bucket was away", _timeout=60)
        assert (receipt["backend"], receipt["pending_sync"]) == ("local", True)
        stack.compose("up", "-d", "--force-recreate", "--no-deps", "worker")
    finally:
        stack.start("gcs")
    stack.wait_healthy("worker")
    wait_until(lambda: call(app, "stat", "overlay/1")["backend"] == "gcs", 60, stack.tail, 0.2)
    assert call(app, "retrieve", "overlay/1") == "while the bucket was away"


def test_the_worker_is_ready_soon_after_its_broker(stack, app):
    since = time.time()
    stack.stop("rabbitmq")
    stack.start("rabbitmq")
    address = f"127.0.0.1:{stack.ports['RABBITMQ_PORT']}"

    def answers():
        try:
            with Connection(url(stack, "monitor"), connect_timeout=2, transport_options={"max_retries": 1}) as connection:
                connection.connect()
            return time.time()
        except OSError:
            return None

    broker = wait_until(answers, 120, lambda: f"{address}\n{stack.tail()}", 0.02)

    def ready():
        lines = [line for line in stack.log_lines("worker") if line["message"] == "worker ready"]
        return [when for when in (seconds(line["timestamp"]) for line in lines) if when > since]

    worker = wait_until(ready, 120, stack.tail, 0.2)[0]
    figure(f"compose: worker ready {max(worker - broker, 0):.2f} s after its restarted broker took a login")
    assert call(app, "exists", "nothing") is False


# --- wrong settings --------------------------------------------------------------------------------------------------


# The policy as it is costs three seconds of waiting: one case takes it.
ONCE = {"WORKER_RESTART": "on-failure:1"}


def set_wrongly(stack, service, **variables):
    """Makes the service's container anew, with some variables of Compose set wrongly."""
    stack.compose("up", "-d", "--no-deps", service, **variables)


@pytest.fixture(scope="module")
def spoiled(stack):
    """The stack for tests that set variables wrongly; afterwards it is as it was."""
    yield stack
    stack.compose("up", "-d", "--no-deps", "worker", "worker-s3")
    stack.wait_healthy("worker", "worker-s3")


@pytest.mark.parametrize(
    ("service", "variables", "said"),
    [
        pytest.param(
            "worker", {"CELERY_WORKER_CONCURRENCY": "many"},
            "celery_worker_concurrency (environment CELERY_WORKER_CONCURRENCY): must be a whole number",
            id="a wrong setting",
        ),
        pytest.param(
            "worker", {"CELERY_BROKER_URL": "amqp://worker:wrong@rabbitmq:5672//", **ONCE},
            "check user 'worker' and its password; correct CELERY_BROKER_URL",
            id="a wrong password of the broker",
        ),
        pytest.param(
            "worker", {"GCS_BUCKET_NAME": "nobodys", "GCS_PROJECT_ID": "", **ONCE},
            "bucket \"nobodys\" at http://gcs:4443 does not exist; create it with",
            id="a missing bucket",
        ),
        pytest.param(
            "worker-s3", {"AWS_SECRET_ACCESS_KEY": "wrong", **ONCE},
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to a pair that is valid here",
            id="a wrong key of S3",
        ),
        pytest.param(
            "worker-s3", {"AWS_ACCESS_KEY_ID": "", **ONCE},
            "AWS_ACCESS_KEY_ID (together): must be set as well",
            id="half a pair of keys of S3",
        ),
    ],
)  # fmt: skip
def test_what_no_restart_repairs_ends_with_78_and_the_remedy(spoiled, service, variables, said):
    set_wrongly(spoiled, service, **variables)
    assert spoiled.wait_exited(service) == 78
    tries = int(spoiled.inspect(service, "{{.RestartCount}}"))
    assert tries == (1 if "WORKER_RESTART" in variables else 5)
    # Each run says it once, in plain words, as its last line.
    final = [line for line in spoiled.logs(service).splitlines() if not line.startswith("{")]
    assert sum(said in line for line in final) == tries + 1, final
    assert said in final[-1]


def test_a_worker_without_bucket_or_fallback_is_unhealthy(spoiled):
    set_wrongly(spoiled, "worker", STORAGE_EMULATOR_HOST="http://nowhere:4443", ENABLE_LOCAL_FALLBACK="false")

    def unready():
        return [line for line in spoiled.log_lines("worker") if line["message"] == "not ready"]

    said = wait_until(unready, 60, spoiled.tail, 0.2)
    assert [line["component"] for line in said] == ["storage"] and "cannot be reached" in said[0]["reason"], said
    checked = spoiled.exec("worker", "/usr/local/bin/filestorage", "healthcheck", check=False)
    assert checked == "" and spoiled.state("worker") == "running" and spoiled.health("worker") != "healthy"


def test_a_worker_without_its_bucket_serves_from_its_volume(spoiled, app):
    set_wrongly(spoiled, "worker", STORAGE_EMULATOR_HOST="http://nowhere:4443")
    spoiled.wait_healthy("worker")
    assert call(app, "store", "away/1", "kept here", _timeout=60)["pending_sync"] is True
    warned = [line for line in spoiled.log_lines("worker") if line["message"] == "degraded"]
    assert len(warned) == 1 and "http://nowhere:4443 cannot be reached" in warned[0]["reason"], warned
