"""Renders the overlays and every combination of components, as `kubectl apply -k` would; a test compares the two."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest
import yaml

from . import kustomize

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
# What an overlay must say beside the component of its cloud.
CLOUDS = {
    "gke": {"GCS_BUCKET_NAME": "some-bucket"},
    "eks": {"S3_BUCKET_NAME": "some-bucket", "S3_REGION": "eu-central-1"},
}
COMPONENTS = sorted({path.name for path in (FOLDER / "components").iterdir()} - set(CLOUDS))
COMBINATIONS = [
    (cloud, *chosen)
    for cloud in CLOUDS
    for count in range(len(COMPONENTS) + 1)
    for chosen in itertools.combinations(COMPONENTS, count)
]


# The first whose `kubectl kustomize` and `kustomize build` know all fields that are used.
OLDEST = {"kubectl": (1, 27), "kustomize": (5, 0)}


@lru_cache
def installed():
    """Returns the command of an installed renderer, or None and why there is none that will do."""
    faults = []
    for program, build, version in (
        ("kustomize", "build", ("version",)),
        ("kubectl", "kustomize", ("version", "--client", "--output=json")),
    ):
        if not shutil.which(program):
            faults.append(f"{program} is not installed")
            continue
        done = subprocess.run([program, *version], capture_output=True, text=True, timeout=60, check=False)
        found = re.search(r"v(\d+)\.(\d+)\.\d+", done.stdout)
        if found and tuple(map(int, found.groups())) >= OLDEST[program]:
            return (program, build), None
        oldest = ".".join(map(str, OLDEST[program]))
        faults.append(f"{program} is {found[0] if found else 'of no version that can be read'}, {oldest} or newer is needed")
    return None, "; ".join(faults)


def render_installed(folder):
    """Returns the documents that the installed renderer makes; skips, with the reason, where there is none."""
    command, fault = installed()
    if command is None:
        pytest.skip(f"not compared with kustomize itself: {fault}")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{folder} cannot be rendered:\n{done.stderr}"
    assert "deprecated" not in done.stderr, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def render(folder):
    """Returns the documents that the kustomization in a folder makes."""
    return kustomize.render(Path(folder))


@lru_cache
def overlay(name):
    return render(FOLDER / "overlays" / name)


def write(combination, folder):
    """Writes an overlay of base with these components, as somebody would."""
    relative = os.path.relpath(FOLDER, folder)
    settings = [f"{name}={value}" for name, value in CLOUDS[combination[0]].items()]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "somewhere",
        "resources": [f"{relative}/base"],
        "components": [f"{relative}/components/{component}" for component in combination],
        "configMapGenerator": [{"name": "filestorage-settings", "behavior": "merge", "literals": settings}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))


def compose(combination, folder):
    """Renders base with these components."""
    write(combination, folder)
    return render(folder)


def documents(which, folder):
    """Renders an overlay by its name, or a combination by its components."""
    return overlay(which) if isinstance(which, str) else compose(which, folder)


def title(which):
    return which if isinstance(which, str) else "+".join(which)


def written():
    """Yields every document of the files that kustomizations name as resources, with its file."""
    for kustomization in sorted(FOLDER.rglob("kustomization.yaml")):
        for name in yaml.safe_load(kustomization.read_text()).get("resources", []):
            path = kustomization.parent / name
            assert path.exists(), f"{kustomization.relative_to(ROOT)} names {name}, which does not exist"
            if path.is_file():
                for document in yaml.safe_load_all(path.read_text()):
                    yield path.relative_to(ROOT), document
