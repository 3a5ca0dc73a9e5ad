"""A host of NNI's remote training service, on this machine: an SSH server with a home of its own.

Started as `python ssh_host.py HOME ADDRESS PORT`; whoever has the password `secret` or the key HOME/.ssh/id may log in.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import asyncssh
import psutil


class Server(asyncssh.SSHServer):
    def begin_auth(self, username):
        return True

    def password_auth_supported(self):
        return True

    def validate_password(self, username, password):
        return password == "secret"


class Files(asyncssh.SFTPServer):
    def map_path(self, path):
        return os.path.join(os.environb[b"HOME"], path)


async def session(process):
    running = await asyncio.create_subprocess_shell(
        process.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    await process.redirect(running.stdin, running.stdout, running.stderr)
    code = await running.wait()
    # Its last words may be on their way; what it leaves running may hold the pipes for longer.
    drained = asyncio.gather(process.stdout.drain(), process.stderr.drain())
    await asyncio.wait([drained], timeout=5)
    process.exit(code)


async def serve(home, address, port):
    key = home / ".ssh" / "id"
    key.parent.mkdir(parents=True, exist_ok=True)
    if not key.exists():
        generated = asyncssh.generate_private_key("ssh-ed25519")
        generated.write_private_key(key)
        generated.write_public_key(home / ".ssh" / "authorized_keys")
    await asyncssh.create_server(
        Server, address, port, server_host_keys=[str(key)], process_factory=session, sftp_factory=Files,
        authorized_client_keys=str(home / ".ssh" / "authorized_keys"), encoding=None,
    )  # fmt: skip
    print("ready", flush=True)
    await asyncio.Event().wait()


class Host:
    """A host that is started and ended by a test."""

    def __init__(self, home, address, port, by_key=False):
        self.home, self.address, self.port, self.by_key = home, address, port, by_key
        home.mkdir(exist_ok=True)
        self._process = None
        self.start()

    def start(self):
        programs = str(Path(sys.executable).parent)
        kept = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
        environment = {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "HOME": str(self.home),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            # NNI runs `pip install nni --upgrade`: what is installed will do.
            "PIP_NO_INDEX": "1",
        }
        words = [sys.executable, __file__, str(self.home), self.address, str(self.port)]
        log = (self.home / "ssh.log").open("a")
        self._process = subprocess.Popen(
            words, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, cwd=self.home
        )
        assert self._process.stdout.readline() == "ready\n"

    @property
    def machine(self):
        """Its entry in `machineList`."""
        login = {"sshKeyFile": str(self.home / ".ssh" / "id")} if self.by_key else {"password": "secret"}
        return {"host": self.address, "port": self.port, "user": "somebody", **login}

    def trials_of(self, experiment):
        """The output directories of an experiment's trials on this host."""
        folders = (self.home / "nni-experiments" / experiment.id / "environments").glob("*/trials/*")
        return {folder.name: folder for folder in folders if (folder / "trial.stderr").exists()}

    def end(self):
        """As if the power went: everything that runs in its home is killed."""
        for process in psutil.process_iter():
            try:
                if process.environ().get("HOME") == str(self.home):
                    process.kill()
            except psutil.Error:
                continue
        self._process.wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
