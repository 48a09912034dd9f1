"""deploy/k8s as a cluster would take it: its documents, and a container of it as a process on loopback.

    with pod(container, folder) as running:
        running.probe("startupProbe")

What the image brings is told here once: its entry point is virtex, its user's service is service.py in its folder.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kit.servers import ROOT, Running, free_port

FOLDER = ROOT / "deploy" / "k8s"
ENTRYPOINT = [sys.executable, "-m", "virtex"]
PORT = 8080  # in the manifests; a free one stands in for it


@functools.cache
def manifests() -> dict[str, list[Any]]:
    """Every file by its path below deploy/k8s, with its documents."""
    files = sorted(FOLDER.rglob("*.yaml"))
    return {str(path.relative_to(FOLDER)): list(yaml.safe_load_all(path.read_text())) for path in files}


def document(path: str, kind: str = "") -> Any:
    """The one document of a file, or the one of this kind."""
    (found,) = [each for each in manifests()[path] if not kind or each["kind"] == kind]
    return found


def container_of(path: str, kind: str) -> Any:
    """The one container of a workload, or of a ServingRuntime, whose spec is a pod's."""
    spec = document(path, kind)["spec"]
    (container,) = spec["template"]["spec"]["containers"] if "template" in spec else spec["containers"]
    return container


def command(container: dict[str, Any], port: int) -> list[str]:
    """What runs in it, on loopback."""
    words = [*(container.get("command") or ENTRYPOINT), *container.get("args", ())]
    return [word.replace(f"0.0.0.0:{PORT}", f"127.0.0.1:{port}") for word in words]


def variables(container: dict[str, Any], name: str = "") -> dict[str, str]:
    """Its environment. name: of the InferenceService, for what KServe fills in."""
    return {each["name"]: each["value"].replace("{{.Name}}", name) for each in container.get("env", ())}


class Pod(Running):
    """The process of a container, and what a kubelet does to it."""

    def __init__(self, container: dict[str, Any], process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
        super().__init__(process, port, folder)
        self.container = container

    def probe(self, name: str) -> int | None:
        """The status of a probe; None for no answer in timeoutSeconds. From 200 to 399 a kubelet takes for success."""
        asked, port = self.container[name], self.container["ports"][0]
        assert asked["httpGet"]["port"] in (port["name"], port["containerPort"])
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=asked.get("timeoutSeconds", 1))
        try:
            connection.request("GET", asked["httpGet"]["path"])
            return connection.getresponse().status
        except OSError:
            return None
        finally:
            connection.close()

    def stop(self) -> None:
        """At once: a drain would wait for VIRTEX_DRAIN_DELAY."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the group is this pod's alone
        super().stop()


@contextlib.contextmanager
def pod(container: dict[str, Any], folder: Path, name: str = "", **more: str) -> Iterator[Pod]:
    """The container's command, run in a folder with a service.py. more: variables in place of the container's."""
    port = free_port()
    paths = os.pathsep.join([str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"} | variables(container, name) | more
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command(container, port), cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
        )
    running = Pod(container, process, port, folder)
    try:
        yield running
    finally:
        running.stop()
