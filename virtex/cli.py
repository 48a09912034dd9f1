"""The `virtex` command: its arguments, its help, its exit codes.

Rules: what a subcommand needs is imported when that one runs, so that --help and a wrong argument are answered at once.
The arguments of load/ and of ray/ stand there.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence

from . import __version__
from .load import arguments as loads
from .ray import arguments as rays
from .values import above, application, some_seconds

FINE, MISSED, WRONG, INTERRUPTED = 0, 1, 2, 130
CODES = """exit codes:
  0    fine
  1    the bound of latency or errors was missed, the service failed, or a report was not written
  2    wrong arguments, or a library that they need is missing
  130  stopped by Ctrl-C; what had come until then is reported"""

EXAMPLES = """examples:
  virtex serve server:app --workers 2
  virtex ray server:make --replicas 2
  virtex check server:app
  virtex info
  virtex loadtest http://127.0.0.1:8081/ --rate 500
  virtex tune server:app --p99 50ms

`virtex COMMAND --help` has more."""

SERVE = (
    "serve an application",
    """Serve an application: gunicorn with Virtex's worker, in the place of this process.

MODULE:APP is a module in the working directory and the name of the application in it: server:app for `app` in
server.py. What follows is gunicorn's: `gunicorn --help` has its options, docs/gunicorn.md what they do here. When the
first worker is ready, the log says where the service is, and how to ask it by curl. The exit code is 0 where it was
told to stop, by Ctrl-C too, and gunicorn's 3 or 4 where no worker could start.""",
    """examples:
  virtex serve server:app
  virtex serve server:app --host 0.0.0.0 --port 8081 --workers 2
  virtex serve server:app --grpc-port 8001                                 # docs/grpc.md
  virtex serve server:app --reload                                         # while you write it
  virtex serve server:app --max-requests 10000 --certfile cert.pem --keyfile key.pem

""",
)

CHECK = (
    "try a service's handler",
    """Try a service's handler before anybody else does: with one item of its example(), with max_batch_size items
(or as many as max_batch_cost lets into a batch), and with the longest item; each as one message, and then all
of them in turn, while memory is watched.

It listens nowhere. The handler is made and set up in this process, as a worker would.""",
    """examples:
  virtex check server:app
  virtex check server:app --duration 1m                                    # a slow leak takes longer to show

""",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit code. arguments: those of the process by default."""
    parser = build()
    asked, options = parser.parse_known_args(arguments)
    asked.options = options
    if options and "passes_on" not in asked:
        asked.parser.error(f"unrecognized arguments: {' '.join(options)}")
    try:
        code: int = asked.run(asked)
    except argparse.ArgumentError as error:
        asked.parser.error(str(error))  # exits
    except ImportError as error:
        if error.name and error.name.startswith("virtex"):
            raise
        extra = "".join(re.findall(r"\[\w+\]", str(error))) or "[loadtest]"
        return _fail(f"{error} (pip install '.{extra}' in Virtex's folder, or 'FILE.whl{extra}')", WRONG)
    except BrokenPipeError:  # who read our output has gone: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return MISSED
    except (OSError, RuntimeError) as error:
        return _fail(str(error), MISSED)
    except KeyboardInterrupt:
        return _fail("stopped", INTERRUPTED)
    return code


def _fail(why: str, code: int) -> int:
    print(f"virtex: {why}", file=sys.stderr)
    return code


# ---- the arguments


def build() -> argparse.ArgumentParser:
    """The parser of everything. What it gives has `run`, and `parser`, of the subcommand."""
    parser = argparse.ArgumentParser(
        prog="virtex",
        description="Virtex serves machine-learning models over HTTP. This command starts, tests and tunes services.",
        epilog=f"{EXAMPLES}\n\n{CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"virtex {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _info(_command(commands, "info", run_info, "say what is installed here, and on what it runs", "", ""))
    _serve(_command(commands, "serve", run_serve, *SERVE))
    rays.add(_command(commands, "ray", run_ray, *rays.HELP))
    _check(_command(commands, "check", run_check, *CHECK))
    loads.loadtest(_command(commands, "loadtest", run_loadtest, *loads.LOADTEST))
    loads.tune(_command(commands, "tune", run_tune, *loads.TUNE))
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    sentence: str,
    description: str,
    examples: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=sentence,
        description=description or f"{sentence[0].upper()}{sentence[1:]}.",
        epilog=f"{examples}{CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def _info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def _serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("app", metavar="MODULE:APP", type=application, help="such as server:app")
    parser.add_argument("--host", metavar="HOST", help="where to listen (127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="PORT", help="for HTTP (8000)")
    parser.add_argument("--grpc-port", type=above(int), metavar="PORT", help="for V2 over gRPC, by the extra [grpc]")
    parser.set_defaults(passes_on=True)
    parser.usage = "virtex serve MODULE:APP [--host HOST] [--port PORT] [--grpc-port PORT] [OPTIONS OF GUNICORN]"


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("app", metavar="MODULE:APP", type=application, help="such as server:app")
    parser.add_argument("--duration", type=some_seconds, default=10.0, metavar="TIME", help="of the rounds (10s)")


# ---- the subcommands


def run_info(asked: argparse.Namespace) -> int:
    import json

    from . import info

    found = info.gather()
    print(json.dumps(found, indent=1) if asked.json else info.as_text(found))
    return FINE


def run_serve(asked: argparse.Namespace) -> int:
    from .workers import starting

    try:
        starting.serve(asked.app, asked.host, asked.port, asked.options, asked.grpc_port)
    except ValueError as error:
        raise argparse.ArgumentError(None, str(error)) from error


def run_ray(asked: argparse.Namespace) -> int:
    from .ray import command

    command.serve(asked)
    return FINE


def run_check(asked: argparse.Namespace) -> int:
    from . import check

    return FINE if check.check(asked) else MISSED


def run_loadtest(asked: argparse.Namespace) -> int:
    from .load import command

    return FINE if command.loadtest(asked) else MISSED


def run_tune(asked: argparse.Namespace) -> int:
    from .load import tuning

    return FINE if tuning.tune(asked) else MISSED
