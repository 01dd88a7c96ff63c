"""Who sends too much is told to come back, and by then what they send is taken."""

from hypothesis import given
from hypothesis import strategies as st

from theon.intake.throttle import until_it_fits

MINUTE_S = 60.0


def counts(before: int, now: int, left_s: float, later_s: float) -> float:
    """What counts so much later, of what was sent in the minute before and in this one."""
    if later_s < left_s:
        return before * (left_s - later_s) / MINUTE_S + now
    return now * max(0.0, left_s + MINUTE_S - later_s) / MINUTE_S


@given(
    before=st.integers(0, 1000),
    now=st.integers(0, 1000),
    left_s=st.floats(0.1, MINUTE_S),
    room=st.integers(0, 999),
)
def test_it_fits_when_the_wait_is_over_and_not_before(
    before: int, now: int, left_s: float, room: int
) -> None:
    before_s = left_s if before else 0.0
    wait_s = until_it_fits(before, before_s, now, left_s, MINUTE_S, room)
    assert counts(before, now, left_s, wait_s) <= room + 1e-6 or wait_s <= 0
    if wait_s > 0.01:
        assert counts(before, now, left_s, wait_s - 0.01) > room
    assert wait_s <= 2 * MINUTE_S
