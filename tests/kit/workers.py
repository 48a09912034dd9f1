"""Workers that are there on paper only."""

from virtex.workers.scoreboard import READY, Scoreboard


def scoreboard_of(*connections):
    """Workers that are ready and have so many; the first is this one."""
    scoreboard = Scoreboard()
    for index, count in enumerate(connections):
        scoreboard.take(index + 1)
        scoreboard.own(index, index + 1)
        scoreboard.set_state(index, READY)
        scoreboard.publish(index, count)
    return scoreboard
