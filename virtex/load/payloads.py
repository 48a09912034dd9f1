"""What a load test sends: bodies, from messages, files, arrays and shapes.

Rules: makes bytes once, ahead of the test; knows neither clocks nor sockets.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from ..message import HttpMessage
from ..posting.targets import check_message
from ..serial.numpy import encode_numpy

Array = npt.NDArray[Any]
Source = HttpMessage | Array | Path | str

JSON, NPY = "application/json", "application/x-npy"
SHAPE = re.compile(r"([A-Za-z]\w*):((?:\d+(?:,\d+)*)?)")  # float32:3,224,224


class Payload(NamedTuple):
    """The body of a request.

    body: its bytes. items: how many items it holds, or queries as the first Virtex called them. content_type: what it
    says it is.
    """

    body: bytes
    items: int = 1
    content_type: str = JSON


def payload_of(message: HttpMessage) -> Payload:
    """A message as a payload. Raises TypeError for what is no message, or what JSON can't carry."""
    check_message(message)
    return Payload(message.json, len(message.data))


def payloads_of(
    sources: Iterable[Source] | Source, *, items: int = 1, binary: bool = False, seed: int = 0
) -> list[Payload]:
    """What messages, arrays, files and shapes hold, as payloads.

    sources: one of these, or several. An HttpMessage. An array: one item. "float32:3,224,224": an array of that dtype
    and shape, of random numbers from 0 to 1, or whole ones from 0 to 127. A path: .npy, an array; .json, a message or a
    list of them; .jsonl, a message in each line; any other file is text, of which each line that is not empty is an
    item. items: of a request: an array as often, or as many lines. binary: arrays go as application/x-npy and not as
    base64 in JSON. seed: of the random numbers.

    Raises ValueError for what is none of these or empty, naming it; TypeError for another type, OSError for a file that
    can't be read.
    """
    if items < 1:
        raise ValueError(f"items: expected 1 or more, got {items!r}")
    random = np.random.default_rng(seed)
    several = [sources] if isinstance(sources, (HttpMessage, np.ndarray, Path, str)) else list(sources)
    return [payload for source in several for payload in _payloads(source, items, binary, random)]


def _payloads(source: Source, items: int, binary: bool, random: np.random.Generator) -> Iterator[Payload]:
    if isinstance(source, HttpMessage):
        yield payload_of(source)
    elif isinstance(source, np.ndarray):
        yield _of_array(source, items, binary)
    elif isinstance(source, str) and (shape := SHAPE.fullmatch(source)) and not Path(source).exists():
        yield _of_array(_random_array(shape[1], shape[2], random), items, binary)
    elif isinstance(source, (str, Path)):
        yield from _of_file(Path(source), items, binary)
    else:
        raise TypeError(f"expected an HttpMessage, an array, a file or a shape, got {type(source).__name__}")


def _of_array(array: Array, items: int, binary: bool) -> Payload:
    if not binary:
        return Payload(HttpMessage(data=[encode_numpy(array)] * items).json, items)
    document = io.BytesIO()
    np.save(document, array, allow_pickle=False)
    return Payload(document.getvalue() * items, items, NPY)


def _random_array(dtype: str, shape: str, random: np.random.Generator) -> Array:
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise ValueError(f"{dtype}:{shape}: expected a dtype like float32, got {dtype!r}") from None
    sizes = [int(size) for size in shape.split(",") if size]
    if kind.kind not in "biufc":
        raise ValueError(f"{dtype}:{shape}: expected a dtype of numbers, got {dtype!r}")
    if math.prod(sizes) * kind.itemsize > 1 << 30:
        raise ValueError(f"{dtype}:{shape}: expected a GiB at most")
    if kind.kind in "iu":
        return random.integers(0, 128, sizes).astype(kind)
    return (random.random(sizes) < 0.5) if kind.kind == "b" else random.random(sizes).astype(kind)


def _of_file(path: Path, items: int, binary: bool) -> list[Payload]:
    if not path.exists():
        raise ValueError(f"expected a file, or a shape like float32:3,224,224, got {str(path)!r}")
    if path.suffix == ".npy":
        return [_of_array(_array_of(path), items, binary)]
    if path.suffix == ".json":
        content = _parsed(path.read_bytes(), str(path))
        several = content if isinstance(content, list) else [content]
        made = [_of_json(one, f"{path}, message {n}") for n, one in enumerate(several)]
    elif path.suffix == ".jsonl":
        lines = path.read_bytes().splitlines()
        places = ((line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip())
        made = [_of_json(_parsed(line, place), place) for line, place in places]
    else:
        text = [line for line in _text_of(path).splitlines() if line.strip()]
        made = [payload_of(HttpMessage(data=text[at : at + items])) for at in range(0, len(text), items)]
    if not made:
        raise ValueError(f"{path}: expected something to send, got an empty file")
    return made


def _array_of(path: Path) -> Array:
    try:
        with path.open("rb") as file:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
    except (EOFError, ValueError) as error:
        raise ValueError(f"{path}: expected an array as numpy.save writes it: {error}") from None
    return array


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8: {error}") from None


def _parsed(text: bytes, place: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{place}: expected JSON: {error}") from None


def _of_json(content: Any, place: str) -> Payload:
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise ValueError(f'{place}: expected a message {{"data": [...]}}')
    return Payload(orjson.dumps(content), len(content["data"]))
