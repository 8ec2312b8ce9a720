"""The manifests of deploy/kubernetes: every overlay and combination of components is rendered, validated, related."""

import copy
import json
import re

import jsonschema
import kubernetes_validate
import pytest
from kubernetes_validate.utils import all_versions

from manifests import checks, custom_resources, rendering
from manifests.cluster import Cluster

# Older ones do not spread pods by template, nor evict pods that are not ready.
OLDEST = (1, 27)
VERSIONS = sorted({tuple(map(int, version.split(".")))[:2] for version in all_versions()})
SUPPORTED = [".".join(map(str, version)) + ".0" for version in VERSIONS if version >= OLDEST]


@pytest.fixture(scope="module", params=[*rendering.OVERLAYS, *rendering.COMBINATIONS], ids=rendering.title)
def documents(request, tmp_path_factory):
    """One rendering: an overlay as it stands, or base with a combination of components."""
    return rendering.documents(request.param, tmp_path_factory.mktemp("overlay"))


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Base with all components."""
    return rendering.compose(("gke", *rendering.COMPONENTS), tmp_path_factory.mktemp("overlay"))


def validate(document, versions):
    if not custom_resources.validate(document):
        for version in versions:
            kubernetes_validate.validate(document, version, strict=True)


def complaints(documents):
    cluster = Cluster(documents)
    return [complaint for check in checks.ALL for complaint in check(cluster)]


def test_every_written_resource_is_valid():
    """Needs no renderer. What is not whole before it is patched is checked when it is rendered."""
    seen = 0
    for path, document in rendering.written():
        try:
            validate(document, SUPPORTED)
        except jsonschema.ValidationError as error:
            pytest.fail(f"{path}: {error.message}")
        seen += 1
    assert seen >= 15, f"only {seen} documents were found"


def test_every_rendering_is_valid(documents):
    for document in documents:
        validate(document, (SUPPORTED[0], SUPPORTED[-1]))


@pytest.mark.parametrize("overlay", rendering.OVERLAYS)
@pytest.mark.parametrize("version", SUPPORTED)
def test_every_overlay_is_valid_in_every_version(overlay, version):
    for document in rendering.overlay(overlay):
        validate(document, [version])


def test_what_belongs_together_fits(documents):
    assert complaints(documents) == []


def test_every_document_is_in_the_namespace(documents):
    (namespace,) = [document["metadata"]["name"] for document in documents if document["kind"] == "Namespace"]
    others = [document for document in documents if document["kind"] != "Namespace"]
    assert {document["metadata"].get("namespace") for document in others} == {namespace}


def test_every_component_is_described_and_used_by_overlays():
    manual = (rendering.ROOT / "docs/how-to/kubernetes.md").read_text()
    for component in rendering.COMPONENTS:
        assert f"components/{component}" in manual, component
        for cloud in rendering.CLOUDS:
            text = (rendering.FOLDER / "overlays" / cloud / "kustomization.yaml").read_text()
            assert f"../../components/{component}\n" in text, (cloud, component)


def test_only_the_try_out_has_secrets():
    for overlay in rendering.OVERLAYS:
        made = [document["metadata"]["name"] for document in rendering.overlay(overlay) if document["kind"] == "Secret"]
        assert bool(made) == (overlay == "dev"), (overlay, made)


def test_keys_of_secrets_are_those_that_the_manual_makes(everything):
    manual = (rendering.ROOT / "docs/how-to/kubernetes.md").read_text().replace("\\\n", " ")
    cluster = Cluster(everything)
    wanted = {
        (volume["secret"]["secretName"], item["key"])
        for volume in cluster.pod["volumes"]
        for item in volume.get("secret", {}).get("items", [])
    }
    for authentication in cluster.all("TriggerAuthentication"):
        wanted |= {(target["name"], target["key"]) for target in authentication["spec"]["secretTargetRef"]}
    assert len(wanted) == 5
    for secret, key in sorted(wanted):
        command = re.search(rf"kubectl create secret generic {secret} .*", manual)
        assert command and f"--from-file={key}=" in command[0], (secret, key)


def test_the_try_out_has_the_images_of_compose():
    compose = rendering.ROOT / "docker-compose.yml"
    for name in ("rabbitmq", "gcs"):
        image = Cluster(rendering.overlay("dev")).named("Deployment", name)["spec"]["template"]["spec"]["containers"][0]
        assert f":-{image['image']}}}" in compose.read_text(), image["image"]


def worker(documents):
    return Cluster(documents).worker


def settings(documents):
    return Cluster(documents).settings


def spec(kind, found="filestorage"):
    return lambda documents: Cluster(documents).named(kind, found)["spec"]


def pod(documents):
    return Cluster(documents).pod


SETTINGS = "name of the ConfigMap"
# Where, what is planted there, and a part of the complaint.
FAULTS = {
    "a grace shorter than the drain": (pod, {"terminationGracePeriodSeconds": 30}, "a stop may take 33.0 s"),
    "a longer drain": (settings, {"SHUTDOWN_GRACE_SECONDS": "40"}, "a stop may take 48.0 s"),
    "a cooldown shorter than the drain": (spec("ScaledObject"), {"cooldownPeriod": 30}, "cooldownPeriod is 30 s"),
    "a liveness that needs the broker": (
        worker,
        {"livenessProbe": {"httpGet": {"path": "/readyz", "port": "metrics"}}},
        "would restart a worker that waits",
    ),
    "a probe of a port that is not there": (
        worker,
        {"startupProbe": {"httpGet": {"path": "/livez", "port": "http"}}},
        "which the container does not have",
    ),
    "another port": (settings, {"METRICS_PORT": "9000"}, "the NetworkPolicy does not let in METRICS_PORT, 9000"),
    "a port on loopback": (settings, {"METRICS_HOST": "127.0.0.1"}, "keeps the kubelet and Prometheus out"),
    "a selector of other pods": (
        spec("PodDisruptionBudget"),
        {"selector": {"matchLabels": {"app": "filestorage"}}},
        "PodDisruptionBudget filestorage takes no pod",
    ),
    "a Service of other pods": (
        spec("Service", "filestorage-metrics"),
        {"selector": {"app": "filestorage"}},
        "which none of its pods has",
    ),
    "a monitor of another port": (
        spec("ServiceMonitor"),
        {"endpoints": [{"port": "http"}]},
        "which no Service that it selects has",
    ),
    "a password in the ConfigMap": (settings, {"CELERY_BROKER_URL": "amqp://worker:hidden@host//"}, "holds a password"),
    "a password in the environment": (
        worker,
        {"env": [{"name": "CELERY_BROKER_URL", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]},
        "has the secret CELERY_BROKER_URL in its environment",
    ),
    "an environment out of a Secret": (
        worker,
        {"envFrom": [{"configMapRef": {"name": SETTINGS}}, {"secretRef": {"name": "filestorage-broker"}}]},
        "takes its environment from a Secret",
    ),
    "a file outside its Secret": (
        settings,
        {"CELERY_BROKER_URL_FILE": "/run/secrets/filestorage-broker/url"},
        "is not among the files of its Secret",
    ),
    "a fallback in the pod": (
        lambda documents: Cluster(documents).volume("storage"),
        {"persistentVolumeClaim": {}, "emptyDir": {"sizeLimit": "1Gi"}},
        "what waits for the bucket goes with its pod",
    ),
    "a volume of one node": (
        spec("PersistentVolumeClaim", "filestorage-overlay"),
        {"accessModes": ["ReadWriteOnce"]},
        "cannot be shared",
    ),
    "no bucket": (settings, {"GCS_BUCKET_NAME": ""}, "GCS_BUCKET_NAME is missing"),
    "values in the pod": (settings, {"STORAGE_BACKEND": "auto"}, "may keep values in a pod"),
    "nobody left to sync": (spec("ScaledObject"), {"minReplicaCount": 0}, "nobody sends what waits for the bucket"),
    "two who set the number": (spec("Deployment"), {"replicas": 2}, "and so does KEDA"),
    "another queue": (settings, {"CELERY_TASK_DEFAULT_QUEUE": "other"}, "which nobody consumes"),
    "a worker for what one holds": (settings, {"CELERY_WORKER_CONCURRENCY": "300"}, "holds, 300 messages"),
    "more messages than memory": (settings, {"CELERY_WORKER_PREFETCH_MULTIPLIER": "8"}, "do not fit 1Gi of memory"),
    "messages without end": (settings, {"CELERY_WORKER_PREFETCH_MULTIPLIER": "0"}, "0 messages of 16 MiB do not fit"),
    "a writable image": (worker, {"securityContext": {}}, "filestorage can write to its image"),
    "root": (pod, {"securityContext": {"fsGroup": 0, "runAsUser": 0}}, "may run as root"),
    "a token of the API": (pod, {"automountServiceAccountToken": True}, "gets a token of the Kubernetes API"),
    "variables of Services": (pod, {"enableServiceLinks": True}, "would set METRICS_PORT"),
    "a missing account": (pod, {"serviceAccountName": "other"}, "needs the ServiceAccount other"),
    "a rollout that takes first": (
        spec("Deployment"),
        {"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}},
        "takes workers away before others are there",
    ),
    "another version": (worker, {"image": "filestorage:9.9.9"}, "the image is filestorage:9.9.9"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(everything, fault):
    place, change, words = FAULTS[fault]
    planted = copy.deepcopy(everything)
    # The name of the ConfigMap ends in a hash.
    settings_name = worker(planted)["envFrom"][0]["configMapRef"]["name"]
    place(planted).update(json.loads(json.dumps(change).replace(SETTINGS, settings_name)))
    assert complaints(everything) == []
    assert any(words in complaint for complaint in complaints(planted)), complaints(planted)


@pytest.mark.parametrize(
    "place, change",
    [
        (pod, {"terminationGracePeriod": 45}),
        (spec("NetworkPolicy"), {"ingres": []}),
        (spec("PodDisruptionBudget"), {"maxUnavailable": [1]}),
        (spec("ScaledObject"), {"coolDownPeriod": 300}),
        (spec("ScaledObject"), {"cooldownPeriod": "300"}),
        (spec("ServiceMonitor"), {"endpoints": [{"port": "metrics", "interval": 30}]}),
        (spec("TriggerAuthentication", "filestorage-broker-management"), {"secretTargetRef": []}),
    ],
)
def test_a_wrong_field_is_invalid(everything, place, change):
    planted = copy.deepcopy(everything)
    place(planted).update(change)
    with pytest.raises(jsonschema.ValidationError):
        for document in planted:
            validate(document, SUPPORTED[-1:])


def test_a_version_without_a_field_is_told():
    budget = [document for document in rendering.overlay("gke") if document["kind"] == "PodDisruptionBudget"]
    with pytest.raises(jsonschema.ValidationError, match="unhealthyPodEvictionPolicy"):
        validate(*budget, ["1.25.0"])
