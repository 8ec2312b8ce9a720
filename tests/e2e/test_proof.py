"""Success needs proof: what answers in the bucket's stead, a log-in page, a console, a wrong address, is never believed."""

import json

import pytest

from buckets import BucketSite
from harness import failure, wait_until

PAGE = {
    "status": 200,
    "headers": {"Content-Type": "text/html; charset=utf-8", "ETag": '"5d8c72a5"', "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"},
    "body": "<!DOCTYPE html><html><body>Please log in, content-of-the-page</body></html>",
}


@pytest.fixture(params=["gcs", "s3"])
def paged(request, broker, tmp_path):
    """A site on a bucket of either kind; no worker yet."""
    site = BucketSite(broker, tmp_path, request.getfixturevalue(request.param))
    site.setting = {"gcs": "STORAGE_EMULATOR_HOST", "s3": "s3_endpoint_url"}[site.kind]
    yield site
    site.close()


def names_it(site, text):
    """Says which setting, what answered, and nothing of what it contained."""
    assert site.setting in text and "text/html" in text and "200" in text, text
    assert "content-of-the-page" not in text, text
    return True


def says(worker, status, *words):
    """Waits until /readyz says so."""

    def it():
        found, text = worker.http("/readyz")
        return found == status and all(word in text for word in words) and text

    return wait_until(it, 40, lambda: f"{status} with {words}: {worker.http('/readyz')}", step=0.1)


def all_sent(site):
    wait_until(lambda: not site.overlay(), 90, lambda: f"an empty overlay; waiting: {len(site.overlay())}", step=0.1)


def test_a_store_meanwhile_waits_for_the_real_bucket(paged):
    site = paged
    worker = site.start(ENABLE_CACHE="false")
    assert site.call("store", "early", "a value")["pending_sync"] is False
    assert site.call("store", "doomed", "a value")["pending_sync"] is False
    page = site.proxy.rule(PAGE)
    for n in range(4):
        receipt = site.call("store", f"night/{n}", {"n": n})
        assert (receipt["backend"], receipt["pending_sync"]) == ("local", True), receipt
        assert site.call("retrieve", f"night/{n}") == {"n": n}
    assert site.call("delete", "doomed") is True
    assert site.call("exists", "doomed") is False
    # What only the bucket knows is an error, and no page is a value, a miss or an empty list.
    for task, arguments in (("retrieve", ("early",)), ("exists", ("early",)), ("stat", ("none",)), ("list_keys", ())):
        error = failure(site.send(task, *arguments), timeout=60)
        assert type(error).__name__ == "StorageUnavailable", repr(error)
        names_it(site, str(error))
    names_it(site, says(worker, 200, site.setting))
    assert site.health(worker)["status"] == "degraded"
    site.proxy.forget(page)
    all_sent(site)
    assert site.names() == ["early", *(f"night/{n}" for n in range(4))]
    assert json.loads(site.server.read(site.bucket, "night/3")) == {"n": 3}
    says(worker, 200)
    assert site.call("store", "after", 1)["backend"] == site.kind


def test_a_worker_that_gets_a_web_page_is_ready_and_says_so(paged):
    site = paged
    page = site.proxy.rule(PAGE)
    worker = site.start()
    names_it(site, says(worker, 200, site.setting))
    assert site.health(worker)["status"] == "degraded"
    assert site.call("store", "k", "v")["pending_sync"] is True
    site.proxy.forget(page)
    all_sent(site)
    assert site.server.read(site.bucket, "k") == b"v"


def test_without_a_fallback_a_page_confirms_and_starts_nothing(paged):
    site = paged
    worker = site.start(ENABLE_LOCAL_FALLBACK="false")
    page = site.proxy.rule(PAGE)
    for task, arguments in (("store", ("k", "v")), ("delete", ("k",)), ("retrieve", ("k",))):
        error = failure(site.send(task, *arguments), timeout=60)
        assert type(error).__name__ == "StorageUnavailable", repr(error)
        names_it(site, str(error))
    names_it(site, says(worker, 503, site.setting))
    site.proxy.forget(page)
    says(worker, 200)
    assert site.call("store", "k", "v")["pending_sync"] is False
    assert worker.stop() == 0
    # At the start it is asked twice, since it may be a moment of maintenance.
    site.proxy.rule(PAGE)
    site.proxy.forget_log()
    worker = site.spawn(ENABLE_LOCAL_FALLBACK="false")
    assert worker.wait(60) == 78
    names_it(site, worker.log())
    asked = [entry["at"] for entry in site.proxy.log()]
    assert asked[-1] - asked[0] >= 5, asked
    # What passes in between is let pass.
    site.proxy.forget()
    site.proxy.rule(PAGE, times=4)
    site.start(ENABLE_LOCAL_FALLBACK="false")
    assert site.call("retrieve", "k") == "v"


def test_the_shell_never_takes_a_page_for_an_empty_place(paged):
    site = paged
    site.proxy.rule(PAGE)
    done = site.run("list", MAX_RETRIES=0)
    assert (done.returncode, done.stdout) == (69, b"")
    names_it(site, done.stderr.decode())
    done = site.run("--json", "migrate", "--from", site.kind, "--to", f"file://{site.folder}/copy", MAX_RETRIES=0)
    assert done.returncode == 78 and b"complete" not in done.stdout, done
    names_it(site, done.stderr.decode() + done.stdout.decode())
    done = site.run("doctor", MAX_RETRIES=0)
    assert done.returncode == 69
    fault = next(line for line in done.stdout.decode().splitlines() if line.startswith("fault") and " bucket " in line)
    names_it(site, fault)


@pytest.mark.parametrize("fallback", ["true", "false"])
def test_a_bucket_in_the_endpoint_ends_the_start(broker, s3, tmp_path, fallback):
    site = BucketSite(broker, tmp_path, s3)
    try:
        for endpoint in (f"{site.proxy.url}/{site.bucket}", f"{site.proxy.url}/{site.bucket}/"):
            worker = site.spawn(S3_ENDPOINT_URL=endpoint, ENABLE_LOCAL_FALLBACK=fallback)
            assert worker.wait(60) == 78
            for word in ("s3_endpoint_url", "s3_bucket_name", site.bucket):
                assert word in worker.log(), worker.log()
            done = site.run("store", "k", "-", stdin=b"v", S3_ENDPOINT_URL=endpoint, ENABLE_LOCAL_FALLBACK=fallback)
            assert done.returncode == 78, done
        assert not [entry for entry in site.proxy.log() if entry["method"] in ("PUT", "POST", "DELETE")]
        assert site.names() == []
    finally:
        site.close()


def test_readiness_says_that_every_command_is_refused(paged):
    site = paged
    worker = site.start()
    site.call("store", "k", "v")
    # The bucket can be looked at, and nothing else is permitted.
    refusing = {"status": 403, "body": "not you"}
    rule = site.proxy.rule(refusing, object="^k$")
    for _ in range(3):
        assert type(failure(site.send("store", "k", "v"))).__name__ == "PermissionError"
    says(worker, 503, "refuses every command", "403")
    site.proxy.forget(rule)
    assert site.call("store", "k", "v")["pending_sync"] is False
    says(worker, 200)
    # A token that has expired, of which the next command tells and not only the look every 30 s.
    expired = {
        "gcs": {"status": 401, "body": {"error": {"code": 401, "message": "Invalid Credentials"}}},
        "s3": {"status": 400, "body": "<Error><Code>ExpiredToken</Code><Message>The token has expired.</Message></Error>"},
    }[site.kind]
    rule = site.proxy.rule(expired)
    assert type(failure(site.send("store", "k", "v"))).__name__ == "PermissionError"
    says(worker, 503, {"gcs": "Invalid Credentials", "s3": "ExpiredToken"}[site.kind])
    site.proxy.forget(rule)
    says(worker, 200)


def test_a_listing_that_repeats_is_reported_without_a_breaker(paged):
    site = paged
    worker = site.start()
    site.call("store", "k", "v")
    body, where = {
        "gcs": ({"kind": "storage#objects", "nextPageToken": "again"}, {"path": "/o$"}),
        "s3": (
            f"<ListBucketResult><Name>{site.bucket}</Name><IsTruncated>true</IsTruncated>"
            "<NextContinuationToken>again</NextContinuationToken></ListBucketResult>",
            {"query": "list-type=2"},
        ),
    }[site.kind]
    rule = site.proxy.rule({"status": 200, "body": body}, method="GET", **where)
    for _ in range(4):
        error = failure(site.send("list_keys"))
        assert isinstance(error, OSError) and "page token" in str(error), repr(error)
    assert site.health()["breaker"] == "closed"
    assert site.call("retrieve", "k") == "v"
    done = site.run("list", MAX_RETRIES=0)
    assert done.returncode == 74 and b"page token" in done.stderr and done.stdout == b"", done
    site.proxy.forget(rule)
    assert site.call("list_keys") == ["k"]
    worker.assert_alive()
