"""The reader on the page "Encryption format" decrypts what version 1 of the format is, without the program."""

import base64
import hashlib
import json
import os
import subprocess
import sys

from conftest import BINARY
from pages import DOCS, ROOT, split

OBJECTS = json.loads((ROOT / "tests" / "fixtures" / "encryption-format-1" / "objects.json").read_text())


def reader():
    [block] = [block for block in split((DOCS / "reference" / "encryption-format.md").read_text())[1] if block.info == "python"]
    return block.text


def decrypt(path, keys):
    """Runs the page's reader on a file."""
    command = [sys.executable, "-c", reader(), path]
    return subprocess.run(command, env={**os.environ, "ENCRYPTION_KEY": keys}, capture_output=True, timeout=60, check=False)


def test_the_reader_is_short():
    lines = [line for line in reader().splitlines() if line.strip()]
    assert len(lines) <= 30


def test_the_reader_decrypts_what_another_encoder_wrote(tmp_path):
    for number, case in enumerate(OBJECTS):
        if case["attributes"]["compression"]:
            continue  # what was encrypted there is no real gzip
        path = tmp_path / str(number)
        path.write_bytes(json.dumps({"key": case["name"], **case["attributes"]}).encode() + b"\n" + base64.b64decode(case["payload"]))
        done = decrypt(path, case["keys"])
        assert done.returncode == 0, done.stderr.decode()
        hidden = json.loads(done.stderr)
        assert hashlib.sha256(done.stdout).hexdigest() == case["plain_sha256"]
        assert hidden["checksum"] == case["checksum"] and hidden.get("operation_id") == case["operation_id"]
        assert hidden.get("metadata") == (case["metadata"] and json.loads(case["metadata"]))


def test_the_reader_refuses_what_was_changed(tmp_path):
    case = next(case for case in OBJECTS if case["name"] == "two/chunks")
    whole = base64.b64decode(case["payload"])
    for changed in (whole[:65552], whole[:-1], whole[65552:], whole + whole[65552:], bytes([whole[0] ^ 1]) + whole[1:]):
        path = tmp_path / "changed"
        path.write_bytes(json.dumps({"key": case["name"], **case["attributes"]}).encode() + b"\n" + changed)
        done = decrypt(path, case["keys"])
        assert done.returncode != 0 and not done.stdout
    path.write_bytes(json.dumps({"key": "renamed", **case["attributes"]}).encode() + b"\n" + whole)
    assert not decrypt(path, case["keys"]).stdout


def test_the_reader_decrypts_what_the_program_has_written(tmp_path):
    keys = [base64.b64encode(os.urandom(32)).decode() for _ in range(2)]
    env = {**os.environ, "LOCAL_STORAGE_PATH": str(tmp_path), "ENABLE_ENCRYPTION": "true", "ENCRYPTION_KEY": ",".join(keys)}
    values = {"empty": b"", "short/ü": b"short", "text": b"a line of text\n" * 20_000, "noise": os.urandom(200_000)}
    for name, value in values.items():
        command = [BINARY, "store", name, "-", "--metadata", '{"owner": "me"}']
        subprocess.run(command, env=env, input=value, capture_output=True, timeout=60, check=True)
    found = {}
    for path in (tmp_path / "objects").rglob("*.obj"):
        done = decrypt(path, ",".join(reversed(keys)))
        assert done.returncode == 0, done.stderr.decode()
        assert json.loads(done.stderr)["metadata"] == {"owner": "me"}
        found[json.loads(path.read_bytes().split(b"\n")[0])["key"]] = done.stdout
    assert found == values
