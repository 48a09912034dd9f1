"""What tests/test_ray_serve.py asks of a Ray of its own: prints, in one line of JSON, what came of it.

    python ray_serve.py FOLDER [STEP ...]      writes what handlers do to FOLDER/log

It runs in an environment that has Ray, in a network of its own where one can be made.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

FAST = {  # or Ray's autoscaler learns of the load every 10 s
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
}
os.environ.update(FAST)
FOLDER = Path(sys.argv[1])
EXAMPLES = str(Path(__file__).parents[2] / "examples")
sys.path.insert(0, EXAMPLES)
os.environ["PYTHONPATH"] = os.pathsep.join([os.environ.get("PYTHONPATH", ""), EXAMPLES])  # of the replicas
os.environ["RAY_TMPDIR"] = str(FOLDER)
QUIET = {"log_level": "WARNING", "enable_access_log": False}
CLIENTS = 64
PORT = 8000
PATIENCE = 60.0  # seconds for what takes a few on an idle machine

import ray  # noqa: E402
from ray import serve  # noqa: E402

from virtex.ray import command, deployment  # noqa: E402

facts: dict[str, Any] = {}
began = time.monotonic()


def note(**found: Any) -> None:
    facts.update(found)
    print(f"{time.monotonic() - began:5.1f} s  {found}", file=sys.stderr, flush=True)


def make(log: str, name: str, seconds: float, size: int) -> Any:
    """A service whose answers say who gave them; "sick" makes its replica unhealthy."""
    import asyncio
    import os

    from virtex import RequestHandler, http_server

    def write(*words: object) -> None:
        with open(log, "a") as file:
            print(name, os.getpid(), *words, file=file)

    class Says(RequestHandler):
        def setup(self, worker: Any) -> None:
            self.worker = worker
            write("setup", worker.index, worker.count)

        def teardown(self) -> None:
            write("teardown")

        def process_request(self, data: Any) -> Any:
            if "sick" in data:
                self.worker.unhealthy("it said so")
            return data

        async def run_inference(self, model_input: Any) -> Any:
            await asyncio.sleep(seconds)
            return [[item, os.getpid(), self.worker.index] for item in model_input]

        def process_response(self, model_output_item: Any) -> Any:
            return model_output_item

    return http_server(name, Says, max_batch_size=size)


def broken() -> Any:
    from virtex import RequestHandler, http_server

    class Broken(RequestHandler):
        process_request = run_inference = process_response = lambda self, given: given

        def setup(self, worker: Any) -> None:
            raise OSError("no weights at /models/x")

    return http_server("broken", Broken)


# ---- clients


async def post(path: str, item: Any, reader: Any = None, writer: Any = None) -> tuple[int, Any]:
    """The status and the message that answers it; on a connection of its own, where none is given."""
    is_own = writer is None
    if is_own:
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    body = json.dumps({"data": [item]}).encode()
    writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(body), body))
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    answer = await reader.readexactly(length)
    if is_own or b"connection: close" in head:
        writer.close()
    status = int(head.split()[1])
    return status, json.loads(answer) if b"application/json" in head else answer.decode()


class Load:
    """Clients that ask again as soon as they are answered, or a while later, each its own items, until stop()."""

    def __init__(self, path: str, clients: int, pause: float = 0.0) -> None:
        self.path, self.pause = path, pause
        self.asked: list[tuple[float, float, int, bool, Any]] = []  # begun, ended, status, right, who
        self.at = 0
        self._stop = False
        self._tasks = [asyncio.ensure_future(self._client()) for _ in range(clients)]

    async def _client(self) -> None:
        writer: Any = None
        while not self._stop:
            self.at += 1
            item, begun = self.at, time.monotonic()
            try:
                if writer is None or writer.is_closing():
                    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
                status, answer = await post(self.path, item, reader, writer)
            except (OSError, EOFError) as error:
                status, answer, writer = 0, repr(error), None
            right = status == 200 and answer["data"][0][0] == item
            who = tuple(answer["data"][0][1:]) if status == 200 else answer
            self.asked.append((begun, time.monotonic(), status, right, who))
            await asyncio.sleep(self.pause)
        if writer is not None:
            writer.close()

    def who(self, since: float = 0.0) -> set[Any]:
        """Who has answered since then: process and index."""
        return {who for begun, _, status, _, who in self.asked if status == 200 and begun >= since}

    async def stop(self) -> None:
        self._stop = True
        await asyncio.wait_for(asyncio.gather(*self._tasks), PATIENCE)


async def until(holds: Any, what: str, seconds: float = PATIENCE) -> float:
    """How long it took."""
    begun = time.monotonic()
    while not holds():
        if time.monotonic() - begun > seconds:
            raise TimeoutError(f"waited {seconds} s for {what}; {facts}")
        await asyncio.sleep(0.05)
    return time.monotonic() - begun


# ---- what is tried


def refused(call: Any) -> str:
    try:
        call()
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "taken"


def bad_arguments() -> None:
    model = threading.Lock()
    note(
        captured=refused(lambda: deployment(lambda: model)),
        no_function=refused(lambda: deployment(broken())),
        misnamed=refused(lambda: deployment(broken, autoscaling={"max_replica": 3})),
        both=refused(lambda: deployment(broken, num_replicas=2, autoscaling={"max_replicas": 3})),
        wait=refused(lambda: deployment(broken, autoscaling={"target_queue_wait": 0})),
        two_policies=refused(
            lambda: deployment(broken, autoscaling={"target_queue_wait": 1, "target_ongoing_requests": 2})
        ),
        resources=refused(lambda: deployment(broken, ray_actor_options={"gpus": 1})),
        option=refused(lambda: deployment(broken, replicas=1)),
    )


def deploy(target: Any, name: str) -> None:
    serve.run(target, name=name, route_prefix=f"/{name}", logging_config=QUIET)


async def kill() -> None:
    """One of two replicas is killed under 64 clients."""
    made = deployment(*(make,), name="pair", num_replicas=2, ray_actor_options={"num_cpus": 0}, health_check_period_s=1)
    await asyncio.to_thread(deploy, made.bind(str(FOLDER / "log"), "pair", 0.05, 64), "pair")
    load = Load("/pair", CLIENTS)
    await until(lambda: len(load.who()) == 2 and len(load.asked) > 4 * CLIENTS, "both replicas to answer")
    before = load.who()
    victim, index = min(before, key=lambda who: who[1])
    note(ranks=sorted(who[1] for who in before))
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    back = await until(lambda: len(load.who(killed + 0.5) - before) == 1, "a successor to answer")
    await load.stop()
    ((_, successor),) = load.who(killed + 0.5) - before
    failed = [one for one in load.asked if one[2] != 200]
    late = [ended - begun for begun, ended, *_ in load.asked if begun > killed]
    note(
        answered=len(load.asked),
        wrong=sum(status == 200 and not right for _, _, status, right, _ in load.asked),
        failed=len(failed),
        failed_begun_later=[round(begun - killed, 3) for begun, *_ in failed if begun > killed],
        failures=sorted({(status, str(who)[:80]) for _, _, status, _, who in failed}),
        back=round(back, 1),
        slowest_after=round(max(late), 2),
        index_taken_over=successor == index,
    )


async def sick() -> None:
    """A replica that says it is not live is replaced."""
    log = FOLDER / "log"
    before = {int(line.split()[1]) for line in log.read_text().splitlines()}
    _, answer = await post("/pair", "sick")
    _, pid, _ = answer["data"][0]
    load = Load("/pair", 4)
    took = await until(lambda: f"pair {pid} teardown" in log.read_text(), "the sick replica to be torn down")
    # Not by its rank: the sick one holds that until it has ended, and Ray may begin the successor ahead of it.
    await until(lambda: {who[0] for who in load.who()} - before, "its successor")
    await load.stop()
    note(sick=round(took, 1), sick_failed=sum(status != 200 for _, _, status, *_ in load.asked))
    await asyncio.to_thread(serve.delete, "pair")


class Counts(threading.Thread):
    """How many replicas of a deployment run, as it changes."""

    def __init__(self, name: str) -> None:
        super().__init__(daemon=True)
        self.name_of, self.seen, self.over = name, [], False

    def run(self) -> None:
        while not self.over:
            with suppress(Exception):
                (one,) = serve.status().applications[self.name_of].deployments.values()
                running = one.replica_states.get("RUNNING", 0)
                if self.seen[-1:] != [running]:
                    self.seen.append(running)
            time.sleep(0.1)


async def scale() -> None:
    """From one to three by load, and back to one, and to none; and a request to none."""
    scaled = {
        "min_replicas": 0,
        "initial_replicas": 1,
        "max_replicas": 3,
        "target_queue_wait": 0.2,
        "upscale_delay_s": 0.5,
        "downscale_delay_s": 1.0,
        "downscale_to_zero_delay_s": 4.0,
        "look_back_period_s": 1.1,
    }
    made = deployment(make, name="scaled", autoscaling=scaled, ray_actor_options={"num_cpus": 0})
    await asyncio.to_thread(deploy, made.bind(str(FOLDER / "log"), "scaled", 0.4, 1), "scaled")
    counts = Counts("scaled")
    counts.start()
    await until(lambda: counts.seen[-1:] == [1], "one replica")
    load = Load("/scaled", 16)  # each replica takes 2.5 items a second
    up = await until(lambda: counts.seen[-1] == 3, "three replicas", 2 * PATIENCE)
    await until(lambda: len({who for *_, status, _, who in load.asked[-32:] if status == 200}) == 3, "all to answer")
    await load.stop()
    trickle = Load("/scaled", 1, pause=1.5)
    down = await until(lambda: counts.seen[-1] == 1, "one replica again")
    await trickle.stop()
    await until(lambda: counts.seen[-1] == 0, "none")
    begun = time.monotonic()
    status, answer = await asyncio.wait_for(post("/scaled", 7), PATIENCE)
    note(
        counts=counts.seen[: counts.seen.index(0) + 1],
        up=round(up, 1),
        down=round(down, 1),
        lost=sum(not right for *_, right, _ in [*load.asked, *trickle.asked]),
        held=round(time.monotonic() - begun, 1),
        from_none=[status, answer["data"][0][0]],
    )
    counts.over = True
    await asyncio.to_thread(counts.join)  # Ray's configurations are made by one thread at a time


async def compose() -> None:
    """The example: two models, one of which asks the other."""
    import composed

    await asyncio.to_thread(deploy, composed.app, "composed")
    answers = [await post("/composed", text) for text in composed.TEXTS]
    note(composed=[answer["data"][0] for _, answer in answers], refused=await post("/composed", 7))


def only_here() -> Any:
    """A factory of a module that replicas have not."""
    module = ModuleType("only_here")
    sys.modules["only_here"] = module
    exec("def make(): pass", vars(module))
    return module.make


async def fail() -> None:
    """A setup() that raises, and a function that is not there: what Ray keeps of it, and what `virtex ray` prints."""
    for name, factory in (("broken", broken), ("absent", only_here())):
        made = deployment(factory, name=name, ray_actor_options={"num_cpus": 0}, max_constructor_retry_count=1)
        with redirect_stderr(StringIO()) as printed:
            try:
                await asyncio.to_thread(command._deploy, serve, made.bind())
            except RuntimeError as error:
                said = str(error)
        note(**{f"{name}_said": said, name: printed.getvalue()})


async def main() -> None:
    bad_arguments()
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 << 20,
        logging_level="ERROR",
        log_to_driver=False,
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT}, proxy_location="HeadOnly", logging_config=QUIET)
        for step in (kill, sick, scale, compose, fail):
            if step.__name__ in (sys.argv[2:] or step.__name__):
                await step()
    finally:
        serve.shutdown()
        ray.shutdown()
    with suppress(FileNotFoundError):  # of some steps only
        note(log=(FOLDER / "log").read_text().splitlines())


asyncio.run(main())
print(json.dumps(facts))
