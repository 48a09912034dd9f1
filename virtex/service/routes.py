"""What a service answers without a body: what it is, how it does, whether it is well, and what there is not.

Rules: a request in, a value out; neither a queue nor a loop. Any POST to a path that is not reserved is a message, and
not answered here.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson

from ..errors import RETRY_SOON, Headers, RequestError, quoted
from ..metrics.live import live
from . import page, v2
from .model import FAILED, READY, Model
from .seam import JSON, Head, Response

RESERVED = ("/health/", "/metrics/", "/v2/")


def is_message(head: Head) -> bool:
    """Whether a request is for the model."""
    path = head.path
    if head.method != "POST" or path in ("/metrics", v2.ROOT):
        return False
    return not path.startswith(RESERVED) or (path.startswith(v2.MODELS) and path.endswith("/infer"))


def is_open(head: Head, has_page: bool) -> bool:
    """Whether anybody may have it, and authorize is not asked: probes, and the page, in which nothing stands yet."""
    return head.path.startswith(("/health/", v2.HEALTH)) or (has_page and page.is_asked_for(head))


def answer(head: Head, model: Model) -> Response:
    """The answer to a request that is no message. Raises RequestError: 404, 405, or 503 for what is not well."""
    path = head.path
    if path == "/metrics" and model.export is not None:
        return metrics(head, model.export.render)
    if path.startswith(v2.MODELS):
        return _of_model(head, model)
    found = _ROUTES.get(path)
    if found is None:
        if path.startswith(RESERVED) or path == "/metrics":
            raise RequestError(404, f"nothing at {quoted(path)}")
        raise RequestError(405, f"{_named(head)}: messages are POSTed", ((b"allow", b"POST"),))
    tell, allow = found
    _check_method(head, allow)
    if path == "/" and model.options.status_page and page.is_asked_for(head):
        return page.response()
    return Response(200, JSON + _MORE_HEADERS.get(path, ()), [tell(model)])


def _of_model(head: Head, model: Model) -> Response:
    """What V2 says of the model."""
    name = model.options.name
    asked = v2.asked_of(head.path, name)
    if asked not in ("", "/ready", "/infer"):
        raise v2.unknown(head.path, [name])
    _check_method(head, "POST" if asked == "/infer" else "GET, HEAD")
    served = model.admission.served
    if asked == "/ready" or served is None:
        _ready(model)
        return Response(200, JSON, [orjson.dumps({"name": name, "ready": True})])
    return Response(200, JSON, [served.metadata()])


def _check_method(head: Head, allow: str) -> None:
    if head.method not in allow.split(", "):
        raise RequestError(405, f"{_named(head)}: expected {allow}", ((b"allow", allow.encode()),))


def metrics(head: Head, render: Callable[[str], tuple[str, bytes]]) -> Response:
    """What there is to be scraped. render: gives its type and text for an Accept. Raises RequestError: 405."""
    _check_method(head, "GET, HEAD")
    content_type, text = render(head.header("accept"))
    return Response(200, ((b"content-type", content_type.encode()),), [text])


def _named(head: Head) -> str:
    return f"{quoted(head.method)} {quoted(head.path)}"


def _info(model: Model) -> bytes:
    return model.info


def _figures(model: Model) -> bytes:
    options = model.options
    now = options.clock() / 1e9
    return orjson.dumps({"service": options.name, "state": model.state, "now": now, **live(options.name)})


def _live(model: Model) -> bytes:
    if model.why_not_live:
        raise RequestError(503, f"not live: {model.why_not_live}")
    return _well("live", model.state is not FAILED, model)


def _ready(model: Model) -> bytes:
    return _well("ready", model.state is READY, model)


def _server(model: Model) -> bytes:
    return v2.server_metadata()


def _well(what: str, holds: bool, model: Model) -> bytes:
    if not holds:
        reason = model.why_failed or f"not {what}: the service is {model.state}"
        raise RequestError(503, reason, RETRY_SOON)
    return b'{"%b":true}' % what.encode()


_ROUTES: dict[str, tuple[Callable[[Model], bytes], str]] = {  # and the methods there are, as Allow says it
    "/": (_info, "GET, HEAD, POST"),
    "/health/live": (_live, "GET, HEAD"),
    "/health/ready": (_ready, "GET, HEAD"),
    "/metrics/live": (_figures, "GET, HEAD"),
    v2.ROOT: (_server, "GET, HEAD"),
    f"{v2.HEALTH}live": (_live, "GET, HEAD"),
    f"{v2.HEALTH}ready": (_ready, "GET, HEAD"),
}
_MORE_HEADERS: dict[str, Headers] = {"/": page.VARIES, "/metrics/live": ((b"cache-control", b"no-store"),)}
