"""Secrets in files that are replaced while the worker runs, and SIGHUP."""

import json
import os
import signal
import uuid

import pytest

from harness import QUEUE, TIMEOUT, wait_until

SOON = 30  # a backoff of a second at most, and what a loaded machine takes for it


class Account:
    """A user of the site's own whose password lies in a file, as the worker's URL."""

    def __init__(self, site):
        self.site, self.name, self.file = site, f"rotated-{uuid.uuid4().hex[:8]}", site.folder / "broker.url"
        self.password = "first-word"
        site.broker.ctl("add_user", self.name, self.password)
        site.broker.ctl("set_permissions", "-p", site.vhost, self.name, ".*", ".*", ".*")
        self.write()

    def url(self):
        return self.site.broker.url(self.site.vhost, self.name, self.password)

    def write(self, text=None):
        """Replaces the file as mounted secrets are: another file takes its name."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(self.url() + "\n" if text is None else text)
        os.replace(fresh, self.file)

    def change(self, password):
        self.password = password
        self.site.broker.ctl("change_password", self.name, password)

    def disconnect(self):
        self.site.broker.ctl("close_all_connections", "-p", self.site.vhost, "tested")

    def remove(self):
        self.site.broker.ctl("delete_user", self.name)


@pytest.fixture
def account(site):
    account = Account(site)
    yield account
    account.remove()


def start(site, account, **env):
    return site.start(CELERY_BROKER_URL="", CELERY_BROKER_URL_FILE=account.file, **env)


def secrets(worker):
    """What `/readyz` says of the files."""
    return json.loads(worker.http("/readyz")[1])["components"].get("secrets")


def sessions(worker):
    return [line for line in worker.log_lines() if line.get("message") == "worker ready"]


def next_session(site, account, worker):
    """Ends the session and waits until the next one works."""
    before = len(sessions(worker))
    account.disconnect()
    wait_until(lambda: len(sessions(worker)) > before, SOON, worker.log)
    worker.wait_ready()
    assert site.call("store", "k", 1)["key"] == "k"


def test_a_rotated_password_needs_no_restart(site, account):
    worker = start(site, account)
    account.change("second-word")
    account.write()
    next_session(site, account, worker)
    # Changed at the broker first: the worker is refused until the file follows.
    account.change("third-word")
    account.disconnect()
    wait_until(lambda: "and its password" in worker.http("/readyz")[1], SOON, worker.log)
    account.write()
    wait_until(worker.ready, SOON, worker.log)
    assert site.call("store", "k", 1)["key"] == "k"
    assert not [word for word in ("first-word", "second-word", "third-word") if word in worker.log()]


def test_a_broken_new_secret_file_keeps_the_old_secret(site, account):
    worker = start(site, account)
    for broken in (account.file.unlink, lambda: account.write(""), lambda: account.write("hunter2 & co")):
        broken()
        next_session(site, account, worker)
        said = wait_until(lambda: secrets(worker), SOON, worker.log)
        assert said["ready"] and str(account.file) in said["reason"] and "stays in use" in said["reason"], said
        assert worker.ready() and "hunter2" not in worker.log() + worker.http("/readyz")[1]
        account.write()
        wait_until(lambda: secrets(worker) == {"ready": True}, SOON, worker.log)


def test_hangup_reads_the_files_again_and_goes_on(site, account):
    worker = start(site, account)
    account.change("second-word")
    account.write()
    # What asks Celery's own worker for a stack trace and a debugger ends this one as little.
    worker.signal(signal.SIGUSR1)
    worker.signal(signal.SIGUSR2)
    worker.signal(signal.SIGHUP)

    def told():
        return [line for line in worker.log_lines() if line.get("message", "").startswith("SIGHUP")]

    [line] = wait_until(told, SOON, worker.log)
    assert line["files"] == str(account.file) and line["changed"] == "celery_broker_url", line
    assert len(sessions(worker)) == 1 and site.call("store", "k", 1)["key"] == "k", "the session goes on"
    assert "second-word" not in worker.log()
    with site.held_writes("slow"):
        result = site.send("store", "slow", "value")
        wait_until(lambda: site.queues()[QUEUE][1] == 1, what="the command to be delivered", step=0.1)
        worker.signal(signal.SIGTERM)
        wait_until(lambda: "draining" in worker.http("/readyz")[1], SOON, worker.log)
        worker.signal(signal.SIGHUP)
        wait_until(lambda: len(told()) == 2, SOON, worker.log)
        worker.assert_alive()
    assert worker.wait(SOON) == 0
    assert result.get(timeout=TIMEOUT)["key"] == "slow"


def test_hangup_ends_no_worker_that_waits_for_its_broker(site):
    worker = site.spawn(CELERY_BROKER_URL="amqp://guest:guest@127.0.0.1:1//")
    wait_until(lambda: "refused" in worker.http("/readyz")[1], SOON, worker.log)
    for _ in range(3):
        worker.signal(signal.SIGHUP)
    wait_until(lambda: "files of secrets were read again" in worker.log(), SOON, worker.log)
    assert worker.stop() == 0
