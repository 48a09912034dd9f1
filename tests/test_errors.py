import pickle

import pytest

from virtex import ItemError
from virtex.errors import STATUSES, ClientError, HandlerError, RequestError, VirtexError


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


@pytest.mark.parametrize("error", [ItemError("a", 1, 2), HandlerError("a", 1), RequestError(413, "b", ((b"a", b"b"),))])
def test_errors_cross_processes(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.status, vars(copy)) == (str(error), error.status, vars(error))
