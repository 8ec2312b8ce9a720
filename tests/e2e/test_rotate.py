"""`filestorage rotate`: all values come under a new key while others write, it is killed and interrupted, and the old key can go."""

import base64
import json
import os
import random
import signal
import subprocess
import threading
import time

import pytest

from buckets import BucketSite
from harness import BINARY, Site, same, wait_until
from test_plaintext import objects

OLD, NEW = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))
BOTH = f"{NEW},{OLD}"


@pytest.fixture(params=["local", "gcs", "s3"])
def place(request, broker, tmp_path):
    """A site of each kind; no worker yet."""
    site = Site(broker, tmp_path) if request.param == "local" else BucketSite(broker, tmp_path, request.getfixturevalue(request.param))
    yield site
    site.close()


def env(site, keys):
    return site.env(ENABLE_ENCRYPTION="true", ENCRYPTION_KEY=keys, TIMEOUT_SECONDS=30)


def program(site, keys, *arguments):
    command = [str(BINARY), *arguments]
    return subprocess.Popen(command, env=env(site, keys), cwd=site.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def rotate(site, keys, *arguments):
    """Runs it to its end; returns the exit code and the summary."""
    with program(site, keys, "rotate", "--json", *arguments) as run:
        out, errors = run.communicate(timeout=300)
    assert out, errors
    return run.returncode, json.loads(out)


def value_of(n):
    """Values of every type and many sizes, some of which are compressed."""
    return [f"text {n}", bytes([n % 256]) * (n * 37 % 5_000), {"n": n, "pad": "x" * (n * 1_001 % 200_000)}, random.Random(n).randbytes(n * 97)][n % 4]


class Writers(threading.Thread):
    """Stores and deletes on thirty keys, conditionally in part, until told to stop; knows what must be there in the end."""

    def __init__(self, site):
        super().__init__(daemon=True)
        self.site, self.app, self.enough, self.last, self.fault = site, site.client(), threading.Event(), {}, None

    def call(self, task, *args, **kwargs):
        return self.app.send_task(f"filestorage.{task}", args, kwargs).get(timeout=60)

    def run(self):
        n = 0
        try:
            while not self.enough.is_set():
                key = f"k/{n * 7 % 30:03}"
                if n % 11 == 10:
                    self.call("delete", key)
                    self.last[key] = None
                elif n % 3 == 0 and self.last.get(key) is not None:
                    generation = self.call("stat", key)["generation"]
                    self.call("store", key, value_of(n), if_generation=generation)
                    self.last[key] = value_of(n)
                else:
                    self.call("store", key, value_of(n))
                    self.last[key] = value_of(n)
                n += 1
        except Exception as error:  # noqa: BLE001 - reported by whoever waits
            self.fault = error
        self.app.close()

    def end(self):
        self.enough.set()
        self.join(120)
        assert not self.is_alive() and self.fault is None, repr(self.fault)
        assert len(self.last) > 3, "the writers had no time to write"
        return self.last


def key_ids(site):
    """How many objects are under each key, told without the program."""
    if isinstance(site, BucketSite):
        # A killed program may leave the object on which it tries the conditions of S3.
        headers = [about for name, _, about in objects(site) if "filestorage-tries-conditions-" not in name]
    else:
        headers = [path.read_bytes().split(b"\n", 1)[0].decode() for path in site.object_files() if "#" not in str(path.relative_to(site.storage))]
    found = {}
    for header in headers:
        after = header.replace("\\", "").split('"key_id":"')[1]
        found[after[:16]] = found.get(after[:16], 0) + 1
    return found


def test_300_values_are_rotated_under_kills_and_writes(place):
    site = place
    site.start(ENABLE_ENCRYPTION="true", ENCRYPTION_KEY=OLD)
    metadata = {"owner": "somebody", "n": [1.5, None]}
    wanted = {f"k/{n:03}": value_of(n) for n in range(300)}
    for result in [site.send("store", key, value, metadata=metadata) for key, value in wanted.items()]:
        assert result.get(timeout=120)["encrypted"] is True
    site.call("store", "short", "lived", ttl_seconds=3_600)
    before = {key: site.call("stat", key) for key in ("k/031", "k/200", "k/299", "short")}
    [(old, count)] = key_ids(site).items()
    assert count == 301
    site.workers[-1].stop()

    worker = site.start(ENABLE_ENCRYPTION="true", ENCRYPTION_KEY=BOTH)
    code, dry = rotate(site, BOTH, "--dry-run")
    assert (code, dry["rotated"], dry["current"], dry["complete"]) == (0, 301, 0, True)
    assert set(key_ids(site)) == {old}
    writers = Writers(site)
    writers.start()
    killed = 0
    for _ in range(12):
        with program(site, BOTH, "rotate", "--json") as run:
            try:
                run.wait(random.uniform(0.1, 0.6))
            except subprocess.TimeoutExpired:
                run.kill()
                killed += 1
    assert killed > 0
    # In the middle of it everything is read.
    for key in random.sample(sorted(wanted)[30:], 40):
        assert same(site.call("retrieve", key), wanted[key]), key
    # SIGINT ends a run with what it has done; the next goes on behind that.
    with program(site, BOTH, "rotate", "--json", "--parallel", "1") as run:
        time.sleep(0.3)
        run.send_signal(signal.SIGINT)
        out, errors = run.communicate(timeout=60)
    if run.returncode != 0:
        assert run.returncode == 75 and b"interrupted" in errors, errors
        part = json.loads(out)
        assert part["complete"] is False
        more = ["--start-after", part["last"]] if part["last"] else []
        assert rotate(site, BOTH, *more)[0] == 0
    wanted |= writers.end()
    code, done = rotate(site, BOTH)
    assert code == 0 and done["complete"] and done["failed"] == 0 and done["unknown_keys"] == {}
    code, dry = rotate(site, BOTH, "--dry-run")
    there = sum(value is not None for value in wanted.values()) + 1
    assert (code, dry["rotated"], dry["current"], dry["waiting"]) == (0, 0, there, 0)
    assert key_ids(site) == {dry["key_id"]: there} and dry["key_id"] != old
    worker.stop()

    # Without the old key.
    site.start(ENABLE_ENCRYPTION="true", ENCRYPTION_KEY=NEW)
    for key, result in [(key, site.send("retrieve", key)) for key in wanted]:
        assert same(result.get(timeout=60), wanted[key]), key
    for key, stat in before.items():
        if key not in writers.last:
            assert site.call("stat", key) == stat
    assert site.call("retrieve", "short") == "lived"


@pytest.mark.parametrize("kind", ["gcs", "s3"])
def test_what_waits_for_the_bucket_is_rotated_and_told(request, broker, tmp_path, kind):
    site = BucketSite(broker, tmp_path, request.getfixturevalue(kind))
    try:
        site.start(ENABLE_ENCRYPTION="true", ENCRYPTION_KEY=OLD)
        site.call("store", "there", "value")
        site.proxy.down()
        for n in range(5):
            assert site.call("store", f"waits/{n}", value_of(n))["pending_sync"] is True
        with program(site, BOTH, "rotate") as run:
            _, errors = run.communicate(timeout=60)
        assert run.returncode == 69 and b"cannot be reached" in errors, errors
        # Nobody sends now.
        site.workers[-1].kill()
        site.proxy.up()
        code, first = rotate(site, BOTH)
        assert (code, first["rotated"], first["waiting"], len(site.overlay())) == (75, 6, 5, 5)
        assert all(b"\"key_id\":\"" + first["key_id"].encode() in path.read_bytes() for path in site.overlay())
        done = site.run("sync")
        assert done.returncode == 0 and b"sent 5 writes" in done.stdout, done
        code, then = rotate(site, BOTH)
        assert (code, then["rotated"], then["current"], then["waiting"]) == (0, 0, 6, 0)
        site.start(ENABLE_ENCRYPTION="true", ENCRYPTION_KEY=NEW)
        for n in range(5):
            assert same(site.call("retrieve", f"waits/{n}"), value_of(n))
    finally:
        site.close()


def test_a_bucket_that_goes_away_ends_the_run(bucket_site):
    site = bucket_site
    site.start(ENABLE_ENCRYPTION="true", ENCRYPTION_KEY=OLD)
    for result in [site.send("store", f"k/{n:02}", value_of(n)) for n in range(40)]:
        result.get(timeout=60)
    site.workers[-1].stop()
    rule = site.proxy.rule({"reset": True}, nth=20, times=1_000, path="rewriteTo")
    code, part = rotate(site, BOTH, "--parallel", "1")
    assert code == 69 and not part["complete"] and 0 < part["rotated"] < 40, part
    site.proxy.forget(rule)
    code, rest = rotate(site, BOTH, "--start-after", part["last"])
    assert (code, part["rotated"] + rest["rotated"]) == (0, 40), rest
    wait_until(lambda: rotate(site, BOTH, "--dry-run")[1]["current"] == 40, what="all under the new key")
