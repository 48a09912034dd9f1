import numpy as np
import pytest

from virtex.errors import RequestError
from virtex.service.bodies import KEPT, Bodies


def test_bytes_are_charged_as_they_come_and_refused_beyond_the_budget():
    bodies = Bodies(100)
    bodies.charge(60)
    bodies.charge(40)
    with pytest.raises(RequestError, match="more than 100 bytes") as error:
        bodies.charge(1)
    assert error.value.status == 503
    assert (b"retry-after", b"1") in error.value.headers
    assert bodies.held == 101, "whoever was refused gives back all that came"


@pytest.mark.parametrize("n", [1, 65536, 65537, 3_000_000])
def test_memory_is_page_aligned_and_used_again(n):
    bodies = Bodies(4 * KEPT)
    view = bodies.take(n)
    assert len(view) == n and not view.readonly
    assert np.frombuffer(view, np.uint8).ctypes.data % 4096 == 0
    view[-1:] = b"x"
    bodies.give_back(view)
    assert bodies.take(n)[-1:] == b"x", "new memory would be zero"


def test_memory_that_somebody_looks_at_is_not_used_again():
    bodies = Bodies(4 * KEPT)
    view = bodies.take(100_000)
    view[:1] = b"x"
    kept = view[:1]
    bodies.give_back(view)
    assert bodies.take(100_000)[:1] == b"\0"
    assert kept == b"x"


def test_memory_that_is_used_again_and_again_counts_once():
    bodies = Bodies(4 * KEPT)
    view = bodies.take(KEPT // 4)
    view[:1] = b"x"
    for _ in range(5):
        bodies.give_back(view)
        view = bodies.take(KEPT // 4)
        assert view[:1] == b"x", "new memory would be zero"


@pytest.mark.parametrize(("budget", "kept"), [(4 * KEPT, KEPT), (KEPT, KEPT // 2)])
def test_no_more_is_kept_free_than_said(budget, kept):
    bodies = Bodies(budget)
    views = [bodies.take(KEPT // 4) for _ in range(10)]
    while views:
        bodies.give_back(views.pop())
    assert bodies.kept == kept


def test_memory_that_a_reader_has_open_is_left_to_it():
    bodies = Bodies(4 * KEPT)
    view = bodies.take(100_000)
    view[:1] = b"x"
    reader = np.frombuffer(view, np.uint8)
    bodies.give_back(view)
    assert bodies.take(100_000)[:1] == b"\0"
    assert reader[0] == ord("x")
