"""The cluster of deploy/cluster under test: three brokers, three workers, a bucket, and what may happen to them."""

import json
import re
import shutil
import subprocess
import tempfile
import urllib.request
from pathlib import Path

from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from harness import ROOT, wait_until
from stack import Stack

BROKERS = ("rabbitmq1", "rabbitmq2", "rabbitmq3")
WORKERS = ("worker1", "worker2", "worker3")
PORTS = (
    *(f"RABBITMQ{n}_PORT" for n in (1, 2, 3)),
    *(f"RABBITMQ{n}_MANAGEMENT_PORT" for n in (1, 2, 3)),
    *(f"WORKER{n}_PORT" for n in (1, 2, 3)),
    "GCS_PORT",
)
BUCKET = "filestorage"
QUEUE = "filestorage"


class Cluster(Stack):
    """A running cluster with users, passwords and ports of its own."""

    def __init__(self, images, **environment):
        self.secrets = Path(tempfile.mkdtemp(prefix="filestorage-cluster-")) / "secrets"
        super().__init__("cluster", images, "deploy/cluster/docker-compose.yml", PORTS, CLUSTER_SECRETS=self.secrets, **environment)
        subprocess.run([ROOT / "deploy/cluster/prepare", self.secrets], check=True, stdout=subprocess.PIPE)

    def wait_serving(self, timeout=180):
        """Waits until all brokers and workers are ready."""
        self.wait_healthy(*BROKERS, timeout=timeout)
        self.wait_workers(timeout)
        return self

    def close(self):
        super().close()
        shutil.rmtree(self.secrets.parent, ignore_errors=True)

    # --- brokers -----------------------------------------------------------------------------------------------------

    def url(self, broker, user="producer"):
        password = (self.secrets / "passwords" / user).read_text().strip()
        return f"amqp://{user}:{password}@127.0.0.1:{self.ports[f'RABBITMQ{broker[-1]}_PORT']}//"

    def urls(self, without=()):
        """Where a client may connect; `without` names the nodes that are to be lost."""
        return [self.url(broker) for broker in BROKERS if broker not in without]

    def ctl(self, *args, broker=BROKERS[0]):
        return self.exec(broker, "rabbitmqctl", "-q", *args)

    def leader(self, queue=QUEUE):
        """The broker that leads a queue."""
        for row in json.loads(self.ctl("list_queues", "name", "leader", "--formatter", "json")):
            if row["name"] == queue:
                return row["leader"].split("@")[1]
        raise AssertionError(f"there is no queue {queue}")

    def part(self, broker):
        """Cuts a broker off from the others, not from its clients: it refuses their Erlang cookie and lets them go."""
        self.ctl("eval", "[begin erlang:set_cookie(N, parted), erlang:disconnect_node(N) end || N <- nodes()].", broker=broker)

    def unite(self, broker):
        """Lets it have the others again."""
        own = "erlang:get_cookie()"
        others = ", ".join(f"rabbit@{other}" for other in BROKERS if other != broker)
        self.ctl("eval", f"[erlang:set_cookie(N, {own}) || N <- [{others}]].", broker=broker)

    def policies(self):
        """The policies by name, each with what it says."""
        found = json.loads(self.ctl("list_policies", "--formatter", "json"))
        return {policy["name"]: json.loads(policy["definition"]) for policy in found}

    def wait_brokers(self, timeout=300):
        """Waits until every broker runs, is in the cluster, and each queue can lose any one of them."""
        self.wait_healthy(*BROKERS, timeout=timeout)
        wait_until(self._whole, timeout, lambda: f"all copies of the queues to be online\n{self.tail()}", step=0.5)

    def _whole(self):
        found = json.loads(self.ctl("list_queues", "type", "members", "online", "--formatter", "json"))
        return all(len(row["online"]) == len(row["members"]) for row in found if row["type"] == "quorum")

    # --- workers -----------------------------------------------------------------------------------------------------

    def http(self, worker, path, timeout=5):
        """The text that a worker's admin port answers."""
        port = self.ports[f"WORKER{worker[-1]}_PORT"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout) as answer:
            return answer.read().decode()

    def ready(self, worker):
        try:
            return self.state(worker) == "running" and bool(self.http(worker, "/readyz"))
        except OSError:
            return False

    def wait_workers(self, timeout=120):
        for worker in WORKERS:
            wait_until(lambda one=worker: self.ready(one), timeout, lambda one=worker: f"{one} to be ready\n{self.tail()}", 0.1)

    def pending(self):
        """How many writes and deletes wait for the bucket."""
        return max(json.loads(self.http(worker, "/health"))["pending_sync"] for worker in WORKERS)

    def wait_synced(self, timeout=120):
        wait_until(lambda: self.pending() == 0, timeout, lambda: f"the sync: {self.pending()} wait", step=0.2)

    def wait_reached(self, timeout=120):
        """Waits until every worker asks the bucket again: each looks for itself, every 30 s in the end."""
        closed = 'filestorage_storage_breaker_open{backend="gcs"} 0'
        for worker in WORKERS:
            wait_until(lambda one=worker: closed in self.http(one, "/metrics"), timeout, f"{worker} to reach the bucket", 0.2)

    def commands(self, worker):
        """How many commands a worker has answered since it started."""
        counters = re.findall(r"^filestorage_commands_total\{[^}]*\} (\S+)$", self.http(worker, "/metrics"), re.M)
        return int(sum(map(float, counters)))

    def upgrade(self, worker, image):
        """Replaces a worker's container by one of another image."""
        self.compose("up", "-d", "--no-deps", worker, FILESTORAGE_IMAGE=image)

    # --- the bucket --------------------------------------------------------------------------------------------------

    def bucket(self):
        """The bucket as a tool that is not ours sees it."""
        endpoint = {"api_endpoint": f"http://127.0.0.1:{self.ports['GCS_PORT']}"}
        return storage.Client("filestorage", AnonymousCredentials(), client_options=endpoint).bucket(BUCKET)
