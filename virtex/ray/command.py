"""What `virtex ray` does: starts a Ray of its own on this machine, deploys, and ends it all at Ctrl-C.

Rules: prints. What can't be meant is argparse.ArgumentError, before Ray is started; what failed is RuntimeError, with
the traceback of the replica in what is printed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..extras import library
from ..wire.addresses import bind_tcp
from .deploying import deployment

APP = "virtex"  # the name of the application in Ray
_RAYS_FRAME = re.compile(r'^  File "[^"]*/ray/serve/_private/.*\n(?:    .*\n)*', re.MULTILINE)
QUIET = {"log_level": "WARNING", "enable_access_log": False}


def serve(asked: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM. Raises OSError for a port that is taken, RuntimeError for what does not start."""
    library("ray.serve", "virtex ray", "ray")
    target = target_of(asked.app)
    import ray
    from ray import serve as rays

    application = _application(target, asked, rays)
    check_free(asked.host, asked.port)
    ray.init(address="local", include_dashboard=False, logging_level="WARNING")
    try:
        if not isinstance(target, rays.Application):
            check_resources(ray.cluster_resources(), _each(asked), asked.replicas or 1)
        http = {"host": asked.host, "port": asked.port}
        rays.start(http_options=http, proxy_location="HeadOnly", logging_config=QUIET)
        _deploy(rays, application)
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        print(f"serving {asked.app} at {_url(asked.host, asked.port)}; Ctrl-C ends it", flush=True)
        stop.wait()
        print("stopping: requests in flight are answered", flush=True)
        with suppress(TimeoutError):  # after a minute
            rays.delete(APP)  # the proxy stays meanwhile: shutdown() ends it at once
    finally:
        rays.shutdown()
        ray.shutdown()


def target_of(name: str) -> Any:
    """What a module has by a name: module:make. Raises argparse.ArgumentError where there is nothing."""
    sys.path.insert(0, os.getcwd())  # as gunicorn does
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if not (isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")):
            traceback.print_exc()
            raise RuntimeError(f"{module_name} could not be imported from {os.getcwd()}") from error
        raise argparse.ArgumentError(None, f"{name}: there is no module {error.name!r} here") from None
    if not hasattr(module, attribute):
        raise argparse.ArgumentError(None, f"{name}: {module_name} has no {attribute}")
    return getattr(module, attribute)


def _application(target: Any, asked: argparse.Namespace, rays: Any) -> Any:
    """What Ray runs: what was bound already, or a deployment of a function."""
    if isinstance(target, rays.Deployment):
        target = target.bind()
    if isinstance(target, rays.Application):
        said = [f"--{name}" for name in ("replicas", "cpus", "gpus") if getattr(asked, name) is not None]
        if said:
            reason = f"{asked.app} says by itself how it is deployed, so it goes without {', '.join(said)}"
            raise argparse.ArgumentError(None, reason)
        return target
    try:
        made = deployment(
            target,
            num_replicas=asked.replicas or 1,
            ray_actor_options=_each(asked),
            logging_config=QUIET,
            max_constructor_retry_count=1,  # what can't start is said at once, not three times
        )
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentError(None, f"{asked.app}: {error}") from error
    return made.bind()


def _each(asked: argparse.Namespace) -> dict[str, float]:
    """What each replica takes of the cluster, as Ray calls it."""
    return {"num_cpus": 1.0 if asked.cpus is None else asked.cpus, "num_gpus": asked.gpus or 0.0}


def check_free(host: str, port: int) -> None:
    """Raise OSError where that can't be listened on: Ray's proxy would share a port, or say less."""
    if not 0 < port < 65536:
        raise argparse.ArgumentError(None, f"--port {port}: expected a port from 1 to 65535")
    for sock in bind_tcp(host, port):
        sock.close()


def check_resources(there: Mapping[str, float], each: Mapping[str, float], replicas: int) -> None:
    """Raise RuntimeError where a cluster has not what replicas take: Ray would wait for it without an end."""
    for name, kind in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        needed, has = each[name] * replicas, there.get(kind, 0.0)
        if needed > has:
            raise RuntimeError(
                f"{replicas} x --{name.removeprefix('num_')} {each[name]:g} take {needed:g} {kind}s, and there are "
                f"{has:g}: Ray would wait for more without an end"
            )


def _deploy(rays: Any, application: Any) -> None:
    """Returns when all replicas are ready. Raises RuntimeError, once the traceback of one that is not is printed."""
    try:
        rays.run(application, name=APP, route_prefix="/")
    except RuntimeError as error:
        status = rays.status().applications.get(APP)
        said = {name: one.message for name, one in status.deployments.items() if one.message} if status else {}
        for name, message in said.items():
            print(f"deployment {name!r}: {traceback_in(message)}", file=sys.stderr)
        why = ", ".join(message.strip().rpartition("\n")[2] for message in said.values())
        raise RuntimeError(f"the replicas did not start: {why or error}") from error


def traceback_in(message: str) -> str:
    """Of what Ray says of a replica that did not start, the replica's own traceback; all of it where there is none."""
    _, found, rest = message.partition("RuntimeError: Traceback")
    return f"Traceback{_RAYS_FRAME.sub('', rest)}" if found else message


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
