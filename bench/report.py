"""Keeps the figures of build/ in bench/results, writes them into docs/figures.md, docs/scale.md and ten rows of README.

    make report

They stand between markers. No figure is typed: tests/test_readme.py renders bench/results again and compares.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import fleet_figures

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"


def keep() -> None:
    """Take over what was measured."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in (*TABLES, "fleet"):
        measured = ROOT / "build" / f"{name}.json"
        if measured.exists():
            (RESULTS / f"{name}.json").write_text(json.dumps(json.loads(measured.read_text()), indent=1) + "\n")


def render() -> dict[str, str]:
    """The tables, by the name of their marker; those whose figures are there."""
    tables = {}
    for name, table in TABLES.items():
        measured = RESULTS / f"{name}.json"
        if measured.exists():
            tables[name] = table(json.loads(measured.read_text()))
    return tables


def serve_table(saved: dict[str, Any]) -> str:
    machine, versions = saved["machine"], saved["machine"]["versions"]
    packages = ", ".join(f"{n} {v}" for n, v in versions.items() if v != "not installed")
    lines = [
        f"{machine['cpu']}, {machine['system']}; {packages}. Medians of {saved['runs']} runs of {saved['seconds']} s.",
        "",
        "| server | connections | requests per CPU-second | of bare | requests/s | p50 ms | p99 ms |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for result in saved["results"]:
        for row in result["rows"]:
            lines.append(
                f"| {result['server']} | {row['connections']} | {row['per_cpu_second']:,} | {share(row)} "
                f"| {row['per_second']:,} | {row['p50_ms']:.3f} | {row['p99_ms']:.3f} |"
            )
    idle = saved["idle_percent"].get("virtex")
    return "\n".join(lines) + ("" if idle is None else f"\n\nAn idle worker used {idle:.2f} % of a core.")


def edges_table(saved: dict[str, Any]) -> str:
    of_uvicorn = {body["what"]: body["user_us_per_mb"] for body in saved["bodies"] if body["server"] == "uvicorn"}
    lines = [
        f"{saved['machine']['cpu']}. Microseconds of the server's CPU time for each MB of the bodies.",
        "",
        "| posts of 10 MB | server | user CPU | of uvicorn | all CPU | MB/s |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for body in saved["bodies"]:
        yardstick = of_uvicorn.get(body["what"])
        part = f"{body['user_us_per_mb'] / yardstick:.2f}" if yardstick else "-"
        lines.append(
            f"| {body['what']} | {body['server']} | {body['user_us_per_mb']:,.1f} | {part} "
            f"| {body['cpu_us_per_mb']:,.1f} | {body['mb_per_second']:,.0f} |"
        )
    idle = saved["idle"]
    held = f"{idle['connections']:,} idle connections took {idle['bytes_each']:,} bytes each"
    return "\n".join([*lines, "", f"{held} and {idle['percent_of_a_core']:.2f} % of a core."])


def share(row: dict[str, Any]) -> str:
    return f"{row['of_bare']:.2f}" if "of_bare" in row else "-"


def codec_table(saved: dict[str, Any]) -> str:
    from .codec import tables

    return "\n".join(["; ".join(saved["header"]) + ".", "", *tables(saved)]).rstrip()


def images_table(saved: dict[str, Any]) -> str:
    lines = [
        f"{saved['machine']['cpu']}. Microseconds of the server's CPU time per image of 602112 bytes, "
        f"{saved['connections']} connections, medians of {saved['runs']} runs of {saved['seconds']} s.",
        "",
        "| wire | server | CPU us | above bare | of tensor | bytes copied |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for case in saved["cases"]:
        for row in case["rows"]:
            counted = case["copies"].get(row["server"])
            copied = f"{counted['copied'] + counted['set']:,}" if counted else "-"
            lines.append(
                f"| {case['wire']} | {row['server']} | {row['us']:.0f} | {row['above_bare']:.0f} "
                f"| {row['of_tensor']:.2f} | {copied} |"
            )
    return "\n".join(lines)


def batching_table(saved: dict[str, Any]) -> str:
    lines = [
        f"{saved['machine']['cpu']}. Milliseconds; loads and what was served as parts of "
        f"{saved['ideal_per_second']:,.0f} items/s.",
        "",
        "| load | served | batch | p50 | p99 | p99, simulated | p99, fixed window | p99, closed by timer |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in saved["rows"]:
        sim = saved["simulated"].get(str(row["load"]))
        others = (f"{sim[name]['p99_ms']:,.1f}" if sim else "-" for name in ("window", "timer"))
        lines.append(
            f"| {row['load']:.2f} | {row['of_ideal']:.3f} | {row['size']:.1f} | {row['p50_ms']:.1f} "
            f"| {row['p99_ms']:.1f} | {row['same']['p99_ms']:.1f} | {' | '.join(others)} |"
        )
    return "\n".join(lines)


def engine_table(saved: dict[str, Any]) -> str:
    lines = [f"{saved['machine']['cpu']}; {saved['what']}.", "", "| what | CPU us per item |", "|---|--:|"]
    return "\n".join(lines + [f"| {row['what']} | {row['us']:.2f} |" for row in saved["rows"]])


def serial_table(saved: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in saved["machine"]["versions"].items())
    lines = [
        f"{saved['machine']['cpu']}; {versions}. Microseconds of CPU time to encode and decode once, medians of "
        f"{saved['runs']} rounds; in brackets, how many times as long as Virtex.",
        "",
        "| library | size | Virtex | 0.1's recipe | public recipe |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in saved["rows"]:
        total = {name: us["encode"] + us["decode"] for name, us in row["ways"].items()}
        ours = total["virtex"]
        others = (f"{total[name]:,.0f} ({total[name] / ours:,.1f})" for name in ("original", "public"))
        lines.append(f"| {row['library']} | {row['size']} | {ours:,.1f} | {' | '.join(others)} |")
    beside = saved["torch_beside_numpy"]
    if beside is None:
        return "\n".join(lines)
    return "\n".join([*lines, "", f"decode_torch of 602112 bytes took {beside:.2f} of decode_numpy's time."])


def numbers_table(saved: dict[str, Any]) -> str:
    machine, rates = saved["machine"], saved["per_cpu_second"]
    beside = ("uvicorn", "virtex, echo of text")
    lines = [
        f"{machine['cpu']}, {machine['system']}. {saved['what']}; "
        f"medians of {saved['runs']} runs of {saved['seconds']} s.",
        "",
        "| server | requests per CPU-second | of uvicorn | of our echo |",
        "|---|--:|--:|--:|",
    ]
    for name, rate in rates.items():
        parts = " | ".join(f"{rate / rates[other]:.2f}" for other in beside)
        lines.append(f"| {name} | {rate:,} | {parts} |")
    return "\n".join(lines)


def client_table(saved: dict[str, Any]) -> str:
    cpu, wall, part = saved["cpu_microseconds"], saved["wall_microseconds"], saved["of_library"]
    lines = [
        f"{saved['machine']['cpu']}. {saved['what']}; medians of {saved['turns']} turns of {saved['posts']} posts.",
        "",
        "| a post | CPU us | wall us |",
        "|---|--:|--:|",
        *(f"| {name} | {cpu[name]:.0f} | {wall[name]:.0f} |" for name in cpu),
        f"| HttpClient of httpx2 | {part['cpu']:.2f} | {part['wall']:.2f} |",
    ]
    return "\n".join(lines)


def loadtest_table(saved: dict[str, Any]) -> str:
    stall, rate = saved["stall"], saved["rate"]
    lines = [
        f"{saved['machine']['cpu']}; {saved['machine']['wrk']}.",
        "",
        "| percentile of response time, ms | found | by the server's trace | off |",
        "|---|--:|--:|--:|",
    ]
    for row in saved["trace"]:
        off = row["found"] / row["truth"] - 1
        lines.append(f"| p{row['q']:g} | {row['found']:.3f} | {row['truth']:.3f} | {off:+.2%} |")
    others = ", ".join(f"{name} {ms:.1f} ms" for name, ms in stall.items() if name not in ("truth", "found"))
    return "\n".join(
        [
            *lines,
            "",
            f"- The server that stalls: p90 is {stall['truth']:.1f} ms by its trace; found {stall['found']:.1f} ms; "
            f"{others}.",
            f"- 64 connections, the echo of 100 characters: {rate['virtex']:,.0f} requests/s of one process, "
            f"{rate['wrk']:,.0f} of wrk: {rate['virtex'] / rate['wrk']:.2f}.",
            f"- 10,000 a second asked for on a schedule: {rate['on_schedule']:,.0f} answered, "
            f"1 % sent more than {rate['late_p99_ms']:.2f} ms late.",
        ]
    )


def v2_table(saved: dict[str, Any]) -> str:
    versions = saved["machine"]["versions"]
    triton = versions.get("nvidia-pytriton")
    lines = [
        f"{saved['machine']['cpu']}; virtex {versions['virtex']}{f', nvidia-pytriton {triton}' if triton else ''}. "
        f"{saved['what']}, a quarter of them for images; medians of {saved['runs']} runs of {saved['seconds']} s.",
        "",
        "| model | what is sent | CPU us | requests per CPU-second | p50 ms |",
        "|---|---|--:|--:|--:|",
    ]
    for model, rows in saved["models"].items():
        lines += [
            f"| {model} | {row} | {at['cpu_us']:.1f} | {at['per_cpu_second']:,.0f} | {at['p50_ms']:.2f} |"
            for row, at in rows.items()
        ]
    return "\n".join(lines)


def rpc_table(saved: dict[str, Any]) -> str:
    versions = saved["machine"]["versions"]
    lines = [
        f"{saved['machine']['cpu']}; virtex {versions['virtex']}, grpcio {versions['grpcio']}. {saved['what']}; "
        f"medians of {saved['turns']} turns of {saved['requests']:,} requests.",
        "",
        "| calls under way | Virtex, CPU us | bare grpc.aio, CPU us | requests per CPU-second, of bare |",
        "|--:|--:|--:|--:|",
    ]
    for at_once, took in saved["cpu_microseconds"].items():
        lines.append(f"| {at_once} | {took['virtex']:.0f} | {took['bare']:.0f} | {saved['of_bare'][at_once]:.2f} |")
    return "\n".join(lines)


POISON = {
    "clean": "is like the others (clean)",
    "refused": "is refused by process_request",
    "row": "gets an ItemError as its row",
    "raises": "makes run_inference raise",
}


def fates_table(saved: dict[str, Any]) -> str:
    over, (overloaded, each) = saved["overload"], saved["seconds"]
    lines = [
        f"{saved['machine']['cpu']}; {saved['what']}: {saved['ideal_per_second']:g} items/s at most. "
        f"{overloaded:g} s of overload, {each:g} s of each other run.",
        "",
        "| one request in a hundred | innocent ones that failed | answered, of clean | of what its extra runs allow |",
        "|---|--:|--:|--:|",
        *(
            f"| {POISON[row['name']]} | {row['failed']} | {row['of_clean']:.2f} | {row['of_allowed']:.2f} |"
            for row in saved["poison"]
        ),
        "",
        f"- Three times as many as can be served, each with a deadline of 500 ms: {over['accepted_of_most']:.3f} of "
        f"the most is answered, p99 {over['accepted_p99_ms']:.0f} ms; who is refused knows it after "
        f"{over['refused_p50_ms']:.1f} ms (p99 {over['refused_p99_ms']:.1f}); {over['too_late']} were late.",
        f"- Behind the overload, at half of the most, nobody was refused or late for longer than "
        f"{over['recovery_s']:.1f} s.",
    ]
    for row in saved["leavers"]:
        lines.append(
            f"- {row['left']} clients left by {row['name']} right after they had sent: the model ran {row['ran']}."
        )
    return "\n".join(lines)


JOBS = {"echo": "echo", "matrix": "32 numbers", "image": "image"}
MEASURES = {
    "per_cpu_second": "requests per CPU-second",
    "per_second": "requests/s, 64 connections",
    "p50_ms": "p50 ms, 1 connection",
    "p99_ms": "p99 ms, 64 connections",
}
README_ROWS = (
    *(f"{job}: {MEASURES['per_cpu_second']}" for job in JOBS.values()),
    f"{JOBS['echo']}: {MEASURES['p50_ms']}",
    "memory MB",
)


def peers_rows(saved: dict[str, Any]) -> dict[str, list[float]]:
    """What was measured: a number for each server, or what isn't one of the yardstick."""
    results = saved["results"]
    rows = {
        f"{title}: {measure}": [result["jobs"][job][key] for result in results]
        for job, title in JOBS.items()
        for key, measure in MEASURES.items()
    }
    rows["CPU when idle, % of a core"] = [result["idle_percent"] for result in results]
    rows["memory MB"] = [result["jobs"]["echo"]["pss_mb"] for result in results]
    rows["lines of code, three services"] = [result["lines"] for result in results]
    return rows


def peers_columns(saved: dict[str, Any]) -> list[list[str]]:
    """The table: a row for each measure, a column for each server."""
    head = ["one worker, one core", *(result["server"] for result in saved["results"])]
    return [head, *([name, *map(_figure, numbers)] for name, numbers in peers_rows(saved).items())]


def _figure(number: float | None) -> str:
    if number is None:
        return "-"
    return f"{number:,.0f}" if number >= 100 or isinstance(number, int) else f"{number:.3g}"


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows under their head, the first column to the left."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|---|" + "--:|" * (len(rows[0]) - 1), *lines[1:]]


def peers_table(saved: dict[str, Any]) -> str:
    packages = [
        f"{result['server']}: " + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        for result in saved["results"]
    ]
    lines = [
        f"{saved['machine']['cpu']}. Medians of {saved['runs']} rounds of {saved['seconds']} s. {'; '.join(packages)}.",
        "",
        *markdown(peers_columns(saved)),
        "",
        *ahead(saved),
        *(f"- {name} is left out: {why}." for name, why in saved["left_out"].items()),
        *(f"- Rounds of {name} failed: {'; '.join(whys)}." for name, whys in saved["failures"].items()),
    ]
    return "\n".join(lines).rstrip()


def ahead(saved: dict[str, Any]) -> list[str]:
    """Where each of the others is better than Virtex, in a sentence each."""
    names = [result["server"] for result in saved["results"]]
    if "Virtex" not in names:
        return []
    ours, won = names.index("Virtex"), {name: [] for name in names if name not in ("bare", "Virtex")}
    for row, numbers in peers_rows(saved).items():
        more = 1 if "requests" in row else -1  # is better
        for name, number in zip(names, numbers, strict=True):
            if name in won and more * number > more * numbers[ours]:
                won[name].append(row)
    return [f"- {name} is ahead of Virtex in: {'; '.join(rows) or 'none of these'}." for name, rows in won.items()]


def peers_headline() -> str:
    """The README's five rows beside what people would pick instead."""
    rows = peers_columns(json.loads((RESULTS / "peers.json").read_text()))
    keep = [i for i, name in enumerate(rows[0]) if name != "bare"]
    return "\n".join(markdown([[row[i] for i in keep] for row in rows if row[0] in (rows[0][0], *README_ROWS)]))


def beside() -> dict[str, str]:
    """Both tables of the README, by the name of their marker."""
    return {"headline": headline(), "peers": peers_headline()}


def draw_peers(saved: dict[str, Any], to: Path) -> None:
    """Requests per CPU-second of each server, a panel for each job, on a logarithmic scale."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "virtex"  # the same figures, the same file
    matplotlib.rcParams["svg.fonttype"] = "none"  # text, not the outlines of its letters
    matplotlib.rcParams["font.sans-serif"] = ["Arial", "sans-serif"]  # of the reader's machine
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(JOBS), figsize=(11, 3.4), sharey=True, layout="constrained")
    names = [result["server"] for result in saved["results"]][::-1]
    for panel, (job, title) in zip(panels, JOBS.items(), strict=True):
        numbers = [result["jobs"][job]["per_cpu_second"] for result in saved["results"]][::-1]
        colours = ["#c44e52" if name == "Virtex" else "#bbbbbb" if name == "bare" else "#4c72b0" for name in names]
        bars = panel.barh(names, numbers, color=colours)
        panel.bar_label(bars, [f"{number:,.0f}" for number in numbers], padding=3, fontsize=8)
        panel.set(xscale="log", title=f"{title}: requests per CPU-second", xlim=(min(numbers) / 2, max(numbers) * 8))
        panel.title.set_fontsize(10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.minorticks_off()
    figure.savefig(to, format="svg", metadata={"Date": None})
    pyplot.close(figure)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "serve": serve_table,
    "edges": edges_table,
    "codec": codec_table,
    "images": images_table,
    "batching": batching_table,
    "engine": engine_table,
    "serial": serial_table,
    "peers": peers_table,
    "numbers": numbers_table,
    "client": client_table,
    "loadtest": loadtest_table,
    "v2": v2_table,
    "rpc": rpc_table,
    "fates": fates_table,
}


def headline() -> str:
    """The README's five figures of Virtex itself."""
    serve, edges, images, codec = (
        json.loads((RESULTS / f"{name}.json").read_text()) for name in ("serve", "edges", "images", "codec")
    )
    echo = {
        result["server"]: row["per_cpu_second"]
        for result in serve["results"]
        for row in result["rows"]
        if row["connections"] == 64
    }
    image = {row["server"]: row["us"] for row in images["cases"][0]["rows"]}
    body = {row["server"]: row["user_us_per_mb"] for row in edges["bodies"] if row["what"] == "read"}
    decode = {name: ns["decode"]["602112"] / 1000 for name, ns in codec["ways"].items()}
    idle = edges["idle"]
    lines = [
        f"| {serve['machine']['cpu']} | Virtex | beside it |",
        "|---|--:|---|",
        f"| small requests in a CPU-second, 64 connections | {echo['virtex']:,} | {echo['uvicorn']:,} uvicorn, "
        f"{echo['bare']:,} a parser alone |",
        f"| an image of 602 KB in JSON, into a batch: CPU time | {image['tensor']:.0f} us | {image['plain']:.0f} us "
        "orjson, pybase64 and `np.stack` under uvicorn |",
        f"| base64 of 602 KB into an array | {decode['virtex']:.0f} us | "
        f"{decode['pybase64 + orjson']:.0f} us pybase64 and orjson, {decode['pickle + base64']:,.0f} us pickles |",
        f"| a body of 10 MB, read: CPU time for each MB | {body['virtex']:.1f} us | {body['uvicorn']:.1f} us uvicorn |",
        f"| an idle connection | {idle['bytes_each']:,} bytes | {idle['connections']:,} of them take "
        f"{idle['percent_of_a_core']:.2f} % of a core |",
    ]
    return "\n".join(lines)


def place(text: str, name: str, table: str) -> str:
    """The text with `table` between <!-- figures: name --> and <!-- end -->."""
    start, end = f"<!-- figures: {name} -->", "<!-- end -->"
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"the page has no place for the figures: expected {start} ... {end}")
    return pattern.sub(lambda _: f"{start}\n{table}\n{end}", text)


def main() -> None:
    keep()
    fleet = json.loads((RESULTS / "fleet.json").read_text())
    pages = {"docs/figures.md": render(), "README.md": beside(), "docs/scale.md": fleet_figures.tables(fleet)}
    for page, tables in pages.items():
        text = (ROOT / page).read_text()
        for name, table in tables.items():
            text = place(text, name, table)
            print(table, file=sys.stdout)
        (ROOT / page).write_text(text)
    draw_peers(json.loads((RESULTS / "peers.json").read_text()), ROOT / "docs" / "peers.svg")
    fleet_figures.draw(fleet, ROOT / "docs" / "scale.svg")


if __name__ == "__main__":
    main()
