"""A full disk is an error of its own: nothing half written, nothing lost, and it passes."""

import errno
import random

import pytest

from harness import failure, on_small_disk, wait_until


@pytest.fixture
def small_disk(site):
    """A site with a worker whose storage folder is a tmpfs of 4 MiB."""
    yield from on_small_disk(site)


def fill(site, size, limit):
    """Stores values until the disk is full; returns the keys that were confirmed and the error."""
    confirmed = {}
    for n in range(limit):
        key, value = f"fill/{size}/{n}", random.Random(n).randbytes(size)
        result = site.send("store", key, value)
        answer = result.get(timeout=20, propagate=False)
        if result.state == "FAILURE":
            return confirmed, key, answer
        confirmed[key] = value
    raise AssertionError(f"{limit} values of {size} bytes fitted into 4 MiB")


def test_a_full_disk_is_an_os_error_and_passes(small_disk):
    site = small_disk
    (worker,) = site.workers
    site.call("store", "before", "kept")
    error = failure(site.send("store", "too big", random.Random(0).randbytes(6_000_000)))
    assert type(error) is OSError
    assert error.errno == errno.ENOSPC
    assert error.args[:2] == (28, "No space left on device")
    assert "too big" in str(error.args + (error.filename,))
    # Nothing half written, nothing lost, room again.
    assert site.call("exists", "too big") is False
    assert site.call("list_keys") == ["before"]
    assert site.call("retrieve", "before") == "kept"
    assert not [path for path in site.object_files() if path.stat().st_size > 100_000]
    assert site.call("store", "after", "fits")["key"] == "after"

    confirmed, refused, error = fill(site, 100_000, 100)
    assert type(error) is OSError and error.errno == errno.ENOSPC
    assert len(confirmed) > 10
    for key, value in confirmed.items():
        assert site.call("retrieve", key) == value
    assert site.call("exists", refused) is False

    # An overwrite that does not fit leaves the old value.
    key = next(iter(confirmed))
    assert failure(site.send("store", key, random.Random(1).randbytes(3_000_000))).errno == errno.ENOSPC
    assert site.call("retrieve", key) == confirmed[key]

    for key in list(confirmed)[:10]:
        assert site.call("delete", key) is True
    assert site.call("store", refused, "fits now")["key"] == refused
    assert site.call("retrieve", refused) == "fits now"
    worker.assert_alive()


def test_with_not_a_byte_left_the_worker_answers_and_recovers(small_disk):
    site = small_disk
    (worker,) = site.workers
    site.call("store", "before", "kept")
    ballast = site.storage / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        with pytest.raises(OSError):
            while True:
                file.write(b"x" * 4096)
    error = failure(site.send("store", "no room", "x" * 10_000))
    assert type(error) is OSError and error.errno == errno.ENOSPC
    assert site.call("retrieve", "before") == "kept"
    worker.assert_alive()
    ballast.unlink()
    assert site.call("store", "room", "x" * 10_000)["key"] == "room"
    wait_until(worker.ready, what="readiness")
