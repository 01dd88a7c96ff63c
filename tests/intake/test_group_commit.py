"""Group commit: committers share what waits, and none of them ends before it is told to."""

import json
import time

import pytest

from theon.intake import group_commit
from theon.intake.group_commit import GroupCommit
from theon.roster.campuses import get_campus
from theon.store.engine import Store


def event(number: int) -> bytes:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3600))
    return json.dumps({"id": f"e{number}", "event_name": "viewed", "occurred_at": at}).encode()


def test_a_committer_whose_requests_another_one_took_goes_on(
    store: Store, lincoln: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both wait for more of a group that only one of them can take."""
    monkeypatch.setattr(group_commit, "CROWD_EVENTS", 1)
    commits = GroupCommit(store)
    commits.start()
    try:
        for turn in range(5):
            commits._last = 3  # as after a group of three: so long is waited for as many
            sent = commits.submit(get_campus(store, lincoln), "http:t", "native", [event(turn)], 9)
            assert sent.result(30).accepted == 1
            time.sleep(5 * group_commit.GATHER_S)
            assert all(thread.is_alive() for thread in commits._threads)
    finally:
        commits.stop()
    assert not any(thread.is_alive() for thread in commits._threads)
