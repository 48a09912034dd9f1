"""deployment(): what Ray Serve deploys, of a function that makes an application.

Rules: runs in the program that deploys. The application is made in the replicas, never here. Ray is imported when it is
called.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..extras import library
from .policy import QueueWait, is_wait
from .replica import Behind, Replica

MAX_ONGOING = 1024  # as many items as a service lets wait at least, whatever its max_batch_size: it refuses, not Ray
GRACE_SECONDS = 75.0  # more than limits.answer_seconds: what was taken is answered, and teardown() runs
OUR_TARGET = "target_queue_wait"
THEIR_TARGET = "target_ongoing_requests"


def deployment(
    app_factory: Callable[..., Any],
    *,
    name: str = "virtex",
    num_replicas: int | None = None,
    max_ongoing_requests: int = MAX_ONGOING,
    autoscaling: Mapping[str, Any] | None = None,
    ray_actor_options: Mapping[str, Any] | None = None,
    ingress: bool = True,
    **options: Any,
) -> Any:
    """Make a deployment of Ray Serve: `serve.run(deployment(make).bind())`, with Ray's `serve`.

    app_factory: makes the application, what http_server() gives, Services, or any ASGI 3 application that holds some.
    It is called in each replica, with what .bind() was given: handles of other deployments, say. So the model is loaded
    there, behind CUDA_VISIBLE_DEVICES as Ray sets it for num_gpus. worker.index is the replica's rank when it starts,
    which the successor of a lost replica takes over; worker.count how many replicas there are to be then.
    name: of the deployment. num_replicas: how many; by default 1. max_ongoing_requests: that a replica is sent at a
    time; Ray's own 5 would leave nothing to batch. ray_actor_options: of each replica, {"num_gpus": 1} say.
    autoscaling: between how many replicas, {"min_replicas": 1, "max_replicas": 4}, in place of num_replicas; and
    target_queue_wait, the seconds (0.1) that items may wait on average: more begins replicas. They end while their
    models are busy for less than 0.7 of the time in all. The rest are fields of Ray's AutoscalingConfig, delays say;
    with a `policy` of yours, or target_ongoing_requests for Ray's own, that decides.
    ingress: whether HTTP leads to it. Of the deployments of one application Ray lets one; the others are asked by their
    handles alone, which .bind() hands on.
    options: others of serve.deployment(). graceful_shutdown_timeout_s is 75 where nothing is said: longer than a
    request may take.

    A replica has `submit(items, service=, parameters=, timeout=)`, as Server has it: who has the handle of the
    deployment may `await handle.submit.remote(items)`, and they are computed in the batches of everyone's. Ray checks
    what /health/live says: a replica that is not live is replaced.

    Raises ImportError without Ray; TypeError for what is no function that can be sent to replicas, and for an argument
    that there is not; ValueError for one that is not as said here.
    """
    library("ray.serve", "virtex.ray.deployment()", "ray")
    from ray import serve

    check_factory(app_factory)
    if autoscaling is not None and num_replicas is not None:
        raise ValueError("deployment(): expected num_replicas=, or autoscaling= with min_replicas and max_replicas")
    chosen = {"graceful_shutdown_timeout_s": GRACE_SECONDS, **options}
    if autoscaling is None:
        chosen["num_replicas"] = 1 if num_replicas is None else num_replicas
    else:
        chosen["autoscaling_config"] = scaled(autoscaling)
    if ray_actor_options is not None:
        chosen["ray_actor_options"] = dict(ray_actor_options)
    made = serve.deployment(name=name, max_ongoing_requests=max_ongoing_requests, **chosen)
    return made(serve.ingress()(_class_of(Replica, app_factory)) if ingress else _class_of(Behind, app_factory))


def _class_of(base: type[Replica], app_factory: Callable[..., Any]) -> type[Replica]:
    """A class of its own, which Ray sends to the replicas by value: the factory with it, the rest by import."""

    class Deployed(base):  # type: ignore[misc, valid-type]
        pass

    Deployed.app_factory = staticmethod(app_factory)
    return Deployed


def check_factory(app_factory: Any) -> None:
    """Raise TypeError for what is no factory, or can't be sent to another process."""
    if not callable(app_factory) or hasattr(app_factory, "submit") or hasattr(app_factory, "servers"):
        kind = type(app_factory).__name__
        raise TypeError(
            "expected a function that makes the application in each replica, "
            f"got a {kind}: write def make(): return http_server(...), and name make"
        )
    from ray import cloudpickle

    try:
        cloudpickle.dumps(app_factory)
    except Exception as error:
        raise TypeError(
            f"deployment(app_factory={_named(app_factory)}) can't be sent to the replicas: {_held(app_factory)}"
            f"{type(error).__name__}: {error}. Load the model in the function or in setup(), which run there"
        ) from error


def _named(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _held(function: Any) -> str:
    """Which variables of a function can't be pickled, as far as that can be told."""
    from ray import cloudpickle

    target = getattr(function, "func", function)  # of a partial
    found = inspect.getclosurevars(target) if inspect.isfunction(target) else None
    culprits = []
    for name, value in {**found.nonlocals, **found.globals}.items() if found else ():
        try:
            cloudpickle.dumps(value)
        except Exception:
            culprits.append(f"{name} ({type(value).__name__})")
    return f"it holds {', '.join(culprits)}: " if culprits else ""


def scaled(autoscaling: Mapping[str, Any]) -> Any:
    """Ray's AutoscalingConfig, by whose policy its replicas are counted: ours where nobody has said another."""
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    known = {*AutoscalingConfig.model_fields, OUR_TARGET}
    for given in autoscaling:
        if given not in known:
            near = difflib.get_close_matches(str(given), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(known))}"
            raise ValueError(f"deployment(autoscaling=): there is no {given!r}{hint}")
    rays = {name: value for name, value in autoscaling.items() if name != OUR_TARGET}
    others = [name for name in ("policy", THEIR_TARGET) if name in rays]
    if OUR_TARGET in autoscaling and others:
        raise ValueError(f"deployment(autoscaling=): {OUR_TARGET} is of Virtex's policy; it goes without {others[0]}")
    if not others:
        kwargs = {OUR_TARGET: autoscaling[OUR_TARGET]} if OUR_TARGET in autoscaling else {}
        check_wait(kwargs)
        policy = f"{QueueWait.__module__}.{QueueWait.__name__}"
        rays["policy"] = AutoscalingPolicy(policy_function=policy, policy_kwargs=kwargs)
    return AutoscalingConfig(**rays)


def check_wait(kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError for a target that is none."""
    for name, value in kwargs.items():
        if not is_wait(value):
            raise ValueError(f"deployment(autoscaling={{{name!r}: {value!r}}}): expected seconds above 0")
