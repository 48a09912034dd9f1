"""HttpClient, where the first Virtex's users import it from."""

from ..client import HttpClient

__all__ = ["HttpClient"]
