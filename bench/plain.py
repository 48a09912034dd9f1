"""The echo of bench/serve.py as a plain ASGI callable."""

from __future__ import annotations

from typing import Any

import orjson


async def app(scope: Any, receive: Any, send: Any) -> None:
    """What one would write without Virtex: no batches, no limits, no checks."""
    if scope["type"] != "http":
        raise RuntimeError(f"scope type {scope['type']!r}: this echo serves http")
    body = b""
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return  # the client left
        body += message.get("body", b"")
        more = message.get("more_body", False)
    answer = orjson.dumps({"data": orjson.loads(body)["data"], "error": None})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
