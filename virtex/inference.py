"""RequestHandler, where the first Virtex's users import it from."""

from .handler import RequestHandler

__all__ = ["RequestHandler"]
