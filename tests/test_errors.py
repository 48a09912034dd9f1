import pickle

import pytest

from virtex import ItemError
from virtex.errors import STATUSES, ClientError, HandlerError, RequestError, VirtexError, moved


def test_an_item_error_says_where():
    assert str(ItemError("no good")) == "no good"
    assert str(ItemError("no good", 3)) == "item 3: no good"
    assert str(ItemError("no good", 3, 17)) == "item 3: no good (at offset 17)"
    assert isinstance(ItemError("no good"), ValueError)


def test_each_error_carries_its_status():
    assert (VirtexError.status, ItemError.status, HandlerError("a").status) == (500, 422, 500)
    assert RequestError(413, "large").status == 413
    assert ClientError(503, {"error": "full"}).status == 503
    assert {400, 422, 500, 503, 504} <= set(STATUSES)


def test_a_clients_error_has_status_index_and_id_and_crosses_processes():
    error = ClientError(422, {"data": [], "error": "item 3: no", "index": 3}, "abc")
    copy = pickle.loads(pickle.dumps(error))
    for one in (error, copy):
        assert (one.status, one.index, one.request_id, str(one)) == (422, 3, "abc", "422: item 3: no")
    assert ClientError(0, {"error": "gone"}).index is None


@pytest.mark.parametrize("status", [400, 404, 409, 418, 422, 429, 499])
def test_an_item_error_may_have_any_status_of_the_clients_fault(status):
    assert ItemError("gone", 1, 2, status=status).status == status
    assert type(ItemError("gone", status=status).at(3)) is ItemError


@pytest.mark.parametrize("status", [0, 200, 399, 500, 503, 404.5, True, "404", None])
def test_another_status_is_an_error_where_it_is_raised(status):
    with pytest.raises(ValueError, match=r"ItemError\(status=.*\): expected a whole number from 400 to 499"):
        ItemError("gone", status=status)


def test_an_error_moves_with_its_status_offset_and_cause():
    error = ItemError("gone", 1, 2, status=404)
    error.__cause__ = KeyError("x")
    for copy in (error.at(5), moved(error, 4)):
        assert copy is not error and vars(copy) == {**vars(error), "index": 5}
        assert copy.__cause__ is error.__cause__ and error.index == 1
    assert moved(error, 0) is error
    failed = HandlerError("run_inference raised", 1)
    failed.__cause__ = error
    assert (moved(failed, 2).index, moved(failed, 2).__cause__) == (3, error)


class NotThere(ItemError):
    status = 404


class Odd(ItemError):
    status = 200


class Bare(ItemError):
    def __init__(self):
        pass


def test_a_subclass_may_have_a_status_of_its_own_as_far_as_it_is_one():
    assert (NotThere("a").status, NotThere("a").at(1).status) == (404, 404)
    assert (Odd("a").at(1).status, Bare().at(1).status, Bare().at(1).reason) == (422, 422, "expected another item")


@pytest.mark.parametrize(
    "error", [ItemError("a", 1, 2, status=404), HandlerError("a", 1), RequestError(413, "b", ((b"a", b"b"),))]
)
def test_errors_cross_processes(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.status, vars(copy)) == (str(error), error.status, vars(error))
