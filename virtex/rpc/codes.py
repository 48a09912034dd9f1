"""How a call ends: the status of gRPC for one of HTTP, and what goes with it; and who called.

Source: https://github.com/grpc/grpc/blob/master/doc/statuscodes.md. Rules: values in, values out.
"""

from __future__ import annotations

from urllib.parse import unquote

from grpc import StatusCode

from ..service.seam import Response

_CODES = {
    200: StatusCode.OK,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    408: StatusCode.DEADLINE_EXCEEDED,
    409: StatusCode.ABORTED,
    412: StatusCode.FAILED_PRECONDITION,
    413: StatusCode.RESOURCE_EXHAUSTED,
    429: StatusCode.RESOURCE_EXHAUSTED,
    501: StatusCode.UNIMPLEMENTED,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}


def code_of(status: int) -> StatusCode:
    """What a status means. Any other 4xx is the client's fault, any other 5xx the server's."""
    return _CODES.get(status) or (StatusCode.INVALID_ARGUMENT if status < 500 else StatusCode.INTERNAL)


def metadata_of(response: Response, request_id: bytes) -> tuple[tuple[str, str], ...]:
    """What a refusal's client is told beside its reason: its id, its headers, and when gRPC is to try again.

    grpc-retry-pushback-ms: https://github.com/grpc/proposal/blob/master/A6-client-retries.md
    """
    found = [("x-request-id", request_id.decode())]
    for name, value in response.headers:
        found.append((name.decode(), value.decode("latin-1")))
        if name == b"retry-after" and value.isdigit():
            found.append(("grpc-retry-pushback-ms", str(int(value) * 1000)))
    return tuple(found)


def client_of(peer: str) -> str:
    """The address of a client. peer: as grpc has it, ipv4:127.0.0.1:5000 or ipv6:%5B::1%5D:5000; others have none."""
    kind, _, place = unquote(peer).partition(":")
    return place.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""
