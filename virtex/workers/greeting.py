"""What a service that run() or `virtex serve` has started says of itself: where it is, and a line for curl that works.

Rules: reads what the service tells everybody (GET /) and whether it has a key, and nothing else of it; writes to the
log.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from typing import Any
from urllib.parse import quote

from ..resident import resident

MOST_SHOWN = 400  # characters of an item in a line of the log; one of more is made by a command
ZEROS = {"bool": False, "int": 0, "uint": 0, "float": 0.0, "bfloat": 0.0}  # of the dtypes whose values JSON has


def greet(log: Any, service: Any, listening: list[Any], is_tls: bool) -> None:
    """Log what is served, where, its limits and memory, and how to ask it.

    service: a Server, or what has several as `servers`. listening: its sockets.
    """
    servers = getattr(service, "servers", None)
    for server in servers or (service,):
        info = json.loads(server.model.info)
        path = f"/{quote(server.name, safe='')}" if servers else "/"
        for line in lines(info, [url_of(sock, is_tls) for sock in listening], path, server.has_key):
            log.info("%s", line)


def lines(info: dict[str, Any], urls: list[tuple[str, str]], path: str, has_key: bool) -> list[str]:
    """A service in words. urls: curl's options and the URL, of each socket. has_key: requests have to bear one."""
    limits = info["limits"]
    options = urls[0][0] + ("-H 'Authorization: Bearer KEY' " if has_key else "")
    where = " and ".join(url + path for _, url in urls)
    return [
        f"serving {info['name']!r} at {where}",
        f"limits: {_bytes(limits['body'])} a body, {_bytes(limits['max_bytes'])} all requests, batches of "
        f"{info['max_batch_size']}, {info['max_queue_size']} items waiting; memory now: {_bytes(resident())}",
        f"try it: {curl(info, options, urls[0][1] + path)}",
    ]


def url_of(sock: Any, is_tls: bool) -> tuple[str, str]:
    """How curl reaches a socket: its options, and the URL without a path."""
    name = sock.getsockname()
    scheme, options = ("https", "-k ") if is_tls else ("http", "")
    if not isinstance(name, tuple):
        return f"{options}--unix-socket {shlex.quote(os.fsdecode(name))} ", f"{scheme}://localhost"
    host: str = name[0]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return options, f"{scheme}://{f'[{host}]' if ':' in host else host}:{name[1]}"


def curl(info: dict[str, Any], options: str, url: str) -> str:
    """A command of a shell, in one line, that the service answers with results."""
    ask = f"curl {options}{url}"
    example, inputs = info.get("example"), info.get("inputs") or {}
    zeros = _zeros(inputs)
    if zeros is not None and (not example or _is_base64(example[0])):
        return _posting(ask, zeros, f"python3 -c {_quoted(_written(inputs))}", _count(inputs))
    if example:
        first = "json.load(sys.stdin)['example'][0]"
        command = f"curl -s {options}{url} | python3 -c {_quoted(first)}"
        return _posting(ask, example[0], command, len(json.dumps(example[0])))
    if "multipart/form-data" in info["accepts"]:
        return f"{ask} -F file=@FILE"
    return f"{ask} -d '{{\"data\": [ITEM]}}' with an ITEM of yours"


def _posting(ask: str, item: Any, command: str, length: int) -> str:
    """Post an item: as it is, or, where that is long, by a command that writes the message."""
    if length > MOST_SHOWN:
        return f"{command} | {ask} -d @-"
    return f"{ask} -d {shlex.quote(json.dumps({'data': [item]}))}"


def _quoted(item: str) -> str:
    """A program of Python that writes a message of this item, for a shell."""
    return shlex.quote(f"import json, sys; print(json.dumps({{'data': [{item}]}}))")


def _tensors(inputs: dict[str, Any]) -> dict[str, Any]:
    """Declared inputs by their names; by "" what is one array."""
    return {"": inputs} if isinstance(inputs.get("dtype"), str) else inputs


def _zeros(inputs: dict[str, Any]) -> Any:
    """An item of zeros for declared inputs, as JSON has it; None where it has no such numbers."""
    made = {name: _nested(**tensor) for name, tensor in _tensors(inputs).items()}
    return None if not made or None in made.values() else made.get("", made)


def _nested(dtype: str, shape: list[int] | None) -> Any:
    zeros: Any = ZEROS.get(dtype.partition("_")[0].rstrip("0123456789"))
    if shape is None or zeros is None:
        return None
    for n in reversed(shape):
        zeros = [zeros] * n  # the same list n times: it takes no room, however large
    return zeros


def _count(inputs: dict[str, Any]) -> int:
    """Characters that an item of zeros takes, about."""
    return sum(5 * math.prod(tensor["shape"]) for tensor in _tensors(inputs).values())


def _written(inputs: dict[str, Any]) -> str:
    """An item of zeros in the words of Python, short however large it is: [[0.0] * 224] * 224."""
    written = {}
    for name, tensor in _tensors(inputs).items():
        zeros = repr(_nested(tensor["dtype"], []))
        for n in reversed(tensor["shape"]):
            zeros = f"[{zeros}] * {n}"
        written[name] = zeros
    return written.get("") or "{" + ", ".join(f"{name!r}: {zeros}" for name, zeros in written.items()) + "}"


def _is_base64(item: Any) -> bool:
    return isinstance(item, str) or (isinstance(item, dict) and any(isinstance(each, str) for each in item.values()))


def _bytes(n: float) -> str:
    units = ["GB", "MB", "KB", "bytes"]
    while n >= 1000 and len(units) > 1:
        n /= 1000
        units.pop()
    return f"{n:.3g} {units[-1]}"
