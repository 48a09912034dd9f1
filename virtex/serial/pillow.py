"""Images of Pillow as their raw pixels, and encoded files (JPEG, PNG, ...) as images.

Rules: imports Pillow when a function is called. No pixel is decoded before the size of the image was checked.

An image is a safetensors document (https://github.com/huggingface/safetensors, Format): the length of a JSON header,
the header, the bytes it speaks of. docs/serial.md has the members and what the bytes of each mode are.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._codec import decode_block, decode_bytes, encode_pieces
from ..errors import ItemError, quoted
from ..extras import needs
from ._pickles import refuse_pickle

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["decode_pil", "decode_pil_from_bytes", "encode_pil"]

MAX_PIXELS = 25_000_000  # a security limit: 100 MB as Pillow holds RGB; WebP takes up to 400 MB while it is decoded
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # whose size is known before their pixels are decoded

_BASE64 = re.compile(rb"[A-Za-z0-9+/=]*")
_MAX_SIDE = 1 << 24  # pixels: a row of none costs 8 bytes
_EXPECTED = "the base64 of a safetensors document as encode_pil writes it"
_BYTES_INFO = ("exif", "icc_profile", "xmp")  # of Image.info
_PLAIN_INFO = ("dpi", "gamma", "transparency")

# Of each mode what a pixel is: dtype and shape. "1" has its rows packed, 8 pixels in a byte.
_MODES: dict[str, tuple[str, tuple[int, ...]]] = {
    "1": ("U8", ()),
    **dict.fromkeys(("L", "P"), ("U8", ())),
    **dict.fromkeys(("LA", "La", "PA"), ("U8", (2,))),
    **dict.fromkeys(("RGB", "YCbCr", "LAB", "HSV"), ("U8", (3,))),
    **dict.fromkeys(("RGBA", "RGBa", "RGBX", "CMYK"), ("U8", (4,))),
    **dict.fromkeys(("I;16", "I;16L", "I;16N"), ("U16", ())),
    "I;16B": ("U8", (2,)),  # big-endian, which safetensors has no dtype for
    "I": ("I32", ()),
    "F": ("F32", ()),
}
_WIDTHS = {"U8": 1, "U16": 2, "I32": 4, "F32": 4}


def encode_pil(image: Image.Image) -> str:
    """The base64 of an image's raw pixels, with its mode, palette and transparency: exact, for every mode.

    image: an Image; of Image.info exif, icc_profile, xmp, dpi, gamma and transparency travel along. Orientation is not
    applied: PIL.ImageOps.exif_transpose does that. A file that you have as bytes is smaller: encode_bytes(file).
    Raises: TypeError for what is no image, for several frames, and for an info of a type that JSON has not. ImportError
    without Pillow.
    """
    with needs("encode_pil", "Pillow", "pillow"):
        from PIL import Image
    if not isinstance(image, Image.Image):
        raise TypeError(f"expected a PIL.Image.Image, got {type(image).__name__}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise TypeError(
            f"expected an image of one frame, got {frames}: encode each, as in "
            "[encode_pil(frame.copy()) for frame in PIL.ImageSequence.Iterator(image)]"
        )
    pixels = image.tobytes()
    dtype, shape = _layout(image.mode, image.size)
    parts = {"pixels": (dtype, shape, pixels)} | _attached(image)
    about = {"mode": image.mode, "size": json.dumps(image.size)} | _info(image)
    if "palette" in parts:
        about["palette_mode"] = image.im.getpalettemode()
    return encode_pieces([_header(parts, about), *(data for _, _, data in parts.values())])


def decode_pil(bytestr: str | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image that encode_pil was given, of its own memory.

    bytestr: what encode_pil wrote; or a file's bytes, as an upload brings them, for decode_pil_from_bytes. max_pixels:
    width times height, at most.
    Raises: ItemError (422) for another text, as decode_pil_from_bytes for bytes, and for more pixels. ImportError
    without Pillow.
    """
    if not isinstance(bytestr, str) and _is_file(bytestr):
        return decode_pil_from_bytes(bytestr, max_pixels)
    with needs("decode_pil", "Pillow", "pillow"):
        from PIL import Image
    data = decode_block(bytestr).data
    refuse_pickle(bytes(data[:2]), _EXPECTED)
    try:
        parts, about = _parsed(data)
        mode, size = about["mode"], _size(about["size"], max_pixels)
        dtype, shape = _layout(mode, size)
        if parts["pixels"][:2] != (dtype, list(shape)):
            raise ItemError(f"expected pixels {dtype} {list(shape)} of mode {mode}, got {quoted(parts['pixels'][:2])}")
        pixels = parts["pixels"][2]
        if len(pixels) != _WIDTHS[dtype] * math.prod(shape):
            raise ItemError(f"expected {_WIDTHS[dtype] * math.prod(shape)} bytes of pixels, got {len(pixels)}")
        image = Image.frombytes(mode, size, pixels)
        _attach(image, parts, about)
    except (KeyError, TypeError, ValueError, RecursionError, AttributeError, IndexError, OverflowError) as error:
        if isinstance(error, ItemError):
            raise
        raise ItemError(f"expected {_EXPECTED}: {type(error).__name__}: {quoted(error)}") from error
    return image


def decode_pil_from_bytes(
    bytestr: str | bytes | bytearray | memoryview, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = FORMATS
) -> Image.Image:
    """The image in an encoded file, decoded; of several frames the first.

    bytestr: a file's bytes, or what encode_bytes made of them. max_pixels: width times height, at most, checked before
    pixels are decoded. formats: which of BMP, GIF, JPEG, PNG, TIFF and WEBP are taken. Orientation is not applied:
    PIL.ImageOps.exif_transpose does that.
    Raises: ItemError (422) for a file of another format, damaged, cut short, or of more pixels; ValueError for another
    name of a format. ImportError without Pillow.
    """
    if not set(formats) <= set(FORMATS):
        raise ValueError(f"formats: expected some of {', '.join(FORMATS)}; got {', '.join(formats)}")
    with needs("decode_pil_from_bytes", "Pillow", "pillow"):
        from PIL import Image, UnidentifiedImageError
    data = decode_bytes(bytestr) if isinstance(bytestr, str) else bytestr
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ItemError(f"expected the bytes of an image's file, or their base64; got {type(data).__name__}")
    refuse_pickle(bytes(data[:2]), "the bytes of an image's file")
    try:
        image = Image.open(io.BytesIO(data), formats=tuple(formats))
        _check_pixels(image.size, max_pixels)
        _check_tiles(image, max_pixels)
        image.load()
    except (ItemError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ItemError(f"expected the bytes of a file of {', '.join(formats)}; got {bytes(data[:8])!r}...") from None
    except Exception as error:  # OSError, SyntaxError, struct.error, ...: each of Pillow's readers has its own
        raise ItemError(f"expected a whole, sound image: {type(error).__name__}: {quoted(error)}") from error
    return image


def _is_file(data: Any) -> bool:
    """Whether these are no base64, or begin as a file does: as base64 that would be a document's header of 32 KB."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        return False
    first = bytes(data[:12])
    return first.startswith((b"BM", b"GIF8", b"II", b"MM", b"RIFF")) or not _BASE64.fullmatch(first)


def _check_pixels(size: tuple[int, int], most: int) -> None:
    width, height = size
    if width * height > most or max(size) > _MAX_SIDE:
        raise ItemError(f"expected at most {most} pixels, got {width} x {height}")


def _check_tiles(image: Any, most: int) -> None:
    """A TIFF's tiles take memory of their own, however small the image is."""
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(322, 1), tags.get(323, 1)  # TileWidth, TileLength
    if width * height > most:
        raise ItemError(f"expected tiles of at most {most} pixels, got {width} x {height}")


# -- an image <-> the parts of a document


def _layout(mode: str, size: tuple[int, int]) -> tuple[str, tuple[int, ...]]:
    if mode not in _MODES:
        raise TypeError(f"expected an image of mode {', '.join(_MODES)}; got {quoted(mode)}")
    dtype, pixel = _MODES[mode]
    width, height = size
    return dtype, (height, -(-width // 8) if mode == "1" else width, *pixel)


def _attached(image: Any) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What is bytes: the palette, and of info what is."""
    found = {name: image.info[name] for name in _BYTES_INFO if image.info.get(name) is not None}
    if isinstance(image.info.get("transparency"), bytes):
        found["transparency"] = image.info["transparency"]
    if image.mode in ("P", "PA"):
        kind = image.im.getpalettemode()
        found["palette"] = bytes(image.im.getpalette(kind, kind))
    for name, data in found.items():
        if not isinstance(data, bytes):
            raise TypeError(f"info[{name!r}]: expected bytes, got {type(data).__name__}: delete it, or make it bytes")
    return {name: ("U8", (len(data),), data) for name, data in found.items()}


def _info(image: Any) -> dict[str, str]:
    return {
        name: json.dumps(_plain(image.info[name], name))
        for name in _PLAIN_INFO
        if image.info.get(name) is not None and not isinstance(image.info[name], bytes)
    }


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, tuple):
        return [_plain(one, name) for one in value]
    if type(value) in (int, float, bool):
        return value
    try:
        return float(value)  # of a TIFF a fraction
    except (TypeError, ValueError):
        raise TypeError(f"info[{name!r}]: expected numbers, got {value!r}: delete it, or make it numbers") from None


def _attach(image: Any, parts: dict[str, tuple[Any, Any, memoryview]], about: dict[str, str]) -> None:
    if image.mode in ("P", "PA"):
        image.putpalette(bytes(parts["palette"][2]), about["palette_mode"])
    for name in (*_BYTES_INFO, "transparency"):
        if name in parts:
            image.info[name] = bytes(parts[name][2])
    for name in _PLAIN_INFO:
        if name in about:
            value = json.loads(about[name])
            image.info[name] = tuple(value) if isinstance(value, list) else value


def _size(text: str, most: int) -> tuple[int, int]:
    width, height = json.loads(text)
    if type(width) is not int or type(height) is not int or width < 0 or height < 0:
        raise ItemError(f"expected a width and a height, got {quoted(text)}")
    _check_pixels((width, height), most)
    return width, height


# -- safetensors: u64 length of the header | the header, JSON | the bytes


def _header(parts: dict[str, tuple[str, tuple[int, ...], bytes]], about: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": about}
    at = 0
    for name, (dtype, shape, data) in parts.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _parsed(data: memoryview) -> tuple[dict[str, tuple[Any, Any, memoryview]], dict[str, str]]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise ItemError(f"expected {_EXPECTED}, got {bytes(data[:8])!r}, of {len(data)} bytes in all")
    header = json.loads(bytes(data[8 : 8 + size]))
    about = header.pop("__metadata__")
    parts = {}
    for name, part in header.items():
        start, end = part["data_offsets"]
        if not 0 <= start <= end <= len(data) - 8 - size:
            raise ItemError(f"expected the bytes of {quoted(name)!r} within the document, got {start} to {end}")
        parts[name] = part["dtype"], part["shape"], data[8 + size + start : 8 + size + end]
    return parts, about
