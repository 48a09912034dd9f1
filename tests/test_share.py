"""Which worker takes a connection that waits for all of them."""

from kit.workers import scoreboard_of

from virtex.workers.share import PATIENCE, Share


def test_sibling_that_gives_no_sign_of_life_is_waited_for_a_while_only():
    scoreboard = scoreboard_of(0, 3, 9)
    share = Share(scoreboard, 0)
    assert not share.has_more(3)
    for _ in range(PATIENCE):
        assert share.has_more(5)
        share.waited_in_vain()
    assert not share.has_more(5)
    assert share.has_more(10)  # the other one has fewer too, and may be well
    scoreboard.publish(1, 3)
    assert share.has_more(5)
