"""Applications that write their messages with msgpack or YAML, and read their answers so."""

import datetime
import math
import subprocess

import pytest
from celery.exceptions import NotRegistered
from kombu.exceptions import ContentDisallowed

from harness import BINARY, DEAD, TIMEOUT, same, wait_until

OTHERS = ("msgpack", "yaml")
VALUES = [
    None, True, 0, -1, 2**63 - 1, -(2**63), 1.5, 1e300, 1e-7, -0.0, "", "text", "yes", "1", "~", "é😀\n\t\x00\x85\ufeff", b"", b"hello", b"\xff\x00",
    [], {}, [1, [2, {"a": [{}]}]], {"a": {"b": None}, "k" * 2000: [b"\xfe"]}, "x" * 200_000, [0.1] * 1000,
]  # fmt: skip


@pytest.fixture(params=OTHERS)
def serializer(request):
    if request.param == "msgpack":
        pytest.importorskip("msgpack", reason="tests/e2e/requirements.txt names it; make a new venv")
    return request.param


@pytest.fixture
def other(site, serializer):
    """A site whose client knows no other serializer, and a worker that answers with it."""
    site.app.close()
    site.app = site.client(task_serializer=serializer, result_serializer=serializer, accept_content=[serializer])
    site.start(CELERY_ACCEPT_CONTENT="json,msgpack,yaml", CELERY_RESULT_SERIALIZER=serializer)
    return site


def test_values_of_every_kind_pass_through_every_serializer(other):
    for number, value in enumerate(VALUES):
        key = f"v/{number}"
        assert other.call("store", key, value)["key"] == key
        back = other.call("retrieve", key)
        assert same(back, value), (value, back)
    assert math.isnan(other.call("retrieve", other.call("store", "nan", math.nan)["key"]))
    items = [{"key": f"m/{n}", "data": b"\xff" * n} for n in range(50)]
    assert all(entry["ok"] for entry in other.call("store_many", items))
    assert [entry["result"] for entry in other.call("retrieve_many", [f"m/{n}" for n in range(50)])] == [b"\xff" * n for n in range(50)]
    assert other.raw.count(DEAD) == 0


def test_large_and_compressed_values_and_failures(other):
    value = {"large": b"\xfe" * (3 << 20)}
    for compression in (None, "gzip", "bzip2", "zstd"):
        other.send("store", "large", value, _compression=compression).get(timeout=TIMEOUT)
        assert other.call("retrieve", "large") == value, compression
    with pytest.raises(NotRegistered):
        other.app.send_task("filestorage.nope").get(timeout=TIMEOUT)
    with pytest.raises(TypeError, match="missing"):
        other.call("store")
    with pytest.raises(ValueError, match="key"):
        other.call("store", "a//b", 1)


def test_dates_of_yaml_keep_their_type(site):
    site.app.close()
    site.app = site.client(task_serializer="yaml", result_serializer="yaml", accept_content=["yaml"])
    site.start(CELERY_ACCEPT_CONTENT="yaml", CELERY_RESULT_SERIALIZER="yaml")
    at = datetime.datetime(2001, 12, 14, 21, 59, 43, 100000, tzinfo=datetime.timezone(datetime.timedelta(hours=-5)))
    value = {"at": at, "day": datetime.date(2001, 12, 14), "local": datetime.datetime(2001, 12, 14, 1, 2, 3), "not": "2001-12-14"}
    site.call("store", "k", value)
    back = site.call("retrieve", "k")
    assert back == value and back["at"].utcoffset() == at.utcoffset()


def test_what_is_not_accepted_is_refused_with_the_remedy(site, serializer):
    site.app.close()
    site.app = site.client(task_serializer=serializer, accept_content=["json", serializer])
    site.start()
    with pytest.raises(ContentDisallowed, match=f"celery_accept_content = 'json,{serializer}'"):
        site.call("store", "k", 1)
    wait_until(lambda: site.raw.count(DEAD) == 1, what="the dead copy")


def test_pickle_is_never_read(site):
    site.start(CELERY_ACCEPT_CONTENT="json,yaml,msgpack")
    site.app.close()
    site.app = site.client(task_serializer="pickle", accept_content=["json", "pickle"])
    with pytest.raises(ContentDisallowed, match="task_serializer = 'json'"):
        site.call("store", "k", 1)
    for setting, value in (("CELERY_ACCEPT_CONTENT", "json,pickle"), ("CELERY_RESULT_SERIALIZER", "pickle")):
        done = subprocess.run([str(BINARY), "worker"], env=site.env(**{setting: value}), cwd=site.folder, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        assert done.returncode == 78 and setting.lower() in done.stderr.lower(), done.stderr
    assert "task_serializer" in subprocess.run(
        [str(BINARY), "worker"], env=site.env(CELERY_ACCEPT_CONTENT="pickle"), cwd=site.folder, capture_output=True, text=True, timeout=TIMEOUT, check=False
    ).stderr


def test_answers_in_a_redis_are_json_only(site):
    env = site.env(CELERY_RESULT_BACKEND="redis://127.0.0.1:1/0", CELERY_RESULT_SERIALIZER="yaml")
    done = subprocess.run([str(BINARY), "worker"], env=env, cwd=site.folder, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 78 and "celery_result_serializer" in done.stderr, done.stderr


@pytest.mark.parametrize("body", ["a: &a [x]\nb: *c", "&a [*a]", "!!python/object/apply:os.system ['true']", "\t{"])
def test_a_hostile_yaml_body_is_an_error_and_nothing_else(site, body):
    worker = site.start(CELERY_ACCEPT_CONTENT="json,yaml")
    reply = site.raw.reply_queue()
    site.raw.command("store", [], body=body, content_type="application/x-yaml", reply_to=reply)
    assert site.raw.get(reply).json["result"]["exc_type"] == "DecodeError"
    bomb = "a0: &a0 [" + "x, " * 9 + "x]\n"
    bomb += "".join(f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 10) + "]\n" for n in range(1, 10))
    site.raw.command("store", [], body=bomb, content_type="application/x-yaml", reply_to=reply)
    assert "the body is larger than" in str(site.raw.get(reply).json["result"])
    worker.assert_alive()
