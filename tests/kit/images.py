"""Images that buildah makes in a folder of its own, without a daemon, and without a registry to begin from.

images = Images(folder)
images.base()
images.build("virtex", dockerfile, context, "--build-arg", "BASE=localhost/debian-python")
root, config = images.root("virtex"), images.config("virtex")
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from kit.container import Config

BASE = """
FROM scratch
ADD base.tar /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
RUN ln -s python3 /usr/bin/python
"""
# How this machine reaches its index: for the steps of a build, not for the image
HOSTS = ("/etc/pip.conf", "/etc/ssl/certs")


class Images:
    """buildah in a folder of its own, without a daemon and without a registry."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.store = ["--root", f"{folder}/store", "--runroot", f"{folder}/run", "--storage-driver", "overlay"]
        self.mounted: list[str] = []

    def buildah(self, *words: str) -> str:
        command = ["buildah", *self.store, *words]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
        return ended.stdout.strip()

    def build(self, tag: str, dockerfile: Path, context: Path, *arguments: str) -> None:
        mounts = [f"--volume={path}:{path}:ro" for path in HOSTS if os.path.exists(path)]
        how = ["bud", "--isolation", "chroot", "--layers", "--format", "docker", "--pull-never"]
        self.buildah(*how, *mounts, "--file", str(dockerfile), "--tag", tag, *arguments, str(context))

    def base(self) -> None:
        """A Debian with its Python, as BASE wants it, under the name of debian-python."""
        root, archive = self.folder / "debian", self.folder / "base.tar"
        if not archive.exists():
            more = "--include=ca-certificates,python3,python3-venv,python3-dev"
            command = ["debootstrap", "--variant=minbase", more, "trixie", str(root)]
            subprocess.run(command, check=True, capture_output=True)
            without = ("dev", "proc", "sys", "var/cache/apt", "var/lib/apt/lists")
            left_out = [f"--exclude=./{each}/*" for each in without]
            subprocess.run(["tar", "-C", str(root), *left_out, "-cf", f"{archive}.new", "."], check=True)
            os.rename(f"{archive}.new", archive)
        (self.folder / "Dockerfile.base").write_text(BASE)
        (self.folder / ".dockerignore").write_text("*\n!base.tar\n")
        self.build("debian-python", self.folder / "Dockerfile.base", self.folder)

    def config(self, tag: str) -> Config:
        """What buildah wrote into the image."""
        said = json.loads(self.buildah("inspect", "--type", "image", tag))["Docker"]["config"]
        return Config(
            dict(pair.split("=", 1) for pair in said["Env"]),
            said["User"],
            said["WorkingDir"],
            said["Entrypoint"] + said["Cmd"],
            said["Healthcheck"]["Test"][1:],
            said["StopSignal"],
            [port.removesuffix("/tcp") for port in said["ExposedPorts"]],
        )

    def root(self, tag: str) -> Path:
        """The image's files."""
        self.mounted.append(self.buildah("from", "--pull-never", tag))
        return Path(self.buildah("mount", self.mounted[-1]))

    def close(self) -> None:
        for name in self.mounted:
            self.buildah("rm", name)
