"""Values are kept compressed where that makes them smaller: in the folder, in the bucket, in the overlay."""

import gzip
import os
import subprocess

import pytest

try:
    from compression import zstd
except ImportError:  # before Python 3.14
    from backports import zstd

from buckets import BucketSite
from harness import BINARY, Site, failure, wait_until
from test_foreign_bytes import put
from test_foreign_tools import TOOLS

TEXT = "".join(f"line {number * 7919} of a text\n" for number in range(20_000))


@pytest.fixture(scope="module", params=["gzip", "zstd"])
def codec(request):
    return request.param


@pytest.fixture(scope="module")
def site(codec, broker, tmp_path_factory):
    site = Site(broker, tmp_path_factory.mktemp("codec"))
    try:
        site.start(COMPRESSION_ALGORITHM=codec)
        yield site
        site.workers[-1].assert_alive()
    finally:
        site.close()


@pytest.fixture(scope="module", params=["gcs", "s3"])
def bucket(request, codec, broker, tmp_path_factory):
    server = request.getfixturevalue(request.param)
    site = BucketSite(broker, tmp_path_factory.mktemp("codec"), server)
    try:
        site.tool = TOOLS[site.kind](server, site.bucket)
        site.start(COMPRESSION_ALGORITHM=codec)
        yield site
        site.workers[-1].assert_alive()
    finally:
        site.close()


def plain(codec, data):
    """Undoes the codec with a library of others."""
    return gzip.decompress(data) if codec == "gzip" else zstd.decompress(data)


def test_large_values_are_kept_smaller(site, codec):
    for value in (TEXT, TEXT.encode(), {"rows": TEXT.splitlines()}):
        receipt = site.call("store", "large", value)
        assert receipt["compression"] == codec and receipt["stored_size"] < receipt["size"] / 2, receipt
        assert site.call("retrieve", "large") == value
        assert site.call("stat", "large") == {**receipt, "metadata": None}


def test_small_and_compressed_values_stay_as_they_are(site):
    for name, value, content_type in (
        ("at the threshold", "a" * 1024, None),
        ("picture", b"a" * 100_000, "image/png"),
        ("document", b"a" * 100_000, "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        ("noise", os.urandom(50_000), None),
    ):
        receipt = site.call("store", name, value, **({"content_type": content_type} if content_type else {}))
        assert receipt["compression"] is None and receipt["stored_size"] == receipt["size"] == len(value), name
        assert site.call("retrieve", name) == value
    assert site.call("store", "above the threshold", "a" * 1025)["compression"] is not None


def test_parts_are_parts_of_the_value(site):
    data = TEXT.encode()
    site.call("store", "parts", TEXT)
    for offset, length in ((0, 10), (300_000, 5), (len(data) - 3, 100), (len(data) + 5, 1), (5, 0)):
        assert site.call("retrieve", "parts", offset=offset, length=length) == data[offset : offset + length]


def test_the_statistics_tell_what_was_saved(site):
    site.call("store", "saved", TEXT)
    metrics = site.call("get_stats")["metrics"]
    assert metrics["compression_savings"] > len(TEXT) / 2 and 0 < metrics["compression_ratio"] < 1


def test_a_bucket_holds_an_honest_content_encoding(bucket, codec):
    receipt = bucket.call("store", "honest", TEXT, {"author": "Ada"})
    assert receipt["compression"] == codec
    if bucket.kind == "gcs":
        blob = bucket.tool.bucket.get_blob("honest")
        found, kept = blob.content_encoding, blob.download_as_bytes(raw_download=True)
    else:
        answer = bucket.tool.client.get_object(Bucket=bucket.bucket, Key="honest")
        found, kept = answer["ContentEncoding"], answer["Body"].read()
    assert found == codec
    # The emulator of Cloud Storage unpacks gzip by itself.
    assert kept == TEXT.encode() or plain(codec, kept) == TEXT.encode()
    assert bucket.call("retrieve", "honest") == TEXT


def test_values_wait_compressed_in_the_overlay(bucket, codec):
    bucket.proxy.down()
    try:
        receipt = bucket.call("store", "waiting", TEXT)
        assert receipt["pending_sync"] and receipt["compression"] == codec, receipt
        assert bucket.call("retrieve", "waiting") == TEXT
    finally:
        bucket.proxy.up()
    wait_until(lambda: not bucket.call("stat", "waiting")["pending_sync"], timeout=90)
    assert bucket.call("retrieve", "waiting") == TEXT


def test_a_bomb_is_refused_at_the_cap(bucket):
    """The value of another tool has no size that could be trusted."""
    if bucket.kind == "gcs":
        pytest.skip("the emulator unpacks by itself what it should give as it is kept")
    data = gzip.compress(TEXT.encode())
    put(bucket, "foreign", data, "text/plain", encoding="GZIP")
    stat = bucket.call("stat", "foreign")
    assert (stat["size"], stat["checksum"], stat["stored_size"]) == (None, None, len(data))
    assert bucket.call("retrieve", "foreign") == TEXT
    put(bucket, "bomb", zstd.compress(bytes(64 << 20), 19), "application/octet-stream", encoding="zstd")
    # No answer takes so much, and of a part all before it is decompressed.
    assert type(failure(bucket.send("retrieve", "bomb"))) is ValueError
    error = failure(bucket.send("retrieve", "bomb", offset=60 << 20, length=5))
    assert type(error).__name__ == "IntegrityError" and "bomb" in str(error), error
    put(bucket, "truncated", data[:-9], "text/plain", encoding="gzip")
    assert type(failure(bucket.send("retrieve", "truncated"))).__name__ == "IntegrityError"


def test_what_one_setting_wrote_all_settings_read(codec, broker, tmp_path):
    site = Site(broker, tmp_path)
    try:
        for number, settings in enumerate(({"COMPRESSION_ALGORITHM": codec}, {"ENABLE_COMPRESSION": "false"})):
            worker = site.start(**settings)
            receipt = site.call("store", f"by/{number}", TEXT)
            assert receipt["compression"] == (codec if number == 0 else None)
            for earlier in range(number + 1):
                assert site.call("retrieve", f"by/{earlier}") == TEXT
            worker.stop()
        env = site.env(COMPRESSION_LEVEL="10", COMPRESSION_ALGORITHM="gzip")
        answer = subprocess.run([BINARY, "worker"], env=env, capture_output=True, timeout=30, check=False)
        assert answer.returncode == 78 and b"compression_level" in answer.stderr, answer
    finally:
        site.close()
