"""The renderer of these tests, beside the one of `kubectl apply -k`."""

import pytest
import yaml
from manifests import kustomize, rendering


def by_name(documents):
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


def test_it_renders_what_kustomize_renders(tmp_path):
    """Names with their hashes, and lists in their order, too."""
    for which in [*rendering.OVERLAYS, *rendering.COMBINATIONS]:
        if isinstance(which, str):
            folder = rendering.FOLDER / "overlays" / which
        else:
            folder = tmp_path
            rendering.write(which, folder)
        assert by_name(kustomize.render(folder)) == by_name(rendering.render_installed(folder)), rendering.title(which)


DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: one}
spec:
  template:
    spec:
      containers: [{name: one, image: "here:5000/one", ports: [{containerPort: 1}]}]
      volumes: [{name: a, emptyDir: {}}, {name: b, emptyDir: {}}, {name: c, emptyDir: {}}]
"""
VOLUMES = [{"name": "new"}, {"name": "c", "emptyDir": None, "hostPath": {"path": "/c"}}, {"name": "b", "emptyDir": {"sizeLimit": "1Gi"}}]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "one.yaml").write_text(DEPLOYMENT)

    def write(**fields):
        kustomization = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": ["one.yaml"]}
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization | fields))
        return tmp_path

    return write


def patch(**fields):
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "one"}, **fields}


@pytest.mark.parametrize(
    "fields",
    [
        {"namePrefix": "some-"},
        {"images": [{"name": "here:5000/one", "digest": "sha256:0"}]},
        {"labels": [{"pairs": {"a": "b"}, "includeSelectors": True}]},
        {"configMapGenerator": [{"name": "none", "behavior": "merge", "literals": ["a=b"]}]},
        {"configMapGenerator": [{"name": "one", "files": ["one.yaml"]}]},
        {"patches": [{"patch": yaml.safe_dump(patch(metadata={"name": "other"}))}]},
        {"patches": [{"patch": yaml.safe_dump(patch(spec={"$patch": "replace"}))}]},
        {"patches": [{"patch": "- {op: remove, path: /spec/replicas}", "target": {"kind": "Deployment", "name": "one"}}]},
        {"patches": [{"patch": "- {op: add, path: /a, value: 1}", "target": {"kind": "Deployment"}}]},
    ],
    ids=str,
)
def test_what_it_does_not_know_is_an_error(fields, folder):
    """It is never left out."""
    with pytest.raises(kustomize.Unsupported):
        kustomize.render(folder(**fields))


KNOWN = [
    {"images": [{"name": "here:5000/one", "newTag": "2"}], "namespace": "some"},
    {"images": [{"name": "here", "newTag": "2"}]},
    {"configMapGenerator": [{"name": "marks", "literals": ["a=<b>&'c' \u00e9 \U0001f600", "empty=", "many=1\n2=3\n"]}]},
    {"secretGenerator": [{"name": "marks", "literals": ["a=<b>&'c' \u00e9"]}]},
    {"patches": [{"patch": yaml.safe_dump(patch(spec={"template": None, "paused": True}))}]},
    {"patches": [{"patch": yaml.safe_dump(patch(spec={"template": {"spec": {"volumes": VOLUMES}}}))}]},
]


def test_what_it_knows_it_knows_as_kustomize_does(folder):
    for fields in KNOWN:
        there = folder(**fields)
        assert by_name(kustomize.render(there)) == by_name(rendering.render_installed(there)), fields
