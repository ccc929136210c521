"""The systemd units: what they must say, what they must not, and what systemd itself says of them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "deploy/systemd"
UNITS = ("hansa-coordinator.service", "hansa-participant.service")
EXPOSURE_MOST = 13  # of 100; systemd 252 gives 11 for both

REQUIRED = {
    "Type": "notify",
    "Restart": "on-failure",
    "KillMode": "mixed",
    "StateDirectoryMode": "0700",
    "UMask": "0077",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "LimitCORE": "0",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateUsers": "yes",
    "PrivateMounts": "yes",
    "ProtectClock": "yes",
    "ProtectControlGroups": "yes",
    "ProtectHostname": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectProc": "invisible",
    "RemoveIPC": "yes",
    "KeyringMode": "private",
    "LockPersonality": "yes",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "SystemCallArchitectures": "native",
    "SystemCallErrorNumber": "EPERM",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
}
ENVIRONMENT = {"PYTHONSAFEPATH": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def directives(name, section="Service"):
    """All values of each directive of a section, in order."""
    found, inside = {}, None
    for line in (FOLDER / name).read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        if head := re.fullmatch(r"\[(\w+)\]", line):
            inside = head[1]
        elif inside == section:
            key, equals, value = line.partition("=")
            assert equals, line
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_says_everything_that_it_must(unit):
    found = directives(unit)
    assert {key: found.get(key) for key in REQUIRED} == {key: [value] for key, value in REQUIRED.items()}
    assert found["SystemCallFilter"] == ["@system-service", "~@privileged @resources"]
    assert "78" in found["RestartPreventExitStatus"][0].split()
    assert int(found["WatchdogSec"][0]) > 0
    environment = dict(pair.split("=", 1) for line in found["Environment"] for pair in line.split())
    assert environment.items() >= ENVIRONMENT.items()
    assert directives(unit, "Unit")["StartLimitIntervalSec"] == ["0"]


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_runs_the_daemon_on_the_one_folder_that_it_may_write_as_a_user_of_its_own(unit):
    found, name = directives(unit), unit.removesuffix(".service")
    side = name.removeprefix("hansa-")
    assert found["ExecStart"] == [f"/srv/hansa/bin/hansa {side} run --home %S/{name}"]
    assert found["StateDirectory"] == found["User"] == found["Group"] == [name]
    assert "ReadWritePaths" not in found
    users = (FOLDER / "hansa.sysusers").read_text()
    assert re.search(rf"^u {name} - ", users, re.MULTILINE)


def test_the_participant_talks_to_nobody_who_is_not_named_and_keeps_what_it_needs():
    found = directives("hansa-participant.service")
    assert found["IPAddressDeny"] == ["any"]
    assert found["IPAddressAllow"] == ["localhost"]
    # /proc of torch and psutil, compiled kernels, the GPU:
    assert {"ProcSubset", "MemoryDenyWriteExecute", "PrivateDevices"} & found.keys() == set()
    assert found["DevicePolicy"] == ["closed"]
    assert found["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    own = directives("hansa-participant.override.conf")
    assert set(own) == {"IPAddressAllow", "LoadCredential"}


def test_the_coordinator_sees_no_device_and_only_its_processes():
    found = directives("hansa-coordinator.service")
    assert found["PrivateDevices"] == ["yes"]
    assert found["ProcSubset"] == ["pid"]


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_no_secret_stands_in_a_unit(path):
    assert not re.search(r"(?i)(password|secret|token)=\S", path.read_text())
    assert "SetCredential" not in path.read_text()


# -- systemd's own opinion -----------------------------------------------------------------------------------


def analyze(*arguments):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("there is no systemd-analyze here")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    if "Failed to connect" in done.stderr or "not been booted" in done.stderr:
        pytest.skip(done.stderr.strip())
    return done


@pytest.fixture
def installed(tmp_path):
    """Copies of the units whose program is one that is on every machine."""
    for unit in UNITS:
        text = (FOLDER / unit).read_text().replace("/srv/hansa/bin/hansa", "/bin/true")
        (tmp_path / unit).write_text(text)
        folder = tmp_path / f"{unit}.d"
        folder.mkdir()
    shutil.copy(FOLDER / "hansa-participant.override.conf", tmp_path / f"{UNITS[1]}.d/override.conf")
    return tmp_path


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_nothing_wrong(installed, unit):
    done = analyze("verify", "--recursive-errors=no", str(installed / unit))
    assert (done.returncode, done.stderr.strip()) == (0, "")


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_little_exposed(installed, unit):
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MOST}", str(installed / unit))
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Overall exposure level" in done.stdout


def test_the_check_of_exposure_can_fail(installed):
    unit = installed / UNITS[0]
    unit.write_text(unit.read_text().replace("NoNewPrivileges=yes", "NoNewPrivileges=no"))
    unit.write_text(unit.read_text().replace("SystemCallFilter=", "# "))
    assert analyze("security", "--offline=true", f"--threshold={EXPOSURE_MOST}", str(unit)).returncode != 0
