"""NumPy arrays as the base64 of a .npy document, which any language can read."""

from .._codec import decode_numpy, encode_numpy

__all__ = ["decode_numpy", "encode_numpy"]
