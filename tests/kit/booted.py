"""A systemd that runs: it boots in namespaces of its own, with a copy-on-write root, and is gone with them.

    with Booted(folder, SOURCE) as machine:
        machine.run("systemctl", "start", "virtex.socket")

Needs root, and a kernel that lets it. It has this machine's files, /proc/sys and /sys to read, a network of its own,
and of units those of deploy/systemd with what they ask for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from kit.servers import ROOT, until

MANAGER = "/lib/systemd/systemd"

# A root of our own, over that of the machine. $1: a folder for what is written.
_ROOT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
"""

# What a machine may not let us do
_MAY = f"""{_ROOT}mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
pivot_root . mnt
"""

# $1: a folder for what is written. $2: Python's own prefix. $3: where its libraries are. $4: the repository.
_BOOT = f"""{_ROOT}mkdir -p opt/virtex/bin opt/virtex/lib/libraries opt/virtex/src/virtex opt/python
mount --bind "$2" opt/python
mount --bind "$3" opt/virtex/lib/libraries
mount --bind "$4/virtex" opt/virtex/src/virtex
cp "$1"-server.py opt/virtex/server.py
printf '#!/bin/sh\\nexec /opt/python/bin/python3 -m virtex "$@"\\n' >opt/virtex/bin/virtex
chmod -R a+rX opt/virtex/server.py opt/virtex/bin
chmod +x opt/virtex/bin/virtex
echo PYTHONPATH=/opt/virtex/src:/opt/virtex/lib/libraries LD_LIBRARY_PATH=/opt/python/lib | tr ' ' '\\n' >etc/virtex.env
rm -rf etc/systemd/system/*
cp "$4"/deploy/systemd/virtex.s* etc/systemd/system/
for unit in lib/systemd/system/sysinit.target.wants/*; do
    ln -s /dev/null "etc/systemd/system/${{unit##*/}}"
done
printf '[Unit]\\nDefaultDependencies=no\\n' >etc/systemd/system/default.target
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs dev
for device in null zero full random urandom tty; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/shm dev/pts
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
pivot_root . mnt
umount -l /mnt
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin {MANAGER} --log-target=null --show-status=no
"""


class Booted:
    def __init__(self, folder: Path, source: str) -> None:
        tools = [shutil.which(tool) for tool in ("unshare", "nsenter", "systemctl")]
        if os.geteuid() != 0 or None in tools or not os.path.exists(MANAGER):
            pytest.skip("only root can boot a systemd, where there is one")
        spaces = ["--mount", "--pid", "--fork", "--cgroup", "--uts", "--ipc", "--net", "--kill-child"]
        may = subprocess.run(
            ["unshare", *spaces, "sh", "-c", _MAY, "sh", str(folder)], capture_output=True, text=True, timeout=120
        )
        if may.returncode:
            pytest.skip(f"this machine does not let a systemd be booted: {may.stderr[-300:]}")
        self._root = folder / "root"
        self._root.mkdir()
        Path(f"{self._root}-server.py").write_text(source)
        places = [str(self._root), sys.base_prefix, sysconfig.get_path("purelib"), str(ROOT)]
        self._log = folder / "boot"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", *spaces, "sh", "-c", _BOOT, "sh", *places], stdout=log, stderr=log
            )

    def run(self, *command: str) -> str:
        done = subprocess.run(
            ["nsenter", f"--target={self._pid}", "--all", *command], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    @property
    def _files(self) -> Path:
        """The machine's files, seen from here: proc(5)."""
        return Path("/proc") / self._pid / "root"

    @property
    def socket(self) -> str:
        """Where virtex.sock is, seen from here."""
        return str(self._files / "run" / "virtex.sock")

    def __enter__(self) -> Booted:
        def runs() -> bool:
            if self._process.poll() is not None:
                return True
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            self._pid = children[0] if children else ""
            return bool(children) and (self._files / "run" / "systemd" / "private").exists()

        until(runs, "systemd to boot")
        assert self._process.poll() is None, f"systemd did not boot: {self._log.read_text()[-1000:]}"
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait(10)
