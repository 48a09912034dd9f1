"""tritonclient and the SDK of KServe over gRPC, as they are, against a server under gunicorn; and a block of the page.

It needs an environment of its own: `make test-all` makes it, and names it in VIRTEX_V2.
"""

import os
import subprocess

import pytest
from kit.pages import Page
from kit.servers import ROOT, free_port, serving

if not os.environ.get("VIRTEX_V2"):
    pytest.skip("VIRTEX_V2 names no environment with tritonclient and kserve", allow_module_level=True)

from test_v2_clients import CLIENTS, PYTHON, SOURCE


@pytest.fixture(scope="module")
def port():
    number = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIRTEX_GRPC_PORT", str(number))
        with serving("gunicorn", SOURCE) as server:
            server.wait_log("gRPC at")
            yield number


def ask(*command):
    told = subprocess.run([PYTHON, *command], capture_output=True, text=True, timeout=120, check=False)
    assert told.returncode == 0, told.stderr[-3000:]
    return told.stdout


@pytest.mark.parametrize("program", ["triton_grpc", "kserve_grpc"])
def test_a_client_finds_all_it_asks_for(port, program):
    ask(CLIENTS / f"{program}.py", f"127.0.0.1:{port}")


def test_the_block_of_the_page_prints_what_it_says(port):
    blocks = [block.code for block in Page(ROOT / "docs" / "grpc.md").blocks]
    (code,) = [code for code in blocks if code.startswith("# triton.py\n")]
    assert ask("-c", code.replace("8001", str(port))).strip() == code.strip().rpartition("# ")[2]
