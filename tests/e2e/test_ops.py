"""What the people who run it see: probes, numbers, exit codes, messages."""

import base64
import json
import re
import socket
import subprocess
import sys
import time

import pytest

from harness import BINARY, LEAST_PRIVILEGE, QUEUE, ROOT, TIMEOUT, crc32c, wait_until


def run(site, *args, timeout=30, stdin=b"", **env):
    return subprocess.run(
        [str(BINARY), *args], env=site.env(**env), cwd=site.folder, input=stdin, capture_output=True, timeout=timeout, check=False
    )


def password_of(site):
    """The worker's, as it stands in its URL."""
    return site.url.partition("@")[0].rpartition(":")[2]


def text_of(done):
    return (done.stdout + done.stderr).decode()


def test_probes_and_numbers(shared, key):
    worker = shared.workers[0]
    shared.call("store", key, 1)
    assert worker.http("/livez")[0] == 200
    assert worker.http("/readyz")[0] == 200
    status, text = worker.http("/metrics")
    assert status == 200
    assert re.search(r"^filestorage_\w+_total(\{[^}]*\})? [1-9]", text, re.M)
    assert "# TYPE" in text and "# HELP" in text
    status, text = worker.http("/health")
    assert status == 200
    health = json.loads(text)
    answer = shared.call("get_health_status")
    assert health.keys() == answer.keys() and health["status"] == answer["status"] == "healthy"
    assert answer["metrics"].keys() >= {"total_operations", "successful_operations", "cache_hits", "cache_misses", "compression_savings", "total_data_size"}
    assert worker.http("/nothing")[0] == 404


def test_the_admin_port_is_on_the_loopback_interface_only(shared):
    port = shared.workers[0].port
    with open("/proc/net/tcp") as tcp:
        bound = {line.split()[1] for line in tcp.readlines()[1:] if line.split()[3] == "0A"}
    assert f"0100007F:{port:04X}" in bound
    assert f"00000000:{port:04X}" not in bound


def test_a_taken_admin_port_stops_the_start(site):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(site, "worker", METRICS_PORT=port)
    assert done.returncode != 0
    assert str(port) in text_of(done)


def test_the_log_is_json_lines_without_payload_or_password(site):
    worker = site.start()
    site.call("store", "k", "a-payload-nobody-logs")
    assert worker.stop() == 0
    lines = worker.log().splitlines()
    assert lines and all(isinstance(json.loads(line), dict) for line in lines)
    assert "a-payload-nobody-logs" not in worker.log()
    assert f":{password_of(site)}@" not in worker.log()


def test_a_wrong_password_ends_with_78_and_the_remedy(site):
    started = time.monotonic()
    url = site.broker.url(site.vhost, password="wrong-password")
    done = run(site, "worker", CELERY_BROKER_URL=url)
    assert done.returncode == 78, text_of(done)
    assert time.monotonic() - started < 15
    said = text_of(done)
    assert f"'{site.broker.user}' and its password" in said
    assert "wrong-password" not in said


def test_an_unknown_vhost_ends_with_78_and_names_it(site):
    done = run(site, "worker", CELERY_BROKER_URL=site.broker.url("no-such-vhost"))
    assert done.returncode == 78, text_of(done)
    assert "no-such-vhost" in text_of(done)


@pytest.mark.parametrize(
    "args, named",
    [
        (["-n", "w" * 300 + "@%h"], ["worker_name", "bytes long", "255"]),
        (["-Q", "filestorage,amq.mine"], ["celery_task_queues", "`amq.`"]),
    ],
    ids=["a worker's name that is too long", "a reserved name"],
)
def test_a_name_that_no_broker_takes_ends_with_78_unasked(site, args, named):
    done = run(site, "worker", *args, CELERY_BROKER_URL="amqp://127.0.0.1:1//")
    assert done.returncode == 78, text_of(done)
    assert not [part for part in named if part not in text_of(done)], text_of(done)


@pytest.mark.skipif(not LEAST_PRIVILEGE, reason="somebody who may do everything misses no permission")
def test_a_missing_queue_permission_is_not_blamed_on_the_url(site):
    done = run(site, "worker", "-Q", "somebody-elses")
    assert done.returncode == 78 and "permission on queue 'somebody-elses'" in text_of(done), text_of(done)
    assert "CELERY_BROKER_URL" not in text_of(done)


def test_of_several_brokers_the_one_that_answers_is_taken(site):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    site.start(CELERY_BROKER_URL=f"amqp://guest:guest@127.0.0.1:{port}//;{site.url}")
    assert site.call("store", "k", 1)["key"] == "k"


def test_wrong_settings_are_all_named_at_once(site):
    (site.folder / "filestorage.toml").write_text('local_storge_path = "x"\nmetrics_prot = 1\nlog_level = "INFO"\n')
    done = run(site, "worker", CELERY_WORKER_CONCURRENCY="many", MAX_REPLY_BYTES="-5")
    assert done.returncode == 78
    said = text_of(done)
    for name in ("local_storge_path", "local_storage_path", "metrics_prot", "metrics_port"):
        assert name in said
    for name in ("celery_worker_concurrency", "max_reply_bytes"):
        assert name in said.lower()


def test_a_flag_outranks_environment_then_file_then_default(site):
    (site.folder / "filestorage.toml").write_text('max_crashes = 7\nmax_retries = 8\nmetrics_host = "127.0.0.1"\n')
    done = run(site, "--json", "config", MAX_RETRIES=9)
    if done.returncode == 64:
        done = run(site, "config", "--json", MAX_RETRIES=9)
    assert done.returncode == 0, text_of(done)
    shown = done.stdout.decode()
    assert re.search(r'max_crashes\W+.*?7', shown, re.S)
    assert re.search(r'max_retries\W+.*?9', shown, re.S)
    assert f":{site.broker.password}@" not in shown
    json.loads(shown)


def test_the_book_shows_the_settings_there_are(site):
    table = run(site, "config", "--markdown").stdout.decode().strip()
    assert table.startswith("| setting |")
    assert table in (ROOT / "docs" / "reference" / "settings.md").read_text(), "run: docs/generate"


def test_the_readmes_first_command_runs_as_it_is(site):
    section = (ROOT / "README.md").read_text().split("\n## First command\n")[1].split("\n## ")[0]
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", section, re.S | re.M)
    site.start()
    env = site.env(CELERY_BROKER_URL=site.client_url)
    done = subprocess.run(
        [sys.executable, "-"], env=env, cwd=site.folder, input=snippet, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    checksum = base64.b64encode(crc32c(b"Hello!").to_bytes(4, "big")).decode()
    assert done.stdout.splitlines() == [f"crc32c:{checksum}", "'Hello!'"]
    assert site.call("stat", "hello.txt")["metadata"] == {"author": "Ada"}


def test_usage_errors_end_with_64(site):
    for args in (("worker", "--nonsense"), ("nonsense",), ("store",)):
        assert run(site, *args).returncode == 64, args


def test_the_health_check_tells_ready_from_not(site):
    worker = site.start()
    assert run(site, "healthcheck", METRICS_PORT=worker.port).returncode == 0
    worker.stop()
    assert run(site, "healthcheck", METRICS_PORT=worker.port).returncode not in (0, 64)


def test_the_command_line_and_the_worker_see_the_same_store(shared):
    assert run(shared, "store", "cli/a", "-", stdin=b"from the shell").returncode == 0
    assert shared.call("retrieve", "cli/a") in (b"from the shell", "from the shell")
    shared.call("store", "cli/b", "from Celery")
    assert run(shared, "retrieve", "cli/b").stdout == b"from Celery"
    out = shared.folder / "out.bin"
    shared.call("store", "cli/c", bytes(range(256)))
    assert run(shared, "retrieve", "cli/c", "-o", str(out)).returncode == 0
    assert out.read_bytes() == bytes(range(256))
    assert run(shared, "exists", "cli/a").returncode == 0
    listed = run(shared, "list", "--json").stdout.decode()
    assert "cli/a" in listed and "cli/b" in listed
    stat = json.loads(run(shared, "stat", "cli/b", "--json").stdout)
    assert (stat["key"], stat["size"]) == ("cli/b", 11)
    assert run(shared, "delete", "cli/a", "cli/b").returncode == 0
    assert shared.call("exists", "cli/a") is False
    assert run(shared, "retrieve", "cli/a").returncode == 66
    assert run(shared, "stat", "cli/a").returncode == 66
    assert run(shared, "store", "../bad", "-").returncode in (64, 65)


def test_a_file_is_stored_by_name(shared):
    path = shared.folder / "input.bin"
    path.write_bytes(b"\x00\xff")
    assert run(shared, "store", "cli/file", str(path)).returncode == 0
    assert shared.call("retrieve", "cli/file") == b"\x00\xff"
    assert run(shared, "store", "cli/none", str(path) + ".missing").returncode in (66, 74)


def test_a_folder_that_cannot_be_made_stops_the_start(site):
    site.storage.write_bytes(b"a file is in the way")
    done = run(site, "worker")
    assert done.returncode in (73, 74, 78)
    assert str(site.storage) in text_of(done)


@pytest.mark.full_rights("a worker with all rights makes the queues first")
def test_a_user_who_may_only_consume_and_publish_is_enough(site):
    site.start().stop()
    user = f"plain-{site.vhost}"
    site.broker.ctl("add_user", user, "secret")
    try:
        site.broker.ctl("set_permissions", "-p", site.vhost, user, "^$", ".*", ".*")
        worker = site.spawn(CELERY_BROKER_URL=site.broker.url(site.vhost, user=user, password="secret"))
        wait_until(lambda: worker.assert_alive() and worker.http("/livez")[0] == 200, what="the worker")
        assert site.call("store", "k", 1)["key"] == "k"
        assert site.call("retrieve", "k") == 1
        site.workers[-1].close()
    finally:
        site.broker.ctl("delete_user", user)


@pytest.mark.full_rights("the producer makes the queue")
@pytest.mark.parametrize("kind", ["quorum", "priority"])
def test_a_queue_declared_by_the_producer_is_taken_as_it_is(site, kind):
    arguments = {"quorum": {"x-queue-type": "quorum"}, "priority": {"x-max-priority": 10}}[kind]
    site.raw.declare(QUEUE, arguments=arguments)
    site.app.close()
    settings = {"quorum": {"task_default_queue_type": "quorum"}, "priority": {"task_queue_max_priority": 10}}[kind]
    site.app = site.client(**settings)
    site.start()
    results = [site.send("store", f"k/{n}", n) for n in range(50)]
    for result in results:
        result.get(timeout=TIMEOUT)
    assert site.call("retrieve", "k/49") == 49


@pytest.mark.full_rights("the worker makes the queue again")
def test_a_queue_that_is_deleted_comes_back(site):
    worker = site.start()
    site.call("store", "k", 1)
    site.raw.channel.queue_delete(QUEUE)
    wait_until(lambda: QUEUE in site.queues(), 30, "the queue to be declared again", step=0.3)
    worker.wait_ready()
    assert site.call("retrieve", "k") == 1
