"""The users and queues of docker-compose.yml are those that deploy/rabbitmq/definitions makes."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "deploy" / "compose" / "definitions.json"


def test_the_definitions_of_compose_are_the_generator_s(tmp_path):
    for user in ("worker", "producer", "monitor"):
        # Reachable from this machine only.
        (tmp_path / user).write_text(user)
    command = [
        sys.executable, ROOT / "deploy" / "rabbitmq" / "definitions",
        "--queue-type", "classic", "--queue", "filestorage", "--queue", "filestorage.s3",
        "--reads-metrics", "monitor", "--salt", "filestorage-compose", "--passwords", tmp_path,
    ]  # fmt: skip
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert made == KEPT.read_text(), "write the generator's output there, with the arguments of this test"
