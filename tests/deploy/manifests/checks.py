"""What must hold between documents, one function a relation: each yields what does not, in words."""

from __future__ import annotations

import re

from .cluster import WORKER, label, selects, size
from .rendering import ROOT

# Settings whose value is a secret, or holds one.
SECRETS = ("CELERY_BROKER_URL", "ENCRYPTION_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
# The most RabbitMQ 4 takes in one message.
MESSAGE = 16 << 20
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def seconds_after_the_grace():
    """Returns what a stop may take beyond shutdown_grace_seconds, as the source says."""
    source = (ROOT / "src/worker/session_loop.rs").read_text()
    found = {
        name: int(value)
        for name, value in re.findall(r"const (FAREWELL|LAST_WRITES): Duration = Duration::from_secs\((\d+)\);", source)
    }
    assert len(found) == 2, f"src/worker/session_loop.rs no longer says how long a stop takes; found {found}"
    return sum(found.values())


def drain(cluster):
    return float(cluster.settings["SHUTDOWN_GRACE_SECONDS"]) + seconds_after_the_grace()


def selectors(cluster):
    """Every selector takes the pods, or the Services, that it is meant for."""
    pods = list(cluster.pods())
    for deployment in cluster.all("Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        if not selects(deployment["spec"]["selector"], labels):
            yield f"{label(deployment)} does not select its own pods"
        for constraint in deployment["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
            if not selects(constraint["labelSelector"], labels):
                yield f"{label(deployment)} spreads pods by {constraint['topologyKey']} that are not its own"
    for service in cluster.all("Service"):
        taken = [spec for _, labels, spec in pods if service["spec"]["selector"].items() <= labels.items()]
        names = {port["name"] for spec in taken for container in spec["containers"] for port in container["ports"]}
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in names:
                yield f"{label(service)} leads to the port {port['targetPort']}, which none of its pods has"
    for kind, field in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        for document in cluster.all(kind):
            if not any(selects(document["spec"][field], labels) for _, labels, _ in pods):
                yield f"{label(document)} takes no pod"
    for monitor in cluster.all("ServiceMonitor"):
        services = [
            service
            for service in cluster.all("Service")
            if selects(monitor["spec"]["selector"], service["metadata"].get("labels", {}))
        ]
        for endpoint in monitor["spec"]["endpoints"]:
            if not any(endpoint["port"] == port["name"] for service in services for port in service["spec"]["ports"]):
                yield f"{label(monitor)} asks the port {endpoint['port']}, which no Service that it selects has"


def references(cluster):
    """What is named is there; Secrets may also be made by hand, as docs/how-to/kubernetes.md says."""
    by_hand = set(re.findall(r"kubectl create secret generic ([a-z-]+)", (ROOT / "docs/how-to/kubernetes.md").read_text()))
    for name, _, spec in cluster.pods():
        named = [("ServiceAccount", spec.get("serviceAccountName"))]
        for container in spec["containers"]:
            for source in container.get("envFrom", []):
                named.append(("ConfigMap", source.get("configMapRef", {}).get("name")))
            volumes = {volume["name"] for volume in spec["volumes"]}
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            if volumes != mounts:
                yield f"{name}: volumes {sorted(volumes)} and mounts {sorted(mounts)} differ"
            ports = {port["name"] for port in container["ports"]}
            for probe in PROBES:
                asked = container.get(probe, {})
                port = asked.get("httpGet", asked.get("tcpSocket", {})).get("port")
                if port is not None and port not in ports:
                    yield f"{name}: {probe} asks the port {port}, which the container does not have"
        for volume in spec["volumes"]:
            named.append(("Secret", volume.get("secret", {}).get("secretName")))
            named.append(("PersistentVolumeClaim", volume.get("persistentVolumeClaim", {}).get("claimName")))
        for kind, wanted in named:
            if wanted and not cluster.named(kind, wanted) and not (kind == "Secret" and wanted in by_hand):
                yield f"{name} needs the {kind} {wanted}, which nobody makes"
    for authentication in cluster.all("TriggerAuthentication"):
        for target in authentication["spec"]["secretTargetRef"]:
            if target["name"] not in by_hand and not cluster.named("Secret", target["name"]):
                yield f"{label(authentication)} needs the Secret {target['name']}, which nobody makes"
    for scaled in cluster.all("ScaledObject"):
        target = scaled["spec"]["scaleTargetRef"]
        if not cluster.named(target["kind"], target["name"]):
            yield f"{label(scaled)} scales the {target['kind']} {target['name']}, which is not there"
        for trigger in scaled["spec"]["triggers"]:
            if not cluster.named("TriggerAuthentication", trigger["authenticationRef"]["name"]):
                yield f"{label(scaled)} logs in by {trigger['authenticationRef']['name']}, which is not there"


def ports(cluster):
    """One port from the setting to the policy, reachable from outside the pod."""
    wanted = int(cluster.settings["METRICS_PORT"])
    if cluster.settings["METRICS_HOST"] not in ("0.0.0.0", "::"):
        yield "METRICS_HOST keeps the kubelet and Prometheus out"
    if [port["containerPort"] for port in cluster.worker["ports"]] != [wanted]:
        yield f"the container's port is not METRICS_PORT, {wanted}"
    if [port["port"] for port in cluster.named("Service", "filestorage-metrics")["spec"]["ports"]] != [wanted]:
        yield f"the Service's port is not METRICS_PORT, {wanted}"
    policy = cluster.named("NetworkPolicy", "filestorage")["spec"]
    if [port["port"] for rule in policy["ingress"] for port in rule["ports"]] != [wanted]:
        yield f"the NetworkPolicy does not let in METRICS_PORT, {wanted}, and only that"
    if not all(rule.get("from") for rule in policy["ingress"]):
        yield "the NetworkPolicy lets everybody in"


def probes(cluster):
    """Nothing that restarts the container asks whether the broker is there."""
    paths = {probe: cluster.worker[probe]["httpGet"]["path"] for probe in PROBES}
    for probe in ("startupProbe", "livenessProbe"):
        if paths[probe] != "/livez":
            yield f"{probe} asks {paths[probe]}: with the broker away it would restart a worker that waits"
    if paths["readinessProbe"] != "/readyz":
        yield f"readinessProbe asks {paths['readinessProbe']}: a rollout would not wait for a worker that can work"


def stopping(cluster):
    """Kubernetes and KEDA leave a worker the time it takes to stop."""
    grace = cluster.pod["terminationGracePeriodSeconds"]
    if grace <= drain(cluster):
        yield f"terminationGracePeriodSeconds is {grace}, a stop may take {drain(cluster)} s"
    for scaled in cluster.all("ScaledObject"):
        down = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
        waits = {
            "cooldownPeriod": scaled["spec"]["cooldownPeriod"],
            "stabilizationWindowSeconds": down["stabilizationWindowSeconds"],
            "periodSeconds": min(policy["periodSeconds"] for policy in down["policies"]),
        }
        for name, value in waits.items():
            if value <= grace:
                yield f"{label(scaled)}: {name} is {value} s, a drain has {grace} s"


def scaling(cluster):
    """KEDA counts what the worker consumes, and is the only one to set the number."""
    for scaled in cluster.all("ScaledObject"):
        spec = scaled["spec"]
        if "replicas" in cluster.deployment["spec"]:
            yield "the Deployment sets replicas, and so does KEDA"
        if cluster.settings["ENABLE_LOCAL_FALLBACK"] == "true" and spec["minReplicaCount"] < 1:
            yield "without any worker nobody sends what waits for the bucket"
        if not spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]:
            yield f"{label(scaled)}: the fallback is not between the smallest and the largest number"
        for trigger in spec["triggers"]:
            metadata = trigger["metadata"]
            if metadata["queueName"] != cluster.settings["CELERY_TASK_DEFAULT_QUEUE"]:
                yield f"{label(scaled)} counts the queue {metadata['queueName']}, which nobody consumes"
            if metadata["protocol"] != "http" or metadata["excludeUnacknowledged"] != "false":
                yield f"{label(scaled)} does not count what workers hold"
            if float(metadata["value"]) < 2 * cluster.held:
                yield f"{label(scaled)} asks for another worker for what one holds, {cluster.held} messages"


def storage(cluster):
    """Nothing that was confirmed lies where it goes with its pod."""
    settings = cluster.settings
    bucket = {"gcs": "GCS_BUCKET_NAME", "s3": "S3_BUCKET_NAME"}.get(settings["STORAGE_BACKEND"])
    if bucket is None:
        yield f"STORAGE_BACKEND={settings['STORAGE_BACKEND']} may keep values in a pod"
    elif not settings.get(bucket):
        yield f"{bucket} is missing"
    mount = cluster.mount_of(settings["LOCAL_STORAGE_PATH"])
    if mount is None or mount.get("readOnly"):
        yield "LOCAL_STORAGE_PATH is not on a volume that can be written"
        return
    volume = cluster.volume(mount["name"])
    if settings["ENABLE_LOCAL_FALLBACK"] == "true":
        claim = cluster.named("PersistentVolumeClaim", volume.get("persistentVolumeClaim", {}).get("claimName"))
        if claim is None:
            yield "what waits for the bucket goes with its pod"
        elif claim["spec"]["accessModes"] != ["ReadWriteMany"]:
            yield "the workers' volume cannot be shared"
    for emptied in cluster.pod["volumes"]:
        if "emptyDir" in emptied and not emptied["emptyDir"].get("sizeLimit"):
            yield f"the volume {emptied['name']} may fill its node"


def resources(cluster):
    """The limits hold what the settings let in."""
    limits = cluster.worker["resources"]["limits"]
    if cluster.held == 0 or cluster.held * MESSAGE > 0.75 * size(limits["memory"]):
        yield f"{cluster.held} messages of 16 MiB do not fit {limits['memory']} of memory with a quarter to spare"
    if "cpu" in limits:
        yield "a CPU limit makes a busy worker miss its heartbeats"
    scratch = sum(size(volume["emptyDir"]["sizeLimit"]) for volume in cluster.pod["volumes"] if "emptyDir" in volume)
    if scratch >= size(limits["ephemeral-storage"]):
        yield "the limit of ephemeral-storage is below that of the volumes"


def secrets(cluster):
    """Secrets are files in a read-only mount, and stand in no other document."""
    for name, _, spec in cluster.pods():
        for container in spec["containers"]:
            for source in container.get("envFrom", []):
                if "secretRef" in source:
                    yield f"{name} takes its environment from a Secret"
            for variable in container.get("env", []):
                if variable["name"] in SECRETS or "secretKeyRef" in variable.get("valueFrom", {}):
                    yield f"{name} has the secret {variable['name']} in its environment"
    for document in cluster.documents:
        if document["kind"] != "Secret" and re.search(r"://[^/\s\"']*:[^@/\s\"']+@", repr(document)):
            yield f"{label(document)} holds a password"
    for name, value in cluster.settings.items():
        if name in SECRETS:
            yield f"the secret {name} stands in the ConfigMap"
        if name.endswith("_FILE"):
            mount = cluster.mount_of(value)
            secret = cluster.volume(mount["name"]).get("secret") if mount else None
            if secret is None or not mount.get("readOnly"):
                yield f"{name}={value} is in no mounted Secret"
            elif value.removeprefix(f"{mount['mountPath']}/") not in [item["path"] for item in secret["items"]]:
                yield f"{name}={value} is not among the files of its Secret"


def confinement(cluster):
    """Every pod passes Pod Security's `restricted`, and none can write to its image."""
    for name, _, spec in cluster.pods():
        whole = spec.get("securityContext", {})
        if not whole.get("runAsNonRoot") or not whole.get("runAsUser"):
            yield f"{name} may run as root"
        if whole.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name} runs without the runtime's seccomp profile"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{name} gets a token of the Kubernetes API"
        for container in spec["containers"]:
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{name} keeps privileges"
            if not own.get("readOnlyRootFilesystem"):
                yield f"{name} can write to its image"
    if cluster.pod["securityContext"]["fsGroup"] != cluster.pod["securityContext"]["runAsUser"]:
        yield "the worker cannot write to its volumes"
    if cluster.pod.get("enableServiceLinks") is not False:
        yield "a Service called `metrics` would set METRICS_PORT"
    covered = [selects(policy["spec"]["podSelector"], WORKER) for policy in cluster.all("NetworkPolicy")]
    if not any(covered):
        yield "no NetworkPolicy covers the worker"


def rollout(cluster):
    """A new version takes over only once it can work, and no drain of nodes stops all workers."""
    strategy = cluster.deployment["spec"]["strategy"]["rollingUpdate"]
    if strategy != {"maxSurge": 1, "maxUnavailable": 0}:
        yield f"a rollout takes workers away before others are there: {strategy}"
    if not cluster.deployment["spec"].get("minReadySeconds"):
        yield "a rollout goes on before a new worker has shown that it stays"
    if cluster.named("PodDisruptionBudget", "filestorage")["spec"].get("maxUnavailable") != 1:
        yield "the PodDisruptionBudget does not let exactly one go"


def image(cluster):
    """The image is this version's."""
    version = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    name, _, tag = cluster.worker["image"].rpartition(":")
    if tag != version or name.rsplit("/", 1)[-1] != "filestorage":
        yield f"the image is {cluster.worker['image']}, the version {version}"


ALL = (selectors, references, ports, probes, stopping, scaling, storage, resources, secrets, confinement, rollout, image)
