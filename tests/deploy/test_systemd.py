"""The systemd units: understood by systemd, hard enough, and in keeping with the program they start."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "deploy" / "systemd"
EXAMPLE = ROOT / "deploy" / "filestorage.example.toml"
MANUAL = ROOT / "docs" / "how-to" / "systemd.md"
BINARY = Path(os.environ.get("FILESTORAGE_BIN", ROOT / "target" / "debug" / "filestorage"))
NAMES = ["filestorage.service", "filestorage@.service"]
MOST_EXPOSED = 1.5  # of 10, by systemd's own count; what is left is the network and the host's root folder
GOODBYE = 3 + 5  # seconds beyond the grace: closing channels, writes past their commit point

analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing; on Debian: apt-get install systemd"
)
built = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} does not exist; run: cargo build")


def settings(name):
    """The assignments of a unit: name to every value in turn."""
    found = {}
    for line in (UNITS / name).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


def installed(name, folder, text=None):
    """Writes the unit as an installation would leave it: the program stands where the unit looks for it."""
    program = folder / "filestorage"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = text or (UNITS / name).read_text()
    unit = folder / name.replace("@", "@8003")
    unit.write_text(re.sub(r"^ExecStart=filestorage", f"ExecStart={program}", text, flags=re.M))
    return unit


def complaints(unit):
    """What `systemd-analyze verify` says of this unit; of others on this machine it may say what it likes."""
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if unit.name in line]
    return said or ([done.stderr] if done.returncode else [])


@analyze
@pytest.mark.parametrize("name", NAMES)
def test_systemd_understands_every_line(name, tmp_path):
    assert complaints(installed(name, tmp_path)) == []
    planted = (UNITS / name).read_text().replace("ProtectSystem=strict", "ProtectSystm=strict")
    assert any("ProtectSystm" in line for line in complaints(installed(name, tmp_path, planted)))


@analyze
@pytest.mark.parametrize("name", NAMES)
def test_the_service_may_do_little(name, tmp_path):
    def exposure(unit):
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSED * 10:.0f}", str(unit)],
            capture_output=True, text=True, timeout=60, check=False,
        )
        level = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
        assert level, done.stdout + done.stderr
        return float(level[1]), done.returncode

    level, code = exposure(installed(name, tmp_path))
    assert (level <= MOST_EXPOSED, code) == (True, 0), level
    soft = (UNITS / name).read_text().replace("CapabilityBoundingSet=\n", "").replace("NoNewPrivileges=yes\n", "")
    assert exposure(installed(name, tmp_path, soft))[1] != 0


def test_a_stop_leaves_time_for_the_drain():
    default = re.search(r"^#shutdown_grace_seconds = (\d+)$", EXAMPLE.read_text(), re.M)
    for name in NAMES:
        [stop] = settings(name)["TimeoutStopSec"]
        assert int(stop) > int(default[1]) + GOODBYE


def test_a_reload_is_the_signal_that_reads_secrets_again():
    for name in NAMES:
        assert settings(name)["ExecReload"] == ["kill -HUP $MAINPID"]


def test_what_only_a_person_can_remedy_is_not_tried_again():
    codes = re.findall(r"^    (Usage|Configuration) = (\d+),$", (ROOT / "src" / "wiring" / "failure.rs").read_text(), re.M)
    assert len(codes) == 2
    for name in NAMES:
        [prevented] = settings(name)["RestartPreventExitStatus"]
        assert set(prevented.split()) == {code for _, code in codes}


def test_a_crash_restarts_the_unit_a_stop_with_work_does_not():
    """Any code but 0 counts as a crash with `Restart=on-failure`, save for what `SuccessExitStatus` adds."""
    [(_, left)] = re.findall(r"^    (TryAgain) = (\d+),$", (ROOT / "src" / "wiring" / "failure.rs").read_text(), re.M)
    for name in NAMES:
        assert settings(name)["SuccessExitStatus"] == [left]
        assert settings(name)["Restart"] == ["on-failure"]


@built
@pytest.mark.parametrize("name", NAMES)
def test_flags_and_variables_are_settings_that_are_known(name, tmp_path):
    """The program itself reads them; the credential lies where systemd would have put it."""
    (tmp_path / "broker-url").write_text("amqp://worker:secret@broker.example.org//\n")
    places = {"%d": str(tmp_path), "%S": str(tmp_path / "lib"), "%i": "8003", "%%": "%"}

    def expand(text):
        return re.sub("%.", lambda found: places[found[0]], text)

    [start] = settings(name)["ExecStart"]
    program, command, *flags = expand(start).replace("/etc/filestorage/filestorage.toml", str(EXAMPLE)).split()
    assert (program, command) == ("filestorage", "worker")
    variables = dict(expand(text).split("=", 1) for text in settings(name)["Environment"])
    done = subprocess.run(
        [str(BINARY), "config", *flags], env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    shown = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    for variable in variables:
        assert shown[variable.lower().removesuffix("_file")].endswith(f"environment {variable}")
    assert "amqp://worker:***@broker.example.org//" in shown["celery_broker_url"]
    assert str(tmp_path / "lib" / "filestorage") in shown["local_storage_path"]
    if "@" in name:
        assert "filestorage-8003@%h" in shown["worker_name"] and "8003" in shown["metrics_port"]


def test_every_folder_and_credential_fits_together():
    for name in NAMES:
        unit = settings(name)
        assert unit["StateDirectory"] == ["filestorage"] and "LOCAL_STORAGE_PATH=%S/filestorage" in unit["Environment"]
        [credential] = unit["LoadCredential"]
        assert f"CELERY_BROKER_URL_FILE=%d/{credential.split(':')[0]}" in unit["Environment"]
        assert unit["Type"] == ["notify"] and unit["KillMode"] == ["mixed"] and unit["Restart"] == ["on-failure"]


def test_both_units_differ_in_name_and_port_only():
    one, many = (settings(name) for name in NAMES)
    differing = {key for key in one | many if one.get(key) != many.get(key)}
    assert differing == {"Description", "ExecStart"}


# --- the store in the shell --------------------------------------------------------------------------------------------


def shell_line():
    """The line of the manual that opens the service's store, as words; systemd-run itself is not there in a test."""
    [block] = re.findall(r"^sudo (systemd-run (?:.*\\\n)*.*)$", MANUAL.read_text(), re.M)
    return shlex.split(block.replace("\\\n", " "))


def test_the_shell_has_the_service_s_user_and_environment():
    words = shell_line()
    given = dict(words[at + 1].split("=", 1) for at, word in enumerate(words) if word == "-p")
    unit = settings("filestorage.service")
    assert given == {name: unit[name][0] for name in given}
    assert set(given) >= {"DynamicUser", "User", "StateDirectory", "StateDirectoryMode", "UMask", "EnvironmentFile"}
    assert "--config /etc/filestorage/filestorage.toml" in unit["ExecStart"][0]
    assert words[-2:] == ["--config", "/etc/filestorage/filestorage.toml"]


@built
def test_the_shell_opens_the_store_that_the_settings_name(tmp_path):
    """The command itself, as systemd-run would start it; a bucket that is named is the one that is asked."""
    words = shell_line()
    command = words[words.index("filestorage") :]
    file = tmp_path / "filestorage.toml"
    command = [str(BINARY), *command[1:-1], str(file)]
    environment = {"LOCAL_STORAGE_PATH": str(tmp_path / "lib")}

    def listed(settings):
        file.write_text(settings)
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    assert (listed("").returncode, listed("").stdout) == (0, "")
    away = listed('gcs_bucket_name = "my-bucket"\nstorage_emulator_host = "http://127.0.0.1:9"\n')
    assert away.returncode != 0 and "127.0.0.1:9" in away.stderr, away.stderr
