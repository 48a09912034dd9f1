"""The three jobs as a careful plain ASGI callable: uvicorn bench.rivals.on_asgi:echo, :matrix or :image."""

import numpy as np
import orjson
import pybase64

WEIGHTS = np.arange(128, dtype=np.float32).reshape(32, 4)


def service(model):
    async def app(scope, receive, send):
        if scope["type"] != "http":
            raise RuntimeError(f"scope type {scope['type']!r}: this service serves http")
        pieces, more = [], True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client left
            pieces.append(message.get("body", b""))
            more = message.get("more_body", False)
        try:
            status, answer = 200, {"data": model(orjson.loads(b"".join(pieces))["data"])}
        except (ValueError, TypeError, KeyError) as error:
            status, answer = 422, {"error": str(error)}
        body = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def multiply(items):
    return np.asarray(items, np.float32) @ WEIGHTS


def means(items):
    return [np.frombuffer(pybase64.b64decode(item, validate=True), np.float32).mean() for item in items]


echo = service(lambda items: items)
matrix = service(multiply)
image = service(means)
