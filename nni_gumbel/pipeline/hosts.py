"""What the doctor finds on the hosts of NNI's remote training service, before an experiment starts there.

``python -m nni_gumbel.pipeline.hosts`` is what :func:`host_findings` runs on a host.
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nni_gumbel import __version__
from nni_gumbel.data import FIELD as DATA_FIELD
from nni_gumbel.data import FILE_PREFIX
from nni_gumbel.errors import UsageError, first_line
from nni_gumbel.pipeline.machine import (
    FAIL,
    OK,
    WARN,
    Finding,
    command_findings,
    finding_of,
    gpu_findings,
    version_findings,
    visible_gpus,
)
from nni_gumbel.pipeline.manager import check_params, plan_of, trial_command_of
from nni_gumbel.pipeline.remote import PATIENCE, Artifacts, connect, name_of

_LITTLE_SPACE = 2 * 1024**3


def host_findings(config: Mapping[str, Any], port: int) -> Iterator[Finding]:
    """What each host of an experiment has, and whether it reaches the manager.

    Args:
        config: the experiment's YAML in NNI's canonical form.
        port: that the manager is to listen at.
    """
    service = config["trainingService"]
    try:
        check_params(config)
        command, _ = trial_command_of(config)
        settings = plan_of({"params": config}).settings
    except UsageError:
        return  # told already
    versions = {name: version(name) for name in ("nni", "torch", "pytorch-lightning")}
    address = (service["nniManagerIp"], port)
    told = {
        "versions": {"nni-gumbel": __version__, **versions},
        "data": command.data,
        "artifacts": settings.artifacts,
        "manager": address,
        "trialConcurrency": math.ceil(config["trialConcurrency"] / len(service["machineList"])),
    }
    with ExitStack() as stack:
        try:
            told["token"] = stack.enter_context(_answering(address))
        except OSError as error:
            yield Finding(
                FAIL, "nniManagerIp",
                f"the manager could not listen at {address[0]}:{port}: {error.strerror}; give an address of this "
                "machine, and a --port that is free",
            )  # fmt: skip
            return
        for machine in service["machineList"]:
            names = ("useActiveGpu", "maxTrialNumberPerGpu", "gpuIndices")
            gpu_lines = {name: machine.get(name) for name in names}
            told["trainingService"] = {**gpu_lines, "trialGpuNumber": service.get("trialGpuNumber")}
            try:
                for finding in _of_host(machine, told):
                    yield Finding(
                        finding.level, f"{name_of(machine)} {finding.subject}".strip(), finding.text
                    )
            except Exception as error:  # whatever SSH raises in between
                yield Finding(
                    FAIL, name_of(machine), f"the connection is lost ({first_line(error)}); try again"
                )


def _of_host(machine: Mapping[str, Any], told: Mapping[str, Any]) -> Iterator[Finding]:
    try:
        files = connect(machine)
    except UsageError as error:
        yield Finding(FAIL, "", str(error))
        return

    def run(words: str, given: str = "") -> tuple[int, str, str]:
        path = f'PATH="{machine["pythonPath"]}:$PATH" ' if machine.get("pythonPath") else ""
        stdin, stdout, stderr = files.client.exec_command(path + words, timeout=10 * PATIENCE)
        if given:
            stdin.write(given)
            stdin.channel.shutdown_write()
        out, err = stdout.read().decode(errors="replace"), stderr.read().decode(errors="replace")
        return stdout.channel.recv_exit_status(), out, err

    with files.client:
        python = next((name for name in ("python", "python3") if run(f"{name} --version")[0] == 0), None)
        if python is None:
            yield Finding(
                FAIL, "Python", "there is none on the PATH of a login; give pythonPath, its bin folder"
            )
            return
        # NNI's manager does it at every start.
        code, _, error = run(f"{python} -m pip install nni --upgrade --dry-run --quiet")
        if code:
            yield Finding(
                FAIL, "pip", f"NNI runs `pip install nni --upgrade` there, which fails ({_last(error)}); let it reach "
                "a package index, or run `pip config set global.no-index true` there",
            )  # fmt: skip
        code, out, error = run(f"{python} -m nni_gumbel.pipeline.hosts", json.dumps(told))
        try:
            yield from (Finding(*map(str, each)) for each in json.loads(out.splitlines()[-1]))
        except (ValueError, IndexError, TypeError):
            remedy = f"install what this machine has there: `pip install nni-gumbel=={__version__}`, or from the clone"
            yield Finding(FAIL, "nni-gumbel", f"does not run there ({_last(error)}); {remedy}")


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["it says nothing"])[-1]


@contextmanager
def _answering(address: tuple[str, int]) -> Iterator[str]:
    """Somebody who answers at the manager's address, as long as there is no manager."""
    token = secrets.token_hex(8)

    def serve() -> None:
        while True:
            try:
                with server.accept()[0] as connection:
                    connection.sendall(token.encode())
            except OSError:  # closed
                return

    with socket.create_server(address) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield token
        server.shutdown(socket.SHUT_RDWR)


def _findings_here(told: Mapping[str, Any]) -> Iterator[Finding]:
    """The part of :func:`host_findings` that runs on the host."""
    bad = [each for each in version_findings() if each.level != OK]
    yield from bad
    yield Finding(OK, "Python", f"{sys.version.split()[0]}, {sys.executable}")
    for name, wanted in told["versions"].items():
        found = __version__ if name == "nni-gumbel" else _version(name)
        is_ours = name in ("nni", "nni-gumbel")
        if found not in (wanted, None):  # one that is missing is told above
            level, why = (FAIL, "the two must be alike") if is_ours else (WARN, "results may differ a little")
            yield Finding(level, name, f"{found} here, {wanted} on the manager's machine: {why}")
    yield from (each for each in command_findings() if each.subject == "nni-gumbel")
    yield from gpu_findings(told, visible_gpus())
    free = shutil.disk_usage(Path.home()).free
    level, remedy = (OK, "") if free > _LITTLE_SPACE else (WARN, "; make room")
    yield Finding(level, "disk", f"{free / 1024**3:.1f} GiB are free in {Path.home()}{remedy}")
    data = str(told["data"])
    path = Path(data.removeprefix(FILE_PREFIX)).expanduser()
    # Others are sent with the trial code directory.
    if data.startswith(FILE_PREFIX) and path.is_absolute():
        found = path.is_file()
        yield Finding(
            OK if found else FAIL, DATA_FIELD, str(path) if found else f"there is no {path}; copy it there"
        )
    if told["artifacts"] is not None:

        def artifacts() -> str:
            name = f".doctor-{secrets.token_hex(4)}"
            made = Artifacts.at(told["artifacts"], name)
            made.files.rmdir(made.root)
            return f"{told['artifacts']} can be written"

        yield finding_of("artifacts", artifacts)
    yield finding_of("manager", lambda: _reach(tuple(told["manager"]), told["token"]))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _reach(address: tuple[str, int], token: str) -> str:
    where = f"{address[0]}:{address[1]}"
    try:
        with socket.create_connection(address, timeout=PATIENCE) as connection:
            answer = connection.recv(len(token)).decode(errors="replace")
    except OSError as error:
        answer = first_line(error)
    if answer != token:
        raise UsageError(
            f"is not reached at {where} ({answer}); give nniManagerIp an address that this host reaches, and let "
            "the firewall pass it"
        )
    return f"is reached at {where}"


if __name__ == "__main__":
    print(
        json.dumps([[each.level, each.subject, each.text] for each in _findings_here(json.load(sys.stdin))])
    )
