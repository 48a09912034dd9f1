"""The `virtex` command: its arguments, its help, its exit codes.

Rules: what a subcommand needs is imported when that one runs, so that --help and a wrong argument are answered at once.
Values are read and checked here; what they mean together, by the subcommand.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import __version__
from .ray import arguments as rays

FINE, MISSED, WRONG, INTERRUPTED = 0, 1, 2, 130
CODES = """exit codes:
  0    fine
  1    the bound of latency or errors was missed, the service failed, or a report was not written
  2    wrong arguments, or a library that they need is missing
  130  stopped by Ctrl-C; what had come until then is reported"""

ENDINGS = (".html", ".json", ".csv")
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}

EXAMPLES = """examples:
  virtex serve server:app --workers 2
  virtex ray server:make --replicas 2
  virtex check server:app
  virtex info
  virtex loadtest http://127.0.0.1:8081/ --rate 500
  virtex tune server:app --p99 50ms

`virtex COMMAND --help` has more."""

LOADTEST = """Send requests to a service and say how long their answers took.

With --rate they are sent on a schedule, whether earlier ones were answered or not, and each one's time counts from when
it was to be sent (open loop). With --connections each connection waits for its answer before it sends again (closed
loop): a slow service is then asked less, and its worst times are left out. docs/loadtest.md says how to read both.

Where no payload is named, a Virtex service is asked for its example."""

LOADTEST_EXAMPLES = """examples:
  virtex loadtest http://127.0.0.1:8081/ --rate 500 --duration 30s --output report.html
  virtex loadtest http://127.0.0.1:8081/ --rate 500 --slo p99=50ms         # exit code 1 if it is missed
  virtex loadtest http://127.0.0.1:8081/ --slo p99=50ms                    # the highest rate that holds it
  virtex loadtest http://127.0.0.1:8081/ --sweep 100,200,400,800 --output sweep.html --output sweep.csv
  virtex loadtest http://127.0.0.1:8081/ --sweep connections=1,8,64
  virtex loadtest http://127.0.0.1:8081/ --rate 100 --data float32:3,224,224 --binary
  virtex loadtest http://127.0.0.1:8081/ --rate 100 --data '{"data": [[1, 2, 3]]}' --header 'authorization: Bearer x'

"""

SERVE = """Serve an application: gunicorn with Virtex's worker, in the place of this process.

MODULE:APP is a module in the working directory and the name of the application in it: server:app for `app` in
server.py. What follows is gunicorn's: `gunicorn --help` has its options, docs/gunicorn.md what they do here. When the
first worker is ready, the log says where the service is, and how to ask it by curl. The exit code is 0 where it was
told to stop, by Ctrl-C too, and gunicorn's 3 or 4 where no worker could start."""

SERVE_EXAMPLES = """examples:
  virtex serve server:app
  virtex serve server:app --host 0.0.0.0 --port 8081 --workers 2
  virtex serve server:app --grpc-port 8001                                 # docs/grpc.md
  virtex serve server:app --reload                                         # while you write it
  virtex serve server:app --max-requests 10000 --certfile cert.pem --keyfile key.pem

"""

CHECK = """Try a service's handler before anybody else does: with one item of its example(), with max_batch_size items
(or as many as max_batch_cost lets into a batch), and with the longest item; each as one message, and then all
of them in turn, while memory is watched.

It listens nowhere. The handler is made and set up in this process, as a worker would."""

CHECK_EXAMPLES = """examples:
  virtex check server:app
  virtex check server:app --duration 1m                                    # a slow leak takes longer to show

"""

TUNE = """Find the settings with which a service holds a p99 at the highest rate.

The service is started under gunicorn, with one worker, on a port of the loopback interface. What a batch costs is
measured, a + b * n for n items; a simulation proposes max_batch_size, max_time_on_queue and executor; the best of them
are measured, and that decides. Run it on the machine that is to serve, and with items as your clients send them."""

TUNE_EXAMPLES = """examples:
  virtex tune server:app --p99 50ms
  virtex tune server:app --p99 50ms --quick
  virtex tune server:app --p99 0.2s --data item.npy --up-to 64 --budget 10m --output tuned.html

"""


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
    _serve(_command(commands, "serve", run_serve, "serve an application", SERVE, SERVE_EXAMPLES))
    rays.add(_command(commands, "ray", run_ray, *rays.HELP), _app, _above)
    _check(_command(commands, "check", run_check, "try a service's handler", CHECK, CHECK_EXAMPLES))
    _loadtest(_command(commands, "loadtest", run_loadtest, "test a service under load", LOADTEST, LOADTEST_EXAMPLES))
    _tune(_command(commands, "tune", run_tune, "find a service's best settings", TUNE, TUNE_EXAMPLES))
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
    parser.add_argument("app", metavar="MODULE:APP", type=_app, help="such as server:app")
    parser.add_argument("--host", metavar="HOST", help="where to listen (127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="PORT", help="for HTTP (8000)")
    parser.add_argument("--grpc-port", type=_above(int), metavar="PORT", help="for V2 over gRPC, by the extra [grpc]")
    parser.set_defaults(passes_on=True)
    parser.usage = "virtex serve MODULE:APP [--host HOST] [--port PORT] [--grpc-port PORT] [OPTIONS OF GUNICORN]"


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("app", metavar="MODULE:APP", type=_app, help="such as server:app")
    parser.add_argument("--duration", type=_some_seconds, default=10.0, metavar="TIME", help="of the rounds (10s)")


def _loadtest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="where to POST: http://host:port/path, or unix:/path of a socket")
    load = parser.add_argument_group("load")
    load.add_argument("--rate", type=_above(float), metavar="N", help="requests per second, on a schedule")
    load.add_argument(
        "--connections",
        type=_above(int),
        metavar="N",
        help="a closed loop of so many (the default, of 64); with --rate how many there are at most",
    )
    load.add_argument(
        "--sweep", type=_sweep, metavar="LOADS", help="a run at each rate, 100,200,400; or connections=1,8,64"
    )
    load.add_argument(
        "--slo",
        type=_slo,
        metavar="p99=TIME",
        help="the p99 to hold; without --rate and --connections the highest rate that holds it is searched",
    )
    load.add_argument("--arrivals", choices=("constant", "poisson"), default="constant", help="the schedule's")
    length = load.add_mutually_exclusive_group()
    length.add_argument("--duration", type=_some_seconds, metavar="TIME", help="of a run (default: 10s)")
    length.add_argument("--requests", type=_above(int), metavar="N", help="in a run")
    load.add_argument("--warmup", type=_seconds, default=0.5, metavar="TIME", help="beforehand, uncounted (0.5s)")
    load.add_argument("--processes", type=_above(int), default=1, metavar="N", help="that send (1)")
    load.add_argument("--max-errors", type=_share, default=0.001, metavar="SHARE", help="that may fail (0.1%%)")
    _payloads(parser)
    _shown(parser)


def _tune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "app", metavar="MODULE:APP", help="a Server, or an app whose module has exactly one, as gunicorn is told it"
    )
    search = parser.add_argument_group("search")
    search.add_argument("--p99", type=_some_seconds, required=True, metavar="TIME", help="of the answers, at most")
    search.add_argument(
        "--up-to", type=_above(int), metavar="ITEMS", help="the largest max_batch_size (default: the app's own)"
    )
    search.add_argument("--executor", choices=("inline", "thread"), help="only this one (default: both)")
    length = search.add_mutually_exclusive_group()
    length.add_argument(
        "--budget", type=_some_seconds, default=120.0, metavar="TIME", help="to take at most, about (2m)"
    )
    length.add_argument("--quick", dest="budget", action="store_const", const=30.0, help="the same as --budget 30s")
    search.add_argument("--processes", type=_above(int), default=1, metavar="N", help="that send (1)")
    _payloads(parser)
    _shown(parser)


def _payloads(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is sent; of several payloads each in turn")
    group.add_argument(
        "--data",
        action="append",
        metavar="WHAT",
        help='a message, {"data": [...]}; '
        "a file: .json, .jsonl (a message in each line), .npy (an item), or text (each line an item); "
        "or the shape of a random array, float32:3,224,224",
    )
    group.add_argument("--items", type=_above(int), default=1, metavar="N", help="of arrays and text in a request (1)")
    group.add_argument("--binary", action="store_true", help="arrays as application/x-npy, not as base64 in JSON")
    group.add_argument("--header", action="append", type=_header, default=[], metavar="'NAME: VALUE'", help="to send")
    group.add_argument("--timeout", type=_some_seconds, default=30.0, metavar="TIME", help="for an answer (30s)")


def _shown(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("report")
    group.add_argument(
        "--output",
        action="append",
        type=_output,
        default=[],
        metavar="FILE",
        help="where it goes too, by the ending: .html, .json or .csv; may be repeated",
    )
    group.add_argument("--quiet", action="store_true", help="print nothing but errors")
    group.add_argument("--progress", action="store_true", help="show a live line even where there is no terminal")


# ---- values


def _app(text: str) -> str:
    module, colon, name = text.partition(":")
    if not (module and colon and name) or module.endswith(".py") or "/" in module:
        there = module.removesuffix(".py").replace("/", ".") if module.strip("-0123456789") else "server"
        raise argparse.ArgumentTypeError(f"expected MODULE:APP first, such as {there}:{name or 'app'}, got {text!r}")
    return text


def _above(kind: Callable[[str], float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {what} above 0, got {text!r}")
        return value

    return read


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+) ?(us|ms|s|m|h|)", text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"expected a time such as 50ms, 10s or 2m, got {text!r}")
    return float(found[1]) * UNITS[found[2]]


def _some_seconds(text: str) -> float:
    seconds = _seconds(text)
    if not seconds:
        raise argparse.ArgumentTypeError(f"expected a time above 0, got {text!r}")
    return seconds


def _share(text: str) -> float:
    number, is_percent = text.removesuffix("%"), text.endswith("%")
    try:
        share = float(number) / (100 if is_percent else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, or in percent, got {text!r}")
    return share


def _slo(text: str) -> float:
    name, _, time = text.partition("=")
    if name.strip() != "p99":
        raise argparse.ArgumentTypeError(f"expected p99=TIME, such as p99=50ms, got {text!r}")
    return _some_seconds(time)


def _sweep(text: str) -> tuple[str, list[float]]:
    name, equals, values = text.rpartition("=")
    name = name or "rate"
    if name not in ("rate", "connections") or (equals and text.startswith("=")):
        raise argparse.ArgumentTypeError(f"expected rates, 100,200,400, or connections=1,8,64, got {text!r}")
    read = _above(int if name == "connections" else float)
    return name, [read(each.strip()) for each in values.split(",")]


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"expected 'name: value', got {text!r}")
    return name.strip(), value.strip()


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix not in ENDINGS:
        raise argparse.ArgumentTypeError(f"expected a file that ends with {', '.join(ENDINGS)}, got {text!r}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file, got the folder {text!r}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r} for {path.name!r}")
    return path


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
