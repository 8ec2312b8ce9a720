"""The fault proxy does what the other tests believe it does."""

import base64
import hashlib
import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, urlsplit

import botocore.exceptions
import google_crc32c
import pytest

from buckets import FaultProxy, http as ask
from harness import wait_until

BOUNDARY = "b0undary"


@pytest.fixture(scope="module")
def way(gcs):
    """The emulator with a bucket, and the proxy before it that enforces what the emulator does not."""
    proxy = FaultProxy(gcs.url, "gcs")
    yield proxy, gcs, gcs.bucket()
    proxy.close()


@pytest.fixture(autouse=True)
def unharmed(way):
    way[0].clear()


def crc(data):
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def upload(base, bucket, name, data, metadata=None, trailing=None, inside=False, **query):
    """A multipart upload; returns (status, text). The name is in the address, or inside with the metadata."""
    if inside:
        metadata = {**(metadata or {}), "name": name}
    parts = [json.dumps(metadata or {}).encode(), data] + ([json.dumps(trailing).encode()] if trailing else [])
    body = b""
    for part in parts:
        # The emulator takes the type from here, Cloud Storage from the metadata.
        body += f"--{BOUNDARY}\r\nContent-Type: text/x-test\r\n\r\n".encode() + part + b"\r\n"
    body += f"--{BOUNDARY}--\r\n".encode()
    extra = "".join(f"&{key}={value}" for key, value in query.items())
    extra += "" if inside else f"&name={quote(name, safe='')}"
    url = f"{base}/upload/storage/v1/b/{bucket}/o?uploadType=multipart{extra}"
    status, _, text = ask("POST", url, body, {"Content-Type": f"multipart/related; boundary={BOUNDARY}"})
    return status, text


def address(proxy, bucket, name, query=""):
    return f"{proxy.url}/storage/v1/b/{bucket}/o/{quote(name, safe='')}{query}"


def test_what_is_not_harmed_passes_unchanged(way):
    proxy, gcs, bucket = way
    for name, data in {"a/b c?#%+é🦀": b"x", "empty": b"", "large": bytes(range(256)) * 20_000}.items():
        status, text = upload(proxy.url, bucket, name, data, {"contentType": "text/x-test", "metadata": {"a": "ä"}})
        assert status == 200, text
        assert gcs.read(bucket, name) == data
        assert gcs.stat(bucket, name)["metadata"] == {"a": "ä"}
        status, headers, body = ask("GET", address(proxy, bucket, name, "?alt=media"))
        assert (status, body, headers["Content-Type"]) == (200, data, "text/x-test")
        (entry,) = proxy.log(method="GET", object=name)
        assert (entry["status"], entry["response_size"]) == (200, len(data))


@pytest.mark.parametrize("inside", [False, True], ids=["name in the address", "name in the metadata"])
def test_conditions_of_uploads_deletes_and_reads_hold(way, inside):
    proxy, gcs, bucket = way
    assert upload(proxy.url, bucket, "c", b"1", inside=inside, ifGenerationMatch=0)[0] == 200
    assert proxy.log()[-1]["object"] == "c"
    generation = gcs.stat(bucket, "c")["generation"]
    assert upload(proxy.url, bucket, "c", b"2", inside=inside, ifGenerationMatch=0)[0] == 412
    assert upload(proxy.url, bucket, "c", b"2", inside=inside, ifGenerationMatch=1)[0] == 412
    assert gcs.read(bucket, "c") == b"1"
    assert ask("GET", address(proxy, bucket, "c", f"?alt=media&ifGenerationMatch={generation}"))[0] == 200
    assert ask("GET", address(proxy, bucket, "c", "?alt=media&ifGenerationMatch=1"))[0] == 412
    assert ask("GET", address(proxy, bucket, "c", f"?ifGenerationNotMatch={generation}"))[0] == 304
    assert ask("DELETE", address(proxy, bucket, "c", "?ifGenerationMatch=1"))[0] == 412
    assert upload(proxy.url, bucket, "c", b"3", ifGenerationMatch=generation)[0] == 200
    assert ask("DELETE", address(proxy, bucket, "c", f"?ifGenerationMatch={generation}"))[0] == 412
    assert ask("DELETE", address(proxy, bucket, "c", f"?ifGenerationMatch={gcs.stat(bucket, 'c')['generation']}"))[0] in (200, 204)
    assert gcs.stat(bucket, "c") is None


def resumable(proxy, bucket, name, metadata=None, **query):
    extra = "".join(f"&{key}={value}" for key, value in query.items())
    url = f"{proxy.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&name={quote(name, safe='')}{extra}"
    status, headers, text = ask("POST", url, json.dumps(metadata or {}).encode(), {"Content-Type": "application/json"})
    return status, headers.get("Location"), text


def test_a_resumable_upload_keeps_its_condition_to_the_end(way):
    proxy, gcs, bucket = way
    first, last = b"a" * 262_144, b"b" * 1000
    status, location, _ = resumable(proxy, bucket, "r", ifGenerationMatch=0)
    assert status == 200 and location.startswith(proxy.url + "/")
    assert ask("PUT", location, first, {"Content-Range": "bytes 0-262143/*"})[0] == 308
    status, headers, _ = ask("PUT", location, b"", {"Content-Range": "bytes */*"})
    assert (status, headers["Range"]) == (308, "bytes=0-262143")
    end = {"Content-Range": "bytes 262144-263143/263144"}
    gcs.write(bucket, "r", b"meanwhile")
    assert ask("PUT", location, last, end)[0] == 412
    assert gcs.read(bucket, "r") == b"meanwhile"
    gcs.delete(bucket, "r")
    assert resumable(proxy, bucket, "r", ifGenerationMatch=5)[0] == 412
    _, location, _ = resumable(proxy, bucket, "r", ifGenerationMatch=0)
    assert ask("PUT", location, first, {"Content-Range": "bytes 0-262143/*"})[0] == 308
    wrong = ask("PUT", location, last, {**end, "x-goog-hash": f"crc32c={crc(last)}"})
    assert wrong[0] == 400 and b"CRC32C" in wrong[2]
    assert ask("PUT", location, last, {**end, "x-goog-hash": f"crc32c={crc(first + last)}"})[0] == 200
    assert gcs.read(bucket, "r") == first + last


def test_declared_checksums_and_too_much_metadata_are_refused(way):
    proxy, gcs, bucket = way
    data = bytes(range(256)) * 5
    good, bad = crc(data), crc(b"other")
    md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
    for name, (metadata, trailing, wanted) in {
        "upfront": ({"crc32c": good, "md5Hash": md5}, None, 200),
        "trailing": ({}, {"crc32c": good}, 200),
        "wrong": ({"crc32c": bad}, None, 400),
        "wrong md5": ({"md5Hash": md5[::-1]}, None, 400),
        "wrong trailing": ({}, {"crc32c": bad}, 400),
        "fits": ({"metadata": {"k" * 192: "v" * 8000}}, None, 200),
        "too much": ({"metadata": {"k" * 193: "v" * 8000}}, None, 400),
    }.items():
        assert upload(proxy.url, bucket, name, data, metadata, trailing)[0] == wanted, name
        assert gcs.read(bucket, name) == (data if wanted == 200 else None)


def test_of_two_writers_with_one_condition_one_wins(way):
    proxy, gcs, bucket = way
    for turn in range(20):
        answers = []

        def write(data, turn=turn, answers=answers):
            answers.append((upload(proxy.url, bucket, f"race/{turn}", data, ifGenerationMatch=0)[0], data))

        writers = [threading.Thread(target=write, args=(f"{n}".encode(),)) for n in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert sorted(status for status, _ in answers) == [200, 412, 412, 412]
        assert gcs.read(bucket, f"race/{turn}") == next(data for status, data in answers if status == 200)


def test_rules_count_and_choose(way):
    proxy, gcs, bucket = way
    gcs.write(bucket, "x", b"payload")
    rule = proxy.rule({"status": 503, "headers": {"Retry-After": "7"}}, nth=2, times=2, method="GET", object="^x$")
    statuses = [ask("GET", address(proxy, bucket, "x"))[0] for _ in range(5)]
    assert statuses == [200, 503, 503, 200, 200]
    assert proxy.applied(rule) == 2
    assert [entry["status"] for entry in proxy.log(object="x")] == statuses
    proxy.clear()
    proxy.rule({"status": 429, "headers": {"Retry-After": "7"}})
    status, headers, _ = ask("GET", address(proxy, bucket, "x"))
    assert (status, headers["Retry-After"]) == (429, "7")
    with pytest.raises(AssertionError, match="unknown: colour"):
        proxy.rule({"colour": "red"})


def test_each_harm_is_what_it_is_called(way):
    proxy, gcs, bucket = way
    data = bytes(range(256)) * 1000
    gcs.write(bucket, "h", data)
    read = address(proxy, bucket, "h", "?alt=media")

    rule = proxy.rule({"reset": True})
    with pytest.raises(ConnectionResetError):
        raw("GET", read)
    proxy.forget(rule)

    rule = proxy.rule({"truncate": 100_000})
    with pytest.raises(http.client.IncompleteRead) as cut:
        raw("GET", read)
    assert cut.value.partial == data[:100_000] and cut.value.expected == len(data) - 100_000
    proxy.forget(rule)

    rule = proxy.rule({"flip": {"side": "response", "offset": 200_000, "bit": 3}})
    body = raw("GET", read)[1]
    assert len(body) == len(data) and [n for n in range(len(data)) if data[n] != body[n]] == [200_000]
    assert body[200_000] ^ data[200_000] == 8
    proxy.forget(rule)

    rule = proxy.rule({"flip": {"side": "request", "find": "MARK", "bit": 0}})
    assert upload(proxy.url, bucket, "flipped", b"..MARK..")[0] == 200
    assert gcs.read(bucket, "flipped") == b"..LARK.."
    assert upload(proxy.url, bucket, "refused", b"..MARK..", {"crc32c": crc(b"..MARK..")})[0] == 400
    proxy.forget(rule)

    rule = proxy.rule({"swallow": True})
    with pytest.raises(ConnectionResetError):
        raw("DELETE", address(proxy, bucket, "flipped"))
    assert gcs.read(bucket, "flipped") is None, "it happened"
    proxy.forget(rule)

    rule = proxy.rule({"stall": 60})
    with pytest.raises(TimeoutError):
        raw("GET", read, timeout=0.5)
    proxy.forget(rule)

    rule = proxy.rule({"stall": 60, "after": 1000})
    with pytest.raises(TimeoutError):
        raw("GET", read, timeout=0.5)
    assert wait_until(lambda: proxy.log(object="h")[-1]["seconds"], what="the end of the stalled request") < 30
    assert proxy.log(object="h")[-1]["response_size"] == 1000
    proxy.forget(rule)

    rule = proxy.rule({"delay": 0.3, "patch": {"Date": "Thu, 01 Jan 1970 00:00:00 GMT"}})
    begun = time.monotonic()
    status, headers, _ = ask("GET", address(proxy, bucket, "h"))
    assert (status, headers["Date"]) == (200, "Thu, 01 Jan 1970 00:00:00 GMT") and time.monotonic() - begun >= 0.3
    proxy.forget(rule)
    assert raw("GET", read)[1] == data

    proxy.forget_log()
    rule = proxy.rule({"hold": True})
    with pytest.raises(TimeoutError):
        raw("GET", read, timeout=0.5)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(raw, "GET", read)
        wait_until(lambda: proxy.applied(rule) == 2, what="the request to be held")
        assert [entry["status"] for entry in proxy.log()] == [None, None] and not answer.done()
        proxy.forget(rule)
        assert answer.result(20)[1] == data
    assert [entry["status"] for entry in proxy.log()] == [None, 200], "whoever has gone gets nothing done"


def raw(method, url, timeout=10):
    """One request whose failures are not disguised."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    try:
        connection.request(method, f"{parts.path}?{parts.query}")
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("how", ["reset", "refuse"])
def test_an_outage_ends_every_connection_and_passes(way, how):
    proxy, gcs, bucket = way
    gcs.write(bucket, "o", b"x")
    url = address(proxy, bucket, "o")
    parts = urlsplit(url)
    kept = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    kept.request("GET", parts.path)
    kept.getresponse().read()
    proxy.down(how)
    with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
        kept.auto_open = False
        kept.request("GET", parts.path)
        kept.getresponse()
    with pytest.raises(ConnectionRefusedError if how == "refuse" else ConnectionResetError):
        raw("GET", url)
    proxy.up()
    assert raw("GET", url)[0] == 200


def test_a_black_hole_never_answers(way):
    proxy, gcs, bucket = way
    gcs.write(bucket, "o", b"x")
    url = address(proxy, bucket, "o")
    proxy.blackhole()
    with pytest.raises(TimeoutError):
        raw("GET", url, timeout=0.5)
    proxy.up()
    assert raw("GET", url)[0] == 200


def test_what_s3_refuses_is_refused(s3):
    proxy, bucket = FaultProxy(s3.url, "s3"), s3.bucket()
    try:
        client = s3.connect(proxy.url)
        client.put_object(Bucket=bucket, Key="a b/é", Body=b"x" * 100_000, Metadata={"k": "v" * 2047})
        assert s3.read(bucket, "a b/é") == b"x" * 100_000
        with pytest.raises(botocore.exceptions.ClientError, match="MetadataTooLarge"):
            client.put_object(Bucket=bucket, Key="m", Body=b"x", Metadata={"k": "v" * 2048})
        proxy.rule({"flip": {"side": "request", "find": "MARK"}})
        with pytest.raises(botocore.exceptions.ClientError, match="BadDigest"):
            client.put_object(Bucket=bucket, Key="m", Body=b"..MARK..")
        assert s3.names(bucket) == ["a b/é"]
    finally:
        s3.give_back(bucket)
        proxy.close()
