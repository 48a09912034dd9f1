"""The arguments and the help of `virtex ray`.

Rules: knows argparse and values.py alone, for every `virtex --help` reads it.
"""

from __future__ import annotations

import argparse

from ..values import above, application

SENTENCE = "serve an application on Ray"
DESCRIPTION = """Serve an application on Ray Serve, until Ctrl-C, with a Ray of its own on this machine.

MODULE:MAKE is a module in the working directory and the name of a function in it that makes the application: each
replica, a process of Ray's, calls it. Or the name of what virtex.ray.deployment(...).bind() gave. When all replicas are
ready, it says where they are; Ray itself takes some 20 s to start. It needs the extra [ray]. docs/ray.md has more, and
how to deploy on a cluster."""
EXAMPLES = """examples:
  virtex ray server:make
  virtex ray server:make --replicas 4 --gpus 1
  virtex ray server:make --host 0.0.0.0 --port 8081

"""
HELP = (SENTENCE, DESCRIPTION, EXAMPLES)


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("app", metavar="MODULE:MAKE", type=application, help="what makes the application")
    parser.add_argument("--host", metavar="HOST", default="127.0.0.1", help="where to listen (127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="PORT", default=8000, help="of Ray's proxy (8000)")
    parser.add_argument("--replicas", type=above(int), metavar="N", help="processes with a model of their own (1)")
    parser.add_argument("--cpus", type=above(float), metavar="N", help="CPUs for each replica; 0.5 is half of one (1)")
    parser.add_argument(
        "--gpus", type=above(float), metavar="N", help="GPUs for each replica; with 0.5 two share one (none)"
    )
