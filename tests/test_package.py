"""What an install is: cheap to import, one version, a wheel with what runs and nothing else, an sdist that builds."""

from __future__ import annotations

import email
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from kit import needs, pages
from kit.servers import free_port
from setuptools._distutils.filelist import FileList

import virtex

ROOT = Path(__file__).parent.parent
SOURCES = ("MANIFEST.in", "Makefile", "pyproject.toml", "setup.py", "README.md", "LICENSE", "virtex")


def python(script: str) -> str:
    ended = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_importing_virtex_loads_nothing_but_itself() -> None:
    heavy = {
        "asyncio",
        "google",
        "grpc",
        "gunicorn",
        "httptools",
        "httpx2",
        "numpy",
        "orjson",
        "ray",
        "socket",
        "ssl",
        "torch",
        "uvloop",
        "virtex._codec",
    }
    script = (
        f"import sys; before = set(sys.modules); import virtex; print(sorted((set(sys.modules) - before) & {heavy}))"
    )
    assert python(script) == "[]"


def test_the_client_loads_neither_gunicorn_nor_the_server() -> None:
    script = "import sys, virtex; virtex.HttpClient; print(sorted(set(sys.modules) & {'gunicorn', 'virtex.server'}))"
    assert python(script) == "[]"


@pytest.mark.parametrize("module", ["virtex.server", "virtex.worker", "virtex.cli", "virtex.ray"])
def test_a_service_loads_no_library_that_only_some_ask_for(module: str) -> None:
    some = {"google", "grpc", "prometheus_client", "ray", "torch"}
    assert python(f"import sys, {module}; print(sorted(set(sys.modules) & {some}))") == "[]"


def test_what_is_tested_here_is_what_was_compiled() -> None:
    paths = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "virtex").rglob("*.pxd"))
    modules = sorted(".".join(path.parts) for path in paths)
    built = [importlib.import_module(name).__file__ or "" for name in modules]
    assert modules and [name for name, file in zip(modules, built, strict=True) if not file.endswith(".so")] == []


def test_every_public_name_is_there_and_no_other() -> None:
    assert python("import virtex; print([n for n in virtex.__all__ if not getattr(virtex, n)])") == "[]"
    assert set(virtex.__all__) <= set(dir(virtex))
    with pytest.raises(AttributeError, match="module 'virtex' has no attribute 'HttpServer'"):
        virtex.HttpServer  # noqa: B018


def test_the_version_stands_in_one_place() -> None:
    assert re.search(r'^dynamic = \["version"\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    holders = [path for path in (ROOT / "virtex").rglob("*.py") if virtex.__version__ in path.read_text()]
    assert holders == [ROOT / "virtex" / "__init__.py"]


def test_the_change_log_begins_with_this_version() -> None:
    entries = re.findall(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert entries[0][0] == virtex.__version__
    assert [date for _, date in entries] == sorted((date for _, date in entries), reverse=True)


def test_the_citation_names_this_version_and_its_day() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    date = re.search(r"^## \S+ \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert date
    assert f"\nversion: {virtex.__version__}\n" in citation
    assert f"\ndate-released: {date[1]}\n" in citation
    assert f"  version = {{{virtex.__version__}}},\n" in (ROOT / "README.md").read_text()


def test_an_install_brings_nothing_that_the_package_does_not_import() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    brought = {re.match(r"[\w-]+", requirement)[0].replace("-", "_") for requirement in project["dependencies"]}
    imported: set[str] = set()
    for path in (ROOT / "virtex").rglob("*.py"):
        imported |= set(re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE))
    assert brought <= imported


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The package's sources, as a checkout has them, with what Cython made of them: again would take half a minute."""
    target = tmp_path / "checkout"
    target.mkdir()
    built = shutil.ignore_patterns("*.so", "__pycache__")
    for name in SOURCES:
        source = ROOT / name
        shutil.copytree(source, target / name, ignore=built) if source.is_dir() else shutil.copy(source, target)
    for translated in target.glob("virtex/**/*.c"):
        translated.touch()  # up to date, whatever was saved meanwhile: conftest.py sees to that
    return target


# Nothing that is built here is loaded: a compiler that looks up every header that the sources name, and writes empty
# files, is quick.
COMPILER = """#!/bin/sh
case " $* " in *" -c "*) cc "$@" -M || exit ;; esac
while [ "$1" != -o ]; do shift; done
: >"$2"
"""


# make build has compiled the same sources: each library is copied from where it put them. Again would take minutes.
COPIER = f"""#!/bin/sh
what=" $* "
while [ "$1" != -o ]; do shift; done
case "$what" in *" -c "*) : >"$2" ;; *) cp "{ROOT}/virtex/${{2##*/virtex/}}" "$2" ;; esac
"""


def build(what: str, where: Path, out: Path) -> Path:
    """Run the build backend, as pip would; gives the file it made."""
    compiler = out / "cc"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    script = f"import sys; from setuptools import build_meta; print(build_meta.build_{what}(sys.argv[1]))"
    command = [sys.executable, "-c", script, str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=where, env={**os.environ, "CC": str(compiler)})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return out / ended.stdout.split()[-1]


def test_the_sdist_builds_a_wheel_with_what_runs_and_nothing_else(checkout: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "xzf", build("sdist", checkout, tmp_path)], cwd=tmp_path, check=True)
    unpacked = tmp_path / f"virtex-{virtex.__version__}"
    assert not list(unpacked.rglob("*.c"))
    for translated in checkout.glob("virtex/**/*.c"):
        shutil.copy(translated, unpacked / translated.relative_to(checkout))
    wheel = zipfile.ZipFile(build("wheel", unpacked, tmp_path))
    with wheel:
        names = wheel.namelist()
        metadata = email.message_from_bytes(wheel.read(f"virtex-{virtex.__version__}.dist-info/METADATA"))
    inside = {name for name in names if name.startswith("virtex/")}
    assert {Path(name).suffix for name in inside} == {".desc", ".html", ".proto", ".py", ".pyi", ".so", ".typed"}
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "virtex").rglob("*.py")} <= inside
    assert {name.partition("/")[0] for name in names} == {"virtex", f"virtex-{virtex.__version__}.dist-info"}
    assert metadata["Version"] == virtex.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"


def test_the_sdist_has_every_file_of_the_repository() -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip(f"what the repository has is not known: {listed.stderr}")
    files = [file for file in listed.stdout.splitlines() if (ROOT / file).exists()]
    taken = FileList()
    taken.set_allfiles(files)
    for line in (ROOT / "MANIFEST.in").read_text().splitlines():
        taken.process_template_line(line)
    by_itself = {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"}  # and the packages' modules
    there = by_itself | {file for file in files if re.fullmatch(r"virtex/.*\.py", file)} | set(taken.files)
    assert set(files) - there == {".gitignore"}


@pytest.mark.skipif(sys.platform != "linux", reason="manylinux is for Linux")
def test_the_wheel_that_make_makes_serves_in_an_environment_that_has_nothing_else(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs.time()
    compiler = tmp_path / "cc"
    compiler.write_text(COPIER)
    compiler.chmod(0o755)
    command, environment = ["make", "wheel", f"PYTHON={sys.executable}"], {**os.environ, "CC": str(compiler)}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=checkout, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (wheel,) = (checkout / "dist").iterdir()
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert re.fullmatch(rf"virtex-{virtex.__version__}-{tag}-{tag}-manylinux[\w.]+\.whl", wheel.name)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # pip takes what it finds there for installed
    python, port = pages.install([str(wheel)], tmp_path / "venv"), free_port()
    readme, folder = pages.Page(ROOT / "README.md"), tmp_path / "readme"
    monkeypatch.setattr(pages, "ROOT", tmp_path / "nothing")  # which the servers of pages have on their path
    folder.mkdir()
    for name, code in readme.files.items():
        (folder / name).write_text(code)
    line = next(line for line in readme.shell if line.startswith("gunicorn ")).replace(pages.PORT, str(port))
    with pages.running(line, port, folder, python):
        pages.check_code("client.py", readme.files["client.py"], port, folder, python)
        for line, answer in readme.asked:
            pages.check_answer(line, answer, port)
    ask = [python, "-c", "import virtex; print(virtex.__file__)"]  # in a folder that has no other virtex
    where = subprocess.run(ask, cwd=folder, capture_output=True, text=True)
    assert where.stdout.startswith(str(tmp_path / "venv"))


def test_a_codec_that_does_not_compile_fails_the_build_loudly(checkout: Path) -> None:
    header = checkout / "virtex" / "csrc" / "npy.h"
    written = header.stat()
    header.write_text(header.read_text() + "#error no\n")
    os.utime(header, ns=(written.st_atime_ns, written.st_mtime_ns))  # still older than what Cython made
    for pxd in (checkout / "virtex").rglob("[!_]*.pxd"):
        pxd.unlink()  # the modules that are compiled besides would take a minute
    at_once = os.environ | {"CFLAGS": "-Wfatal-errors"}
    command = [sys.executable, "setup.py", "build_ext"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=checkout, env=at_once)
    assert ended.returncode != 0
    assert "#error no" in ended.stderr


@pytest.mark.parametrize("gone", [{"PATH": "/nowhere"}, {"CC": "/nowhere/gcc -m64"}], ids=["no compiler", "CC"])
def test_a_build_without_a_c_compiler_says_so_in_one_line_before_anything_else(gone: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CC"} | gone
    script = "from setuptools import build_meta; build_meta.get_requires_for_build_wheel()"
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert re.match(r"no C compiler: '\S+' is not found, and Virtex is compiled from its sources \(Debian: apt ", line)
    assert "CC" not in gone or "'/nowhere/gcc'" in line


def test_an_installation_without_its_codec_says_so(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "virtex", tmp_path / "virtex", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    # Without the finder of an editable installation, which would find the codec where it was built
    script = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]; "
    script += "import virtex; virtex.HttpMessage"
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1
    assert "ImportError: virtex._codec, the compiled codec, is missing" in run.stderr
