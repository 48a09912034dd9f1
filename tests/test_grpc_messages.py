"""Messages of gRPC: inference.desc is what inference.proto says, beside whoever has messages of the same names."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import needs
from kit.servers import ROOT

needs.library("grpc")
needs.library("google.protobuf")

from google.protobuf import descriptor_pb2  # noqa: E402

from virtex.errors import RequestError  # noqa: E402
from virtex.rpc.cut import MOST_FIELDS, counted, cut, length_of, name_in  # noqa: E402
from virtex.rpc.messages import InferRequest  # noqa: E402

MANY = 1 << 60
HERE = ROOT / "virtex" / "rpc"


def test_the_descriptor_in_the_package_is_what_protoc_makes_of_the_proto(tmp_path):
    needs.found("grpc_tools")
    made = tmp_path / "made"
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{HERE}", f"--descriptor_set_out={made}", "inference.proto"]
    subprocess.run(protoc, check=True)
    kept = HERE / "inference.desc"
    read = descriptor_pb2.FileDescriptorSet.FromString
    assert read(kept.read_bytes()) == read(made.read_bytes()), f"write it anew: {' '.join(protoc)}, into {kept}"


def test_whoever_has_messages_of_the_same_names_is_not_in_the_way():
    """Their packages put such files into protobuf's own pool, as generated code does."""
    script = """
from google.protobuf import descriptor_pb2, descriptor_pool
from pathlib import Path
file = descriptor_pb2.FileDescriptorSet.FromString(Path({path!r}).read_bytes()).file[0]
for message in file.message_type:
    for field in message.field:
        field.number += 40  # another meaning
descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
from virtex.rpc.messages import InferRequest
assert InferRequest.FromString(InferRequest(model_name="x").SerializeToString()).model_name == "x"
assert InferRequest.DESCRIPTOR.fields_by_name["inputs"].number == 5
"""
    code = script.format(path=str(HERE / "inference.desc"))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.skipif(not os.environ.get("VIRTEX_V2"), reason="VIRTEX_V2 names no environment with tritonclient")
def test_the_numbers_are_those_of_tritonclient_in_the_same_process():
    (site,) = Path(os.environ["VIRTEX_V2"]).resolve().glob("lib/python*/site-packages")
    script = f"""
import sys, types
for name in ("tritonclient", "tritonclient.grpc"):  # without what it imports beside its messages
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [{str(site)!r} + "/" + name.replace(".", "/")]
from tritonclient.grpc import service_pb2
from virtex.rpc import messages
PAIRS = {{"InferRequest": "ModelInferRequest", "InferResponse": "ModelInferResponse", "State": "ServerLiveResponse"}}
PAIRS |= {{"StreamResponse": "ModelStreamInferResponse", "ModelName": "ModelMetadataRequest"}}
PAIRS |= {{"ServerMetadata": "ServerMetadataResponse", "ModelMetadata": "ModelMetadataResponse"}}
PAIRS |= {{"Parameter": "InferParameter"}}
seen = set()
def compare(ours, theirs):
    if ours.name in seen:
        return
    seen.add(ours.name)
    for field in ours.fields:
        other = theirs.fields_by_number[field.number]
        assert (field.type, field.is_repeated) == (other.type, other.is_repeated), (ours.name, field.name)
        assert field.name in (other.name, "holds"), (ours.name, field.name)
        if field.message_type is not None:
            compare(field.message_type, other.message_type)
for ours, theirs in PAIRS.items():
    compare(getattr(messages, ours).DESCRIPTOR, getattr(service_pb2, theirs).DESCRIPTOR)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr


# ---- cut


def whole(id="", raws=(), **more):  # noqa: A002
    asked = InferRequest(model_name="m", id=id, raw_input_contents=raws, **more)
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    return asked


@given(st.text(max_size=300), st.lists(st.binary(max_size=300), max_size=4))
def test_a_message_is_cut_where_its_tensors_are_and_the_rest_is_its_head(request_id, raws):
    asked = whole(request_id, raws)
    message = asked.SerializeToString()
    found = cut(message)
    assert [message[begin:end] for begin, end in found.raws] == raws and found.id.decode() == request_id
    asked.ClearField("id")
    asked.ClearField("raw_input_contents")
    assert found.head == asked.SerializeToString() and name_in(message) == "m"


@given(st.binary(max_size=200))
def test_what_is_cut_is_what_protobuf_reads_or_left_to_it(message):
    try:
        read = InferRequest.FromString(message)
    except Exception:
        read = None
    found = cut(message)
    name_in(message)
    if found is not None and read is not None:
        assert [message[begin:end] for begin, end in found.raws] == list(read.raw_input_contents)
        assert found.id == read.id.encode()


def test_fields_in_another_order_are_cut_too():
    first = InferRequest(raw_input_contents=[b"abcd"]).SerializeToString()
    message = first + whole("7").SerializeToString()
    found = cut(message)
    assert found.raws == ((2, 6),) and found.id == b"7" and name_in(message) == "m"


@pytest.mark.parametrize("tail", [b"\x3a\x05abcd", b"\x3a", b"\x3a\xff\xff\xff\xff\xff\x01", b"\x42\x01a", b"\x08\x01"])
def test_what_breaks_off_or_is_none_of_the_protocol_is_left_to_protobuf(tail):
    assert cut(whole().SerializeToString() + tail) is None


def test_a_message_of_too_many_fields_is_refused():
    with pytest.raises(RequestError, match="more than 4096 fields") as caught:
        cut(b"\x2a\x00" * MOST_FIELDS)
    assert caught.value.status == 413


@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.binary(max_size=300), st.booleans())
def test_what_is_beside_id_and_contents_is_counted(shape, contents, one_by_one):
    asked = InferRequest(model_name="m", model_version="1")
    asked.parameters["a"].int64_param = 7
    tensor = asked.inputs.add(name="x", datatype="BYTES", shape=[] if one_by_one else shape)
    tensor.parameters["b"].string_param = "c"
    alone = asked.SerializeToString()
    unpacked = b"".join(b"\x18" + _varint(n) for n in shape) if one_by_one else b""
    tensor.contents.bytes_contents.append(contents)
    asked.id = "i" * len(contents)
    message = asked.SerializeToString()
    more = b"\x2a" + length_of(len(unpacked)) + unpacked
    assert 0 <= counted(message + more, MANY, MANY)[0] - len(alone) - len(more) < 12  # tags and lengths
    assert counted(message[: len(message) // 2], MANY, MANY) >= (0, 0)


Contents = type(InferRequest().inputs.add().contents)
FIELDS = [field.name for field in Contents.DESCRIPTOR.fields]


@given(st.lists(st.tuples(st.sampled_from(FIELDS), st.integers(0, 300), st.booleans()), max_size=6), st.data())
def test_the_values_of_contents_are_counted_as_protobuf_reads_them(fields, data):
    asked, expected = whole(), 0
    contents, more = asked.inputs[0].contents, b""
    for name, n, one_by_one in fields:
        field = Contents.DESCRIPTOR.fields_by_name[name]
        value = {"fp": 1.5, "by": b"\x42" * (n % 200), "bo": True}.get(name[:2], [1, 300, 2**31 - 1][n % 3])
        if one_by_one and name != "bytes_contents":  # as clients may write it, and protobuf does not
            alone = Contents(**{name: [value]}).SerializeToString()
            kind = {"fp32_contents": 5, "fp64_contents": 1}.get(name, 0)
            more += (bytes([field.number << 3 | kind]) + alone[2:]) * n
        else:
            getattr(contents, name).extend([value] * n)
        expected += n
    tail = b"\x2a" + length_of(len(more)) + more
    message = asked.SerializeToString() + b"\x2a" + length_of(len(tail)) + tail
    read = InferRequest.FromString(message)
    assert sum(len(values) for one in read.inputs for _, values in one.contents.ListFields()) == expected
    assert counted(message, MANY, MANY)[1] == expected
    assert counted(message, MANY, max(0, expected - 1))[1] > expected - 1


@pytest.mark.parametrize(
    "piece", [b"\x42\x00", b"\x42\x80\x00", b"\x0a\x00", b"\x12\x80\x00", b"\x08\x01", b"\x35abcd"]
)
def test_what_is_counted_ends_with_the_limit(piece):
    inner = piece * (8_000_000 // len(piece))
    inner = b"\x2a" + length_of(len(inner)) + inner
    assert counted(b"\x2a" + length_of(len(inner)) + inner, 1000, 1000)[1] == 1001
    assert counted(b"\x2a" + length_of(len(inner)) + inner.replace(b"\x2a", b"\x1a", 1), 1000, 1000)[0] > 1000


@pytest.mark.parametrize(
    "tag", [b"\x2a", b"\x2a\x80\x01\x0a", b"\x2a\x80\x01\x2a\x64\x32", b"\x2a\x80\x01\x2a\x64\x12"]
)
@pytest.mark.parametrize("length", [2**31 - 1, 2**31, 2**35 - 1, 2**62])
def test_no_more_is_counted_than_came_whatever_a_length_says(tag, length):
    message = tag + length_of(length) + b"abcdefgh"
    assert max(counted(message, MANY, MANY)) <= len(message)


@pytest.mark.parametrize("odd", [b"\x4a\x01a", b"\x80\x01\x00", b"\x0b", b"\x0d\x01\x01\x01\x01", b"\x40\x01"])
def test_what_is_no_field_of_contents_is_beside_them(odd):
    inner = odd + b"\x42\x00" * 50
    inner = b"\x2a" + length_of(len(inner)) + inner
    beside, values = counted(b"\x2a" + length_of(len(inner)) + inner, MANY, MANY)
    assert values == 0 and beside > 100


@pytest.mark.parametrize("odd", [b"\x4a\x01a", b"\x32\x00\x4a\x00"])
def test_an_input_with_a_field_that_the_protocol_has_not_is_beside_contents_whole(odd):
    contents = b"\x2a\x64" + b"\x42\x00" * 50
    message = b"\x2a" + length_of(len(odd + contents)) + odd + contents
    assert counted(message + b"\x22\x00", MANY, MANY) == (len(message) + 2, 0)


@pytest.mark.parametrize("tag", [b"\x0a", b"\x12"])
def test_what_is_counted_of_one_long_field_ends_with_the_limit(tag):
    values = tag + length_of(1_000_000) + b"\x01" * 1_000_000
    values = b"\x2a" + length_of(len(values)) + values
    assert counted(b"\x2a" + length_of(len(values)) + values, MANY, 1000)[1] == 1001


def test_what_is_counted_beside_contents_ends_with_the_limit():
    assert counted(b"\x22\x00" * 1_000_000, 1000, MANY) == (1002, 0)


def _varint(n):
    return (
        length_of(n) if n >= 0 else b"".join(bytes([(n >> shift) & 127 | 128]) for shift in range(0, 63, 7)) + b"\x01"
    )


def test_a_long_field_is_not_copied_for_each_short_one():
    long = b"\x2a" + length_of(4 << 20) + bytes(4 << 20)
    began = time.process_time()
    found = cut(long + b"\x1a\x00\x22\x00" * 2000)
    assert found.head == long + b"\x22\x00" * 2000 and time.process_time() - began < 0.5  # 8 GB take a second


@given(st.integers(0, 1 << 34))
def test_a_length_is_a_varint(n):
    message = b"\x3a" + length_of(n)
    assert cut(message) is None or n == 0
    assert InferRequest(id="x" * (n % 5000)).SerializeToString()[:1] in (b"", b"\x1a")
