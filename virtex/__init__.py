"""Virtex serves machine-learning models over HTTP.

    socket bytes -> wire -> service -> batch(ring, rows) -> handler -> batch -> service -> wire -> socket bytes
                   (parse)  (admit)    (decode, cut)       (compute)  (rows)   (encode)   (write)

A folder is a room of this path, and knows only the rooms below it. batch/rows.py decodes the items of a TensorHandler
when their request is admitted, into the rows that the model reads. For any other handler service/formats.py reads JSON
values, and the handler decodes them in process_request().

gunicorn imports this package in its master process before it forks. So importing it stays cheap: a public name is
loaded when it is first used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.8.0"

_HOME = {
    "Content": "message",
    "HttpClient": "client",
    "HttpLoadTest": "load.result",
    "HttpMessage": "message",
    "HttpProtocol": "wire.protocol",
    "ItemError": "errors",
    "Limits": "limits",
    "LoadTestMetrics": "load.result",
    "LoadTestResult": "load.result",
    "Observer": "observer",
    "Request": "service.request",
    "RequestHandler": "handler",
    "Server": "server",
    "Services": "services",
    "Tensor": "tensor",
    "TensorHandler": "handler",
    "VirtexWorker": "worker",
    "codec_info": "_codec",
    "http_server": "server",
    "serve": "wire.listener",
    "serve_grpc": "rpc.serving",
}

__all__ = [  # noqa: RUF022 (in the order of docs/api.md)
    "http_server",
    "HttpMessage",
    "HttpClient",
    "HttpLoadTest",
    "LoadTestResult",
    "LoadTestMetrics",
    "RequestHandler",
    "Request",
    "VirtexWorker",
    "Server",
    "Services",
    "TensorHandler",
    "Tensor",
    "Limits",
    "ItemError",
    "Content",
    "Observer",
    "serve",
    "serve_grpc",
    "HttpProtocol",
    "codec_info",
]

if TYPE_CHECKING:
    from ._codec import codec_info
    from .client import HttpClient
    from .errors import ItemError
    from .handler import RequestHandler, TensorHandler
    from .limits import Limits
    from .load.result import HttpLoadTest, LoadTestMetrics, LoadTestResult
    from .message import Content, HttpMessage
    from .observer import Observer
    from .rpc.serving import serve_grpc
    from .server import Server, http_server
    from .service.request import Request
    from .services import Services
    from .tensor import Tensor
    from .wire.listener import serve
    from .wire.protocol import HttpProtocol
    from .worker import VirtexWorker


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'virtex' has no attribute {name!r}")
    try:
        module = import_module(f".{home}", __name__)
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}._codec":
            raise
        raise ImportError(
            "virtex._codec, the compiled codec, is missing: this installation did not build it. "
            "Install Virtex again where there is a C compiler"
        ) from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
