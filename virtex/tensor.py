"""What a declared input is, and how the items of a body are read for it.

Rules: values, and functions of them; no clock, no asyncio, and nothing of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .serial._npy import descr_of, named_dtype

Array = npt.NDArray[Any]

TEXTS: dict[str, type[str] | type[bytes]] = {"str": str, "bytes": bytes}


class Tensor:
    """One declared input: the dtype and shape of an item, without the batch's dimension.

    dtype: anything np.dtype takes, bfloat16 and float8 by name where ml_dtypes is installed; those
    that encode_numpy takes: numbers, text of fixed size, datetimes of one unit; neither structured nor void. Or "str"
    or "bytes", by these names: such objects, of any length, in an array of objects; in a message a str is a string, and
    bytes are base64.
    shape: whole numbers from 0. Raises ValueError or TypeError for what is not so, ImportError without ml_dtypes.
    """

    __slots__ = ("dtype", "shape", "text")

    def __init__(self, dtype: Any, shape: Sequence[int] = ()) -> None:
        self.text: type[str] | type[bytes] | None = TEXTS.get(dtype) if isinstance(dtype, str) else None
        self.dtype = _dtype(dtype) if self.text is None else np.dtype(object)
        self.shape = tuple(shape)
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in self.shape):
            raise ValueError(f"Tensor(shape={shape!r}): expected whole numbers from 0, without the batch's dimension")

    def zeros(self) -> Array:
        """An item of zeros; of empty ones where it is text."""
        return np.zeros(self.shape, self.dtype) if self.text is None else np.full(self.shape, self.text(), object)

    @property
    def nbytes(self) -> int:
        """Bytes of one item; of text, without the texts."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def describe(self) -> dict[str, Any]:
        """For GET /."""
        return {"dtype": self._name, "shape": list(self.shape)}

    @property
    def _name(self) -> str:
        return str(self.dtype) if self.text is None else self.text.__name__

    def __str__(self) -> str:
        return f"{self._name} {self.shape}"

    def __repr__(self) -> str:
        return f"Tensor({self._name!r}, {self.shape})"


def _dtype(dtype: Any) -> np.dtype[Any]:
    found: np.dtype[Any]
    try:
        found = np.dtype(dtype)
    except TypeError as error:
        try:
            found = named_dtype(str(dtype))
        except ValueError:
            raise TypeError(f"Tensor({dtype!r}): {error}") from None
    try:
        descr_of(found)
    except TypeError as error:
        raise TypeError(f"Tensor({dtype!r}): expected a dtype that travels: {error}") from None
    return found


class Source(Protocol):
    """The items of one request, not decoded yet; into() raises ItemError.

    has_numbers: whether any array of it came as numbers of JSON.
    """

    @property
    def has_numbers(self) -> bool: ...

    def __len__(self) -> int: ...

    def into(self, rows: Any, start: int = 0, stop: int | None = None) -> None: ...


Inputs = Tensor | Mapping[str, Tensor]


def describe(tensors: Inputs | None) -> Any:
    """Declared inputs or outputs for GET /."""
    if tensors is None or isinstance(tensors, Tensor):
        return tensors and tensors.describe()
    return {name: tensor.describe() for name, tensor in tensors.items()}
