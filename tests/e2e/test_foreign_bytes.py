"""What other tools write, to the byte and to the header: charsets, codings, marks; carried when it moves."""

import gzip
import json
import os
import re
import signal
import subprocess
import uuid

import pytest

from buckets import BucketSite
from harness import BINARY, failure, wait_until
from test_bucket_shell import said, summary
from test_bytes_in_flight import MIB, Memory
from test_foreign_tools import TOOLS, place  # noqa: F401 - the fixture

CHARSETS = {
    "utf-16le": "h\u00e9llo \U0001f680",
    "UTF-16BE": "h\u00e9llo",
    "utf-16": "h\u00e9llo",
    "windows-1252": "\u20ac \u00e9",
    "iso-8859-1": "\u00e9",
    "iso-2022-jp": "\u3042a\u3044",
    "shift_jis": "\u3042",
    "koi8-r": "\u0430\u0431",
    "utf-8": "\u00e9",
}


def put(site, name, data, content_type, encoding=None, metadata=None, headers=None):
    """Writes an object as the other tool of this place does, with its headers."""
    headers = headers or {}
    if site.kind == "gcs":
        blob = site.tool.bucket.blob(name)
        blob.content_encoding = encoding
        blob.metadata = metadata
        for header, value in headers.items():
            setattr(blob, header, value)
        blob.upload_from_string(data, content_type=content_type)
        return
    named = {"".join(part.title() for part in header.split("_")): value for header, value in headers.items()}
    if encoding:
        named["ContentEncoding"] = encoding
    site.tool.client.put_object(Bucket=site.bucket, Key=name, Body=data, ContentType=content_type, Metadata=metadata or {}, **named)


def test_text_is_decoded_by_its_charset(place):
    for charset, text in CHARSETS.items():
        kept = text.encode(charset)
        put(place, f"text/{charset}", kept, f"text/plain; charset={charset}")
        assert place.call("retrieve", f"text/{charset}") == text, charset
        assert place.call("retrieve", f"text/{charset}", offset=0) == kept
        assert place.call("stat", f"text/{charset}")["kind"] == "text"
    put(place, "text/json", json.dumps({"a": "\u00e9"}, ensure_ascii=False).encode("utf-16le"), "application/json; charset=utf-16le")
    assert place.call("retrieve", "text/json") == {"a": "\u00e9"}
    for name, content_type, data in (
        ("unknown", "text/plain; charset=klingon", b"abc"),
        ("odd", "text/plain; charset=utf-16le", b"abc"),
        ("ascii", "text/plain; charset=us-ascii", b"\xe9"),
        ("none", "text/plain", b"\xe9"),
    ):
        put(place, f"bad/{name}", data, content_type)
        error = failure(place.send("retrieve", f"bad/{name}"))
        assert type(error) is ValueError and "offset=0" in str(error), error
        assert content_type.partition("charset=")[2] in str(error) or "utf-8" in str(error), error
        assert place.call("retrieve", f"bad/{name}", offset=0) == data


def test_a_mark_before_json_is_no_damage(place):
    for name, mark in (("utf8", b"\xef\xbb\xbf"), ("none", b"")):
        put(place, f"mark/{name}", mark + b'{"a": 1}', "application/json")
        assert place.call("retrieve", f"mark/{name}") == {"a": 1}


def test_headers_that_change_no_byte_are_no_damage(place):
    for encoding in ("utf-8", "UTF-8", "none", "binary", "identity", "IDENTITY"):
        put(place, "plain", b"plain", "text/plain", encoding=encoding)
        assert place.call("retrieve", "plain") == "plain", encoding
        assert place.call("retrieve", "plain", offset=1, length=2) == b"la"
    put(place, "brotli", b"\x0b\x02\x80abc\x03", "text/plain", encoding="br")
    error = failure(place.send("retrieve", "brotli"))
    assert type(error).__name__ == "IntegrityError" and "Content-Encoding" in str(error) and "br" in str(error), error
    assert place.call("retrieve", "brotli", offset=0) == b"\x0b\x02\x80abc\x03"


def test_packed_objects_are_unpacked(place):
    if place.kind == "gcs":
        pytest.skip("the emulator unpacks by itself what it should give as it is kept")
    for encoding in ("gzip", "GZIP", "gzip, identity"):
        put(place, "packed", gzip.compress("\u00e9".encode() * 1000), "text/plain; charset=utf-8", encoding=encoding)
        assert place.call("retrieve", "packed") == "\u00e9" * 1000, encoding
        assert place.call("retrieve", "packed", offset=2, length=4) == "\u00e9".encode() * 2
    put(place, "packed", b"not packed", "text/plain", encoding="gzip")
    error = failure(place.send("retrieve", "packed"))
    assert type(error).__name__ == "IntegrityError" and "Content-Encoding" in str(error), error


def test_objects_that_unpack_to_large_ones_take_little_memory(place):
    if place.kind == "gcs":
        pytest.skip("the emulator unpacks by itself what it should give as it is kept")
    put(place, "bomb", gzip.compress(b"a" * (60 * MIB)), "text/plain; charset=utf-8", encoding="gzip")
    memory = Memory(place.workers[-1])
    parts = [place.send("retrieve", "bomb", offset=n * MIB, length=3) for n in range(50)]
    assert [part.get(timeout=120) for part in parts] == [b"aaa"] * 50
    memory.ended.set()
    memory.join()
    assert 0 < memory.peak < 200 * MIB, f"{memory.peak / MIB:.0f} MiB were resident"


HEADERS = {"cache_control": "max-age=60", "content_disposition": 'attachment; filename="a.txt"', "content_language": "de"}


@pytest.fixture
def both(broker, gcs, s3, tmp_path):
    """A site on a bucket in Cloud Storage that knows one in S3, too, and both tools."""
    site = BucketSite(broker, tmp_path, gcs)
    site.tool = TOOLS["gcs"](gcs, site.bucket)
    other = s3.bucket()
    site.other = BucketSite.__new__(BucketSite)
    site.other.kind, site.other.bucket, site.other.tool = "s3", other, TOOLS["s3"](s3, other)
    site.more = {
        "S3_ENDPOINT_URL": s3.url,
        "S3_REGION": s3.region,
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.secret_key,
    }
    yield site
    site.close()
    s3.give_back(other)


def test_what_another_tool_said_of_its_object_moves_with_it(both):
    data = "h\u00e9".encode("utf-16le")
    metadata = {"owner": "jo", "x-team": "red"}
    put(both, "from/gcs", data, "text/plain; charset=utf-16le", metadata={**metadata, "Upper": "case"}, headers=HEADERS)
    put(both.other, "from/s3", data, "text/plain; charset=utf-16le", metadata=metadata, headers=HEADERS)
    there, here = f"s3://{both.other.bucket}", f"gs://{both.bucket}"
    local = f"file://{both.folder}/between"

    def move(source, target, prefix, reduced=0):
        done = both.run("migrate", "--from", source, "--to", target, "--prefix", prefix, "--json", **both.more)
        assert done.returncode == 0, said(done)
        found = summary(done)
        assert (found["copied"], found["reduced"]) == (1, reduced), said(done)
        return done

    move(here, there, "from/gcs")
    move(there, here, "from/s3")
    found = both.other.tool.client.head_object(Bucket=both.other.bucket, Key="from/gcs")
    assert (found["CacheControl"], found["ContentDisposition"], found["ContentLanguage"]) == tuple(HEADERS.values())
    assert {**metadata, "upper": "case"}.items() <= found["Metadata"].items()
    blob = both.tool.bucket.get_blob("from/s3")
    assert (blob.cache_control, blob.content_disposition, blob.content_language) == tuple(HEADERS.values())
    assert metadata.items() <= blob.metadata.items()
    # By way of this machine, and read at its end as the text it is.
    both.tool.delete("from/s3")
    move(there, local, "from/gcs")
    both.tool.delete("from/gcs")
    move(local, here, "from/gcs")
    blob = both.tool.bucket.get_blob("from/gcs")
    assert (blob.cache_control, blob.content_disposition, blob.content_language) == tuple(HEADERS.values())
    assert blob.download_as_bytes() == data
    both.start()
    assert both.call("retrieve", "from/gcs") == "h\u00e9"
    # What has no place is named, one key a line.
    put(both.other, "odd", b"x", "text/plain", headers={"website_redirect_location": "/elsewhere", **HEADERS})
    found = both.other.tool.client.head_object(Bucket=both.other.bucket, Key="odd")
    if "WebsiteRedirectLocation" in found:
        done = move(there, here, "odd", reduced=1)
        assert "odd: x-amz-website-redirect-location" in said(done)
    put(both, "words", b"x", "text/plain", metadata={"note": "\u00e9", "plain": "p"})
    done = move(here, there, "words", reduced=1)
    assert "words: note" in said(done)


def uploads(site):
    if site.kind == "s3":
        return site.server.client.list_multipart_uploads(Bucket=site.bucket).get("Uploads", [])
    return []


@pytest.fixture(params=["gcs", "s3"])
def quiet(request, broker, tmp_path):
    """A site on each kind of bucket, without a worker."""
    site = BucketSite(broker, tmp_path, request.getfixturevalue(request.param))
    yield site
    site.close()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, None], ids=["int", "term", "failure"])
def test_a_shell_upload_that_ends_half_way_is_cancelled(quiet, how):
    big = quiet.folder / "big"
    big.write_bytes(os.urandom(40 << 20))
    match = {"method": "PUT", "query": "partNumber=2"} if quiet.kind == "s3" else {"method": "PUT", "path": "/upload/"}
    if how is None:
        quiet.proxy.rule({"status": 400}, **match)
    else:
        quiet.proxy.rule({"stall": 60}, **match)
    command = [str(BINARY), "store", "big", str(big)]
    env = quiet.env(MAX_RETRIES=0, ENABLE_LOCAL_FALLBACK="false", TIMEOUT_SECONDS=60)
    process = subprocess.Popen(command, env=env, cwd=quiet.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if how is not None:
        begun = lambda: [one for one in quiet.proxy.log() if one["method"] == "PUT"]
        wait_until(begun, 30, "the first part")
        process.send_signal(how)
    out, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, None, -2, -15) and out == b"", (process.returncode, errors)
    assert quiet.names() == []
    assert uploads(quiet) == []
    assert [one for one in quiet.proxy.log() if one["method"] == "DELETE"], "it was called off"


def test_descriptors_pipes_and_devices_are_written_to(site):
    assert subprocess.run([str(BINARY), "store", "k", "-"], env=site.env(), cwd=site.folder, input=b"value", check=True)
    log = site.folder / "log"
    link = site.folder / "link"
    link.symlink_to("/dev/stdout")
    for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", str(link), "-"):
        log.write_bytes(b"hours of log\n")
        inode = log.stat().st_ino
        with open(log, "ab") as out:
            done = subprocess.run([str(BINARY), "retrieve", "k", "-o", name], env=site.env(), cwd=site.folder, stdout=out, check=False)
        assert done.returncode == 0
        assert (log.read_bytes(), log.stat().st_ino) == (b"hours of log\nvalue", inode), name
    with open(log, "wb") as out:
        out.write(b"begin ")
        out.flush()
        shell = f"exec 3>&1; '{BINARY}' retrieve k -o /dev/fd/3 2>/dev/null; echo ' end' >&3"
        subprocess.run(["sh", "-c", shell], env=site.env(), cwd=site.folder, stdout=out, check=True)
    assert log.read_bytes() == b"begin value end\n"
    done = subprocess.run([str(BINARY), "retrieve", "k", "-o", "/dev/stderr"], env=site.env(), cwd=site.folder, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"") and done.stderr.startswith(b"value")
    done = subprocess.run([str(BINARY), "retrieve", "k", "-o", "/dev/null"], env=site.env(), cwd=site.folder, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"") and os.stat("/dev/null").st_rdev == os.makedev(1, 3)
    fifo = site.folder / "fifo"
    os.mkfifo(fifo)
    process = subprocess.Popen([str(BINARY), "retrieve", "k", "-o", str(fifo)], env=site.env(), cwd=site.folder, stdout=subprocess.PIPE)
    assert fifo.read_bytes() == b"value" and fifo.is_fifo()
    assert process.communicate(timeout=20)[0] == b"" and process.returncode == 0
    plain = site.folder / "plain"
    done = subprocess.run([str(BINARY), "retrieve", "k", "-o", str(plain)], env=site.env(), cwd=site.folder, capture_output=True, check=False)
    assert plain.read_bytes() == b"value" and done.stdout == b"" and b"wrote 5 bytes" in done.stderr


def test_an_emulator_on_this_machine_is_asked_without_a_proxy(bucket_site):
    nobody = "http://user:hunter2@127.0.0.1:9"
    proxies = {"HTTP_PROXY": nobody, "HTTPS_PROXY": nobody, "ALL_PROXY": nobody, "http_proxy": nobody}
    done = bucket_site.run("store", "k", "-", stdin=b"value", **proxies)
    assert done.returncode == 0, said(done)
    assert bucket_site.run("retrieve", "k", **proxies).stdout == b"value"
    done = bucket_site.run("retrieve", "k", STORAGE_EMULATOR_HOST="http://gcs.invalid:80", MAX_RETRIES=0, **proxies)
    assert done.returncode == 69 and "http://127.0.0.1:9 (HTTP_PROXY)" in said(done) and "hunter2" not in said(done), said(done)


def test_a_full_disk_stops_no_store_to_a_bucket(bucket_site):
    site = bucket_site
    full = site.folder / "full"
    full.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises(OSError):
            (full / "filler").write_bytes(b"x" * (1 << 20))
        (site.folder / "file").write_bytes(b"y" * (3 << 20))
        for name, source, stdin in (("a", "-", b"small"), ("b", str(site.folder / "file"), b""), ("c", "-", b"z" * (3 << 20))):
            done = site.run("store", name, source, stdin=stdin, LOCAL_STORAGE_PATH=str(full / "storage"))
            assert done.returncode == 0, said(done)
        assert site.names() == ["a", "b", "c"]
        assert len(site.server.read(site.bucket, "c")) == 3 << 20
    finally:
        subprocess.run(["umount", "-l", str(full)], check=True)
