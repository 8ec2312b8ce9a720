"""A Redis for results: deploy/dev-redis, which the tests may stop, kill and start again; and sites that keep their results there."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import redis
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


class RedisSite(Site):
    """A site whose results go into a Redis."""

    def __init__(self, broker, folder, server, full_rights):
        self.server = server
        super().__init__(broker, folder, full_rights)

    def client(self, **settings):
        app = Celery("e2e", broker=self.client_url, backend=self.server.url, set_as_current=False)
        app.conf.update(task_default_queue=QUEUE, broker_connection_retry_on_startup=True, **settings)
        return app

    def post(self, task, *args, **options):
        """Sends a task without looking at the Redis, on which a client with this backend waits, and returns its result."""
        mute = Celery("mute", broker=self.client_url, set_as_current=False)
        mute.conf.update(task_default_queue=QUEUE)
        with mute:
            return self.app.AsyncResult(mute.send_task(f"filestorage.{task}", args, **options).id)

    def env(self, **extra):
        return super().env(**{"CELERY_RESULT_BACKEND": self.server.url, **extra})

    def reason(self, worker):
        """Why /readyz says that the store of results is degraded, or nothing."""
        return json.loads(worker.http("/readyz")[1])["components"]["results"].get("reason", "")

    def wait_degraded(self, worker):
        return wait_until(lambda: self.reason(worker), 30, lambda: worker.log()[-3000:])

    def wait_mended(self, worker):
        wait_until(lambda: not self.reason(worker), 30, lambda: worker.log()[-3000:])
