"""Images from strangers: bombs, damaged files and nonsense are one item's 422, before memory is taken; and fuzzed."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from kit.mutations import run
from kit.serial_pil import noise
from PIL import Image
from safetensors.numpy import load

from virtex import ItemError
from virtex.serial import decode_pil, decode_pil_from_bytes, encode_bytes, encode_pil
from virtex.serial.pillow import FORMATS, MAX_PIXELS


def file(kind: str, image: Image.Image | None = None, **options) -> bytes:
    saved = io.BytesIO()
    (image or noise("RGB")).save(saved, kind, **options)
    return saved.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, data: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff(tags: dict[int, int]) -> bytes:
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def refused(call, said: str = ".") -> None:
    with pytest.raises(ItemError, match=said) as caught:
        call()
    assert caught.value.status == 422


# -- files


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_read_from_bytes_and_from_text(kind):
    data = file(kind)
    expected = Image.open(io.BytesIO(data)).convert("RGB").tobytes()
    for given in (data, bytearray(data), memoryview(data), encode_bytes(data)):
        image = decode_pil_from_bytes(given)
        assert image.format == kind and image.convert("RGB").tobytes() == expected


@pytest.mark.parametrize("kind", ["ICO", "PPM", "PCX", "TGA", "EPS"])
def test_other_formats_are_refused(kind):
    refused(lambda: decode_pil_from_bytes(file(kind)), "expected the bytes of a file of BMP, GIF")


def test_formats_may_be_fewer_but_not_others():
    refused(lambda: decode_pil_from_bytes(file("PNG"), formats=["JPEG"]), "expected the bytes of a file of JPEG")
    with pytest.raises(ValueError, match="formats: expected some of BMP.*got ICO"):
        decode_pil_from_bytes(file("ICO"), formats=["ICO"])


@pytest.mark.parametrize("kind", FORMATS)
def test_the_limit_of_pixels_is_exact(kind):
    data = file(kind)
    assert decode_pil_from_bytes(data, max_pixels=13 * 7).size == (13, 7)
    refused(lambda: decode_pil_from_bytes(data, max_pixels=13 * 7 - 1), "expected at most 90 pixels, got 13 x 7")


FRAME = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 1, 1, 0, 0, 1, 1, 0, 0))
BOMBS = {
    "png": png(7100, 7100),
    "png of 400 million pixels": png(20000, 20000, data=bytes(1000)),
    "png of the largest size": png(2**31 - 1, 2**31 - 1),
    "png, one long row": png(2**25, 1),
    "text chunk": png(1, 1, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26))), data=bytes(2)),
    "international text chunk": png(
        1, 1, chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(1 << 26))), data=bytes(2)
    ),
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0),
    "gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\1\0\1\0\0\2\1\0\0;",
    "gif, a frame beyond its screen": b"GIF89a"
    + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
    + b","
    + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
    + b"\2\1\0\0;",
    "tiff": tiff({256: 60000, 257: 60000, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 60000, 279: 1}),
    "tiff, tiles larger than it": tiff(
        {256: 1, 257: 1, 258: 8, 259: 8, 262: 1, 277: 1, 322: 1 << 15, 323: 1 << 15, 324: 8, 325: 50}
    ),
    "webp": b"RIFF"
    + struct.pack("<I", 30)
    + b"WEBPVP8X"
    + struct.pack("<I", 10)
    + b"\0" * 4
    + b"\xfe\x3f\0\xfe\x3f\0"
    + b"VP8L\0\0\0\0",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_and_takes_no_memory(bomb, limited_memory):
    refused(lambda: decode_pil_from_bytes(bomb))


def test_the_tiles_of_a_tiff_have_the_same_limit():
    bomb = BOMBS["tiff, tiles larger than it"]
    refused(lambda: decode_pil_from_bytes(bomb), "expected tiles of at most 25000000 pixels, got 32768 x 32768")


@pytest.fixture
def limited_memory():
    """What the process may take more: 100 MB."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (100 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_of_many_frames_the_first_is_decoded():
    frames = [Image.new("RGB", (300, 300), (i, 0, 0)) for i in range(50)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        data = file(kind, frames[0], save_all=True, append_images=frames[1:])
        assert decode_pil_from_bytes(data, max_pixels=300 * 300).size == (300, 300)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_is_cut_short_is_refused(kind):
    data = file(kind, Image.effect_noise((64, 64), 90))
    for part in (0, 1, 10, 30, len(data) // 2):
        refused(lambda part=part: decode_pil_from_bytes(data[:part]))


def test_a_pickle_is_called_one():
    refused(lambda: decode_pil_from_bytes(b"\x80\x04\x95abc"), "got a pickle")


@pytest.mark.parametrize("given", [None, 1, [1], "é", "AAA", {}], ids=repr)
def test_what_is_no_file_is_refused(given):
    refused(lambda: decode_pil_from_bytes(given))


@pytest.mark.parametrize("what", ["pil", "files"])
@pytest.mark.parametrize("seed", range(3))
def test_mutations_are_refused_or_an_image(what, seed):
    assert len(list(run(what, 150, seed))) == 150


# -- raw pixels


def test_any_reader_of_safetensors_reads_it():
    image = noise("RGB")
    tensors = load(base64.b64decode(encode_pil(image)))
    np.testing.assert_array_equal(tensors["pixels"], np.asarray(image))


def test_it_has_memory_of_its_own():
    image = noise("L")
    got = decode_pil(encode_pil(image))
    got.putpixel((0, 0), 255 - got.getpixel((0, 0)))
    assert got.tobytes() != image.tobytes()


def document(header: object, data: bytes = b"", length: int | None = None) -> str:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return encode_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def pixels(mode: str, size: list[object], shape: list[int], dtype: str = "U8", count: int = 0, **about: str) -> str:
    header = {"__metadata__": {"mode": mode, "size": json.dumps(size), **about}}
    header["pixels"] = {"dtype": dtype, "shape": shape, "data_offsets": [0, count]}
    return document(header, bytes(count))


NONSENSE = {
    "nothing": encode_bytes(b""),
    "a length beyond it": document({}, length=2**63),
    "no header": document({}),
    "no JSON": document(b"{"),
    "deep JSON": document(b"[" * 100_000),
    "a list": document([]),
    "no mode": document({"__metadata__": {}}),
    "no pixels": document({"__metadata__": {"mode": "L", "size": "[1, 1]"}}),
    "another mode": pixels("BGR;15", [1, 1], [1, 1], count=2),
    "another size": pixels("L", [2, 2], [1, 4], count=4),
    "a size that is none": pixels("L", ["2", 2], [2, 2], count=4),
    "a negative size": pixels("L", [-2, -2], [-2, -2], count=4),
    "fewer bytes": pixels("L", [2, 2], [2, 2], count=3),
    "more bytes": pixels("L", [2, 2], [2, 2], count=5),
    "another dtype": pixels("F", [1, 1], [1, 1], "I32", 4),
    "no palette": pixels("P", [1, 1], [1, 1], count=1),
    "offsets beyond it": document(
        {"__metadata__": {}, "pixels": {"dtype": "U8", "shape": [1], "data_offsets": [0, 9]}}
    ),
    "too many pixels": pixels("1", [8 * MAX_PIXELS, 1], [1, MAX_PIXELS]),
    "too many rows of none": pixels("L", [0, 2**30], [2**30, 0]),
    "infinity": pixels("L", [1, 1], [1, 1], count=1, dpi="[Infinity"),
}


@pytest.mark.parametrize("text", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_refused(text, limited_memory):
    refused(lambda: decode_pil(text))


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_raw_pixels_have_the_same_limit(mode):
    text = encode_pil(noise(mode))
    assert decode_pil(text, max_pixels=91).size == (13, 7)
    refused(lambda: decode_pil(text, max_pixels=90), "expected at most 90 pixels, got 13 x 7")
