"""What edges.py sends 10 MB to: how many bytes came, of a body that is there as one piece of memory at the end."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np

from virtex import RequestHandler, http_server


class Sizes(RequestHandler):
    """Answers the size of each array; a .npy body is looked at where the kernel has put it."""

    def process_request(self, data: list[Any]) -> list[Any]:
        return data

    def run_inference(self, model_input: list[Any]) -> list[Any]:
        return [item.nbytes for item in model_input]

    def process_response(self, item: Any) -> Any:
        return item


virtex = http_server(name="bulk", handler=Sizes)


async def plain(scope: Any, receive: Any, send: Any) -> None:
    """The same as a plain ASGI callable: gather the pieces, join them once, look at them as the array they hold."""

    pieces = []
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return  # the client left
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(pieces)
    file = BytesIO(body)  # shares the memory of body
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    array = np.frombuffer(body, dtype, offset=file.tell()).reshape(shape)
    answer = b'{"data":[%d],"error":null}' % array.nbytes
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
