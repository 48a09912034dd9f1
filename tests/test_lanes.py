from virtex.rpc.lanes import Lanes

ONE, OTHER = ("127.0.0.1", "5000"), ("127.0.0.1", "5001")


def test_calls_under_way_have_lanes_of_their_own_and_a_lane_that_was_left_is_taken_first():
    lanes = Lanes()
    assert [lanes.take(ONE) for _ in range(3)] == [0, 1, 2]
    assert lanes.take(OTHER) == 0
    lanes.leave(ONE, 1)
    assert [lanes.take(ONE), lanes.take(ONE)] == [1, 3]


def test_a_connection_without_calls_is_forgotten():
    lanes = Lanes()
    for address in (ONE, OTHER):
        for lane in [lanes.take(address) for _ in range(3)]:
            lanes.leave(address, lane)
    assert not lanes._of
    assert lanes.take(ONE) == 0
