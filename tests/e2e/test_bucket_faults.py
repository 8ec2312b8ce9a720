"""What goes wrong on the way to a bucket: each fault with its answer, its attempts, and what is in the bucket afterwards."""

import errno
import json
import random
import re
import time

import pytest

from buckets import BucketSite, gcs_role, http
from harness import events_of, failure, on_small_disk, same, wait_until

# A value short enough for one request, with a mark by which a bit of it can be found on its way.
VALUE = {"text": "the value with its MARK", "n": [1, 2.5, None]}
UPLOAD = {"method": ["POST", "PUT"], "object": "^k$"}
READ = {"method": "GET", "object": "^k$"}


@pytest.fixture(params=["gcs", "s3"])
def hurt(request, broker, tmp_path):
    """A site on a bucket of its own with a running worker, of either kind."""
    site = BucketSite(broker, tmp_path, request.getfixturevalue(request.param))
    try:
        # The tests speak of the bytes on the wire, and their values are of one letter.
        site.start(ENABLE_COMPRESSION="false", ENABLE_CACHE="false")
        site.call("store", "before", 1)
        site.proxy.forget_log()
        yield site
        site.workers[-1].assert_alive()
    finally:
        site.close()


def metrics(site):
    """What `/metrics` shows."""
    return site.workers[-1].http("/metrics")[1]


def attempts_at(site, name="k", **fields):
    """How often the bucket was asked about an object, as the proxy saw it."""
    return len([entry for entry in site.proxy.log(object=name) if all(entry[field] in value for field, value in fields.items())])


def stored(site, outcome, event, attempts, value=VALUE):
    """The value was stored in the bucket, with so many attempts, and nothing anywhere else."""
    assert not isinstance(outcome, Exception), outcome
    assert (outcome["backend"], outcome["pending_sync"]) == (site.kind, False)
    assert (event["outcome"], event["backend"], event["attempts"]) == ("succeeded", site.kind, attempts)
    assert json.loads(site.server.read(site.bucket, "k")) == value
    assert same(site.call("retrieve", "k"), value)
    assert site.call("stat", "k")["generation"] == outcome["generation"]
    assert not site.overlay()


def failed(outcome, event, name, attempts):
    assert type(outcome).__name__ == name, repr(outcome)
    assert (event["outcome"], event["attempts"]) == ("failed", attempts)
    assert name in str(event["error"])


# --- what passes is tried again ------------------------------------------------------------------------------------------


def test_503_twice_then_stored_is_three_attempts(hurt):
    hurt.proxy.rule({"status": 503}, times=2, **UPLOAD)
    stored(hurt, *hurt.tell("store", "k", VALUE), attempts=3)
    assert [entry["status"] for entry in hurt.proxy.log(object="k") if entry["method"] in UPLOAD["method"]] == [503, 503, 200]


@pytest.mark.parametrize("operation", ["retrieve", "stat", "delete", "list_keys"])
def test_503_is_tried_again_by_every_operation(hurt, operation):
    hurt.call("store", "k", VALUE)
    hurt.proxy.rule({"status": 503}, times=1)
    outcome, event = hurt.tell(operation, *(() if operation == "list_keys" else ("k",)))
    assert (event["outcome"], event["attempts"]) == ("succeeded", 2)
    if operation == "retrieve":
        assert same(outcome, VALUE)
    elif operation == "list_keys":
        assert outcome == ["before", "k"]
    elif operation == "delete":
        assert outcome is True and hurt.server.stat(hurt.bucket, "k") is None


def test_429_waits_as_long_as_it_is_told(hurt):
    hurt.proxy.rule({"status": 429, "headers": {"Retry-After": "1"}}, times=1, **UPLOAD)
    stored(hurt, *hurt.tell("store", "k", VALUE), attempts=2)
    first, second = [entry["at"] for entry in hurt.proxy.log(object="k") if entry["method"] in UPLOAD["method"]]
    assert second - first >= 1


def test_429_never_opens_the_breaker(hurt):
    """A key that is written too often must not cut off the others."""
    hurt.proxy.rule({"status": 429}, **{**UPLOAD, "object": "^busy/"})
    outcomes = [hurt.send("store", f"busy/{n}", n) for n in range(8)]
    for outcome in outcomes:
        answer = outcome.get(timeout=60)
        assert (answer["backend"], answer["pending_sync"]) == ("local", True)
    # Every single one was tried to the end: nobody was turned away unasked.
    assert all(attempts_at(hurt, f"busy/{n}", status=[429]) >= 4 for n in range(8))
    assert hurt.call("store", "other", 1)["backend"] == hurt.kind
    hurt.proxy.forget()
    wait_until(lambda: not hurt.overlay(), 60, "what waited to be sent", step=0.2)
    assert hurt.names() == sorted(["before", "other", *(f"busy/{n}" for n in range(8))])


def test_a_connection_that_is_reset_is_tried_again(hurt):
    hurt.proxy.rule({"reset": True}, times=1, **UPLOAD)
    stored(hurt, *hurt.tell("store", "k", VALUE), attempts=2)
    hurt.proxy.rule({"reset": True}, times=1, **READ)
    outcome, event = hurt.tell("retrieve", "k")
    assert same(outcome, VALUE) and event["attempts"] == 2


def test_a_silent_bucket_costs_one_timeout_an_attempt(hurt):
    hurt.workers[-1].stop()
    hurt.start(TIMEOUT_SECONDS=1, ENABLE_CACHE="false")
    for what, task in ((UPLOAD, ("store", "k", VALUE)), (READ, ("retrieve", "k"))):
        hurt.proxy.rule({"stall": 30}, times=1, **what)
        begun = time.monotonic()
        outcome, event = hurt.tell(*task)
        assert event["attempts"] == 2 and event["outcome"] == "succeeded", outcome
        assert time.monotonic() - begun < 20, "the stall was waited out"
    assert same(outcome, VALUE)
    # Silent in the middle of an answer is silent, too.
    value = random.Random(1).randbytes(600_000)
    hurt.call("store", "k", value)
    hurt.proxy.rule({"stall": 30, "after": 300_000}, times=1, **READ)
    outcome, event = hurt.tell("retrieve", "k")
    assert outcome == value and event["attempts"] == 2


def test_a_download_that_breaks_off_is_tried_again(hurt):
    value = random.Random(2).randbytes(900_000)
    hurt.call("store", "k", value)
    hurt.proxy.rule({"truncate": 500_000}, times=1, **READ)
    hurt.proxy.forget_log()
    outcome, event = hurt.tell("retrieve", "k")
    assert outcome == value and attempts_at(hurt) == 2
    # Google's crate goes on where it broke off, within the same attempt.
    assert event["attempts"] == (1 if hurt.kind == "gcs" else 2)


def test_a_download_that_always_breaks_off_is_no_value(hurt):
    hurt.call("store", "k", VALUE)
    hurt.proxy.rule({"truncate": 5}, **READ)
    outcome, event = hurt.tell("retrieve", "k")
    assert type(outcome).__name__ in ("StorageUnavailable", "IntegrityError") and "k" in str(outcome)
    assert (event["outcome"], event["attempts"]) == ("failed", 4)


# --- bits ----------------------------------------------------------------------------------------------------------------


def test_a_bit_flipped_in_a_download_is_tried_again(hurt):
    hurt.call("store", "k", VALUE)
    hurt.proxy.rule({"flip": {"side": "response", "find": "MARK"}}, times=2, **READ)
    outcome, event = hurt.tell("retrieve", "k")
    assert same(outcome, VALUE) and event["attempts"] == 3


@pytest.mark.parametrize("size", [500, 3_000_000], ids=["small", "large"])
def test_a_bit_always_flipped_in_a_read_is_an_integrity_error(hurt, size):
    hurt.call("store", "k", "x" * size)
    rule = hurt.proxy.rule({"flip": {"side": "response", "offset": size - 1, "bit": 1}}, **READ)
    outcome, event = hurt.tell("retrieve", "k")
    failed(outcome, event, "IntegrityError", 4)
    assert "k" in str(outcome) and hurt.proxy.applied(rule) == 4
    # A part of it is damaged, too: which bit it was is not known.
    outcome, event = hurt.tell("retrieve", "k", offset=0, length=10)
    assert type(outcome).__name__ == "IntegrityError" or outcome == b"x" * 10
    hurt.proxy.forget()
    assert hurt.call("retrieve", "k") == "x" * size


def test_a_bit_flipped_in_an_upload_is_refused_and_tried_again(hurt):
    hurt.proxy.rule({"flip": {"side": "request", "find": "MARK"}}, times=1, **UPLOAD)
    stored(hurt, *hurt.tell("store", "k", VALUE), attempts=2)


def test_a_bit_always_flipped_in_a_write_is_an_integrity_error(hurt):
    hurt.proxy.rule({"flip": {"side": "request", "find": "MARK"}}, **UPLOAD)
    failed(*hurt.tell("store", "k", VALUE), "IntegrityError", 4)
    # Neither is it kept for later, as if the bucket had been away.
    assert not hurt.overlay()
    hurt.proxy.forget()
    assert hurt.call("retrieve", "k") is None


def test_a_bucket_that_checks_nothing_is_checked(broker, gcs, tmp_path):
    """The emulator keeps whatever comes; what it answers tells that it was something else."""
    site = BucketSite(broker, tmp_path, gcs, enforce=False)
    try:
        site.start()
        site.proxy.rule({"flip": {"side": "request", "find": "MARK"}}, times=1, **UPLOAD)
        stored(site, *site.tell("store", "k", VALUE), attempts=2)
        site.proxy.rule({"flip": {"side": "request", "find": "MARK"}}, **UPLOAD)
        failed(*site.tell("store", "k", VALUE), "IntegrityError", 4)
        site.proxy.forget()
        # The bucket has it now; it is known for what it is.
        assert b"LARK" in gcs.read(site.bucket, "k")
        assert type(failure(site.send("retrieve", "k"))).__name__ == "IntegrityError"
        stored(site, *site.tell("store", "k", VALUE), attempts=1)
    finally:
        site.close()


# --- replies that are lost -----------------------------------------------------------------------------------------------


def test_a_conditional_store_whose_reply_is_lost_succeeds_once(hurt):
    hurt.proxy.rule({"swallow": True}, times=1, **UPLOAD)
    outcome, event = hurt.tell("store", "k", VALUE, if_absent=True)
    assert event["outcome"] == "succeeded", outcome
    assert event["attempts"] >= 2
    # The first try stands: what followed was refused by its own condition.
    writes = [entry["status"] for entry in hurt.proxy.log(object="k") if entry["method"] in UPLOAD["method"]]
    assert writes == [None, 412]
    stored(hurt, outcome, event, event["attempts"])
    newer = dict(VALUE, n=2)
    hurt.proxy.rule({"swallow": True}, times=1, **UPLOAD)
    outcome, event = hurt.tell("store", "k", newer, if_generation=outcome["generation"])
    stored(hurt, outcome, event, event["attempts"], newer)


def test_somebody_elses_object_is_not_taken_for_ones_own(hurt):
    """The request was lost, not the reply; meanwhile another one wrote."""
    hurt.proxy.rule({"reset": True}, times=1, **UPLOAD)
    hurt.proxy.rule({"delay": 1}, times=1, **UPLOAD)
    result = hurt.send("store", "k", VALUE, if_absent=True)
    wait_until(lambda: attempts_at(hurt) >= 1, what="the first attempt")
    hurt.server.write(hurt.bucket, "k", b"somebody else's", "text/plain")
    assert type(failure(result)).__name__ == "PreconditionFailed"
    assert hurt.call("retrieve", "k") == "somebody else's"


def test_a_delete_whose_reply_is_lost_is_true(hurt):
    hurt.call("store", "k", VALUE)
    hurt.proxy.rule({"swallow": True}, times=1, method="DELETE", object="^k$")
    outcome, event = hurt.tell("delete", "k")
    assert (outcome, event["attempts"]) == (True, 2)
    assert hurt.server.stat(hurt.bucket, "k") is None


def test_a_plain_store_whose_reply_is_lost_is_written_again(hurt):
    hurt.proxy.rule({"swallow": True}, times=1, **UPLOAD)
    stored(hurt, *hurt.tell("store", "k", VALUE), attempts=2)


# --- what is no outage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
def test_a_missing_permission_is_said_at_once(hurt, status):
    hurt.call("store", "k", VALUE)
    hurt.proxy.rule({"status": status}, object="^k$")
    for task, arguments in (("store", ("k", 2)), ("retrieve", ("k",)), ("stat", ("k",)), ("delete", ("k",))):
        hurt.proxy.forget_log()
        outcome, event = hurt.tell(task, *arguments)
        failed(outcome, event, "PermissionError", 1)
        assert type(outcome) is PermissionError and "k" in str(outcome)
        # Nothing is tried again; a look that S3 refuses may be followed by a GET, which alone says why.
        asked = [entry["method"] for entry in hurt.proxy.log(object="k")]
        assert asked and len(asked) == len(set(asked)), asked
    assert not hurt.overlay()
    assert hurt.call("get_stats")["local_fallback_enabled"] is True
    hurt.proxy.forget()
    assert same(hurt.call("retrieve", "k"), VALUE)


def test_a_missing_object_is_a_miss_and_no_error(hurt):
    outcome, event = hurt.tell("retrieve", "missing")
    assert (outcome, event["outcome"], event["attempts"]) == (None, "succeeded", 1)


# --- the bucket away -----------------------------------------------------------------------------------------------------


def test_without_fallback_an_outage_is_said(hurt):
    hurt.workers[-1].stop()
    hurt.start(ENABLE_LOCAL_FALLBACK="false", MAX_RETRIES=1, ENABLE_CACHE="false")
    hurt.proxy.down()
    outcome, event = hurt.tell("store", "k", VALUE)
    failed(outcome, event, "StorageUnavailable", 2)
    assert "k" in str(outcome)
    for task in ("retrieve", "stat", "exists", "delete"):
        assert type(failure(hurt.send(task, "before"))).__name__ == "StorageUnavailable", task
    assert type(failure(hurt.send("list_keys"))).__name__ == "StorageUnavailable"
    assert not hurt.overlay()
    hurt.proxy.up()
    answers = lambda: not isinstance(hurt.send("store", "k", VALUE).get(timeout=60, propagate=False), Exception)  # noqa: E731
    wait_until(answers, 40, "the bucket", step=0.3)
    assert hurt.call("retrieve", "before") == 1


def test_an_outage_costs_one_look_an_interval_and_not_a_command(hurt):
    open_now = lambda: re.search(rf'^filestorage_storage_breaker_open{{backend="{hurt.kind}"}} (\d)$', metrics(hurt), re.M)[1]  # noqa: E731
    assert (hurt.health()["breaker"], open_now()) == ("closed", "0")
    hurt.proxy.down()
    for n in range(4):
        assert hurt.call("store", f"opening/{n}", n)["pending_sync"] is True
    wait_until(lambda: hurt.health()["breaker"] == "open", what="the breaker to open")
    assert open_now() == "1"
    before = hurt.proxy.counters()["connections"]
    results = {result.id: result for result in [hurt.send("store", f"open/{n}", n) for n in range(100)]}
    for result in results.values():
        assert result.get(timeout=60)["pending_sync"] is True
    # Each of them by itself would have been four; looks come a second, two, four … apart.
    assert hurt.proxy.counters()["connections"] - before <= 20
    attempts = {}

    def all_told():
        attempts.update((event["data"]["task_id"], event["data"]["attempts"]) for event in events_of(hurt.raw))
        return results.keys() <= attempts.keys()

    wait_until(all_told, what="the events of the stores")
    # None reached out; the event says one for what was done here.
    assert {attempts[task] for task in results} == {1}
    hurt.proxy.up()
    wait_until(lambda: not hurt.overlay(), 60, "what waited to be sent", step=0.2)
    wait_until(lambda: (hurt.health()["breaker"], open_now()) == ("closed", "0"), what="the breaker to close")
    assert {f"open/{n}" for n in range(100)} <= set(hurt.names())


@pytest.fixture
def small_overlay(bucket_site):
    """A site whose storage folder, and so its overlay, is a tmpfs of 4 MiB."""
    yield from on_small_disk(bucket_site)


def test_a_full_overlay_is_a_full_disk_and_loses_nothing(small_overlay):
    site = small_overlay
    site.proxy.down()
    confirmed, refused = {}, None
    for n in range(100):
        value = random.Random(n).randbytes(200_000)
        result = site.send("store", f"fill/{n}", value)
        answer = result.get(timeout=60, propagate=False)
        if result.state == "FAILURE":
            refused = answer
            break
        assert answer["pending_sync"] is True
        confirmed[f"fill/{n}"] = value
    assert type(refused) is OSError and refused.errno == errno.ENOSPC
    assert refused.args[:2] == (28, "No space left on device")
    assert len(confirmed) > 5
    for key, value in confirmed.items():
        assert site.call("retrieve", key) == value
    site.proxy.up()
    wait_until(lambda: not site.overlay(), 60, "what waited to be sent", step=0.2)
    assert site.names() == sorted(confirmed)
    for key, value in confirmed.items():
        assert site.server.read(site.bucket, key) == value
    assert site.call("store", "fits now", "x")["backend"] == "gcs"


# --- wrong settings ------------------------------------------------------------------------------------------------------


def worker_ends(site, **env):
    """Starts a worker that must end by itself; returns its exit code and what it said."""
    worker = site.spawn(**env)
    code = worker.wait(30)
    return code, worker.log()


def test_a_missing_bucket_stops_the_start_and_names_the_remedy(bucket_site):
    code, said = worker_ends(bucket_site, GCS_BUCKET_NAME="no-such-bucket")
    assert code == 78, said
    assert "no-such-bucket" in said and "gcloud storage buckets create" in said


def test_a_missing_bucket_is_created_if_the_project_is_known(broker, gcs, tmp_path):
    site = BucketSite(broker, tmp_path, gcs, permit=[*gcs_role(), "storage.buckets.create"])
    try:
        name = f"{site.bucket}-made"
        site.start(GCS_BUCKET_NAME=name, GCS_PROJECT_ID="e2e", GCS_LOCATION="EU")
        assert site.call("store", "k", 1)["backend"] == "gcs"
        assert site.server.names(name) == ["k"]
    finally:
        site.close()


def test_a_bucket_that_is_gone_is_made_again_for_what_waits(broker, gcs, tmp_path):
    """As when an emulator that keeps nothing was restarted. An empty bucket in its place would be wrong for a read alone."""
    site = BucketSite(broker, tmp_path, gcs, permit=[*gcs_role(), "storage.buckets.create"])
    try:
        name = f"{site.bucket}-made"
        site.start(GCS_BUCKET_NAME=name, GCS_PROJECT_ID="e2e")
        site.call("store", "before", 1)
        site.proxy.down()
        assert all(site.call("store", f"k{n}", n)["pending_sync"] for n in range(3))
        assert site.call("delete", "before") is True
        gcs.delete(name, "before")
        status, _, text = http("DELETE", f"{gcs.url}/storage/v1/b/{name}")
        assert status == 200, text
        site.proxy.up()
        wait_until(lambda: site.health()["pending_sync"] == 0, 90, lambda: f"the sync: {site.health()}")
        assert gcs.names(name) == ["k0", "k1", "k2"]
        assert site.call("retrieve", "k1") == 1
    finally:
        site.close()


def test_a_forbidden_bucket_stops_the_start_and_names_a_remedy(bucket_site):
    bucket_site.proxy.rule({"status": 403})
    code, said = worker_ends(bucket_site)
    assert code == 78, said
    assert bucket_site.bucket in said and "gcloud storage buckets add-iam-policy-binding" in said


@pytest.mark.parametrize("content", [None, "", "not json", "{}", '{"type": "service_account"}'], ids=str)
def test_a_wrong_key_file_stops_the_start_and_is_named(bucket_site, content):
    path = bucket_site.folder / "key.json"
    if content is not None:
        path.write_text(content)
    code, said = worker_ends(bucket_site, STORAGE_EMULATOR_HOST="", GCS_CREDENTIALS_PATH=path)
    assert code == 78, said
    assert str(path) in said


def test_a_bucket_name_that_no_bucket_can_have_stops_the_start(bucket_site):
    code, said = worker_ends(bucket_site, GCS_BUCKET_NAME="Not/A/Bucket")
    assert code == 78 and "gcs_bucket_name" in said.lower()
