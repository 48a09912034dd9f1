"""Nothing but decode_pickle unpickles: every other codec is served by a process in which whatever unpickles raises."""

from __future__ import annotations

import json

import pytest
from kit.serial_tables import INSTALLED, LIBRARIES, NEEDED, decode, encode, kit_of
from kit.servers import Running, serving

from virtex import serial

# Before anything else is imported, so that nobody has kept the functions that are replaced. An audit hook stays.
SERVICE = """
import _pickle, pickle, sys

def refuse(*given, **named):
    raise RuntimeError("unpickled")

class Unpickler(pickle.Unpickler):
    load = find_class = refuse

for module in (pickle, _pickle):
    module.load = module.loads = refuse
    module.Unpickler = Unpickler
pickle._Unpickler.load = pickle._load = pickle._loads = refuse
sys.addaudithook(lambda event, given: refuse() if event == "pickle.find_class" else None)

from virtex import RequestHandler, http_server, serial

class Codecs(RequestHandler):
    def process_request(self, data):
        return [(codec, getattr(serial, "decode_" + codec)(text)) for codec, text in data]

    def run_inference(self, model_input):
        return [list(one) for one in model_input]

    def process_response(self, model_output_item):
        codec, value = model_output_item
        return getattr(serial, "encode_" + codec.removesuffix("_from_bytes"))(value)

app = http_server(name="codecs", handler=Codecs())
"""

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch calls some of its tensors experimental
CODECS = [library for library in INSTALLED if library not in NEEDED]


@pytest.fixture(scope="module")
def server():
    with serving("serve", SERVICE) as server:
        yield server


def ask(server: Running, codec: str, text: str) -> tuple[int, dict[str, object]]:
    status, body = server.request("POST", "/", json.dumps({"data": [[codec, text]]}).encode())
    return status, json.loads(body)


def test_every_codec_but_pickle_is_served() -> None:
    tried = {name for codec in (*CODECS, *NEEDED) for name in (f"encode_{codec}", f"decode_{codec}")}
    missing = {name for name in serial.__all__ if name.partition("_")[2] in set(LIBRARIES) - set(INSTALLED)}
    assert set(serial.__all__) - tried - missing == {"decode_pil_from_bytes", "decode_json", "encode_json"}


@pytest.mark.parametrize("library", CODECS)
def test_a_codec_is_served_where_nothing_can_be_unpickled(library: str, server: Running) -> None:
    for name, value in kit_of(library).cases():
        status, answer = ask(server, library, encode(library, value))
        assert (name, status, answer["error"]) == (name, 200, None), server.log
        assert kit_of(library).same(value, decode(library, answer["data"][0])), name


@pytest.mark.parametrize("codec", [*CODECS, "pil_from_bytes"])
def test_a_pickle_is_refused_where_nothing_can_be_unpickled(codec: str, server: Running) -> None:
    text = serial.encode_bytes(b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x02os\x94\x8c\x06system\x94\x93\x94.")
    status, answer = ask(server, codec, text)
    assert status == (200 if codec == "bytes" else 422), answer
    assert codec == "bytes" or "pickle" in str(answer["error"])


def test_the_process_can_really_not_unpickle(server: Running) -> None:
    text = serial.encode_pickle(max)
    status, answer = ask(server, "pickle", text)
    assert status == 500 and "ValueError: expected either key=" in server.log
    assert answer["data"] == []
