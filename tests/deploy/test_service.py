"""The unit and the Dockerfile: held against lfd-run's exit codes, checked by systemd's own tools, their lines run."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from servers import PASSWORD, http_command, serving

from lfd.console import EXIT_INTERRUPTED
from lfd.errors import LfdError, ModelError, SourceError, UsageError

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
SERVICE = ROOT / "deploy" / "service"
UNIT = SERVICE / "lfd-run@.service"
PATIENCE_S = 30.0
"""On a machine that others keep busy."""


def section(name: str) -> dict[str, list[str]]:
    """Settings of a section of the unit, each with its values in order."""
    found: dict[str, list[str]] = {}
    text = UNIT.read_text(encoding="utf-8").partition(f"[{name}]\n")[2].partition("\n[")[0]
    for line in text.splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def variables(path: Path) -> dict[str, str]:
    """What systemd reads of an EnvironmentFile without quotes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def expanded(line: str, env: dict[str, str]) -> list[str]:
    """The words that systemd makes of ExecStart: `${NAME}` as it is, `$NAME` divided at blanks (systemd.service(5))."""
    words: list[str] = []
    for word in line.split():
        words += shlex.split(env[word[1:]]) if re.fullmatch(r"\$\w+", word) else [
            re.sub(r"\$\{(\w+)\}", lambda match: env[match[1]], word)
        ]  # fmt: skip
    return words


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, with lines that go on put together."""
    text = (SERVICE / "Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines.splitlines()) if name]


def last(name: str) -> str:
    return [rest for found, rest in instructions() if found == name][-1]


@pytest.mark.parametrize(
    ("code", "restarts", "is_success"),
    [
        (0, False, True),
        (LfdError.exit_code, True, False),
        (UsageError.exit_code, False, False),
        (SourceError.exit_code, True, False),
        (ModelError.exit_code, False, False),
        (EXIT_INTERRUPTED, False, True),
    ],
)
def test_what_follows_an_exit_code(code: int, restarts: bool, is_success: bool) -> None:
    service = section("Service")
    assert service["Restart"] == ["on-failure"]
    succeeds = code == 0 or str(code) in service["SuccessExitStatus"][0].split()
    assert succeeds == is_success
    assert (not succeeds and str(code) not in service["RestartPreventExitStatus"][0].split()) == restarts


def test_every_exit_code_is_in_the_table() -> None:
    known = {0, 1, 2, 3, 4, EXIT_INTERRUPTED}
    kinds = [LfdError, *LfdError.__subclasses__()]
    assert {kind.exit_code for kind in kinds} <= known


def systemd_analyze(*args: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    return subprocess.run(["systemd-analyze", *args], capture_output=True, text=True, timeout=60, check=False)


def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    program = section("Service")["ExecStart"][0].split()[0]
    unit = tmp_path / UNIT.name
    # It looks for the program, which stands elsewhere here.
    unit.write_text(UNIT.read_text(encoding="utf-8").replace(program, sys.executable), encoding="utf-8")
    done = systemd_analyze("verify", "--man=no", str(unit).replace("@", "@front"))
    if "Failed to" in done.stderr and "manager" in done.stderr:
        pytest.skip(f"systemd-analyze does not work here: {done.stderr.strip()}")
    ours = [line for line in done.stderr.splitlines() if "lfd-run" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


def test_the_service_is_locked_up() -> None:
    done = systemd_analyze("security", "--offline=true", "--threshold=20", str(UNIT))  # in tenths: 2.0 of 10
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot judge a file")
    assert done.returncode == 0, done.stdout[-400:] + done.stderr


def health(port: int, token: str) -> int:
    page = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        page.request("GET", "/healthz", headers={"Authorization": f"Bearer {token}"})
        return page.getresponse().status
    except OSError:
        return 0
    finally:
        page.close()


def until(port: int, token: str, status: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while (found := health(port, token)) != status:
        assert time.monotonic() < end, f"/healthz answers {found}, never {status}"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(env: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the unit's start line, with its variables, in the folder that systemd would give it."""
    program, *words = expanded(section("Service")["ExecStart"][0], env)
    assert program == "/opt/lfd/bin/lfd-run"
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", *words],
        cwd=folder,
        env=os.environ | env | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_service_lives_through_an_outage_and_ends_when_told(tiny_model: Path, tmp_path: Path) -> None:
    """The camera is killed and comes back; a password with all characters is in no process list and no log."""
    token, port = "0123456789abcdef", free_port()
    (tmp_path / "lines.jsonl").write_text("of an earlier start\n", encoding="utf-8")
    with serving(http_command()) as camera:
        env = variables(SERVICE / "lfd-run.env") | {
            "MODEL": str(tiny_model),
            "SOURCE": f"http://viewer:${{CAMERA_PASSWORD}}@127.0.0.1:{camera.port}/basic",
            "CAMERA_PASSWORD": PASSWORD,
            "SINKS": f"http://127.0.0.1:{port}?token=${{PAGE_TOKEN}} lines.jsonl",
            "PAGE_TOKEN": token,
            "OPTIONS": "--overwrite",
        }
        with started(env, tmp_path) as process:
            until(port, token, 200)
            if sys.platform == "linux":
                shown = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode()
                assert "${CAMERA_PASSWORD}" in shown and PASSWORD not in shown and token not in shown
            camera.kill()
            until(port, token, 503)
            assert process.poll() is None
            camera.start()
            until(port, token, 200)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == EXIT_INTERRUPTED, err
    assert "interrupted and flushed" in err
    assert PASSWORD not in out + err and token not in out + err
    lines = (tmp_path / "lines.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 1 and all(json.loads(line) for line in lines)


def test_files_of_an_earlier_start_end_the_service_for_good(tiny_model: Path, tmp_path: Path) -> None:
    """As the pattern of the variables says: without --overwrite it is usage, which is not tried again."""
    (tmp_path / "lines.jsonl").touch()
    env = {"MODEL": str(tiny_model), "SOURCE": "street:?frames=2", "SINKS": "lines.jsonl", "OPTIONS": ""}
    with started(env, tmp_path) as process:
        assert process.wait(PATIENCE_S) == UsageError.exit_code


def test_the_pattern_has_every_variable_of_the_start_line() -> None:
    used = set(re.findall(r"\$\{?(\w+)", section("Service")["ExecStart"][0]))
    env = variables(SERVICE / "lfd-run.env")
    assert used <= set(env)
    inner = set(re.findall(r"\$\{(\w+)\}", "".join(env.values())))
    assert inner <= set(env) and inner, "the password of SOURCE"


def test_the_healthcheck_of_the_image_tells_a_run_from_none(tiny_model: Path, tmp_path: Path) -> None:
    port, token = free_port(), "0123456789abcdef"
    rest = last("HEALTHCHECK")
    python, *words = json.loads(rest[rest.index("CMD") + len("CMD") :])
    assert python == "python3" and "8080" in words[-1]

    def check(**env: str) -> int:
        """Of several containers on a host's network each has a page of its own."""
        env = os.environ | {"PORT": str(port)} | env
        done = subprocess.run([sys.executable, *words], env=env, capture_output=True, timeout=30, check=False)
        return done.returncode

    assert check() == 1, "nothing listens"
    env = {"MODEL": str(tiny_model), "SOURCE": "street:?fps=25", "OPTIONS": ""}
    env["SINKS"] = f"http://127.0.0.1:{port}?token={token}"
    with started(env, tmp_path):
        until(port, token, 200)
        assert check(TOKEN=token) == 0
        assert check() == 1, "without the token"


def test_the_container_is_there_after_a_restart_of_the_machine() -> None:
    """Docker's documentation: on-failure does not start a container with the daemon; a count gives up on a camera."""
    policies = re.findall(r"--restart (\S+)", (SERVICE / "Dockerfile").read_text(encoding="utf-8"))
    assert policies == ["unless-stopped"]


def test_the_image_is_pinned_small_and_not_root() -> None:
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    arguments = dict(rest.split("=", 1) for name, rest in instructions() if name == "ARG")
    assert bases == ["${BASE}", "${BASE}"]
    image, _, tag = arguments["BASE"].partition(":")
    assert "/" not in image and tag.endswith("-slim")
    user, group = last("USER").split(":")
    assert int(user) >= 10000 and int(group) >= 10000
    # Process 1 does not end by a signal it has no handler for, and Python has one for SIGINT alone.
    assert last("STOPSIGNAL") == "SIGINT"
    assert json.loads(last("ENTRYPOINT")) == ["lfd-run"]


def test_the_image_has_all_that_a_wheel_is_made_of_and_no_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    copied = [word for name, rest in instructions() if name == "COPY" for word in rest.split()[:-1]]
    copied = [word for word in copied if not word.startswith("--") and not word.startswith("/")]
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {"pyproject.toml", project["project"]["readme"], *wheel} <= set(copied)
    assert all((ROOT / word).exists() for word in copied)
    allowed = (SERVICE / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert allowed[0] == "*" and {f"!{word}" for word in copied} == {line for line in allowed if line.startswith("!")}
    # The last line that fits decides: a front.env beside its pattern has passwords.
    assert allowed.index(SERVICE.relative_to(ROOT).as_posix()) > allowed.index("!deploy")
    extras = dict(rest.split("=", 1) for name, rest in instructions() if name == "ARG")["EXTRAS"].split(",")
    needed = [word for extra in extras for word in project["project"]["optional-dependencies"][extra]]
    assert needed and not [word for word in needed if re.match(r"torch|onnx\b|lfd-toolkit", word)]
