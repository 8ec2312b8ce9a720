"""With encryption on, neither value nor metadata can be read without the key, wherever they come to rest."""

import base64
import os

from harness import failure

MARK = "ploverxyzzy"
KEY, OTHER = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))


def holding(folder, word):
    """The files below a folder that hold a word."""
    return [path for path in folder.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]


def test_nothing_on_the_disk_shows_value_or_metadata(site):
    worker = site.start(ENABLE_ENCRYPTION="true", ENCRYPTION_KEY=KEY)
    values = {"short": MARK, "long": MARK * 10_000, "large": (MARK * 200_000).encode(), "json": {"a": [MARK]}}
    for key, value in values.items():
        receipt = site.call("store", key, value, metadata={"owner": MARK})
        assert receipt["encrypted"] is True
        assert site.call("stat", key)["metadata"] == {"owner": MARK}
        assert site.call("retrieve", key) == value
    assert site.call("retrieve", "long", offset=11, length=11) == MARK.encode()
    worker.kill()
    assert holding(site.storage, "wrapped_key") and not holding(site.storage, MARK)
    assert not holding(site.folder, KEY) and MARK not in worker.log()

    site.start(ENCRYPTION_KEY=f"{OTHER},{KEY}")
    for key, value in values.items():
        assert site.call("retrieve", key) == value
    assert site.call("store", "plain", MARK)["encrypted"] is False


def test_a_wrong_key_is_an_integrity_error_that_names_it(site):
    site.start(ENABLE_ENCRYPTION="true", ENCRYPTION_KEY=KEY)
    site.call("store", "k", MARK)
    [path] = site.object_files()
    key_id = path.read_bytes().split(b'"key_id":"')[1][:16].decode()
    site.workers[-1].stop()
    site.start(ENABLE_ENCRYPTION="true", ENCRYPTION_KEY=OTHER)
    error = failure(site.send("retrieve", "k"))
    assert type(error).__name__ == "IntegrityError" and key_id in str(error) and "encryption_key" in str(error)
    # Everything that needs no key works.
    assert site.call("list_keys") == ["k"]
    assert site.call("store", "k", "new")["encrypted"] is True
    assert site.call("retrieve", "k") == "new"
