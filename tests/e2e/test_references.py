"""Large values never travel through the queue: they come from and go to files and buckets that a command names."""

import hashlib
import os
import random
import subprocess

import pytest

from buckets import BucketSite
from harness import BINARY, Site, failure

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


@pytest.fixture(scope="module", params=["local", "gcs", "s3"])
def place(request, broker, tmp_path_factory):
    """A site with a running worker and an exchange directory, over each kind of place."""
    folder = tmp_path_factory.mktemp("references")
    exchange = tmp_path_factory.mktemp("exchange")
    if request.param == "local":
        site = Site(broker, folder)
    else:
        # Without the rules, which hold whole bodies, so that what streams streams all the way.
        site = BucketSite(broker, folder, request.getfixturevalue(request.param), enforce=False)
    site.exchange = exchange
    try:
        site.start(EXCHANGE_DIRECTORIES=exchange)
        yield site
        site.workers[-1].assert_alive()
    finally:
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


def test_nothing_outside_the_directory_is_read_or_written(place, key, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    inside = place.exchange
    (inside / "folder").mkdir(exist_ok=True)
    for name, target in {"link": secret, "folder/up": tmp_path, "loop": inside / "loop"}.items():
        (inside / name).unlink(missing_ok=True)
        os.symlink(target, inside / name)
    wrong = [
        url(secret),
        url(inside / ".." / tmp_path.name / "secret"),
        f"file://{inside}/%2e%2e/{tmp_path.name}/secret",
        url(inside / "link"),
        url(inside / "folder" / "up" / "secret"),
        url(inside / "loop"),
        url(inside / "folder"),
        url(inside / "missing"),
        "file:///etc/passwd",
        "file:///proc/self/environ",
        "https://example.com/x",
        f"{inside}/link",
    ]
    for reference in wrong:
        error = failure(place.send("store", key, {"$ref": reference}))
        assert isinstance(error, (ValueError, OSError)), reference
        assert "secret" not in str(error).replace(str(secret), "").replace("/secret", "")
    place.call("store", key + "-value", b"value")
    for reference in [*wrong[:5], "file:///etc/filestorage-test", "https://example.com/x"]:
        assert isinstance(failure(place.send("retrieve", key + "-value", destination=reference)), (ValueError, OSError)), reference
    assert secret.read_bytes() == b"secret" and not (tmp_path / "filestorage-test").exists()
    assert place.call("exists", key) is False


def test_a_worker_without_directories_reads_no_file(shared, key, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"x")
    error = failure(shared.send("store", key, {"$ref": url(path)}))
    assert isinstance(error, (ValueError, PermissionError)) and "exchange_directories" in str(error)


def test_objects_of_other_buckets_are_taken_and_given(place, key):
    if isinstance(place, BucketSite):
        scheme = {"gcs": "gs", "s3": "s3"}[place.kind]
        other = place.server.bucket()
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
        if place.kind == "s3":
            place.server.remove(other)
    else:
        assert isinstance(failure(place.send("store", key, {"$ref": "gs://bucket/object"})), (ValueError, PermissionError))


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
