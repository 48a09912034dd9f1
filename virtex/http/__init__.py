"""Server and http_server, where the first Virtex's documentation imports them from; loaded when they are first used."""

from typing import TYPE_CHECKING

__all__ = ["Server", "http_server"]

if TYPE_CHECKING:
    from .server import Server, http_server


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import virtex

    return getattr(virtex, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
