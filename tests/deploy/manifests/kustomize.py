"""Renders kustomizations on machines without kustomize and kubectl, too: exactly the fields that our manifests use.

A field, a kind of patch or a list that is not known here is an error, never left out: what this renders is what
`kubectl kustomize` renders, and where that is installed a test compares the two.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json

import yaml

# The key by which a strategic merge patch finds an element; a list of plain values is replaced.
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
}
# Where a workload names a ConfigMap or a Secret: the kind, and the fields from the holder to the name.
REFERENCES = {
    "configMap": ("ConfigMap", "name"),
    "configMapRef": ("ConfigMap", "name"),
    "configMapKeyRef": ("ConfigMap", "name"),
    "secret": ("Secret", "secretName"),
    "secretRef": ("Secret", "name"),
    "secretKeyRef": ("Secret", "name"),
}
WORKLOADS = {"Deployment", "StatefulSet", "DaemonSet", "Job"}


class Unsupported(Exception):
    """Something that this renderer does not know; its text names it and the file."""


def render(folder):
    """Returns the documents that the kustomization in a folder makes, those of its bases first."""
    found = _accumulate(folder.resolve(), [])
    renamed = {}
    for resource in found:
        if resource.hashed:
            name = resource.document["metadata"]["name"]
            resource.document["metadata"]["name"] = f"{name}-{_hash(resource.document)}"
            renamed[resource.document["kind"], name] = resource.document["metadata"]["name"]
    for resource in found:
        if resource.document["kind"] in WORKLOADS:
            _refer(resource.document, renamed)
    return [resource.document for resource in found]


class _Resource:
    def __init__(self, document, hashed=False):
        self.document = document
        self.hashed = hashed

    def has(self, kind, name):
        return (self.document["kind"], self.document["metadata"]["name"]) == (kind, name)


def _accumulate(folder, below):
    """Reads one kustomization. A component works on what is there already, so that is handed to it."""
    file = folder / "kustomization.yaml"
    kustomization = yaml.safe_load(file.read_text())
    kind = kustomization.pop("kind")
    kustomization.pop("apiVersion")
    found = list(below) if kind == "Component" else []
    given = kustomization.pop("resources", [])
    for name in given:
        path = folder / name
        if path.is_dir():
            found += _accumulate(path.resolve(), [])
        else:
            found += [_Resource(document) for document in yaml.safe_load_all(path.read_text()) if document]
    for name in kustomization.pop("components", []):
        found = _accumulate((folder / name).resolve(), found)
    for field, generated in (("configMapGenerator", "ConfigMap"), ("secretGenerator", "Secret")):
        for settings in kustomization.pop(field, []):
            _generate(found, generated, settings, file)
    for patch in kustomization.pop("patches", []):
        _patch(found, patch, folder)
    if namespace := kustomization.pop("namespace", None):
        for resource in found:
            metadata = resource.document["metadata"]
            metadata["name" if resource.document["kind"] == "Namespace" else "namespace"] = namespace
    for labels in kustomization.pop("labels", []):
        pairs = labels.pop("pairs")
        _nothing_left(labels, f"{file}: labels")
        for resource in found:
            resource.document["metadata"].setdefault("labels", {}).update(pairs)
    for image in kustomization.pop("images", []):
        _image(found, image, file)
    _nothing_left(kustomization, str(file))
    return found


def _nothing_left(fields, where):
    if fields:
        raise Unsupported(f"{where}: {', '.join(fields)} is not known to tests/deploy/manifests/kustomize.py")


def _generate(found, kind, settings, file):
    settings = dict(settings)
    name, behavior = settings.pop("name"), settings.pop("behavior", "create")
    data = {}
    for literal in settings.pop("literals", []):
        key, _, value = literal.partition("=")
        data[key] = base64.b64encode(value.encode()).decode() if kind == "Secret" else value
    _nothing_left(settings, f"{file}: generator {name}")
    there = [resource for resource in found if resource.has(kind, name)]
    if behavior == "merge" and len(there) == 1:
        there[0].document["data"].update(data)
    elif behavior == "create" and not there:
        document = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "data": data}
        if kind == "Secret":
            document["type"] = "Opaque"
        found.append(_Resource(document, hashed=True))
    else:
        raise Unsupported(f"{file}: {behavior} of {kind} {name}, of which there are {len(there)}")


def _hash(document):
    """The suffix that kustomize gives a generated name: of its content, in letters that make no words."""
    # kustomize means to hash the name, too, and looks for it where it never is.
    content = {"kind": document["kind"], "name": "", "data": document["data"]}
    if document["kind"] == "Secret":
        content["type"] = document["type"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return hashlib.sha256(text.encode()).hexdigest()[:10].translate(str.maketrans("013ae", "ghkmt"))


# --- patches -----------------------------------------------------------------------------------------------------------


def _patch(found, patch, folder):
    patch = dict(patch)
    target = patch.pop("target", None)
    text = (folder / patch.pop("path")).read_text() if "path" in patch else patch.pop("patch")
    _nothing_left(patch, f"{folder}: patches")
    content = yaml.safe_load(text)
    if isinstance(content, dict):
        if target:
            raise Unsupported(f"{folder}: a strategic merge patch with a target")
        target = {"kind": content["kind"], "name": content["metadata"]["name"]}
    if set(target) != {"kind", "name"}:
        raise Unsupported(f"{folder}: a target of {', '.join(target)}")
    there = [resource for resource in found if resource.has(**target)]
    if not there:
        raise Unsupported(f"{folder}: a patch of {target['kind']} {target['name']}, which is not there")
    for resource in there:
        if isinstance(content, dict):
            resource.document = _merge(resource.document, content)
        else:
            for operation in content:
                _operate(resource.document, operation, folder)


def _merge(original, patch):
    merged = dict(original)
    for key, value in patch.items():
        if key.startswith("$"):
            raise Unsupported(f"the directive {key} in a patch")
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        elif isinstance(value, list) and isinstance(merged.get(key), list):
            merged[key] = _merge_list(key, merged[key], value)
        else:
            merged[key] = _without_nulls(value)
    return merged


def _merge_list(field, original, patch):
    if not any(isinstance(element, dict) for element in [*original, *patch]):
        return list(patch)
    if field not in MERGE_KEYS:
        raise Unsupported(f"a patch of the list {field}")
    key = MERGE_KEYS[field]
    there = {element[key]: element for element in original}
    named = {element[key] for element in patch}
    # What the patch names comes first, in its order, as with kustomize.
    changed = [_merge(there.get(element[key], {}), element) for element in patch]
    return changed + [element for element in original if element[key] not in named]


def _without_nulls(value):
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return copy.deepcopy(value)


def _operate(document, operation, folder):
    *path, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    place = document
    for part in path:
        place = place[int(part) if isinstance(place, list) else part]
    if not isinstance(place, dict) or operation["op"] not in ("add", "remove", "replace"):
        raise Unsupported(f"{folder}: the operation {operation}")
    if operation["op"] != "add" and last not in place:
        raise Unsupported(f"{folder}: {operation['op']} of {operation['path']}, which is not there")
    if operation["op"] == "remove":
        del place[last]
    else:
        place[last] = operation["value"]


# --- images and references ---------------------------------------------------------------------------------------------


def _image(found, settings, file):
    settings = dict(settings)
    name, new_name, new_tag = settings.pop("name"), settings.pop("newName", None), settings.pop("newTag", None)
    _nothing_left(settings, f"{file}: image {name}")
    for resource in found:
        if resource.document["kind"] not in WORKLOADS:
            continue
        pod = resource.document["spec"]["template"]["spec"]
        for container in [*pod.get("initContainers", []), *pod.get("containers", [])]:
            # A colon before a slash is a registry's port.
            base, colon, tag = container["image"].rpartition(":")
            if not colon or "/" in tag:
                base, tag = container["image"], ""
            if base == name:
                tag = new_tag or tag
                container["image"] = (new_name or base) + (f":{tag}" if tag else "")


def _refer(value, renamed):
    """Gives generated names to everything below that refers to them."""
    if isinstance(value, list):
        for inner in value:
            _refer(inner, renamed)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in REFERENCES and isinstance(inner, dict):
                kind, field = REFERENCES[key]
                if (kind, inner.get(field)) in renamed:
                    inner[field] = renamed[kind, inner[field]]
            _refer(inner, renamed)
