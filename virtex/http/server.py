"""Server and http_server, where the first Virtex's users import them from."""

from ..server import Server, http_server

__all__ = ["Server", "http_server"]
