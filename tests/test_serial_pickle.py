"""Pickles: authenticated by a key before they are unpickled, or trusted by a person's word, or refused."""

from __future__ import annotations

import os
import pickle

import pytest

from virtex import ItemError
from virtex.serial import decode_bytes, decode_pickle, encode_bytes, encode_pickle
from virtex.serial import pickle as module

KEY = b"a secret"


@pytest.fixture
def unpickled(monkeypatch):
    """The texts that came as far as pickle.loads."""
    seen = []
    monkeypatch.setattr(module.pickle, "loads", lambda data: seen.append(bytes(data)))
    return seen


def test_a_key_gives_back_what_it_took():
    assert decode_pickle(encode_pickle({"a": [1]}, key=KEY), key=KEY) == {"a": [1]}


def test_code_goes_by_reference():
    assert decode_pickle(encode_pickle(os.path.join, key=KEY), key=KEY) is os.path.join


@pytest.mark.parametrize("at", range(5 + 32 + len(pickle.dumps([1], 5))))
def test_each_changed_byte_is_found_before_a_byte_is_unpickled(at, unpickled):
    data = bytearray(decode_bytes(encode_pickle([1], key=KEY)))
    data[at] ^= 1
    with pytest.raises(ItemError):
        decode_pickle(encode_bytes(data), key=KEY)
    assert unpickled == []


@pytest.mark.parametrize("cut", [0, 3, 5, 20, 37, 40])
def test_a_payload_that_is_cut_is_refused(cut, unpickled):
    with pytest.raises(ItemError):
        decode_pickle(encode_bytes(decode_bytes(encode_pickle([1], key=KEY))[:cut]), key=KEY)
    assert unpickled == []


@pytest.mark.parametrize(
    ("made", "read", "said"),
    [
        ({"key": KEY}, {"key": b"another"}, "another key, or changed"),
        ({"key": KEY}, {"trusted": True}, "encoded with a key, which decode_pickle was not given: decode it with key="),
        ({}, {"key": KEY}, "encoded without a key, and decode_pickle has one: encode it with key="),
    ],
)
def test_the_wrong_way_round_says_what_to_do(made, read, said, unpickled):
    with pytest.raises(ItemError, match=said) as caught:
        decode_pickle(encode_pickle([1], **made), **read)
    assert unpickled == [] and caught.value.status == 422


@pytest.mark.parametrize("given", [{}, {"trusted": False}, {"key": KEY, "trusted": True}])
def test_without_a_key_a_person_has_to_trust_it(given, unpickled):
    with pytest.raises(ValueError, match="expected either key=.* or trusted=True") as caught:
        decode_pickle(encode_pickle([1]), **given)
    assert unpickled == [] and not isinstance(caught.value, ItemError)


@pytest.mark.parametrize(
    ("key", "error"), [(b"", ValueError), ("text", TypeError), (1, TypeError), (bytearray(b"a"), TypeError)]
)
def test_a_key_that_is_none_is_refused_at_once(key, error):
    with pytest.raises(error, match="expected key= to be"):
        encode_pickle([1], key=key)
    with pytest.raises(error, match="expected key= to be"):
        decode_pickle("", key=key)


@pytest.mark.parametrize(
    "data", [b"", b"VXP", b"VXP\x02p" + pickle.dumps(1), b"\x93NUMPY", b"VXP\x01p", b"VXP\x01pgarbage"]
)
def test_garbage_is_the_items_fault(data):
    with pytest.raises(ItemError):
        decode_pickle(encode_bytes(data), trusted=True)


def test_what_unpickling_raises_is_the_items_fault():
    text = encode_bytes(b"VXP\x01p" + b"\x80\x05cno_such_module\nname\n.")
    with pytest.raises(ItemError, match="the pickle can't be loaded: ModuleNotFoundError"):
        decode_pickle(text, trusted=True)
