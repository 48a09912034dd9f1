"""deploy/Dockerfile: what it says, what it copies, and that its command serves as process 1 on a read-only root.

The command runs on this machine's own files in every run, and in the image that buildah makes where VIRTEX_IMAGE names
a folder for it: `make image-test`. For that image `base()` makes a Debian to begin with, for no registry is asked.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from kit import container as boxes
from kit.container import Config, Container, container, directives, stages, wait_healthy
from kit.images import Images
from kit.pages import Page
from kit.servers import ROOT, free_port, listens, until

DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
MODEL = DEPLOY / "Dockerfile.model"
HEALTHY = DEPLOY / "healthy.py"
KINDS = {".desc", ".html", ".proto", ".py", ".pyi", ".typed"}  # of what runs, compiled or not
COMPILERS = ("gcc", "g++", "cc", "c++", "clang", "as", "ld", "make")

SERVICE = """
import os, time
from virtex import RequestHandler, http_server

class Waits(RequestHandler):
    def example(self):
        return ["a"]

    def process_request(self, data):
        return data

    def run_inference(self, batch):
        if "wait" in batch:
            print("in the model")
            while not os.path.exists("go"):
                time.sleep(0.01)
        return batch

    def process_response(self, row):
        return row

app = http_server(name="waits", handler=Waits, executor="thread")
"""


# -- what the Dockerfile says


def test_what_compiles_stays_in_its_stage_and_what_runs_is_no_root() -> None:
    build, last = stages(DOCKERFILE)
    assert any("gcc" in rest for _, rest in build)
    assert not any(re.search(r"\b(gcc|apt-get|pip)\b", rest) for name, rest in last if name in ("RUN", "COPY"))
    config = Config.of(DOCKERFILE)
    user, group = config.user.split(":")
    assert int(user) == int(group) == 10001
    assert f"--uid {user} " in dict(last)["RUN"]


def test_the_image_stops_listens_and_is_asked_as_the_command_does() -> None:
    config = Config.of(DOCKERFILE)
    assert config.stop == "SIGTERM"
    assert config.ports == [config.env["PORT"]] == ["8080"]
    assert config.command == ["virtex", "serve", "service:app"]
    assert config.check[:2] == ["python", "-I"]
    assert "NVIDIA_VISIBLE_DEVICES" not in config.env  # else a pod that asked for no GPU gets all


def test_both_stages_begin_with_the_base_that_is_an_argument() -> None:
    said = directives(DOCKERFILE)
    assert said[0][0] == "ARG" and re.fullmatch(r"BASE=python:3\.\d+-slim-\w+", said[0][1])
    assert [rest.split()[0] for name, rest in said if name == "FROM"] == ["${BASE}", "${BASE}"]


def test_the_page_shows_the_dockerfile_of_a_model() -> None:
    page = Page(ROOT / "docs" / "containers.md")
    assert [block.code for block in page.blocks if block.language == "dockerfile"] == [MODEL.read_text()]


def context() -> set[str]:
    """What .dockerignore leaves: the last pattern that fits a file, or a folder above it, decides."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]

    def is_left_out(path: str) -> bool:
        out = False
        for pattern in patterns:
            parents = [path, *(parent.as_posix() for parent in Path(path).parents)]
            if any(fits(each, pattern.removeprefix("!")) for each in parents):
                out = not pattern.startswith("!")
        return out

    named = {pattern[1:].partition("/")[0] for pattern in patterns if pattern[0] == "!"}
    above = [path for path in ROOT.iterdir() if path.is_file()]
    below = [path for name in named for path in (ROOT / name).rglob("*") if path.is_file()]
    files = {path.relative_to(ROOT).as_posix() for path in (*above, *below)}
    return {path for path in files if not is_left_out(path)}


def is_in(file: str, source: str) -> bool:
    return f"{file}/".startswith(f"{source}/")


def fits(path: str, pattern: str) -> bool:
    """Go's filepath.Match, where a star stops at a slash, and Docker's ** does not."""
    parts = [re.escape(part).replace(r"\*", "[^/]*") for part in re.split(r"\*\*/", pattern)]
    return re.fullmatch("(?:.*/)?".join(parts), path) is not None


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout of git")
def test_the_context_is_what_is_copied_and_nothing_that_was_built() -> None:
    sources = [
        source
        for name, rest in directives(DOCKERFILE)
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    ]
    files = context()
    assert all((ROOT / source).exists() for source in sources)
    assert {source for source in sources for file in files if is_in(file, source)} == {*sources}
    assert [file for file in files if not any(is_in(file, source) for source in sources)] == []
    tracked = subprocess.run(["git", "ls-files", "virtex"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {file for file in files if is_in(file, "virtex")} >= {*tracked.stdout.splitlines()}
    assert {Path(file).suffix for file in files if is_in(file, "virtex")} == {*KINDS, ".pyx", ".pxd", ".h"}
    assert sum((ROOT / file).stat().st_size for file in files) < 3 << 20


# -- the health check


class Health(BaseHTTPRequestHandler):
    answers: dict[str, int]

    def do_GET(self) -> None:
        self.send_response(self.answers[self.path])
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"so")

    def log_message(self, *_: object) -> None:
        pass


def ask(port: int) -> tuple[int, str]:
    away = {"http_proxy": "http://127.0.0.1:9", "PORT": str(port)}
    words = [sys.executable, "-I", str(HEALTHY)]
    ended = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **away}, timeout=30)
    return ended.returncode, ended.stdout


@pytest.mark.parametrize(
    ("live", "ready", "expected"),
    [
        (200, 200, (0, "")),
        (503, 200, (1, "/health/live: 503 so\n")),  # a model that should be replaced
        (200, 503, (1, "/health/ready: 503 so\n")),  # one that loads, or drains
    ],
)
def test_the_health_check_says_what_is_not_well(live: int, ready: int, expected: tuple[int, str]) -> None:
    handler = type("Answers", (Health,), {"answers": {"/health/live": live, "/health/ready": ready}})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            assert ask(server.server_port) == expected
        finally:
            server.shutdown()
            thread.join()


def test_the_health_check_of_a_service_that_does_not_listen_fails() -> None:
    code, why = ask(free_port())
    assert code == 1
    assert "ConnectionRefusedError" in why


# -- process 1


class Box(NamedTuple):
    """A root, what the image says of it, the folder of a service, and one that the image's user is to read besides."""

    root: Path
    config: Config
    folder: Path
    shown: Path = Path("/")


def here(folder: Path) -> Box:
    """This machine as if it were the image: this Python's environment in the place of the image's."""
    scripts = str(Path(sys.executable).parent)
    config = Config.of(DOCKERFILE)
    env = {name: value.replace("/opt/venv/bin", scripts) for name, value in config.env.items()}
    check = [word.replace("/opt/healthy.py", str(HEALTHY)) for word in config.check]
    env["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", *config.command]
    return Box(
        Path("/"),
        config._replace(env=env, command=command, check=check, folder=str(folder)),
        folder,
        Path(sys.base_prefix),
    )


@pytest.fixture(params=["here", "image"])
def box(request: pytest.FixtureRequest) -> Iterator[Box]:
    if not boxes.can_be_run():
        pytest.skip("namespaces are made by root alone")
    with TemporaryDirectory(prefix="virtex-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the image's user reads it
        (folder / "service.py").write_text(SERVICE)
        if request.param == "image":
            yield Box(*request.getfixturevalue("image"), folder)
        elif boxes.hidden_by(ROOT) or boxes.hidden_by(folder):
            pytest.skip("this checkout, or what is temporary, is in a folder that others can't read")
        else:
            yield here(folder)


def test_the_command_serves_as_process_1_on_a_root_that_is_read_only_and_ends_well(box: Box) -> None:
    with container(box.root, box.config, free_port(), box.folder, box.shown) as running:
        wait_healthy(running)
        assert running.request("POST", "/", b'{"data":["a"]}') == (200, b'{"data":["a"],"error":null}')
        is_nobody_and_can_write_nothing(running)
        reaps_an_orphan_whatever_its_exit_code(running)
        answers_what_it_has_taken_and_leaves(running)


def is_nobody_and_can_write_nothing(running: Container) -> None:
    user, _ = running.config.user.split(":")
    assert running.status("NSpid", running.init).split()[1:] == ["1"]
    for pid in (running.init, *running.children()):
        assert set(running.status("Uid", pid).split()) == set(running.status("Gid", pid).split()) == {user}
        assert int(running.status("CapEff", pid), 16) == 0
    assert running.run("id", "-u").stdout.strip() == user
    for where in ("/", "/tmp", "/var/tmp", "/etc", "/dev", running.config.folder, "/opt"):
        ended = running.run("touch", f"{where}/virtex-was-here")
        assert ended.returncode == 1 and "Read-only file system" in ended.stderr


def reaps_an_orphan_whatever_its_exit_code(running: Container) -> None:
    """3 is how a worker of gunicorn says that it can't start; an orphan that says so must not end the service."""
    workers = running.children()
    end = running.folder / "end"
    ended = running.run("sh", "-c", "(while [ ! -e end ]; do sleep 0.02; done; exit 3) >/dev/null 2>&1 &")
    assert ended.returncode == 0
    until(lambda: len(running.children()) == len(workers) + 1, "the orphan to be a child of process 1", running)
    end.touch()
    until(lambda: running.children() == workers, "the orphan to be reaped", running)
    assert running.request("GET", "/health/live")[0] == 200


def answers_what_it_has_taken_and_leaves(running: Container) -> None:
    """SIGTERM to process 1, as `docker stop` sends it; gunicorn gives its workers 30 seconds."""
    answers: list[tuple[int, bytes]] = []
    asking = threading.Thread(
        target=lambda: answers.append(running.request("POST", "/", b'{"data":["wait"]}')), daemon=True
    )
    asking.start()
    running.wait_log("in the model")
    os.kill(running.init, getattr(signal, running.config.stop))
    running.wait_log("Handling signal: term")
    assert running.run(*running.config.check).returncode == 1
    (running.folder / "go").touch()
    asking.join(20)
    assert answers == [(200, b'{"data":["wait"],"error":null}')]
    assert running.wait_exit() == 0
    assert not listens(running.port)


# -- the image


@pytest.fixture(scope="session")
def images() -> Iterator[Images]:
    where = os.environ.get("VIRTEX_IMAGE")
    if not where:
        pytest.skip("runs in `make image-test` alone, which takes minutes")
    images = Images(Path(where).resolve())
    images.base()
    images.build("virtex", DOCKERFILE, ROOT, "--build-arg", "BASE=localhost/debian-python")
    yield images
    images.close()


@pytest.fixture(scope="session")
def image(images: Images) -> tuple[Path, Config]:
    return images.root("virtex"), images.config("virtex")


def test_the_image_says_what_its_dockerfile_does(image: tuple[Path, Config]) -> None:
    _, config = image
    said = Config.of(DOCKERFILE)
    assert config.env.pop("PATH").startswith("/opt/venv/bin:")
    assert config == said._replace(env={name: value for name, value in said.env.items() if name != "PATH"})


def test_the_image_has_neither_compiler_nor_sources_and_is_small(image: tuple[Path, Config], images: Images) -> None:
    root, _ = image
    assert [
        name for name in COMPILERS for where in ("usr/bin", "usr/local/bin") if (root / where / name).exists()
    ] == []
    assert not (root / "src").exists() and not (root / "wheels").exists()
    (package,) = root.glob("opt/venv/lib/python3.*/site-packages/virtex")
    kinds = {path.suffix for path in package.rglob("*") if path.is_file()}
    assert kinds == {*KINDS, ".so", ".pyc"}
    added = sum(path.lstat().st_size for path in (root / "opt").rglob("*"))
    print(f"/opt: {added / 1e6:.0f} MB")
    assert added < 200e6


def test_a_model_of_a_user_comes_on_top_and_runs_as_whoever_it_is_told_to(images: Images, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text("import tabulate\n" + SERVICE)
    (tmp_path / "requirements.txt").write_text("tabulate\n")
    images.build("mine", MODEL, tmp_path)
    root, config = images.root("mine"), images.config("mine")
    assert config == images.config("virtex")
    stranger = config._replace(user="12345:0")
    with container(root, stranger, free_port(), root / "app") as running:
        wait_healthy(running)
        assert running.request("POST", "/", b'{"data":[1]}') == (200, b'{"data":[1],"error":null}')
        checked = running.run("virtex", "check", "service:app", "--duration", "100ms")
        assert checked.returncode == 0, checked.stdout + checked.stderr
