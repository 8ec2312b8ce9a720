"""A failed command raises, at the caller, the exception a Python worker would have raised."""

import json
import uuid
from datetime import datetime

import pytest
from celery.exceptions import NotRegistered

from harness import DEAD, QUEUE, TIMEOUT, failure, wait_until


# The signatures of the contract, as Python functions: what Python says about a wrong call is what we must say.
def store(
    key, data, metadata=None, *, content_type=None, ttl_seconds=None, expires_at=None, if_absent=False, if_generation=None
): ...


def retrieve(key, *, offset=None, length=None, destination=None, generation=None): ...


def delete(key, *, if_generation=None): ...


def exists(key): ...


def list_keys(prefix=None, limit=None, start_after=None): ...


def stat(key, *, generation=None): ...


def versions(key, limit=None): ...


def clear_cache(): ...


def get_stats(): ...


def signed_url(key, *, method="GET", expires_in=3600): ...


def sync(): ...


WRONG_CALLS = [
    (store, (), {}),
    (store, ("k",), {}),
    (store, (), {"data": 1}),
    (store, (), {"metadata": {}}),
    (store, ("k", 1), {"nope": 1}),
    (store, ("k", 1), {"nope": 1, "another": 2}),
    (store, ("k",), {"nope": 1}),
    (store, ("k", 1), {"key": "k"}),
    (store, ("k", 1), {"data": 1}),
    (store, ("k", 1, {}), {"metadata": {}}),
    (store, ("k", 1, {}, "text/plain"), {}),
    (store, ("k", 1, {}, "text/plain"), {"if_absent": True}),
    (store, ("k", 1, {}, 4), {"if_absent": True, "ttl_seconds": 1}),
    (store, ("k", 1, {}, 4, 5), {"nope": True}),
    (versions, (), {}),
    (versions, ("k", 1, 2), {}),
    (stat, ("k", "g"), {}),
    (retrieve, (), {}),
    (retrieve, ("k", 1), {}),
    (retrieve, ("k", 1, 2), {"offset": 1}),
    (retrieve, (), {"offset": 1}),
    (retrieve, ("k",), {"ofset": 1}),
    (delete, (), {}),
    (delete, ("k", "generation"), {}),
    (exists, (), {}),
    (exists, ("k", 1), {}),
    (exists, (), {"keys": []}),
    (exists, ("k",), {"key": "k"}),
    (list_keys, ("p", 1, "a", 4), {}),
    (list_keys, (), {"pattern": "*"}),
    (list_keys, ("p",), {"prefix": "p"}),
    (stat, (), {}),
    (stat, ("k", 2, 3), {}),
    (signed_url, (), {}),
    (signed_url, ("k", "PUT"), {}),
    (signed_url, ("k",), {"expires": 1}),
    (signed_url, ("k", "PUT", 60), {"method": "PUT"}),
    (sync, (1,), {}),
    (sync, (), {"prefix": "p"}),
    (clear_cache, (1,), {}),
    (get_stats, (1,), {}),
    (get_stats, (1, 2), {}),
    (get_stats, (), {"verbose": True}),
]


@pytest.mark.parametrize(("function", "args", "kwargs"), WRONG_CALLS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_wrong_arguments_fail_in_pythons_own_words(shared, function, args, kwargs):
    with pytest.raises(TypeError) as expected:
        function(*args, **kwargs)
    error = failure(shared.send(function.__name__, *args, **kwargs))
    assert type(error) is TypeError
    assert error.args == expected.value.args


BAD_KEYS = [
    "",
    "/",
    "/absolute",
    "trailing/",
    "a//b",
    ".",
    "..",
    "../escape",
    "a/../b",
    "a/./b",
    "a/..",
    "nul\0",
    "line\nfeed",
    "carriage\rreturn",
    "escape\x1b",
    "delete\x7f",
    "x" * 1025,
    "é" * 513,
    "C:\\windows",
    "\\\\host\\share",
]


@pytest.mark.parametrize("bad", BAD_KEYS, ids=lambda v: ascii(v[:20]))
def test_a_bad_key_is_a_value_error(shared, bad):
    for result in (
        shared.send("store", bad, 1),
        shared.send("retrieve", bad),
        shared.send("delete", bad),
        shared.send("exists", bad),
        shared.send("stat", bad),
    ):
        error = failure(result)
        assert type(error) is ValueError
        assert str(error)


@pytest.mark.parametrize("bad", [None, 1, b"bytes", ["k"], {"k": 1}, True], ids=repr)
def test_a_key_that_is_no_text_is_refused(shared, bad):
    assert type(failure(shared.send("store", bad, 1))) in (ValueError, TypeError)
    assert type(failure(shared.send("retrieve", bad))) in (ValueError, TypeError)


def test_no_bad_key_left_the_storage_folder(shared):
    for bad in BAD_KEYS:
        shared.send("store", bad, "must not land").get(timeout=TIMEOUT, propagate=False)
    outside = [p for p in shared.folder.rglob("*") if p.is_file() and shared.storage not in p.parents]
    assert all(path.suffix == ".log" for path in outside)
    assert not (shared.folder.parent / "escape").exists()


def of_dead(site, task_id=None):
    """The dead copy of a command, awaited."""
    kept = []

    def look():
        kept.extend(site.raw.drain(DEAD))
        return next((m for m in kept if task_id in (None, m.headers.get("id"), m.properties.get("correlation_id"))), None)

    return wait_until(look, what=f"the dead copy of {task_id}")


def told(headers, text):
    return any(text in str(value) for value in headers.values())


def check_dead(message, why):
    """The copy says why, when and from where."""
    added = {name: value for name, value in message.headers.items() if name not in ("task", "id", "argsrepr", "kwargsrepr")}
    assert told(added, why), added
    assert told(added, QUEUE), added

    def is_time(value):
        try:
            return isinstance(value, datetime) or datetime.fromisoformat(str(value)).year >= 2020
        except ValueError:
            return False

    assert any(is_time(value) for value in added.values()), added
    assert message.properties.get("delivery_mode") == 2


@pytest.mark.parametrize(
    "task", ["filestorage.nope", "tasks.add", "celery.chord", "filestorage.outcomes", "filestorage", "filestorage.store_"]
)
def test_an_unknown_task_is_not_registered_and_kept(shared, task):
    result = shared.app.send_task(task, ("a",), {"b": 1})
    error = failure(result)
    assert type(error) is NotRegistered
    assert error.args == (task,)
    dead = of_dead(shared, result.id)
    check_dead(dead, "NotRegistered")
    assert dead.headers["task"] == task
    assert dead.json[:2] == [["a"], {"b": 1}]


def test_a_dead_copy_keeps_what_would_hurt_it_as_plain_headers(shared):
    reply = shared.raw.reply_queue()
    task_id = shared.raw.command(
        "filestorage.nope", [1], reply_to=reply, user_id=shared.broker.user, expiration="60000", priority=3
    )
    assert shared.raw.get(reply).json["status"] == "FAILURE"
    dead = of_dead(shared, task_id)
    assert not dead.properties.get("expiration")
    assert not dead.properties.get("user_id")
    assert told(dead.headers, "60000")


def files_of(site, text):
    return [path for path in site.object_files() if text.encode() in path.read_bytes()]


@pytest.mark.parametrize("place", ["first", "middle", "last", "cut", "empty", "garbage"])
def test_a_damaged_file_is_an_integrity_error_never_null(shared, place):
    key = f"damaged-{place}"
    shared.call("store", key, "payload " * 100 + place)
    (path,) = files_of(shared, "payload " * 100 + place)
    good = path.read_bytes()
    at = {"first": 0, "middle": len(good) // 2, "last": len(good) - 1}.get(place)
    if at is not None:
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    else:
        path.write_bytes({"cut": good[:-1], "empty": b"", "garbage": b"\x80\x04K\x01."}[place])
    error = failure(shared.send("retrieve", key))
    assert type(error).__name__ == "IntegrityError"
    assert key in str(error)
    path.write_bytes(good)
    assert shared.call("retrieve", key) == "payload " * 100 + place


def test_a_file_of_another_key_is_an_integrity_error(shared):
    shared.call("store", "mine", "of mine alone")
    shared.call("store", "other", "of the other")
    (mine,), (other,) = files_of(shared, "of mine alone"), files_of(shared, "of the other")
    mine.write_bytes(other.read_bytes())
    assert type(failure(shared.send("retrieve", "mine"))).__name__ == "IntegrityError"
    assert shared.call("store", "mine", "corrected")["key"] == "mine"
    assert shared.call("retrieve", "mine") == "corrected"


@pytest.mark.parametrize(
    ("content_type", "encoding", "body", "error"),
    [
        ("application/x-python-serialize", "binary", b"\x80\x04]\x94(]\x94}\x94}\x94e.", "ContentDisallowed"),
        ("application/x-yaml", "utf-8", b"- []\n- {}\n- {}\n", "ContentDisallowed"),
        ("text/plain", "utf-8", b"[[], {}, {}]", "ContentDisallowed"),
        ("application/json", "utf-8", b"{not json", "DecodeError"),
        ("application/json", "utf-8", b"[[], {}", "DecodeError"),
        ("application/json", "utf-8", b"\xff\xfe\x00", "DecodeError"),
    ],
    ids=["pickle", "yaml", "text", "garbage", "cut off", "not utf-8"],
)
def test_an_unreadable_body_is_answered_and_kept(shared, content_type, encoding, body, error):
    reply = shared.raw.reply_queue()
    task_id = shared.raw.command(
        "exists", None, reply_to=reply, body=body, content_type=content_type, content_encoding=encoding
    )
    answer = shared.raw.get(reply).json
    assert answer["status"] == "FAILURE"
    assert answer["task_id"] == task_id
    assert (answer["result"]["exc_type"], answer["result"]["exc_module"]) == (error, "kombu.exceptions")
    dead = of_dead(shared, task_id)
    check_dead(dead, error)
    assert dead.raw == body
    assert dead.properties["content_type"] == content_type


def test_a_lone_surrogate_is_a_value_error_without_a_dead_copy(shared):
    shared.raw.drain(DEAD)
    for args in (["surrogate", "\ud800"], ["\udfff", "x"], ["surrogate", {"\ud83d": 1}]):
        reply = shared.raw.reply_queue()
        shared.raw.command("store", args, reply_to=reply)
        answer = shared.raw.get(reply).json
        assert answer["status"] == "FAILURE"
        assert (answer["result"]["exc_type"], answer["result"]["exc_module"]) == ("ValueError", "builtins")
    assert shared.call("exists", "surrogate") is False
    assert shared.raw.drain(DEAD) == []


def test_a_failure_has_the_form_celery_gives_it(shared):
    reply = shared.raw.reply_queue()
    task_id = shared.raw.command("retrieve", ["../x"], reply_to=reply)
    answer = shared.raw.get(reply)
    assert {"status", "result", "traceback", "children", "date_done", "task_id"} <= set(answer.json)
    assert answer.json["task_id"] == answer.properties["correlation_id"] == task_id
    assert set(answer.json["result"]) == {"exc_type", "exc_message", "exc_module"}
    assert isinstance(answer.json["result"]["exc_message"], list)
    assert datetime.fromisoformat(answer.json["date_done"]).tzinfo is not None


def test_an_error_never_holds_the_payload(shared):
    secret = f"secret-{uuid.uuid4()}"
    for result in (
        shared.send("store", "../x", secret),
        shared.send("store", "k", secret, secret),
        shared.send("store", "k", secret, ttl_seconds="soon"),
    ):
        error = failure(result)
        assert secret not in str(error)
    assert secret not in shared.workers[0].log()
    assert json.dumps(secret) not in shared.workers[0].log()
