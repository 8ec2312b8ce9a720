"""Rendered documents, asked as a cluster would be."""

from __future__ import annotations

import re

WORKER = {"app.kubernetes.io/name": "filestorage", "app.kubernetes.io/component": "worker"}
MULTIPLES = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


class Cluster:
    """The documents of one rendering."""

    def __init__(self, documents):
        self.documents = documents

    def all(self, kind):
        return [document for document in self.documents if document["kind"] == kind]

    def named(self, kind, name):
        return next((document for document in self.all(kind) if document["metadata"]["name"] == name), None)

    @property
    def deployment(self):
        return self.named("Deployment", "filestorage")

    @property
    def pod(self):
        return self.deployment["spec"]["template"]["spec"]

    @property
    def worker(self):
        return self.pod["containers"][0]

    @property
    def held(self):
        """Messages that a worker holds at once."""
        settings = self.settings
        return int(settings["CELERY_WORKER_CONCURRENCY"]) * int(settings["CELERY_WORKER_PREFETCH_MULTIPLIER"])

    @property
    def settings(self):
        """The worker's environment, as the ConfigMap gives it."""
        return self.named("ConfigMap", self.worker["envFrom"][0]["configMapRef"]["name"])["data"]

    def pods(self):
        """Yields what every Deployment runs: its name, the labels of its pods, their specification."""
        for deployment in self.all("Deployment"):
            template = deployment["spec"]["template"]
            yield deployment["metadata"]["name"], template["metadata"]["labels"], template["spec"]

    def volume(self, name):
        return next((volume for volume in self.pod["volumes"] if volume["name"] == name), None)

    def mount_of(self, path):
        """Returns the mount of the worker that a path lies in."""
        mounts = [mount for mount in self.worker["volumeMounts"] if f"{path}/".startswith(f"{mount['mountPath']}/")]
        return max(mounts, key=lambda mount: len(mount["mountPath"]), default=None)


def label(document):
    return f"{document['kind']} {document['metadata']['name']}"


def selects(selector, labels):
    """Tells whether a label selector takes these labels."""
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    operators = {"In": lambda value, values: value in values, "NotIn": lambda value, values: value not in values}
    return wanted and all(
        operators[expression["operator"]](labels.get(expression["key"]), expression["values"])
        for expression in selector.get("matchExpressions", [])
    )


def size(text):
    """Returns a Kubernetes quantity of bytes as a number."""
    number, unit = re.fullmatch(r"([0-9]+)(Ki|Mi|Gi|)", str(text)).groups()
    return int(number) * MULTIPLES[unit]
