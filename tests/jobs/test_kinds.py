"""Kinds of jobs, and the one table of transitions in code, migration and database."""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from theon.errors import InputError
from theon.jobs.enqueue import NewJob, enqueue
from theon.jobs.errors import UnknownKindError
from theon.jobs.kinds import Backoff, Kinds, job
from theon.jobs.states import TRANSITIONS, State, may_become
from theon.store.engine import Store
from theon.store.migrations.versions import m0002_jobs
from theon.store.scope import Scope


@dataclass(frozen=True)
class Refresh:
    """What to refresh."""

    campus: str
    days: int = 1


@job("metrics.refresh", queue="metrics", max_attempts=5, category="analytics")
def refresh(ctx: Any, args: Refresh) -> None:
    """Refresh the metrics of a campus.

    Only the first line is the summary.
    """


KINDS = Kinds([refresh])


def test_a_kind_knows_its_arguments_and_its_summary() -> None:
    """The dataclass is read from the annotation, the summary from the docstring."""
    assert (refresh.name, refresh.queue, refresh.max_attempts) == ("metrics.refresh", "metrics", 5)
    assert refresh.arguments is Refresh
    assert refresh.summary == "Refresh the metrics of a campus."
    assert refresh.parse({"campus": "oak"}) == Refresh("oak", 1)
    assert refresh.dump(Refresh("oak", 2)) == {"campus": "oak", "days": 2}


def test_arguments_that_do_not_fit_name_every_field() -> None:
    """One message says all that is wrong, where, and what the kind takes."""
    with pytest.raises(InputError) as caught:
        refresh.parse({"days": "soon"})
    said = caught.value.message
    assert "job metrics.refresh: the arguments do not fit" in said
    assert "campus: Field required" in said
    assert "days: Input should be a valid integer" in said
    assert "It takes campus: str, days: int = 1." in said


def test_a_job_without_a_dataclass_is_refused() -> None:
    """Arguments that nobody can check are no arguments."""
    with pytest.raises(InputError, match="annotated with a dataclass"):

        @job("bad.kind")
        def bad(ctx: Any, args: dict[str, int]) -> None:
            """Take a plain mapping."""


@pytest.mark.parametrize("options", [{"max_attempts": 0}, {"timeout_s": 0}, {"memory_mb": 0}])
def test_limits_that_allow_nothing_are_refused(options: dict[str, Any]) -> None:
    """A kind that could never run is refused where it is declared."""
    with pytest.raises(InputError, match=r"job bad\.kind"):

        @job("bad.kind", **options)
        def bad(ctx: Any, args: Refresh) -> None:
            """Never run."""


def test_two_kinds_of_one_name_are_refused() -> None:
    """A name leads to one function."""
    with pytest.raises(InputError, match="two kinds have this name"):
        Kinds([refresh, replace(refresh, queue="other")])


def test_an_unknown_kind_names_those_spelt_nearly_so() -> None:
    """The message proposes what was meant."""
    with pytest.raises(UnknownKindError) as caught:
        KINDS["metrics.refersh"]
    assert "there is no job 'metrics.refersh' (did you mean metrics.refresh?)" in str(caught.value)
    assert "metrics.refersh" not in KINDS
    assert list(KINDS) == ["metrics.refresh"]


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True), st.floats(0, 1), st.floats(1, 10))
def test_a_backoff_is_never_longer_than_its_longest(
    failures: int, chance: float, jitter: float, factor: float
) -> None:
    """It grows with the failures, by no more than its bound, and never goes below zero."""
    backoff = Backoff(first_s=2, factor=factor, longest_s=60, jitter=jitter)
    assert 0 <= backoff.wait_s(failures, chance) <= 60
    assert backoff.wait_s(failures, chance) <= backoff.wait_s(failures + 1, chance)


def test_the_migration_has_the_same_table_of_transitions() -> None:
    """The trigger is made from the migration's copy; the two must not drift apart."""
    assert set(m0002_jobs.TRANSITIONS) == {(str(b), str(a)) for b, a in TRANSITIONS}
    assert all(str(state) in m0002_jobs.STATES for state in State)


def test_the_database_refuses_exactly_what_the_table_does_not_have(store: Store) -> None:
    """Each of the 49 pairs is tried on a row, past all code of ours."""
    for before, after in product(State, State):
        with store.transaction(Scope.district()) as conn:
            job_id = enqueue(conn, KINDS, NewJob("metrics.refresh", {"campus": "oak"}))
            change = text("UPDATE theon.jobs SET state = :state WHERE id = :id")
            for step in path_to(before):
                conn.execute(change, {"state": step, "id": job_id})
            if before == after or may_become(before, after):
                assert conn.execute(change, {"state": after, "id": job_id}).rowcount == 1
            else:
                said = f"job {job_id} cannot go from {before} to {after}"
                with pytest.raises(IntegrityError, match=said), conn.begin_nested():
                    conn.execute(change, {"state": after, "id": job_id})


def path_to(state: State) -> list[State]:
    """Legal steps of a job from `queued` to `state`."""
    paths: dict[State, list[State]] = {State.QUEUED: []}
    while state not in paths:
        for before, after in TRANSITIONS:
            if before in paths and after not in paths:
                paths[after] = [*paths[before], after]
    return paths[state]
