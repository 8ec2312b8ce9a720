"""What the service manager is told: the worker under a socket that stands in the place of systemd's."""

import re
import signal
import socket
import time
import uuid

import pytest

from harness import TIMEOUT, wait_until

PERIOD = 1.0  # seconds of the watchdog


class Manager:
    """The manager's end of `NOTIFY_SOCKET`; remembers every datagram."""

    def __init__(self, folder, abstract=False):
        self.name = f"@filestorage-{uuid.uuid4()}" if abstract else str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.name.replace("@", "\0", 1) if abstract else self.name)
        self._socket.setblocking(False)
        self._messages = []

    def messages(self):
        """Every datagram so far, as a dict of what it assigns."""
        while True:
            try:
                text = self._socket.recv(65536).decode()
            except BlockingIOError:
                return self._messages
            self._messages.append(dict(line.split("=", 1) for line in text.splitlines()))

    def of(self, name):
        return [message[name] for message in self.messages() if name in message]

    @property
    def status(self):
        return (self.of("STATUS") or [""])[-1]

    def await_status(self, pattern, timeout=TIMEOUT):
        return wait_until(lambda: re.search(pattern, self.status), timeout, lambda: f"{pattern} among {self.of('STATUS')}")

    def close(self):
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    manager = Manager(tmp_path, abstract=request.param == "abstract")
    yield manager
    manager.close()


@pytest.fixture
def by_path(tmp_path):
    manager = Manager(tmp_path)
    yield manager
    manager.close()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_ready_with_the_first_session_and_stopping_at_the_end(site, manager):
    worker = site.spawn(NOTIFY_SOCKET=manager.name)
    wait_until(lambda: manager.of("READY"), what=lambda: f"READY=1 among {manager.messages()}")
    # Whoever was told READY may send work.
    assert worker.ready()
    assert site.call("store", "k", 1)["key"] == "k"
    first, *_ = manager.messages()
    assert first["STATUS"].startswith("starting") and "READY" not in first
    assert manager.of("READY") == ["1"]
    manager.await_status("^ready$")
    assert not manager.of("STOPPING")
    assert worker.stop() == 0
    assert manager.of("STOPPING") == ["1"]
    assert manager.status.startswith("stopping")
    assert not manager.of("WATCHDOG"), "nobody asked for pings"


def test_stopping_is_told_when_draining_begins_not_when_it_ends(site, by_path):
    worker = site.start(NOTIFY_SOCKET=by_path.name)
    with site.held_writes("slow"):
        running = site.send("store", "slow", "value")
        wait_until(lambda: re.search(r"^filestorage_\w*in_flight\S* [1-9]", worker.http("/metrics")[1], re.M), what="the store to run")
        worker.signal(signal.SIGTERM)
        wait_until(lambda: by_path.of("STOPPING"), what="STOPPING=1")
        worker.assert_alive()
    assert running.get(timeout=TIMEOUT)["key"] == "slow"
    assert worker.wait() == 0


def test_without_a_broker_the_unit_starts_and_says_it_waits(site, by_path):
    port = free_port()
    worker = site.spawn(NOTIFY_SOCKET=by_path.name, CELERY_BROKER_URL=f"amqp://guest:guest@127.0.0.1:{port}//")
    wait_until(lambda: by_path.of("READY"), what=lambda: f"READY=1 among {by_path.messages()}")
    by_path.await_status(r"^not ready; broker: no session: .*\b" + str(port))
    assert worker.http("/readyz")[0] == 503, "READY=1 opens no traffic: the probe tells of that"
    assert worker.stop() == 0
    assert by_path.of("STOPPING") == ["1"]


def test_a_refused_password_fails_the_start(site, by_path):
    url = site.broker.url(site.vhost, password="wrong-password")
    worker = site.spawn(NOTIFY_SOCKET=by_path.name, CELERY_BROKER_URL=url)
    assert worker.wait() == 78
    assert not by_path.of("READY")
    assert any(site.broker.user in status for status in by_path.of("STATUS"))
    assert not any("wrong-password" in status for status in by_path.of("STATUS"))


def test_a_lost_broker_and_its_return_are_told(site, by_path):
    if not site.broker.can_restart:
        pytest.skip("the broker was given from outside and is not restarted")
    site.start(NOTIFY_SOCKET=by_path.name)
    by_path.await_status("^ready$")
    site.broker.kill()
    try:
        by_path.await_status("^not ready; broker: no session: ")
    finally:
        site.broker.start()
    by_path.await_status("^ready$", 60)
    assert by_path.of("READY") == ["1"], "READY=1 is told once"
    site.reconnect()


def test_an_away_bucket_is_told_and_does_not_hold_the_start_up(site, by_path):
    site.spawn(NOTIFY_SOCKET=by_path.name, GCS_BUCKET_NAME="some-bucket", STORAGE_EMULATOR_HOST=f"127.0.0.1:{free_port()}", MAX_RETRIES=0)
    wait_until(lambda: by_path.of("READY"), 30, lambda: f"READY=1 among {by_path.messages()}")
    by_path.await_status("^ready; storage: the bucket is away")


def test_the_watchdog_hears_of_a_worker_until_it_stands_still(site, by_path):
    worker = site.spawn(NOTIFY_SOCKET=by_path.name, WATCHDOG_USEC=int(PERIOD * 1e6))
    begun = time.monotonic()
    wait_until(lambda: len(by_path.of("WATCHDOG")) >= 6, what=lambda: f"pings among {by_path.messages()}")
    assert time.monotonic() - begun > PERIOD, "twice in a period, not as fast as it goes"
    worker.signal(signal.SIGSTOP)
    time.sleep(PERIOD)  # what was sent before it stood still
    before = len(by_path.of("WATCHDOG"))
    time.sleep(2 * PERIOD)
    assert len(by_path.of("WATCHDOG")) == before
    worker.signal(signal.SIGCONT)
    wait_until(lambda: len(by_path.of("WATCHDOG")) > before, what="pings again")
    # Also while it waits for what runs.
    worker.wait_ready()
    with site.held_writes("slow"):
        site.send("store", "slow", "value")
        wait_until(lambda: re.search(r"^filestorage_\w*in_flight\S* [1-9]", worker.http("/metrics")[1], re.M), what="the store to run")
        worker.signal(signal.SIGTERM)
        wait_until(lambda: by_path.of("STOPPING"), what="STOPPING=1")
        before = len(by_path.of("WATCHDOG"))
        wait_until(lambda: len(by_path.of("WATCHDOG")) >= before + 3, what="pings while draining")
    assert worker.wait() == 0


def test_another_process_s_watchdog_is_not_answered(site, by_path):
    worker = site.start(NOTIFY_SOCKET=by_path.name, WATCHDOG_USEC=200_000, WATCHDOG_PID=1)
    by_path.await_status("^ready$")
    time.sleep(0.5)
    assert worker.stop() == 0
    assert not by_path.of("WATCHDOG")


@pytest.mark.parametrize(
    "variables, named",
    [
        ({"NOTIFY_SOCKET": "relative"}, "NOTIFY_SOCKET"),
        ({"NOTIFY_SOCKET": "/nobody/listens"}, "cannot be reported to the service manager"),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "soon"}, "WATCHDOG_USEC"),
    ],
)
def test_a_manager_that_cannot_be_notified_costs_one_log_line(site, variables, named):
    worker = site.start(**variables)
    assert site.call("store", "k", 1)["key"] == "k"
    lines = [line for line in worker.log_lines() if named in str(line)]
    assert len(lines) == 1, worker.log()
    assert worker.stop() == 0
