"""What deploy/cluster/prepare makes: closed to others, and readable to the users inside the containers."""

import json
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PREPARE = ROOT / "deploy" / "cluster" / "prepare"


@pytest.fixture(params=[0o022, 0o077, 0], ids="{:03o}".format)
def secrets(request, tmp_path):
    """The directory as it comes out under a umask."""
    made = tmp_path / "secrets"
    subprocess.run([PREPARE, made], umask=request.param, stdout=subprocess.PIPE, check=True)
    return made


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_only_its_owner_enters_and_every_container_reads(secrets):
    assert mode(secrets) == 0o700
    mounted = [path for path in secrets.iterdir() if path.is_file()]
    assert {path.name for path in mounted} == {
        "cookie", "definitions.json", "producer.url", "queues.json", "worker1.url", "worker2.url", "worker3.url",
    }  # fmt: skip
    assert {oct(mode(path)) for path in mounted} == {"0o644"}


def test_nothing_is_overwritten(secrets):
    before = {path: path.read_bytes() for path in secrets.rglob("*") if path.is_file()}
    again = subprocess.run([PREPARE, secrets], capture_output=True, text=True, check=False)
    assert again.returncode != 0 and "is there already" in again.stderr
    assert before == {path: path.read_bytes() for path in secrets.rglob("*") if path.is_file()}


def test_it_knows_no_version_of_the_broker(secrets):
    """`setup` asks the node, so that an upgrade needs no secrets anew."""
    assert "policies" not in json.loads((secrets / "queues.json").read_text())
