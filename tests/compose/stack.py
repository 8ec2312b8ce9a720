"""A Compose project under test: brought up, asked, broken in every way that Docker knows, and taken away."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import uuid
from datetime import datetime

from celery import Celery

from harness import ROOT, TIMEOUT, wait_until
from images import compose_command

# What the tests measured; printed at the end of the run.
FIGURES = []


def figure(text):
    """Keeps a measured number for the end of the run. Nothing is asserted of it: machines differ."""
    FIGURES.append(text)
    print(text)


def free_port():
    """A port nobody listens on, below those that deploy/dev-broker and its like take, and the system for outgoing connections.

    A server that is restarted beside these tests must find its own port free.
    """
    while True:
        port = random.randrange(10000, 20000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Stack:
    """One Compose project. `ports` are the variables that take a free host port each."""

    def __init__(self, name, images, file="docker-compose.yml", ports=(), **environment):
        self.project = f"fs-{name}-{uuid.uuid4().hex[:6]}"
        self.file = ROOT / file
        self._command = [*compose_command(), "-p", self.project, "-f", str(self.file)]
        self._port_names = ports
        # Nothing that this shell has set for a stack of its own.
        kept = ("PATH", "HOME", "LANG", "TMPDIR")
        self.environment = {key: value for key, value in os.environ.items() if key in kept or key.startswith("DOCKER_")}
        self.environment |= images
        self.environment |= {key: str(value) for key, value in environment.items()}
        self.profiles = []
        self.ports = {}
        self._new_ports()
        self._apps = []

    def _new_ports(self):
        self.ports = {name: free_port() for name in self._port_names}
        self.environment |= {name: str(port) for name, port in self.ports.items()}

    # --- Compose -----------------------------------------------------------------------------------------------------

    def compose(self, *args, timeout=300, check=True, **environment):
        """Runs Compose; returns the finished process with its output as text."""
        profiles = [word for profile in self.profiles for word in ("--profile", profile)]
        done = subprocess.run(
            [*self._command, *profiles, *args],
            env=self.environment | {key: str(value) for key, value in environment.items()},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"compose {args}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.tail()}")
        return done

    def up(self, *services, timeout=300):
        """Starts the services, all of them by default, once those they depend on are healthy."""
        for last in (False, False, True):
            done = self.compose("up", "-d", *services, timeout=timeout, check=False)
            if done.returncode == 0:
                return self
            taken = "already allocated" in done.stderr or "already in use" in done.stderr
            if last or not taken:
                raise AssertionError(f"compose up: {done.returncode}\n{done.stdout}{done.stderr}\n{self.tail()}")
            # Somebody else took the port between the look and the start.
            self.compose("down", "-v", "-t", "1")
            self._new_ports()

    def logs(self, service):
        """What a service has printed, without Compose's prefix."""
        return docker("logs", self.container(service), both=True)

    def log_lines(self, service):
        """The JSON objects of its log, one a line."""
        return [json.loads(line) for line in self.logs(service).splitlines() if line.startswith("{")]

    def tail(self):
        """The state and the last lines of every service, for the message of a failed test."""
        done = subprocess.run(
            [*self._command, "logs", "--no-color", "--tail", "15"],
            env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )
        return f"last lines of {self.project}:\n{done.stdout}{done.stderr}"

    def close(self):
        """Removes containers, networks and volumes."""
        for app in self._apps:
            app.close()
        ps = ("ps", "-aq", "--filter", f"label=com.docker.compose.project={self.project}")
        for container in docker(*ps).split():
            if docker("inspect", "-f", "{{.State.Paused}}", container).strip() == "true":
                docker("unpause", container)
        # Containers of profiles that are not named would be left.
        self.profiles = re.findall(r"profiles: \[(\w+)\]", self.file.read_text())
        self.compose("down", "-v", "--remove-orphans", "-t", "1", check=False)

    # --- one container -----------------------------------------------------------------------------------------------

    def container(self, service):
        """The id of a service's container, running or not."""
        found = docker(
            "ps", "-aq", "--no-trunc",
            "--filter", f"label=com.docker.compose.project={self.project}",
            "--filter", f"label=com.docker.compose.service={service}",
        ).split()
        assert found, f"{service} has no container\n{self.tail()}"
        return found[0]

    def inspect(self, service, template):
        """One value of `docker inspect`."""
        return docker("inspect", "-f", template, self.container(service)).strip()

    def state(self, service):
        """`running`, `exited`, `restarting`, `paused`."""
        return self.inspect(service, "{{.State.Status}}")

    def exit_code(self, service):
        return int(self.inspect(service, "{{.State.ExitCode}}"))

    def health(self, service):
        """`healthy`, `unhealthy`, `starting`."""
        return self.inspect(service, "{{.State.Health.Status}}")

    def wait_healthy(self, *services, timeout=120):
        for service in services:
            wait_until(
                lambda one=service: self.state(one) == "running" and self.health(one) == "healthy",
                timeout, lambda one=service: f"{one} to be healthy\n{self.tail()}", step=0.2,
            )

    def wait_exited(self, service, timeout=120):
        """Waits until a service has ended for good; returns its exit code."""
        wait_until(lambda: self.state(service) == "exited", timeout, lambda: f"{service} to end\n{self.tail()}", 0.2)
        return self.exit_code(service)

    def exec(self, service, *command, check=True):
        """Runs a command in the container and returns what it prints."""
        return docker("exec", self.container(service), *command, check=check)

    def signal(self, service, number=signal.SIGKILL):
        """Sends a signal to the first process from the host: unlike `docker kill`, it counts as a crash for Docker."""
        pid = int(self.inspect(service, "{{.State.Pid}}"))
        assert pid, f"{service} does not run"
        try:
            os.kill(pid, number)
        except PermissionError:
            docker("kill", "--signal", str(int(number)), self.container(service))

    def start(self, service):
        docker("start", self.container(service))

    def stop(self, service, seconds=60):
        docker("stop", "-t", str(seconds), self.container(service))

    def pause(self, service):
        docker("pause", self.container(service))

    def unpause(self, service):
        docker("unpause", self.container(service))

    def networks(self, service):
        return list(json.loads(self.inspect(service, "{{json .NetworkSettings.Networks}}")))

    def disconnect(self, service):
        """Cuts a container from its networks without a word to its peers; returns their names for `connect`."""
        networks = self.networks(service)
        for network in networks:
            docker("network", "disconnect", "--force", network, self.container(service))
        return networks

    def connect(self, service, networks):
        """Puts it back under the name that the others know."""
        for network in networks:
            docker("network", "connect", "--alias", service, network, self.container(service))

    # --- what a client sees ------------------------------------------------------------------------------------------

    def app(self, url, queue="filestorage", **settings):
        """An unmodified Celery application on the host with the rpc:// result backend."""
        app = Celery("compose", broker=url, backend="rpc://", set_as_current=False)
        app.conf.update(
            task_default_queue=queue,
            broker_connection_retry_on_startup=True,
            broker_transport_options={"confirm_publish": True},
            **settings,
        )
        self._apps.append(app)
        return app


def seconds(stamp):
    """The Unix time of a time stamp in a log of Docker's or ours: RFC 3339, of any precision."""
    whole, fraction, zone = re.fullmatch(r"(\S{19})(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", stamp).groups()
    return datetime.fromisoformat(whole + zone.replace("Z", "+00:00")).timestamp() + float(f"0.{fraction or 0}")


def call(app, task, *args, _timeout=TIMEOUT, **kwargs):
    """Sends `filestorage.<task>` and waits for its answer; a failure is raised as the worker named it."""
    return app.send_task(f"filestorage.{task}", args, kwargs).get(timeout=_timeout)


def docker(*args, check=True, both=False, timeout=120):
    """Runs docker and returns its standard output, with `both` its standard error, too."""
    done = subprocess.run(
        ["docker", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if both else subprocess.PIPE,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(f"docker {args}: {done.returncode}\n{done.stdout}{done.stderr or ''}")
    return done.stdout
