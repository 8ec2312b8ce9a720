"""The settings of the manifests, given to the program itself."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time

import pytest

from manifests import rendering
from manifests.cluster import Cluster

BINARY = os.environ.get("FILESTORAGE_BIN", str(rendering.ROOT / "target" / "debug" / "filestorage"))
EVERYTHING = [(cloud, *rendering.COMPONENTS) for cloud in rendering.CLOUDS]


@pytest.fixture(params=[*rendering.OVERLAYS, *EVERYTHING], ids=rendering.title)
def environment(request, tmp_path):
    """The worker's environment, with files of our own where its Secrets are mounted, and its container."""
    cluster = Cluster(rendering.documents(request.param, tmp_path))
    settings = dict(cluster.settings)
    for name in [name for name in settings if name.endswith("_FILE")]:
        path = tmp_path / name
        path.write_text(f"amqp://worker:hidden@127.0.0.1:{closed_port()}//\n")
        settings[name] = str(path)
    return settings, cluster.worker


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(*arguments, environment):
    command = [BINARY, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_every_setting_is_known_and_taken(environment):
    settings, _ = environment
    done = run("config", "--json", environment=settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "", done.stderr
    sources = {row["source"] for row in json.loads(done.stdout)}
    assert {f"environment {name}" for name in settings} <= sources


def test_a_wrong_setting_would_be_found(environment):
    settings, _ = environment
    done = run("config", "--json", environment=settings | {"SHUTDOWN_GRACE_SECONDS": "a while"})
    assert done.returncode == 78 and "shutdown_grace_seconds" in done.stdout + done.stderr
    done = run("config", "--json", environment=settings | {"SHUTDOWN_GRACE_SECOND": "25"})
    assert "environment SHUTDOWN_GRACE_SECOND" not in {row["source"] for row in json.loads(done.stdout)}


def test_base_without_a_bucket_does_not_start(tmp_path):
    """It would keep values in a folder that goes with the pod."""
    settings = Cluster(rendering.render(rendering.FOLDER / "base")).settings
    broker = tmp_path / "broker"
    broker.write_text("amqp://127.0.0.1:1//")
    settings |= {"CELERY_BROKER_URL_FILE": str(broker), "LOCAL_STORAGE_PATH": str(tmp_path)}
    done = run("worker", environment=settings)
    assert done.returncode == 78 and "gcs_bucket_name" in done.stderr, done.stderr


def test_probe_paths_answer_while_broker_and_bucket_are_away(environment, tmp_path):
    """The worker lives, is not ready, is not restarted, and stops when asked to."""
    settings, container = environment
    away = f"http://127.0.0.1:{closed_port()}"
    settings |= {"METRICS_HOST": "127.0.0.1", "METRICS_PORT": "0", "LOCAL_STORAGE_PATH": str(tmp_path / "storage")}
    settings = {name: value for name, value in settings.items() if not name.startswith("BROKER_TLS_")}
    if settings["STORAGE_BACKEND"] == "gcs":
        settings |= {"STORAGE_EMULATOR_HOST": away}
    else:
        settings |= {"S3_ENDPOINT_URL": away, "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    log = tmp_path / "log"
    with log.open("wb") as output:
        worker = subprocess.Popen([BINARY, *container["args"]], env=settings, stdout=output, stderr=output)
    try:
        port = wait_for(lambda: re.search(r'"admin port open".*"port":(\d+)', log.read_text()), log, worker)[1]
        paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")}
        wait_for(lambda: ask(port, paths["startup"]) == 200, log, worker)
        assert ask(port, paths["liveness"]) == 200
        assert ask(port, paths["readiness"]) == 503
        assert ask(port, "/metrics") == 200
        assert ask(port, "/nothing") == 404
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(float(settings["SHUTDOWN_GRACE_SECONDS"])) == 0, log.read_text()
    finally:
        worker.kill()
        worker.wait()


def ask(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except ConnectionError:
        return None
    finally:
        connection.close()


def wait_for(condition, log, worker, timeout=30):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if found := condition():
            return found
        assert worker.poll() is None, f"the worker ended with {worker.returncode}:\n{log.read_text()}"
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout} s; the worker says:\n{log.read_text()}")
