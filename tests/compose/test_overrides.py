"""The files of deploy/compose that are laid over docker-compose.yml: what they ask for, and what they leave of it."""

import json
import os
import subprocess

import pytest

from harness import ROOT
from images import compose_command
from stack import call

FOLDER = ROOT / "deploy" / "compose"
# Each with the variables that must be set.
OVERRIDES = {
    "bucket.yml": {"GCS_BUCKET_NAME": "my-bucket", "GCS_CREDENTIALS": "/path/of/key.json"},
    "broker.yml": {"BROKER_URL_FILE": "/path/of/broker.url"},
    "s3-bucket.yml": {"S3_BUCKET_NAME": "my-bucket", "S3_REGION": "eu-central-1", "S3_CREDENTIALS": "/path/of/keys"},
}
NEEDED = [(name, variable) for name, variables in OVERRIDES.items() for variable in variables]


def config(name, variables):
    """Runs `config` of Compose, which needs no containers."""
    files = ["-f", str(ROOT / "docker-compose.yml"), "-f", str(FOLDER / name), "--profile", "s3"]
    return subprocess.run(
        [*compose_command(), *files, "config"],
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **variables},
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", OVERRIDES)
def test_it_fits_over_the_stack(name):
    done = config(name, OVERRIDES[name])
    assert done.returncode == 0, done.stderr
    for variable, value in OVERRIDES[name].items():
        assert value in done.stdout, variable


@pytest.mark.parametrize(("name", "missing"), NEEDED)
def test_a_variable_that_is_missing_is_named(name, missing):
    done = config(name, {key: value for key, value in OVERRIDES[name].items() if key != missing})
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert f"for example {missing}=" in last, done.stderr


@pytest.fixture
def laid_over(stack):
    """Starts a service of the shared stack under an override; afterwards it is as it was."""
    services = set()

    def start(service, name, **variables):
        services.add(service)
        stack.compose("-f", str(FOLDER / name), "up", "-d", "--no-deps", service, **variables)
        stack.wait_healthy(service)
        return json.loads(stack.inspect(service, "{{json .}}"))

    yield start
    for service in services:
        stack.compose("up", "-d", "--no-deps", service)
        stack.wait_healthy(service)


def test_the_broker_s_password_is_in_a_file_only(stack, laid_over, tmp_path):
    file = tmp_path / "broker.url"
    file.write_text("amqp://worker:worker@rabbitmq:5672//\n")
    shown = laid_over("worker", "broker.yml", BROKER_URL_FILE=file)
    assert "worker:worker@" not in json.dumps(shown["Config"])
    app = stack.app(f"amqp://producer:producer@127.0.0.1:{stack.ports['RABBITMQ_PORT']}//")
    assert call(app, "exists", "nothing") is False


def test_files_of_an_exchange_folder_are_values(stack, laid_over, tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "big.bin").write_bytes(b"from a file")
    laid_over("worker", "exchange.yml", EXCHANGE=tmp_path)
    app = stack.app(f"amqp://producer:producer@127.0.0.1:{stack.ports['RABBITMQ_PORT']}//")
    assert call(app, "store", "files/2", {"$ref": "file:///exchange/big.bin"})["size"] == 11


def test_the_keys_of_s3_are_in_files_only(stack, laid_over, tmp_path):
    for name, text in {"access-key-id": "filestorage", "secret-access-key": "filestorage-secret"}.items():
        (tmp_path / name).write_text(text + "\n")
    tmp_path.chmod(0o755)
    variables = {"S3_BUCKET_NAME": "filestorage", "S3_REGION": "us-east-1", "S3_ENDPOINT_URL": "http://s3:8333"}
    shown = laid_over("worker-s3", "s3-bucket.yml", S3_CREDENTIALS=tmp_path, **variables)
    assert "filestorage-secret" not in json.dumps(shown["Config"])
    app = stack.app(f"amqp://producer:producer@127.0.0.1:{stack.ports['RABBITMQ_PORT']}//", queue="filestorage.s3")
    assert call(app, "store", "files/1", b"x")["backend"] == "s3"
    assert call(app, "delete", "files/1") is True
