"""A Redis for results: deploy/dev-redis, which the tests may stop, kill and start again; and sites that keep their results there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess

import redis
import redis.sentinel
from celery import Celery

from harness import QUEUE, ROOT, Site, wait_until

PREFIX = "celery-task-meta-"


class RedisServer:
    """A server of this run's own, in its own folder, or the one at FILESTORAGE_TEST_REDIS_URL, which is only used."""

    def __init__(self, folder=None, args=""):
        given = os.environ.get("FILESTORAGE_TEST_REDIS_URL")
        self._env = None
        if folder is None and given:
            self.url = given
        else:
            worker = os.environ.get("PYTEST_XDIST_WORKER", "")
            folder = folder or ROOT / "target" / f"test-redis-e2e{worker}"
            self._env = dict(os.environ, DEV_REDIS_DIR=str(folder), DEV_REDIS_ARGS=args)
            self.url = self._run("start").strip()
        self.client = redis.Redis.from_url(self.url)

    def _run(self, command):
        done = subprocess.run(
            [str(ROOT / "deploy" / "dev-redis"), command],
            env=self._env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )
        assert done.returncode == 0, f"dev-redis {command}: {done.stdout}{done.stderr}"
        return done.stdout

    def pause(self):
        os.kill(int(self._run("pid")), signal.SIGSTOP)

    def resume(self):
        os.kill(int(self._run("pid")), signal.SIGCONT)

    def kill(self):
        self._run("kill")

    def start(self):
        assert self._run("start").strip() == self.url

    def text(self, task_id):
        """What is kept of a task, as it stands there."""
        found = self.client.get(PREFIX + task_id)
        return None if found is None else found.decode()

    def meta(self, task_id):
        text = self.text(task_id)
        return None if text is None else json.loads(text)

    def close(self):
        self.client.close()
        if self._env is not None:
            self._run("stop")


class Sentinels:
    """A primary and a replica, and the sentinels that watch them; the first address in the URL is that of a sentinel that is away."""

    NAME = "results"

    def __init__(self, folder, count=1):
        self.folder, self._sentinels = folder, []
        self.servers = [RedisServer(folder / "a")]
        port = self.port(self.servers[0])
        self.servers.append(RedisServer(folder / "b", f"--replicaof 127.0.0.1 {port}"))
        ports = [free_port() for _ in range(count)]
        for sentinel in ports:
            conf = folder / f"sentinel-{sentinel}.conf"
            conf.write_text(
                f"port {sentinel}\nbind 127.0.0.1\ndir {folder}\nprotected-mode no\n"
                f"sentinel monitor {self.NAME} 127.0.0.1 {port} {count // 2 + 1}\n"
                f"sentinel down-after-milliseconds {self.NAME} 1000\nsentinel failover-timeout {self.NAME} 5000\n"
            )
            with open(folder / "sentinel.log", "ab") as log:
                self._sentinels.append(subprocess.Popen(["redis-server", str(conf), "--sentinel"], stdout=log, stderr=log))
        self.url = ";".join(f"sentinel://127.0.0.1:{port}/0" for port in [free_port(), *ports])
        self._known = redis.sentinel.Sentinel([("127.0.0.1", port) for port in ports])
        self.client = self._known.master_for(self.NAME)
        wait_until(lambda: self._is_watched(count - 1), 30, "the sentinels know the replica and each other")

    def _is_watched(self, others):
        try:
            known = [sentinel.sentinel_master(self.NAME) for sentinel in self._known.sentinels]
            is_known = all(state["num-slaves"] == 1 and state["num-other-sentinels"] == others for state in known)
            return is_known and self.servers[1].client.info("replication")["master_link_status"] == "up"
        except redis.RedisError:
            return False

    @staticmethod
    def port(server):
        return int(server.url.rsplit(":", 1)[1].split("/")[0])

    def primary(self):
        """The port of the primary, by the word of the sentinels; None while there is none."""
        try:
            return self._known.discover_master(self.NAME)[1]
        except redis.RedisError:
            return None

    def meta(self, task_id):
        text = self.client.get(PREFIX + task_id)
        return None if text is None else json.loads(text)

    def close(self):
        self.client.close()
        for sentinel in self._sentinels:
            sentinel.kill()
            sentinel.wait()
        for server in self.servers:
            server.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RedisSite(Site):
    """A site whose results go into a Redis."""

    def __init__(self, broker, folder, server, full_rights, options=None):
        self.server = server
        self.options = options or {}
        super().__init__(broker, folder, full_rights)

    def client(self, **settings):
        app = Celery("e2e", broker=self.client_url, backend=self.server.url, set_as_current=False)
        app.conf.update(
            task_default_queue=QUEUE, broker_connection_retry_on_startup=True, result_backend_transport_options=self.options, **settings
        )
        return app

    def post(self, task, *args, **options):
        """Sends a task without looking at the Redis, on which a client with this backend waits, and returns its result."""
        mute = Celery("mute", broker=self.client_url, set_as_current=False)
        mute.conf.update(task_default_queue=QUEUE)
        with mute:
            return self.app.AsyncResult(mute.send_task(f"filestorage.{task}", args, **options).id)

    def env(self, **extra):
        options = {"CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS": json.dumps(self.options)} if self.options else {}
        return super().env(**{"CELERY_RESULT_BACKEND": self.server.url, **options, **extra})

    def reason(self, worker):
        """Why /readyz says that the store of results is degraded, or nothing."""
        return json.loads(worker.http("/readyz")[1])["components"]["results"].get("reason", "")

    def wait_degraded(self, worker):
        return wait_until(lambda: self.reason(worker), 30, lambda: worker.log()[-3000:])

    def wait_mended(self, worker):
        wait_until(lambda: not self.reason(worker), 30, lambda: worker.log()[-3000:])
