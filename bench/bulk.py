"""What edges.py sends 10 MB to: the size of the array that came as a .npy document; 422 for what is none."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np

from virtex import RequestHandler, http_server


class Sizes(RequestHandler):
    """Answers the size of each array."""

    def process_request(self, data: list[Any]) -> list[Any]:
        return data

    def run_inference(self, model_input: list[Any]) -> list[Any]:
        return [item.nbytes for item in model_input]

    def process_response(self, item: Any) -> Any:
        return item


virtex = http_server(name="bulk", handler=Sizes)


async def plain(scope: Any, receive: Any, send: Any) -> None:
    """The same as a plain ASGI callable: gather the pieces, join them once, and load the array."""

    pieces = []
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return  # the client left
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(pieces)
    try:
        status, answer = 200, b'{"data":[%d],"error":null}' % np.load(BytesIO(body)).nbytes
    except ValueError:
        status, answer = 422, b'{"data":[],"error":"not .npy"}'
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
