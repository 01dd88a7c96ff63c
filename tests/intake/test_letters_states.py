"""Whatever the order of sending, mending, replaying and discarding: nothing lost or doubled."""

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given
from hypothesis import settings as how
from hypothesis import strategies as st
from plain_reader import read
from sqlalchemy import text
from test_letters import AT, accepted, send

from theon.intake.letters import discard
from theon.intake.mends import read_mend
from theon.intake.replay import preview, replay
from theon.roster.campuses import add_campus
from theon.store.engine import Store
from theon.store.scope import Scope

NUMBERS = itertools.count()
MEND = read_mend([{"do": "rename", "field": "ident", "to": "id"}])

IDS = st.sampled_from("abc")
USERS = st.sampled_from(["5", "6"])
LINES = st.lists(
    st.tuples(st.sampled_from(["id", "ident", ""]), IDS, USERS), min_size=1, max_size=4
)
PICKS = st.sets(st.integers(0, 9), max_size=4)
STEPS = st.one_of(
    st.tuples(st.just("send"), LINES),
    st.tuples(st.just("replay"), PICKS, st.booleans()),
    st.tuples(st.just("preview"), PICKS, st.booleans()),
    st.tuples(st.just("discard"), PICKS),
)


@dataclass
class Model:
    """What must be true, told in plain Python.

    `known` is the content of each accepted id; a letter is (field, id, user, state).
    """

    known: dict[str, str] = field(default_factory=dict)
    letters: list[list[str]] = field(default_factory=list)

    def take(self, id: str, user: str) -> str:
        if id not in self.known:
            self.known[id] = user
            return "accepted"
        return "duplicate" if self.known[id] == user else "refused"

    def send(self, lines: list[tuple[str, str, str]]) -> None:
        # What the mapping refuses comes before what the door refuses.
        refused = [line for line in lines if line[0] != "id"]
        refused += [line for line in lines if line[0] == "id" and self.take(*line[1:]) == "refused"]
        self.letters += [[*line, "waiting"] for line in refused]

    def replay(self, picks: set[int], mends: bool) -> list[str]:
        outcomes = []
        for n in sorted(picks):
            name, id, user, state = self.letters[n]
            if state != "waiting":
                continue
            readable = name == "id" or (name == "ident" and mends)
            outcome = self.take(id, user) if readable else "refused"
            outcomes.append(outcome)
            if outcome != "refused":
                self.letters[n][3] = "replayed"
        return outcomes

    def discard(self, picks: set[int]) -> None:
        for n in picks:
            if self.letters[n][3] == "waiting":
                self.letters[n][3] = "discarded"


@how(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEPS, max_size=10))
def test_nothing_is_lost_and_nothing_doubled(store: Store, steps: list[Any]) -> None:
    campus = f"m{next(NUMBERS)}"
    add_campus(store, campus, "UTC")
    model, sent = Model(), 0
    for step in steps:
        if step[0] == "send":
            sent += len(step[1])
            send(store, campus, [{name or "x": id, "at": AT, "user_id": user}
                                 for name, id, user in step[1]])  # fmt: skip
            model.send(step[1])
            continue
        picks = {n for n in step[1] if n < len(model.letters)}
        with store.transaction(Scope(campus)) as conn:
            ids = [
                row.id
                for row in conn.execute(text("SELECT id FROM theon.dead_letters ORDER BY id"))
            ]
            chosen = [ids[n] for n in picks]
            mend = MEND if step[0] in ("replay", "preview") and step[2] else None
            if step[0] == "discard":
                discard(conn, chosen, "ada")
                model.discard(picks)
            elif step[0] == "replay":
                done = replay(conn, read, chosen, "ada", mend=mend)
                assert [one.outcome for one in done.tried] == model.replay(picks, step[2])
            else:
                preview(conn, read, chosen, mend)
    with store.transaction(Scope(campus)) as conn:
        letters = conn.execute(
            text("SELECT state, original FROM theon.dead_letters ORDER BY id")
        ).all()
        counted = conn.execute(
            text(
                "SELECT coalesce(sum(received), 0), coalesce(sum(accepted), 0) FROM"
                " theon.delivery_counts WHERE source NOT LIKE 'replay:%'"
            )
        ).one()
        total = conn.execute(text("SELECT coalesce(sum(accepted), 0) FROM theon.delivery_counts"))
        assert total.scalar_one() == len(model.known)
    assert accepted(store, campus) == sorted(model.known)
    assert [row.state for row in letters] == [letter[3] for letter in model.letters]
    assert [json.loads(bytes(row.original)).get(letter[0] or "x")
            for row, letter in zip(letters, model.letters, strict=True)] == [
                letter[1] for letter in model.letters]  # fmt: skip
    assert counted[0] == sent
