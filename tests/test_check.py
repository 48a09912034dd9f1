"""virtex check: what it says of a handler that is well, that fails, that leaks, and of an app that holds several."""

import logging

import pytest

from virtex.check import growth
from virtex.cli import main

SOURCE = """
import asyncio
from virtex import Content, RequestHandler, http_server

class Words(RequestHandler):
    kept = []
    def example(self):
        return ["a", "a longer one"]
    def process_request(self, data):
        return [text.split() for text in data]
    def run_inference(self, batch):
        return [len(words) for words in batch]
    def process_response(self, row):
        return row

class Loops(Words):  # what setup() made belongs to a loop
    async def setup(self, worker):
        self.loop = asyncio.get_running_loop()
    async def run_inference(self, batch):
        assert asyncio.get_running_loop() is self.loop
        return super().run_inference(batch)

class Threads(Words):
    def setup(self, worker):
        import threading
        self.ident = threading.get_ident()
    def run_inference(self, batch):
        import threading
        assert threading.get_ident() == self.ident
        return super().run_inference(batch)

class Large(Words):
    def run_inference(self, batch):
        if len(batch) > 4:
            raise MemoryError("no room for a batch")
        return super().run_inference(batch)

class Leaks(Words):
    def run_inference(self, batch):
        self.kept.append(b"x" * 400_000)
        return super().run_inference(batch)

class Setup(Words):
    def setup(self, worker):
        raise FileNotFoundError("model.bin")

class Files(Words):
    accepts = ("image/*",)
    def example(self):
        return [b"a", b"a longer one"]
    def process_response(self, row):
        return Content(b"pixels", "image/png")

class AsyncFiles(Files):
    async def run_inference(self, batch):
        return super().run_inference(batch)

class Objects(Words):
    def example(self):
        return [{1, 2}]

class Costs(Words):
    def cost(self, item):
        return 1 / (13 - len(item))

class Silent(Words):
    def example(self):
        return []
"""


@pytest.fixture
def checked(tmp_path, monkeypatch, capsys, request):
    def check(line, duration="50ms"):
        name = f"service_{abs(hash((request.node.name, line)))}"
        (tmp_path / f"{name}.py").write_text(SOURCE + line)
        monkeypatch.chdir(tmp_path)
        code = main(["check", f"{name}:app", "--duration", duration])
        return code, capsys.readouterr()

    return check


@pytest.mark.parametrize("made", ["Words", "Loops", "Threads, executor='thread'", "Files", "AsyncFiles"])
def test_a_handler_that_is_well_is_tried_with_every_size(checked, made):
    code, said = checked(f"app = http_server('w', {made}, max_batch_size=8)")
    assert code == 0, said
    steps = [line.split("  ")[1] for line in said.out.splitlines()[1:-1]]
    longest = 12 if "Files" in made else 14  # a text of JSON has quotation marks
    sizes = ["1 item", "8 items", f"1, the longest ({longest} bytes)", "8 of the longest"]
    assert steps[:5] == ["setup", *sizes], said.out
    assert said.err == ""
    assert said.out.startswith("service 'w': max_batch_size 8, executor ") and said.out.endswith("all is well\n")


def test_batches_keep_to_the_budget_of_the_service(checked):
    code, said = checked("app = http_server('w', Costs, max_batch_size=8, max_batch_cost=2.5)")
    assert code == 0, said
    steps = [line.split("  ")[1] for line in said.out.splitlines()[2:-3]]
    assert steps == ["1 item", "5 items", "1, the longest (14 bytes)", "2 of the longest"]
    code, said = checked("Words.cost = lambda self, item: item.cost\napp = http_server('w', Words, max_batch_cost=1)")
    assert code == 1 and "FAILED: item 0: cost raised AttributeError" in said.out and "has no attribute" in said.err


@pytest.mark.parametrize(
    ("made", "out", "err"),
    [
        ("Large", "8 items                          FAILED: run_inference", "MemoryError: no room for a batch"),
        ("Setup", "setup                            FAILED: FileNotFoundError('model.bin')", "in setup"),
        ("Objects", "example()                        FAILED: item 0: message gave a set that can't be sent", ""),
        ("Silent", "example()                        gives no items; define it", ""),
    ],
    ids=["Large", "Setup", "Objects", "Silent"],
)
def test_a_handler_that_fails_says_where_and_why(checked, made, out, err):
    code, said = checked(f"app = http_server('w', {made}, max_batch_size=8)")
    assert code == 1
    assert out in said.out and said.out.endswith("FAILED: see above\n")
    assert err in said.err


def test_it_is_quiet_but_leaves_the_log_as_it_was(checked, caplog):
    log = logging.getLogger("virtex")
    before = log.level
    checked("app = http_server('w', Words, max_batch_size=2)")
    assert log.level == before and not [one for one in caplog.records if one.levelno < logging.WARNING]


def test_memory_that_grows_is_told(checked):
    code, said = checked("app = http_server('w', Leaks, max_batch_size=2)", "2s")
    assert code == 1
    assert "memory: GROWS, by about " in said.out


def test_growth_is_what_can_be_no_accident():
    assert growth([5] * 7) is None
    assert growth([9, 9, 5, 5, 5, 5, 5, 5]) == 0
    assert growth([1, 2, 3, 4, 5, 6, 7, 8]) == 3
    assert growth([5, 5, 9, 5, 5, 5, 5, 5]) < 0


def test_every_service_that_an_app_holds_is_checked(checked):
    code, said = checked(
        "a, b = http_server('a', Words), http_server('b', Setup)\nasync def app(scope, receive, send): ..."
    )
    assert code == 1
    assert "service 'a'" in said.out and "service 'b'" in said.out


def test_code_that_can_not_be_imported_is_said(checked):
    code, said = checked("import missing_module")
    assert code == 1
    assert "No module named 'missing_module'" in said.err and "could not be imported from" in said.err
