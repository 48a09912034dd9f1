"""Mutates what encode_pandas and encode_pil write, and files of images: each decoder gives a value or an ItemError.

PYTHONPATH=.:tests python -m kit.mutations pandas 10000 [seed]
PYTHONPATH=.:tests python -m kit.mutations pil 10000 [seed]
PYTHONPATH=.:tests python -m kit.mutations files 10000 [seed]
"""

from __future__ import annotations

import importlib
import io
import random
import sys
import warnings
from collections.abc import Callable, Iterator

from virtex import ItemError, serial
from virtex.serial import decode_bytes, encode_bytes

INTERESTING = [b"\x00" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\x01"]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """With some bytes changed, cut out, repeated or cut off; often near the start, where the headers are."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not out:
            break
        at = rng.randrange(rng.choice((len(out), min(len(out), 1000))))
        how = rng.randrange(6)
        if how == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            out[at] = rng.randrange(256)
        elif how == 2:
            piece = rng.choice(INTERESTING)
            out[at : at + len(piece)] = piece
        elif how == 3:
            del out[at : at + rng.randrange(1, 17)]
        elif how == 4:
            out[at:at] = out[at : at + rng.randrange(1, 33)]
        else:
            del out[at:]
    return bytes(out)


def texts(what: str) -> tuple[list[bytes], Callable[[str], object]]:
    """The valid documents to begin with, and what reads them."""
    if what == "files":
        from PIL import Image

        files = []
        for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
            file = io.BytesIO()
            Image.effect_noise((20, 15), 50).convert("RGB").save(file, kind)
            files.append(file.getvalue())
        return files, serial.decode_pil_from_bytes
    kit = importlib.import_module(f"kit.serial_{what}")
    encode = getattr(serial, f"encode_{what}")
    return [decode_bytes(encode(value)) for _, value in kit.cases()], getattr(serial, f"decode_{what}")


def touch(what: str, value: object) -> None:
    """Reads all of a value: what is wrong with it is to crash here and not in a handler."""
    if what == "pandas":
        value.memory_usage(deep=True)
        for column in [value] if value.ndim == 1 else [value.iloc[:, i] for i in range(value.shape[1])]:
            column.isna().sum()
    else:
        value.tobytes()


def run(what: str, count: int, seed: int) -> Iterator[bool]:
    """For each mutation whether it was taken. Raises whatever is no ItemError, with the mutation in a note."""
    rng = random.Random(seed)
    documents, decode = texts(what)
    warnings.simplefilter("ignore")
    for _ in range(count):
        document = mutated(rng.choice(documents), rng)
        try:
            value = decode(encode_bytes(document))
        except ItemError:
            yield False
            continue
        except BaseException as error:
            error.add_note(f"seed {seed}: {document!r}")
            raise
        touch(what, value)
        yield True


if __name__ == "__main__":
    what, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1
    print(f"{sum(run(what, count, seed))} of {count} mutations of {what} were taken")
