"""Ray Serve multiplies a service over machines: deployment() makes of it what Ray deploys.

Loaded when it is used: the command's help, and a policy that Ray sends to a process without Virtex, need none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["deployment"]

if TYPE_CHECKING:
    from .deploying import deployment


def __getattr__(name: str) -> Any:
    if name != "deployment":
        raise AttributeError(f"module 'virtex.ray' has no attribute {name!r}")
    from .deploying import deployment

    globals()[name] = deployment
    return deployment
