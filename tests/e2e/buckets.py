"""Buckets for the end-to-end tests: an emulator of Cloud Storage, a server of S3, and the fault proxy before them."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from urllib.parse import quote

import boto3
import botocore.config
import botocore.exceptions

from harness import BINARY, ROOT, Site, events_of, wait_until

ROLE = ROOT / "deploy" / "bucket" / "gcs-role.yaml"
PROXY = ROOT / "tests" / "support" / "fault_proxy.py"


def http(method, url, body=None, headers=None, timeout=20):
    """Returns (status, headers, body) of one request."""
    request = urllib.request.Request(url, data=body, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def gcs_role():
    """The permissions in deploy/bucket/gcs-role.yaml."""
    listed = ROLE.read_text().split("\nincludedPermissions:\n")[1]
    return [line[2:] for line in listed.splitlines() if line.startswith("- ")]


class Server:
    """A server that a script under deploy/ starts and stops, or the one a variable names."""

    script = variable = None

    def __init__(self):
        self.url = os.environ.get(self.variable, "").rstrip("/")
        self._own = not self.url
        if self._own:
            # Each of several processes has its own, since the first to be done stops it.
            folder = ROOT / "target" / f"{self.script}-e2e{os.environ.get('PYTEST_XDIST_WORKER', '')}"
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

    def bucket(self, **configuration):
        """An empty bucket."""
        name = f"e2e-{uuid.uuid4().hex[:12]}"
        status, _, text = http(
            "POST",
            f"{self.url}/storage/v1/b?project=e2e",
            json.dumps({"name": name, **configuration}).encode(),
            {"Content-Type": "application/json"},
        )
        assert status == 200, text
        return name

    def versioned_bucket(self):
        """An empty bucket that keeps the versions of its objects."""
        return self.bucket(versioning={"enabled": True})

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
        """The object's bytes, or None. The emulator undoes `Content-Encoding: gzip` by itself."""
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

    def __init__(self, upstream, enforce=None, keep_host=False, permit=(), on=()):
        command = [sys.executable, str(PROXY), "--upstream", upstream, "--until-eof"]
        if permit:
            command += ["--permit", ",".join(permit), "--on", ",".join(on)]
        if enforce:
            command += ["--enforce", enforce]
        if keep_host:
            command.append("--keep-host")
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


class S3Server(Server):
    """SeaweedFS; what the tests look at behind the worker's back goes through boto3, a tool that is not ours."""

    script, variable = "dev-s3", "FILESTORAGE_TEST_S3_URL"
    region = "us-east-1"
    access_key, secret_key = "test", "test-secret"  # of the administrator, who makes and empties buckets
    worker_access_key, worker_secret_key = "worker", "worker-secret"  # of deploy/bucket/s3-policy.json

    def __init__(self):
        super().__init__()
        self.client = self.connect(self.url)
        self._free, self._made, self._versioned = [], [], []

    def connect(self, url):
        """A boto3 client, by whichever way."""
        return boto3.client(
            "s3",
            endpoint_url=url,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=botocore.config.Config(s3={"addressing_style": "path"}, retries={"max_attempts": 3}),
        )

    def bucket(self):
        """An empty bucket. One that is new makes SeaweedFS set room aside, of which it has little and which takes long."""
        if not self._free:
            self._free.append(f"filestorage-test-{uuid.uuid4().hex[:12]}")
            self._made.append(self._free[-1])
            self.client.create_bucket(Bucket=self._free[-1])
        return self._free.pop()

    def versioned_bucket(self):
        """An empty bucket that keeps the versions of its objects. It has a name that the workers' policy covers."""
        name = f"filestorage-test-{uuid.uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=name)
        self._versioned.append(name)
        self.client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        return name

    def give_back(self, bucket):
        """Empties a bucket for the next one who needs it."""
        for name in self.names(bucket):
            self.delete(bucket, name)
        self._remove_folders(bucket)
        self._free.append(bucket)

    def _remove_folders(self, bucket, above=""):
        """SeaweedFS keeps the folders of names that are gone, and takes the folder `k` for an object when `k` must be absent."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=above, Delimiter="/")
        for folder in [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", [])]:
            self._remove_folders(bucket, folder)
            self.delete(bucket, folder)

    def close(self):
        for bucket in self._made:
            for name in self.names(bucket):
                self.delete(bucket, name)
            self.client.delete_bucket(Bucket=bucket)
        for bucket in self._versioned:
            # SeaweedFS removes what is in it, too.
            self.client.delete_bucket(Bucket=bucket)
        super().close()

    def names(self, bucket):
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", []))

    def stat(self, bucket, name):
        """The object's headers by their names in boto3, or None."""
        try:
            return self.client.head_object(Bucket=bucket, Key=name)
        except botocore.exceptions.ClientError as error:
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 404, error
            return None

    def read(self, bucket, name):
        """The object's bytes as a tool that heeds `Content-Encoding` reads them, or None."""
        try:
            answer = self.client.get_object(Bucket=bucket, Key=name)
            body = answer["Body"].read()
            return gzip.decompress(body) if answer.get("ContentEncoding") == "gzip" else body
        except botocore.exceptions.ClientError as error:
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 404, error
            return None

    def write(self, bucket, name, body, content_type="application/octet-stream"):
        self.client.put_object(Bucket=bucket, Key=name, Body=body, ContentType=content_type)

    def delete(self, bucket, name):
        self.client.delete_object(Bucket=bucket, Key=name)


class BucketSite(Site):
    """A site whose workers keep their values in a bucket behind a fault proxy."""

    def __init__(self, broker, folder, server, *, enforce=True, bucket=None, permit=None, **rights):
        super().__init__(broker, folder, **rights)
        self.kind = "gcs" if isinstance(server, GcsServer) else "s3"
        self.server = server
        self._own_bucket = bucket is None
        self.bucket = bucket or server.bucket()
        # Workers may do in the bucket what deploy/bucket/ says, and nothing else; an S3 server sees to it itself.
        role = {"permit": gcs_role() if permit is None else permit} if self.kind == "gcs" else {}
        self.proxy = FaultProxy(server.url, self.kind if enforce else None, keep_host=self.kind == "s3", **role)

    def env(self, **extra):
        if self.kind == "gcs":
            bucket = {"GCS_BUCKET_NAME": self.bucket, "STORAGE_EMULATOR_HOST": self.proxy.url}
        else:
            bucket = {
                "S3_BUCKET_NAME": self.bucket,
                "S3_ENDPOINT_URL": self.proxy.url,
                "S3_REGION": self.server.region,
                "AWS_ACCESS_KEY_ID": self.server.worker_access_key,
                "AWS_SECRET_ACCESS_KEY": self.server.worker_secret_key,
            }
        # An attempt at a server on this machine takes milliseconds; what hangs is given up soon. Most tests want to see the failure
        # that others only see after minutes; test_message_retry.py shows what comes before it.
        return super().env(**{"TIMEOUT_SECONDS": 5, "MESSAGE_MAX_RETRIES": 0, **bucket, **extra})

    def health(self, worker=None):
        """What `/health` says."""
        return json.loads((worker or self.workers[-1]).http("/health")[1])

    def names(self):
        return self.server.names(self.bucket)

    def overlay(self):
        """Every file that waits in an overlay: entries and tombstones, not what was set aside."""
        root = self.storage / "overlay"
        return [
            path for path in root.rglob("*.obj") if not any(part.startswith("#") for part in path.relative_to(root).parts)
        ]

    def aside(self):
        """Every file that lost a conflict."""
        return [path for path in (self.storage / "overlay").rglob("*.obj") if "#aside" in path.parts]

    def run(self, *args, timeout=60, stdin=b"", **env):
        """Runs the program from the shell."""
        return subprocess.run(
            [str(BINARY), *args], env=self.env(**env), cwd=self.folder, input=stdin, capture_output=True, timeout=timeout, check=False
        )

    def tell(self, task, *args, **kwargs):
        """Sends a command; returns its outcome (an answer or an exception) and the data of its event."""
        result = self.send(task, *args, **kwargs)
        outcome = result.get(timeout=60, propagate=False)
        mine = []

        def there():
            mine.extend(event["data"] for event in events_of(self.raw) if event["data"]["task_id"] == result.id)
            return mine

        wait_until(there, what="the event of the command")
        return outcome, mine[0]

    def close(self):
        try:
            super().close()
        finally:
            self.proxy.close()
            if self._own_bucket and self.kind == "s3":
                self.server.give_back(self.bucket)
