"""HttpMessage, where the first Virtex's users import it from."""

from ..message import HttpMessage

__all__ = ["HttpMessage"]
