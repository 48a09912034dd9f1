"""The clients of Triton and of KServe, as they are, against a server under gunicorn.

They need an environment of their own: `make test-all` makes it, and names it in VIRTEX_V2.
"""

import os
import subprocess
from pathlib import Path

import pytest
from kit import needs
from kit.pages import PORT, Page
from kit.servers import ROOT, serving

CLIENTS = Path(__file__).parent / "clients"
WHERE = os.environ.get("VIRTEX_V2", "")
PYTHON = Path(WHERE, "bin", "python")
if not WHERE:
    if needs.every:
        raise RuntimeError("VIRTEX_V2: expected an environment with tritonclient and kserve, got nothing")
    pytest.skip("VIRTEX_V2 names no environment with tritonclient and kserve", allow_module_level=True)

SOURCE = (
    Page(ROOT / "README.md").files["server.py"].partition("if __name__")[0]
    + """
import asyncio, ml_dtypes, numpy as np
from virtex import RequestHandler, Services, Tensor, TensorHandler, http_server

def identity(dtype):
    class Identity(TensorHandler):
        inputs = outputs = Tensor(dtype, (3,))
        def run_inference(self, batch):
            return batch
    return Identity

class Sums(TensorHandler):
    inputs = {"a": Tensor("f4", (2,)), "b": Tensor("i8")}
    outputs = {"sum": Tensor("f4"), "b": Tensor("i8")}
    def run_inference(self, batch):
        return {"sum": batch["a"].sum(1) + batch["b"].astype("f4"), "b": batch["b"]}

class Late(identity("f4")):
    async def run_inference(self, batch):
        await asyncio.sleep(1)
        return batch

class Upper(RequestHandler):
    def process_request(self, data):
        return data
    def run_inference(self, texts):
        return [text.upper() for text in texts]
    def process_response(self, text):
        return text

DTYPES = "bool u1 u2 u4 u8 i1 i2 i4 i8 f2 f4 f8".split()
app = Services(
    app,
    *(http_server(f"as {dtype}", identity(dtype), max_batch_size=4) for dtype in DTYPES),
    http_server("as bf16", identity(ml_dtypes.bfloat16), max_batch_size=4),
    http_server("sums", Sums), http_server("upper", Upper), http_server("late", Late),
)
"""
)


@pytest.fixture(scope="module")
def server():
    with serving("gunicorn", SOURCE) as running:
        yield running


@pytest.mark.parametrize("program", ["triton", "greenlets", "wrong", "kserve_sdk"])
def test_a_client_finds_all_it_asks_for(server, program):
    told = subprocess.run(
        [PYTHON, CLIENTS / f"{program}.py", f"127.0.0.1:{server.port}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.returncode == 0, told.stderr[-3000:]


def test_the_block_of_the_page_prints_what_it_says(server):
    (block,) = [block.code for block in Page(ROOT / "docs" / "v2.md").blocks if block.language == "python"]
    told = subprocess.run(
        [PYTHON, "-c", block.replace(PORT, str(server.port))], capture_output=True, text=True, timeout=60
    )
    assert told.stdout.strip() == block.strip().rpartition("# ")[2], told.stderr[-3000:]
