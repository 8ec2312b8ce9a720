"""What the people who run it do from the shell: sync, migrate, doctor; each says what it did and ends with a telling code."""

import json
import signal
import subprocess
import time

import pytest

from buckets import BucketSite
from harness import BINARY, same, wait_until
from test_types import VALUES


def said(done):
    return (done.stdout + done.stderr).decode()


def summary(done):
    """The JSON a command answered."""
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise AssertionError(said(done)) from None


# --- sync ----------------------------------------------------------------------------------------------------------------


def test_what_the_shell_stored_during_an_outage_is_sent_by_sync(bucket_site):
    site = bucket_site
    site.proxy.down()
    for n in range(5):
        done = site.run("store", f"k/{n}", "-", stdin=b"x" * n)
        assert done.returncode == 0, said(done)
    assert len(site.overlay()) == 5
    assert site.run("retrieve", "k/3").stdout == b"xxx"
    assert site.run("retrieve", "only the bucket knows").returncode == 69
    assert site.run("sync").returncode == 69
    assert len(site.overlay()) == 5
    site.proxy.up()
    done = site.run("sync", "--json")
    assert done.returncode == 0, said(done)
    report = summary(done)
    assert (report["sent"], report["conflicts"], report["failed"], report["remaining"]) == (5, 0, 0, 0)
    assert not site.overlay()
    assert site.names() == [f"k/{n}" for n in range(5)]
    done = site.run("sync", "--json")
    assert done.returncode == 0 and summary(done)["sent"] == 0


def test_sync_as_a_command_answers_how_many_entries_were_sent(bucket_site):
    site = bucket_site
    site.start()
    site.call("store", "k", 1)
    assert site.call("sync") == 0
    site.proxy.down()
    site.call("store", "k", 2)
    error = site.send("sync").get(timeout=60, propagate=False)
    assert type(error).__name__ == "StorageUnavailable"
    site.proxy.up()
    # How many depends on whether the worker itself was quicker.
    wait_until(lambda: type(site.send("sync").get(timeout=60, propagate=False)) is int, 60, "the bucket", step=0.3)
    assert not site.overlay()
    assert site.server.read(site.bucket, "k") == b"2"


# --- migrate -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(bucket_site):
    """A site whose local store holds values of every kind; returns it and what it holds."""
    site = bucket_site
    worker = site.start(STORAGE_BACKEND="local")
    values = {f"types/{name}": value for name, value in VALUES.items()}
    values.update({f"many/{n:03}": f"value {n}" for n in range(150)})
    values.update({"a/b c?#%+é🦀": b"odd name"})
    receipts = {}
    for key, result in [(key, site.send("store", key, value, {"key": key})) for key, value in values.items()]:
        receipts[key] = result.get(timeout=60)
    assert worker.stop() == 0
    return site, values, receipts


def holds_all(site, values, receipts, **env):
    """A worker on the target answers each value, with the generation, the times and the metadata it had."""
    worker = site.start(**env)
    for key, value in values.items():
        assert same(site.call("retrieve", key), value), key
        stat = site.call("stat", key)
        assert stat["metadata"] == {"key": key}
        for name in ("generation", "stored_at", "checksum", "content_type", "kind", "expires_at"):
            assert stat[name] == receipts[key][name], (key, name)
    assert worker.stop() == 0


def test_values_move_to_a_bucket_and_back_with_attributes(filled):
    site, values, receipts = filled
    done = site.run("migrate", "--from", "local", "--to", "gcs", "--dry-run", "--json")
    assert done.returncode == 0, said(done)
    assert (summary(done)["copied"], summary(done)["dry_run"]) == (len(values), True)
    assert site.names() == []
    done = site.run("migrate", "--from", "local", "--to", "gcs", "--json")
    assert done.returncode == 0, said(done)
    assert (summary(done)["copied"], summary(done)["failed"], summary(done)["complete"]) == (len(values), 0, True)
    assert site.names() == sorted(values, key=lambda key: key.encode())
    holds_all(site, values, receipts)
    back = site.folder / "back"
    done = site.run("migrate", "--from", "gcs", "--to", f"file://{back}", "--json")
    assert done.returncode == 0, said(done)
    assert summary(done)["copied"] == len(values)
    holds_all(site, values, receipts, STORAGE_BACKEND="local", LOCAL_STORAGE_PATH=back)
    # Nothing was ever removed.
    holds_all(site, values, receipts, STORAGE_BACKEND="local")


def test_a_migration_that_was_killed_is_finished_by_the_next(filled):
    site, values, receipts = filled
    site.proxy.rule({"delay": 0.05}, method="POST")
    command = [str(BINARY), "migrate", "--from", "local", "--to", "gcs", "--parallel", "2"]
    for ended in (signal.SIGKILL, signal.SIGTERM):
        before = len(site.names())
        process = subprocess.Popen(command, env=site.env(), cwd=site.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_until(lambda before=before: len(site.names()) >= before + 20, 60, "progress", step=0.01)
        process.send_signal(ended)
        process.communicate(timeout=30)
        assert process.returncode == (-9 if ended == signal.SIGKILL else 75)
        assert len(site.names()) < len(values), "it was done before it was ended"
    there = len(site.names())
    site.proxy.clear()
    done = site.run("migrate", "--from", "local", "--to", "gcs", "--json")
    assert done.returncode == 0, said(done)
    assert summary(done)["skipped"] == there
    assert summary(done)["copied"] == len(values) - there
    holds_all(site, values, receipts)


def test_a_value_that_cannot_be_copied_stops_no_other(filled):
    site, values, receipts = filled
    site.proxy.rule({"status": 403}, object="^many/(007|042)$")
    site.server.write(site.bucket, "many/100", b"theirs", "text/plain")
    done = site.run("migrate", "--from", "local", "--to", "gcs", "--json")
    assert done.returncode == 75, said(done)
    assert (summary(done)["failed"], summary(done)["copied"]) == (3, len(values) - 3)
    lines = done.stderr.decode().splitlines()
    for key in ("many/007", "many/042", "many/100"):
        assert len([line for line in lines if key in line]) == 1, said(done)
    assert site.server.read(site.bucket, "many/100") == b"theirs"
    site.proxy.clear()
    done = site.run("migrate", "--from", "local", "--to", "gcs", "--overwrite", "--json")
    assert done.returncode == 0, said(done)
    assert summary(done)["copied"] == 3
    holds_all(site, values, receipts)


def test_damage_on_the_way_is_not_copied(filled):
    site, values, receipts = filled
    site.proxy.rule({"flip": {"side": "request", "find": "value 99"}}, object="^many/099$")
    done = site.run("migrate", "--from", "local", "--to", "gcs", "--json", MAX_RETRIES=1)
    assert done.returncode == 75 and "many/099" in done.stderr.decode(), said(done)
    assert site.server.stat(site.bucket, "many/099") is None
    site.proxy.clear()
    assert site.run("migrate", "--from", "local", "--to", "gcs").returncode == 0
    holds_all(site, values, receipts)


def test_from_bucket_to_bucket_and_what_cannot_be(filled):
    site, values, _ = filled
    assert site.run("migrate", "--from", "local", "--to", "gcs", "--prefix", "many/").returncode == 0
    other = site.server.bucket()
    done = site.run("migrate", "--from", f"gs://{site.bucket}", "--to", f"gs://{other}", "--json")
    assert done.returncode == 0, said(done)
    assert site.server.names(other) == site.names() == [f"many/{n:03}" for n in range(150)]
    assert site.server.read(other, "many/007") == b"value 7"
    assert site.run("migrate", "--from", "gcs", "--to", "gcs").returncode == 64
    assert site.run("migrate", "--from", "nowhere", "--to", "gcs").returncode == 64
    assert site.run("migrate", "--from", f"file://{site.folder}/nothing", "--to", "gcs").returncode == 66
    site.proxy.down()
    assert site.run("migrate", "--from", "local", "--to", "gcs", MAX_RETRIES=0).returncode == 69


# --- doctor --------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["gcs", "s3"])
def patient(request, broker, tmp_path):
    site = BucketSite(broker, tmp_path, request.getfixturevalue(request.param))
    yield site
    site.close()


def test_a_healthy_site_has_no_fault(patient):
    site = patient
    done = site.run("doctor")
    assert done.returncode == 0, said(done)
    text = done.stdout.decode()
    assert not [line for line in text.splitlines() if line.startswith("fault")]
    for part in ("settings", "broker", "bucket", "create", "get", "list", "replace", "delete", "clock", "disk", "inodes"):
        assert part in text, part
    assert site.names() == [], "it leaves nothing behind"


def test_each_missing_permission_is_a_fault_of_its_own(patient):
    site = patient
    rules = {
        "delete": {"method": "DELETE"},
        "create": {"method": ["POST", "PUT"]},
        "get": {"method": "GET", "object": "filestorage-doctor"},
    }
    for permission, match in rules.items():
        rule = site.proxy.rule({"status": 403}, **match)
        done = site.run("doctor")
        site.proxy.forget(rule)
        assert done.returncode == 78, said(done)
        faults = [line for line in said(done).splitlines() if line.startswith("fault")]
        assert any(permission in line for line in faults), said(done)


def test_an_outage_is_said_and_what_waits_is_counted(patient):
    site = patient
    site.proxy.down()
    assert site.run("store", "k", "-", stdin=b"x").returncode == 0
    done = site.run("doctor", MAX_RETRIES=0)
    assert done.returncode == 69, said(done)
    assert site.bucket in said(done)
    site.proxy.up()
    done = site.run("doctor")
    assert done.returncode == 0, said(done)
    assert [line for line in said(done).splitlines() if line.startswith("note") and "sync" in line], said(done)


def test_a_clock_that_is_off_is_a_fault(patient):
    wrong = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() - 3600))
    patient.proxy.rule({"patch": {"Date": wrong}})
    done = patient.run("doctor")
    assert done.returncode == 78, said(done)
    assert [line for line in said(done).splitlines() if line.startswith("fault") and "clock" in line], said(done)


def test_no_secret_is_ever_said(patient):
    site = patient
    site.proxy.down()
    text = said(site.run("doctor", MAX_RETRIES=0)) + said(site.run("config")) + said(site.run("sync"))
    assert "worker-secret" not in text
    assert f":{site.url.partition('@')[0].rpartition(':')[2]}@" not in text
