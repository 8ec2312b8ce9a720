"""Large values between files, buckets and pipes; what holds of references themselves is in test_exchange.py."""

import hashlib
import random
import subprocess

import pytest

from buckets import BucketSite
from harness import BINARY, failure

MIB = 1 << 20


def write_noise(path, size):
    """A file that does not compress; returns the digest of its content."""
    digest, source = hashlib.sha256(), random.Random(size)
    with open(path, "wb") as file:
        for start in range(0, size, MIB):
            piece = source.randbytes(min(MIB, size - start))
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def digest_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file):
    digest = hashlib.sha256()
    while piece := file.read(MIB):
        digest.update(piece)
    return digest.hexdigest()


def peak_memory(pid):
    """Most bytes that were ever resident."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))


@pytest.fixture(scope="module", params=["gcs", "s3"])
def place(request, broker, tmp_path_factory):
    """A site on a bucket with a running worker and an exchange directory."""
    exchange = tmp_path_factory.mktemp("exchange")
    # Without the rules, which hold whole bodies, so that what streams streams all the way.
    site = BucketSite(broker, tmp_path_factory.mktemp("references"), request.getfixturevalue(request.param), enforce=False)
    site.exchange = exchange
    site.scheme = {"gcs": "gs", "s3": "s3"}[site.kind]
    site.other = site.server.bucket()
    try:
        site.start(EXCHANGE_DIRECTORIES=exchange, EXCHANGE_BUCKETS=f"{site.scheme}://{site.other}")
        yield site
        site.workers[-1].assert_alive()
    finally:
        if site.kind == "s3":
            site.server.give_back(site.other)
        site.close()


def url(path):
    return f"file://{path}"


def test_a_hundred_megabytes_pass_in_bounded_memory(place, key):
    size = 100 * MIB
    digest = write_noise(place.exchange / "in.bin", size)
    receipt = place.send("store", key, {"$ref": url(place.exchange / "in.bin")}, {"n": 1}).get(timeout=120)
    assert (receipt["size"], receipt["kind"]) == (size, "bytes")
    assert place.call("stat", key)["metadata"] == {"n": 1}
    written = place.send("retrieve", key, destination=url(place.exchange / "out.bin")).get(timeout=120)
    assert (written["key"], written["size"], written["checksum"]) == (key, size, receipt["checksum"])
    assert digest_of(place.exchange / "out.bin") == digest
    (place.exchange / "out.bin").unlink()
    assert place.call("retrieve", key, offset=size - 5, length=100) == (place.exchange / "in.bin").read_bytes()[-5:]
    (place.exchange / "in.bin").unlink()
    # Less than the value itself, and less than what the whole worker may take.
    assert peak_memory(place.workers[-1].pid) < 64 * MIB
    # Such a value does not fit into a reply, and the answer says so before it is read.
    error = failure(place.send("retrieve", key))
    assert type(error) is ValueError and "destination" in str(error)
    assert place.call("delete", key) is True


@pytest.mark.parametrize("size", [0, 1, 262_144, 9 * MIB + 1], ids=str)
def test_files_of_every_size_come_back(place, key, size):
    digest = write_noise(place.exchange / f"in-{size}", size)
    assert place.send("store", key, {"$ref": url(place.exchange / f"in-{size}")}).get(timeout=60)["size"] == size
    place.send("retrieve", key, destination=url(place.exchange / f"out-{size}")).get(timeout=60)
    assert digest_of(place.exchange / f"out-{size}") == digest


def test_objects_of_other_buckets_are_taken_and_given(place, key):
    scheme, other = place.scheme, place.other
    data = random.Random(3).randbytes(9 * MIB)
    place.server.write(other, "from/there", data, "image/png")
    receipt = place.send("store", key, {"$ref": f"{scheme}://{other}/from/there"}).get(timeout=60)
    assert (receipt["size"], receipt["kind"], receipt["content_type"]) == (len(data), "bytes", "image/png")
    assert place.server.read(place.bucket, key) == data
    written = place.send("retrieve", key, destination=f"{scheme}://{other}/to/there").get(timeout=60)
    assert written["size"] == len(data)
    assert place.server.read(other, "to/there") == data
    error = failure(place.send("store", key, {"$ref": f"{scheme}://{other}/missing"}))
    assert isinstance(error, (FileNotFoundError, ValueError)) and "missing" in str(error)
    assert place.server.read(place.bucket, key) == data


def test_objects_of_the_own_bucket_are_keys_of_the_store(place, key):
    own = f"{place.scheme}://{place.bucket}"
    receipt = place.call("store", key, {"a": [1, None]}, {"n": 1})
    copy = place.call("store", f"{key}/copy", {"$ref": f"{own}/{key}"})
    assert (copy["kind"], copy["checksum"]) == ("json", receipt["checksum"])
    assert place.call("retrieve", f"{key}/copy", destination=f"{own}/{key}/out") == copy
    out = place.call("stat", f"{key}/out")
    assert (out["kind"], out["metadata"]) == ("json", {"n": 1})
    assert place.call("retrieve", f"{key}/out") == {"a": [1, None]}
    unlisted = f"{place.scheme}://{place.bucket}-of-others"
    for error in (
        failure(place.send("store", key, {"$ref": f"{unlisted}/a"})),
        failure(place.send("retrieve", key, destination=f"{unlisted}/a")),
    ):
        assert type(error) is PermissionError and "exchange_buckets" in str(error)
        assert error.filename == f"{unlisted}/a"


def test_the_shell_streams_from_and_to_pipes_in_bounded_memory(place, key):
    size = 80 * MIB
    digest, source = hashlib.sha256(), random.Random(5)
    store = subprocess.Popen(
        [str(BINARY), "store", key, "-"], env=place.env(), cwd=place.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    for _ in range(size // MIB):
        piece = source.randbytes(MIB)
        digest.update(piece)
        store.stdin.write(piece)
    store.stdin.flush()
    # All of it but what the pipe holds has been taken.
    assert peak_memory(store.pid) < 64 * MIB
    store.communicate()
    assert store.returncode == 0
    assert place.call("stat", key)["size"] == size
    retrieve = subprocess.Popen(
        [str(BINARY), "retrieve", key], env=place.env(), cwd=place.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    found, left, peak = hashlib.sha256(), size, 0
    while piece := retrieve.stdout.read(MIB):
        found.update(piece)
        left -= len(piece)
        if 0 < left <= MIB:
            peak = peak_memory(retrieve.pid)
    assert retrieve.wait(30) == 0
    assert (found.hexdigest(), left) == (digest.hexdigest(), 0)
    assert 0 < peak < 64 * MIB
    assert place.call("delete", key) is True
