"""Buckets for the end-to-end tests: an emulator of Cloud Storage, a server of S3, and the fault proxy before them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from urllib.parse import quote

from harness import ROOT

PROXY = ROOT / "tests" / "support" / "fault_proxy.py"


def http(method, url, body=None, headers=None, timeout=20):
    """Returns (status, headers, body) of one request."""
    request = urllib.request.Request(url, data=body, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


class Server:
    """A server that a script under deploy/ starts and stops, or the one a variable names."""

    script = variable = None

    def __init__(self):
        self.url = os.environ.get(self.variable, "").rstrip("/")
        self._own = not self.url
        if self._own:
            folder = ROOT / "target" / f"{self.script}-e2e"
            self._env = {**os.environ, self.script.upper().replace("-", "_") + "_DIR": str(folder)}
            self.url = self._run("start").strip().rstrip("/")

    def _run(self, verb):
        command = [str(ROOT / "deploy" / self.script), verb]
        done = subprocess.run(
            command, env=self._env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{self.script} {verb}: {done.stdout}{done.stderr}"
        return done.stdout

    def close(self):
        if self._own:
            self._run("stop")


class GcsServer(Server):
    """fake-gcs-server; what the tests look at behind the worker's back."""

    script, variable = "dev-gcs", "FILESTORAGE_TEST_GCS_URL"

    def bucket(self, name=None):
        name = name or f"e2e-{uuid.uuid4().hex[:12]}"
        status, _, text = http(
            "POST",
            f"{self.url}/storage/v1/b?project=e2e",
            json.dumps({"name": name}).encode(),
            {"Content-Type": "application/json"},
        )
        assert status == 200, text
        return name

    def names(self, bucket):
        """Every name in the bucket, sorted."""
        names, token = [], ""
        while True:
            status, _, text = http("GET", f"{self.url}/storage/v1/b/{bucket}/o?pageToken={token}")
            assert status == 200, text
            page = json.loads(text)
            names += [item["name"] for item in page.get("items", [])]
            token = page.get("nextPageToken")
            if not token:
                return sorted(names)

    def stat(self, bucket, name):
        """The object's resource, or None."""
        status, _, text = http("GET", f"{self.url}/storage/v1/b/{bucket}/o/{quote(name, safe='')}")
        assert status in (200, 404), text
        return json.loads(text) if status == 200 else None

    def read(self, bucket, name):
        """The object's bytes, or None."""
        status, _, body = http("GET", f"{self.url}/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media")
        assert status in (200, 404), body
        return body if status == 200 else None

    def write(self, bucket, name, body, content_type="application/octet-stream"):
        """Writes as some other tool does, without anything of ours."""
        status, _, text = http(
            "POST",
            f"{self.url}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(name, safe='')}",
            body,
            {"Content-Type": content_type},
        )
        assert status == 200, text

    def delete(self, bucket, name):
        status, _, text = http("DELETE", f"{self.url}/storage/v1/b/{bucket}/o/{quote(name, safe='')}")
        assert status in (200, 204, 404), text


class FaultProxy:
    """tests/support/fault_proxy.py before a server; see its head for rules and control."""

    def __init__(self, upstream, enforce=None):
        command = [sys.executable, str(PROXY), "--upstream", upstream, "--until-eof"]
        if enforce:
            command += ["--enforce", enforce]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = self._process.stdout.readline().split()[1]
        self._control = self._process.stdout.readline().split()[1]

    def _ask(self, method, what, body=None):
        data = None if body is None else json.dumps(body).encode()
        status, _, text = http(method, f"{self._control}/__proxy/{what}", data)
        assert status == 200, text
        return json.loads(text)

    def rule(self, action, nth=1, times=None, probability=None, **match):
        """Adds one rule and returns its number."""
        given = {"match": match, "action": action, "nth": nth}
        if times is not None:
            given["times"] = times
        if probability is not None:
            given["probability"] = probability
        return self._ask("POST", "rules", given)["ids"][0]

    def applied(self, rule):
        """How often a rule was applied."""
        return next(one["applied"] for one in self._ask("GET", "rules") if one["id"] == rule)

    def forget(self, rule=None):
        self._ask("DELETE", "rules" if rule is None else f"rules/{rule}")

    def log(self, **fields):
        """Requests since the last clear, those whose fields are equal to the given."""
        return [one for one in self._ask("GET", "log") if all(one[name] == value for name, value in fields.items())]

    def forget_log(self):
        self._ask("DELETE", "log")

    def counters(self):
        return self._ask("GET", "")["counters"]

    def down(self, how="reset"):
        """Resets every connection, new ones too; with `refuse` the kernel refuses new ones."""
        self._ask("POST", f"down?how={how}")

    def blackhole(self):
        self._ask("POST", "blackhole")

    def up(self):
        self._ask("POST", "up")

    def clear(self):
        self._ask("POST", "clear")

    def close(self):
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()
