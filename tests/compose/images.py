"""The images of the tests: those that the environment names, public ones that are here, else stand-ins made here.

With FILESTORAGE_TEST_PULL=1 missing public images are pulled.
"""

import hashlib
import os
import re
import subprocess

from harness import BINARY, ROOT

# Variable: the public image, and the name that deploy/stand-ins has for its own.
PUBLIC = {
    "RUNTIME_IMAGE": ("gcr.io/distroless/cc-debian12:nonroot", "runtime"),
    "RABBITMQ_IMAGE": ("rabbitmq:4-management", "rabbitmq"),
    "GCS_EMULATOR_IMAGE": ("fsouza/fake-gcs-server:1.54.0", "gcs"),
    "S3_IMAGE": ("chrislusf/seaweedfs:4.48", "s3"),
    "PYTHON_IMAGE": ("python:3.13-slim", "python"),
    "REDIS_IMAGE": ("redis:8-alpine", "redis"),
}
# The generation before: a test that runs on it puts it in the place of RABBITMQ_IMAGE.
OLDER = {"RABBITMQ3_IMAGE": ("rabbitmq:3-management", "rabbitmq3")}


def docker_fault():
    """Says why no container can be run here; None when one can."""
    try:
        done = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        return "docker is not installed"
    except subprocess.TimeoutExpired:
        return "docker does not answer"
    if done.returncode:
        return "docker does not answer"
    if compose_command() is None:
        return "neither `docker compose` nor `docker-compose` is installed"
    return None


def compose_command():
    """Compose v2 where it is, else the old docker-compose."""
    for command in (["docker", "compose"], ["docker-compose"]):
        try:
            done = subprocess.run([*command, "version"], capture_output=True, timeout=20, check=False)
        except FileNotFoundError:
            continue
        if done.returncode == 0:
            return command
    return None


def present(image):
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0


def base_images(catalogue=PUBLIC):
    """Maps each variable to an image that is on this machine afterwards."""
    found, wanted = {}, []
    for variable, (public, stand_in) in catalogue.items():
        given = os.environ.get(variable)
        if not given and os.environ.get("FILESTORAGE_TEST_PULL") == "1":
            subprocess.run(["docker", "pull", "-q", public], check=False)
        if given or present(public):
            found[variable] = given or public
        else:
            wanted.append(stand_in)
    if wanted:
        made = subprocess.run(
            [ROOT / "deploy" / "stand-ins", *wanted], stdout=subprocess.PIPE, text=True, timeout=1200, check=True
        )
        found |= dict(re.findall(r"^export (\w+)=(.*)$", made.stdout, re.M))
    return found


def rabbitmq_major(image):
    """The generation of a broker's image: 3 or 4."""
    done = subprocess.run(
        ["docker", "run", "--rm", "--entrypoint", "rabbitmqctl", image, "-q", "version"],
        capture_output=True, text=True, timeout=120, check=True,
    )
    return int(re.match(r"\d+", done.stdout.strip().splitlines()[-1])[0])


def own_tag():
    """The name of this checkout's image: several may test on one machine."""
    return f"filestorage-test:{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}"


def worker_image(bases, tag=None):
    """Builds the worker's image from the binary under test and returns its name and what the build printed."""
    tag = tag or own_tag()
    done = subprocess.run(
        [ROOT / "deploy" / "image" / "build", "--binary", BINARY, "--tag", tag],
        env={**os.environ, **bases},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"deploy/image/build: {done.stdout}{done.stderr}"
    return tag, done.stdout.strip()


def newer_image(image):
    """Makes another image out of the worker's, with a revision of its own, and returns its name.

    The program in it is the same: a second one would have to be compiled from another commit, which takes too long for a test.
    """
    tag = f"{own_tag()}-newer"
    recipe = f"FROM {image}\nLABEL org.opencontainers.image.revision=newer\n"
    subprocess.run(["docker", "build", "-q", "-t", tag, "-"], input=recipe, stdout=subprocess.PIPE, text=True, check=True)
    assert image_id(tag) != image_id(image)
    return tag


def image_id(image):
    done = subprocess.run(
        ["docker", "image", "inspect", "-f", "{{.Id}}", image], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.strip()
