"""The arguments and the help of `virtex loadtest` and `virtex tune`.

Rules: knows argparse and values.py alone, for every `virtex --help` reads it. What values mean together, command.py and
tuning.py say.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..values import above, seconds, some_seconds

ENDINGS = (".html", ".json", ".csv")

LOADTEST = (
    "test a service under load",
    """Send requests to a service and say how long their answers took.

With --rate they are sent on a schedule, whether earlier ones were answered or not, and each one's time counts from when
it was to be sent (open loop). With --connections each connection waits for its answer before it sends again (closed
loop): a slow service is then asked less, and its worst times are left out. docs/loadtest.md says how to read both.

Where no payload is named, a Virtex service is asked for its example.""",
    """examples:
  virtex loadtest http://127.0.0.1:8081/ --rate 500 --duration 30s --output report.html
  virtex loadtest http://127.0.0.1:8081/ --rate 500 --slo p99=50ms         # exit code 1 if it is missed
  virtex loadtest http://127.0.0.1:8081/ --slo p99=50ms                    # the highest rate that holds it
  virtex loadtest http://127.0.0.1:8081/ --sweep 100,200,400,800 --output sweep.html --output sweep.csv
  virtex loadtest http://127.0.0.1:8081/ --sweep connections=1,8,64
  virtex loadtest http://127.0.0.1:8081/ --rate 100 --data float32:3,224,224 --binary
  virtex loadtest http://127.0.0.1:8081/ --rate 100 --data '{"data": [[1, 2, 3]]}' --header 'authorization: Bearer x'

""",
)

TUNE = (
    "find a service's best settings",
    """Find the settings with which a service holds a p99 at the highest rate.

The service is started under gunicorn, with one worker, on a port of the loopback interface. What a batch costs is
measured, a + b * n for n items; a simulation proposes max_batch_size, max_time_on_queue and executor; the best of them
are measured, and that decides. Run it on the machine that is to serve, and with items as your clients send them.""",
    """examples:
  virtex tune server:app --p99 50ms
  virtex tune server:app --p99 50ms --quick
  virtex tune server:app --p99 0.2s --data item.npy --up-to 64 --budget 10m --output tuned.html

""",
)


def loadtest(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `virtex loadtest`."""
    parser.add_argument("url", metavar="URL", help="where to POST: http://host:port/path, or unix:/path of a socket")
    load = parser.add_argument_group("load")
    load.add_argument("--rate", type=above(float), metavar="N", help="requests per second, on a schedule")
    load.add_argument(
        "--connections",
        type=above(int),
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
    length.add_argument("--duration", type=some_seconds, metavar="TIME", help="of a run (default: 10s)")
    length.add_argument("--requests", type=above(int), metavar="N", help="in a run")
    load.add_argument("--warmup", type=seconds, default=0.5, metavar="TIME", help="beforehand, uncounted (0.5s)")
    load.add_argument("--processes", type=above(int), default=1, metavar="N", help="that send (1)")
    load.add_argument("--max-errors", type=_share, default=0.001, metavar="SHARE", help="that may fail (0.1%%)")
    _payloads(parser)
    _shown(parser)


def tune(parser: argparse.ArgumentParser) -> None:
    """Add those of `virtex tune`."""
    parser.add_argument(
        "app", metavar="MODULE:APP", help="a Server, or an app whose module has exactly one, as gunicorn is told it"
    )
    search = parser.add_argument_group("search")
    search.add_argument("--p99", type=some_seconds, required=True, metavar="TIME", help="of the answers, at most")
    search.add_argument(
        "--up-to", type=above(int), metavar="ITEMS", help="the largest max_batch_size (default: the app's own)"
    )
    search.add_argument("--executor", choices=("inline", "thread"), help="only this one (default: both)")
    length = search.add_mutually_exclusive_group()
    length.add_argument(
        "--budget", type=some_seconds, default=120.0, metavar="TIME", help="to take at most, about (2m)"
    )
    length.add_argument("--quick", dest="budget", action="store_const", const=30.0, help="the same as --budget 30s")
    search.add_argument("--processes", type=above(int), default=1, metavar="N", help="that send (1)")
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
    group.add_argument("--items", type=above(int), default=1, metavar="N", help="of arrays and text in a request (1)")
    group.add_argument("--binary", action="store_true", help="arrays as application/x-npy, not as base64 in JSON")
    group.add_argument("--header", action="append", type=_header, default=[], metavar="'NAME: VALUE'", help="to send")
    group.add_argument("--timeout", type=some_seconds, default=30.0, metavar="TIME", help="for an answer (30s)")


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
    return some_seconds(time)


def _sweep(text: str) -> tuple[str, list[float]]:
    name, equals, values = text.rpartition("=")
    name = name or "rate"
    if name not in ("rate", "connections") or (equals and text.startswith("=")):
        raise argparse.ArgumentTypeError(f"expected rates, 100,200,400, or connections=1,8,64, got {text!r}")
    read = above(int if name == "connections" else float)
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
