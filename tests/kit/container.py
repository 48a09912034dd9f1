"""A root directory run as a container: process 1 of namespaces of its own, as the image's user, on a read-only root.

    config = Config.of(DOCKERFILE)
    with container(root, config, folder, PORT="8080") as running:
        running.run("id", "-u")

What a runtime does by default holds here too: /dev is small, /dev/shm is the one place that can be written, and no
capability is left. The network is the machine's: the tests ask over loopback.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from kit.servers import Running, listens, until

# $1: where the root is put together, $2: the root, $3: the service's folder, $4: where that is in the container, $5: a
# folder to show to the container's user, and $6: the one above it that hides it
_ENTER = """
mount --bind "$2" "$1"
[ -z "$6" ] || { mount -t tmpfs tmpfs "$1$6"; chmod 755 "$1$6"; mkdir -p "$1$5"; mount --bind "$5" "$1$5"; }
[ "$3" = "$4" ] || { mount --bind "$3" "$1$4"; mount -o remount,bind,ro "$1$4"; }
mount -o remount,bind,ro "$1"
mount -t proc proc "$1/proc"
mount -t tmpfs -o mode=755 tmpfs "$1/dev"
mkdir "$1/dev/shm"
for node in null zero full random urandom; do touch "$1/dev/$node"; mount --bind "/dev/$node" "$1/dev/$node"; done
mount -o remount,ro "$1/dev"
mount -t tmpfs -o mode=1777,size=64m tmpfs "$1/dev/shm"
cd /
at=$1; shift 6
exec chroot --userspec="$1" --groups= "$at" "${@:2}"
"""


def directives(path: Path) -> list[tuple[str, str]]:
    """The lines of a Dockerfile, those that go on joined: each its instruction, and what follows it."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


def stages(path: Path) -> list[list[tuple[str, str]]]:
    """The directives behind each FROM, which is the first of its stage."""
    found: list[list[tuple[str, str]]] = []
    for name, rest in directives(path):
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append((name, rest))
    return found


class Config(NamedTuple):
    """What an image tells a runtime."""

    env: dict[str, str]
    user: str
    folder: str
    command: list[str]
    check: list[str]
    stop: str
    ports: list[str]

    @classmethod
    def of(cls, dockerfile: Path) -> Config:
        last = stages(dockerfile)[-1]
        said = dict(last)
        env = dict(pair.split("=", 1) for name, rest in last if name == "ENV" for pair in shlex.split(rest))
        return cls(
            {name: value.replace(":$PATH", ":/usr/local/bin:/usr/bin:/bin") for name, value in env.items()},
            said["USER"],
            said["WORKDIR"],
            json.loads(said["ENTRYPOINT"]) + json.loads(said["CMD"]),
            json.loads(said["HEALTHCHECK"].partition("CMD ")[2]),
            said["STOPSIGNAL"],
            said["EXPOSE"].split(),
        )

    def words(self, command: list[str], env: dict[str, str]) -> list[str]:
        """What runs a command of the container in its environment, and in no other."""
        pairs = [f"{name}={value}" for name, value in {**self.env, **env}.items()]
        return ["env", "-i", f"--chdir={self.folder}", *pairs, *command]


class Container(Running):
    """A Running whose process is the one that made the namespaces; process 1 of the container is its child."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, folder: Path, config: Config, **env: str) -> None:
        super().__init__(process, port, folder)
        self.config = config
        self.env = env

    @property
    def init(self) -> int:
        """Process 1, by its number outside."""
        pids = self.workers()
        assert pids, self.log
        return pids[0]

    def children(self) -> list[int]:
        """Those of process 1, also who has ended and was not reaped."""
        return [int(pid) for pid in Path(f"/proc/{self.init}/task/{self.init}/children").read_text().split()]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """As `docker exec` and a health check do."""
        user, group = self.config.user.split(":")
        enter = ["nsenter", f"--target={self.init}", "--mount", "--pid", "--root", "--wd"]
        words = [*enter, f"--setuid={user}", f"--setgid={group}", *self.config.words([*command], self.env)]
        return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)

    def stop(self) -> None:
        """All of it at once: unshare itself takes no SIGTERM while its child lives."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def status(self, name: str, pid: int) -> str:
        """A line of /proc/PID/status."""
        text = Path(f"/proc/{pid}/status").read_text()
        return " ".join(text.partition(f"\n{name}:")[2].partition("\n")[0].split())


@contextlib.contextmanager
def container(root: Path, config: Config, port: int, folder: Path, shown: Path = Path("/")) -> Iterator[Container]:
    """Run the image's command, with the service's folder in the place of the image's. shown: what the user may read."""
    env = {"PORT": str(port)}
    with TemporaryDirectory(prefix="virtex-root-") as at, (folder / "log").open("wb") as log:
        words = config.words(config.command, env)
        where = [at, str(root), str(folder), config.folder, str(shown), hidden_by(shown)]
        enter = ["bash", "-ec", _ENTER, "enter", *where, config.user, *words]
        process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", *enter],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        running = Container(process, port, folder, config, **env)
        try:
            yield running
        finally:
            running.stop()


def hidden_by(folder: Path) -> str:
    """The topmost folder above it that only its owner may pass; "" for none."""
    return next((str(each) for each in reversed([folder, *folder.parents]) if not each.stat().st_mode & 1), "")


def can_be_run() -> bool:
    """Whether this process may make namespaces, and mount there."""
    words = ["unshare", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    with contextlib.suppress(OSError):
        return os.geteuid() == 0 and subprocess.run(words, capture_output=True, check=False).returncode == 0
    return False


def wait_healthy(running: Container) -> None:
    """As a runtime does: by the image's own check."""
    until(lambda: listens(running.port), f"a listener on port {running.port}", running)
    until(lambda: running.run(*running.config.check).returncode == 0, "the health check to pass", running)
