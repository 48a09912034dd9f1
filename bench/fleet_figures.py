"""The tables and the plot of docs/scale.md, from what bench/fleet.py has saved. bench/report.py places them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

COLOURS = {
    "by connection": "#8172b3",
    "random": "#dd8452",
    "round-robin": "#55a868",
    "stale least": "#999999",
    "two choices": "#4c72b0",
    "least": "#c44e52",
}


def tables(saved: dict[str, Any]) -> dict[str, str]:
    """By the name of their marker, for the parts that are there."""
    made = {f"fleet {part}": table(saved) for part, table in TABLES.items() if part in saved["rows"]}
    return {"fleet engine": engine(saved)} | made


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---|" + "--:|" * (len(head) - 1), *lines[1:]])


def engine(saved: dict[str, Any]) -> str:
    one, versions = saved["engine"], saved["machine"]["versions"]
    return (
        f"A replica: {one['base'] / 1e6:g} ms + {one['item'] / 1e6:g} ms x n, `max_batch_size={one['most']}`, "
        f"`max_time_on_queue={one['window'] / 1e9:g}`, `max_queue_size={one['room']}`: {one['capacity']:,.0f} "
        f"requests/s at most. It costs {saved['price']:g} an hour. Seed {saved['seed']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items() if name in ("virtex", "python", "numpy"))
        + "."
    )


def off(found: float, expected: float) -> str:
    return f"{found / expected - 1:+.1%}"


def model(saved: dict[str, Any]) -> str:
    rows = saved["rows"]["model"]
    keys = {"per_second": "throughput", "p50_ms": "p50", "p99_ms": "p99", "size": "mean batch"}
    worst = {
        name: max(abs(row["fast"][key] / row["exact"][key] - 1) for row in rows if row["exact"][key])
        for key, name in keys.items()
    }
    same = sum(all(row["fast"][key] == row["exact"][key] for key in keys) for row in rows)
    said = ", ".join(f"{part:.2%} in {name}" for name, part in worst.items())
    return f"{len(rows)} runs of both: {same} with the same figures; at the worst they differ by {said}."


def real(saved: dict[str, Any]) -> str:
    one = saved["real_engine"]
    rows = []
    for row in saved["rows"]["real"]:
        found, expected = row["measured"], row["simulated"]["by connection"]
        rows.append(
            [
                f"{row['workers']}, {row['load']:g}",
                f"{found['per_second']:,.0f} ({off(found['per_second'], expected['per_second'])})",
                *(f"{found[key]:.1f} ({off(found[key], expected[key])})" for key in ("p50_ms", "p99_ms", "size")),
                *(f"{row['simulated'][name]['p99_ms']:.1f}" for name in ("random", "least")),
                f"{found['base_ms']:.1f} + {found['item_ms']:.2f} n",
                f"{found['late_p99_ms']:.1f}",
                f"{row['quiet']} of {len(row['runs'])}",
            ]
        )
    head = ["workers, load", "requests/s", "p50 ms", "p99 ms", "batch", "p99 if random", "p99 if least"]
    head += ["batch took, ms", "client late, p99 ms"]
    head.append("quiet runs")
    first = saved["rows"]["real"][0]
    about = (
        f"{saved['machine']['cpu']}, {len(saved['machine']['cpus'])} cores. A batch sleeps {one['base'] / 1e6:g} ms + "
        f"{one['item'] / 1e6:g} ms x n, {one['most']} at most. Medians of the {first['counted']} runs of "
        f"{first['seconds']:g} s in which the client was least late; in brackets, how far they are from the simulation."
    )
    return f"{about}\n\n{markdown(head, rows)}"


def ms(row: Row) -> str:
    refused = f" ({row['refused']:.1%} refused)" if row["refused"] else ""
    return f"{row['p99_ms']:.1f}{refused}"


def names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["balancer"] for row in rows))


def sizes(saved: dict[str, Any]) -> str:
    rows = saved["rows"]["sizes"]
    by = {(row["kind"], row["replicas"], row["balancer"]): row for row in rows}
    lines = [
        [f"{count:,}, {kind}", *(ms(by[kind, count, name]) for name in names(rows))]
        for kind in ("poisson", "groups")
        for count in sorted({row["replicas"] for row in rows})
    ]
    return markdown(["p99 ms: replicas, arrivals", *names(rows)], lines)


def bound(saved: dict[str, Any]) -> str:
    rows = saved["rows"]["bound"]
    by = {(row["kind"], row["balancer"]): row for row in rows}
    lines = []
    for name in names(rows):
        line = [name]
        for kind in ("poisson", "groups"):
            row = by[kind, name]
            line += [f"{row['load']:.2f}", f"{row['cost_per_million']:.3f}"] if row["held"] else ["none", "-"]
        lines.append(line)
    head = [
        f"p99 of {saved['bound_ms']:g} ms held",
        "load, poisson",
        "a million costs",
        "load, groups",
        "a million costs",
    ]
    return markdown(head, lines)


def signals(row: Row) -> list[str]:
    return [
        f"{row['size']:.1f}",
        f"{row['utilisation']:.0%}",
        f"{row['wait_p90_ms']:.1f}",
        f"{row['p50_ms']:.1f}",
        ms(row),
        f"{row['cost_per_million']:.3f}",
    ]


SIGNALS = ["batch", "engine busy", "p90 of queue wait, ms", "p50 ms", "p99 ms", "a million costs"]


def loads(saved: dict[str, Any]) -> str:
    rows = [row for row in saved["rows"]["loads"] if row["balancer"] == "two choices"]
    return markdown(["load", *SIGNALS], [[f"{row['load']:g}", *signals(row)] for row in rows])


def spread(saved: dict[str, Any]) -> str:
    lines = [[f"{row['replicas']}", f"{row['load']:.2f}", *signals(row)] for row in saved["rows"]["spread"]]
    return markdown(["replicas", "load", *SIGNALS], lines)


def large(saved: dict[str, Any]) -> str:
    most = saved["engine"]["most"]
    lines = [
        [
            f"{row['balancer']}, {row['kind']}, {row['load']:g}",
            f"{row['replicas']} x {row['times']}",
            f"{row['most_times'] * most}",
            *(f"{row[key]:.1f}" for key in ("size", "p50_ms")),
            ms(row),
        ]
        for row in saved["rows"]["large"]
    ]
    return markdown(
        ["balancer, arrivals, load", "replicas x size", "max_batch_size", "batch", "p50 ms", "p99 ms"], lines
    )


def waves(saved: dict[str, Any]) -> str:
    lines = [
        [f"{row['peak']:g}", f"{row['peak'] * row['load']:.2f}", f"{row['size']:.1f}", f"{row['p50_ms']:.1f}", ms(row)]
        for row in saved["rows"]["waves"]
    ]
    return markdown(["peak, of the mean", "load in a burst", "batch", "p50 ms", "p99 ms"], lines)


def reports(saved: dict[str, Any]) -> str:
    lines = [
        [f"{row['every']}", f"{row['size']:.1f}", f"{row['p50_ms']:.1f}", ms(row)] for row in saved["rows"]["reports"]
    ]
    return markdown(["ms between reports", "batch", "p50 ms", "p99 ms"], lines)


def slow(saved: dict[str, Any]) -> str:
    rows = saved["rows"]["slow"]
    by = {(bool(row["slow"]), row["balancer"]): row for row in rows}
    lines = [[name, ms(by[False, name]), ms(by[True, name])] for name in names(rows)]
    return markdown(["p99 ms", "all alike", "one in ten takes twice as long"], lines)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "model": model,
    "real": real,
    "sizes": sizes,
    "bound": bound,
    "loads": loads,
    "spread": spread,
    "large": large,
    "waves": waves,
    "reports": reports,
    "slow": slow,
}


# The plot


def draw(saved: dict[str, Any], to: Path) -> None:
    """p99 over the load and over the number of replicas, for each balancer; a batch thinning out."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "virtex"  # the same figures, the same file
    matplotlib.rcParams["svg.fonttype"] = "none"  # text, not the outlines of its letters
    matplotlib.rcParams["font.sans-serif"] = ["Arial", "sans-serif"]  # of the reader's machine
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    of_loads, of_sizes, of_spread = panels
    for name, colour in COLOURS.items():
        rows = [row for row in saved["rows"]["loads"] if row["balancer"] == name]
        of_loads.plot([row["load"] for row in rows], [row["p99_ms"] for row in rows], color=colour, label=name)
        rows = [row for row in saved["rows"]["sizes"] if row["balancer"] == name and row["kind"] == "poisson"]
        rows.sort(key=lambda row: row["replicas"])
        if any(row["refused"] for row in rows):  # a percentile of those who were answered says little then
            continue
        of_sizes.plot([row["replicas"] for row in rows], [row["p99_ms"] for row in rows], ".-", color=colour)
    of_loads.set(title="100 replicas: p99 ms over the load", yscale="log")
    of_loads.legend(fontsize=8, frameon=False)
    of_sizes.set(title="load 0.7, nobody refused: p99 ms over replicas", xscale="log", yscale="log")
    for panel in (of_loads, of_sizes):
        panel.set_yticks([10, 20, 50, 100, 200])
    _draw_spread(of_spread, saved["rows"]["spread"])
    for panel in panels:
        panel.title.set_fontsize(10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.minorticks_off()
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    figure.savefig(to, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _draw_spread(panel: Any, rows: Sequence[Row]) -> None:
    counts = [row["replicas"] for row in rows]
    panel.plot(counts, [row["size"] for row in rows], ".-", color="#4c72b0", label="items in a batch")
    panel.plot(counts, [row["p99_ms"] for row in rows], ".-", color="#c44e52", label="p99 ms")
    cheapest = rows[0]["cost_per_million"]
    costs = [row["cost_per_million"] / cheapest for row in rows]
    panel.plot(counts, costs, ".-", color="#55a868", label="cost, of that of four")
    panel.set(title="one stream over ever more replicas", xscale="log", yscale="log")
    panel.set_xticks(counts, [str(count) for count in counts])
    panel.legend(fontsize=8, frameon=False)
