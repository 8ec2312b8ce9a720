"""JSON values as deep as the limit go both ways; a deeper one is a `ValueError`, acknowledged and without a dead copy."""

import json

import pytest

from harness import DEAD, TIMEOUT, failure, wait_until

DEEPEST = 512


def nested(levels, kind="list"):
    """A value of so many lists and dicts inside one another."""
    value = "bottom"
    for level in range(levels):
        value = {"a": value} if kind == "dict" or kind == "both" and level % 2 else [value]
    return value


@pytest.mark.parametrize("kind", ["list", "dict", "both"])
def test_the_deepest_value_comes_back(shared, key, kind):
    value = nested(DEEPEST, kind)
    receipt = shared.call("store", key, value)
    assert (receipt["kind"], receipt["size"]) == ("json", len(json.dumps(value, separators=(",", ":"))))
    assert shared.call("retrieve", key) == value
    shared.call("store", key=key, data={"a": nested(DEEPEST - 1, kind)})
    assert shared.call("retrieve", key=key) == {"a": nested(DEEPEST - 1, kind)}


@pytest.mark.parametrize("kind", ["list", "dict", "both"])
def test_one_level_more_is_a_value_error(shared, key, kind):
    error = failure(shared.send("store", key, nested(DEEPEST + 1, kind)))
    assert type(error) is ValueError and str(DEEPEST) in str(error)
    error = failure(shared.send("store", key=key, data=nested(DEEPEST + 100, kind)))
    assert type(error) is ValueError and str(DEEPEST) in str(error)
    assert shared.call("exists", key) is False
    assert shared.raw.count(DEAD) == 0


@pytest.mark.parametrize("levels", [600, 700, 10_000, 1_000_000])
@pytest.mark.parametrize("begin", ["[", '{"a":'], ids=["list", "dict"])
def test_brackets_without_end_are_a_cheap_value_error(shared, key, levels, begin):
    end = {"[": "]", '{"a":': "}"}[begin]
    reply = shared.raw.reply_queue()
    for closed in (begin * levels + "1" + end * levels, begin * levels):
        if levels == 600 and not closed.endswith(end):
            continue  # it ends before it is too deep for a message, and is no JSON
        shared.raw.command("store", [], body=f"[[{json.dumps(key)},{closed}],{{}},{{}}]", reply_to=reply)
        answer = shared.raw.get(reply).json
        assert (answer["status"], answer["result"]["exc_type"]) == ("FAILURE", "ValueError")
        assert str(DEEPEST) in answer["result"]["exc_message"][0]
    assert shared.call("exists", key) is False
    assert shared.raw.count(DEAD) == 0


def test_metadata_may_be_as_deep(shared, key):
    metadata = {"a": nested(DEEPEST - 1)}
    shared.call("store", key, 1, metadata)
    assert shared.call("stat", key)["metadata"] == metadata
    error = failure(shared.send("store", key, 2, {"a": nested(DEEPEST)}))
    assert type(error) is ValueError and str(DEEPEST) in str(error)
    assert shared.call("retrieve", key) == 1


def test_a_follow_up_carries_the_deepest_value(shared, key):
    value = nested(DEEPEST, "both")
    shared.call("store", key, f"{key}/target")
    steps = shared.sig("retrieve", key) | shared.sig("store", value) | shared.sig("retrieve", f"{key}/target", immutable=True)
    assert steps.apply_async().get(timeout=TIMEOUT) == value
    shared.send("retrieve", key, _link=shared.sig("store", nested(DEEPEST), {"by": "callback"})).get(timeout=TIMEOUT)
    wait_until(lambda: shared.call("stat", f"{key}/target")["metadata"] == {"by": "callback"}, what="the callback")
    assert shared.call("retrieve", f"{key}/target") == nested(DEEPEST)


def test_many_at_once(shared, key):
    sent = [(n, shared.send("store", f"{key}/{n}", nested(DEEPEST + n % 2, "both"))) for n in range(100)]
    for n, result in sent:
        if n % 2:
            assert type(failure(result)) is ValueError
        else:
            assert result.get(timeout=TIMEOUT)["kind"] == "json"
    read = [(n, shared.send("retrieve", f"{key}/{n}")) for n in range(100)]
    for n, result in read:
        assert result.get(timeout=TIMEOUT) == (None if n % 2 else nested(DEEPEST, "both"))


def test_the_deepest_value_passes_overlay_bucket_and_shell(bucket_site, key):
    site, value = bucket_site, nested(DEEPEST, "both")
    site.start(CACHE_REVALIDATE_SECONDS=0)
    site.proxy.down()
    assert site.call("store", key, value)["pending_sync"] is True
    assert site.call("retrieve", key) == value
    site.proxy.up()
    wait_until(lambda: not site.overlay(), 60, "an empty overlay", step=0.1)
    assert site.call("retrieve", key) == value
    assert json.loads(site.server.read(site.bucket, key)) == value
    text = json.dumps(value).encode()
    stored = site.run("store", f"{key}/shell", "--kind", "json", "--json", stdin=text)
    assert stored.returncode == 0, stored.stderr
    assert site.call("retrieve", f"{key}/shell") == value
    shown = site.run("retrieve", f"{key}/shell", "--json")
    assert json.loads(shown.stdout)["value"] == value
    refused = site.run("store", f"{key}/shell", "--kind", "json", stdin=b"[" + text + b"]")
    assert refused.returncode == 65 and str(DEEPEST) in refused.stderr.decode()
    # What another tool wrote: as deep a value is read, a deeper one is said to be too deep, not damaged.
    site.server.write(site.bucket, f"{key}/other", text, "application/json")
    assert site.call("retrieve", f"{key}/other") == value
    assert site.call("store", f"{key}/copy", {"$ref": f"gs://{site.bucket}/{key}/other"})["kind"] == "json"
    assert site.call("retrieve", f"{key}/copy") == value
    site.server.write(site.bucket, f"{key}/other", b"[" + text + b"]", "application/json")
    for error in (
        failure(site.send("retrieve", f"{key}/other")),
        failure(site.send("store", f"{key}/copy", {"$ref": f"gs://{site.bucket}/{key}/other"})),
    ):
        assert type(error) is ValueError and str(DEEPEST) in str(error)
