"""Dead letters are looked at, mended, replayed or discarded; each once, each on record."""

import json
import threading
import time
from typing import Any

import pyarrow as pa
import pytest
from plain_reader import NO_ID, NO_JSON, NO_TIME, read
from sqlalchemy import text

from theon.intake import letters, replay
from theon.intake.arrivals import Arrival
from theon.intake.door import accept
from theon.intake.journal import read_journal
from theon.intake.letters import (
    LetterFilter,
    NoSuchLetterError,
    discard,
    discard_matching,
    get_letter,
    letter_groups,
    list_letters,
)
from theon.intake.mends import read_mend
from theon.intake.replay import preview, replay_matching
from theon.roster.campuses import add_campus, get_campus
from theon.store.engine import Store
from theon.store.scope import Scope

AT = int(time.time()) - 3600
GOOD = {"id": "a", "at": AT}


def send(
    store: Store, campus: str, lines: list[Any], source: str = "http:lms", places: Any = None
) -> None:
    """Lines as they were sent: bytes, or what is written as JSON."""
    originals = pa.array(
        [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines],
        pa.binary(),
    )
    found = read("native", originals, pa.array([f"sent:{n}" for n in range(len(lines))]))
    refused = found.refused
    if places:
        stood = pa.array([places[row["ordinal"]] for row in refused.to_pylist()], pa.string())
        refused = refused.set_column(4, refused.schema.field("place"), stood)
    with store.transaction(Scope(campus)) as conn:
        accept(conn, get_campus(store, campus), source,
               Arrival("native", found.events, originals, refused))  # fmt: skip


def try_again(store: Store, ids: list[int], scope: str = "district", **how: Any) -> Any:
    with store.transaction(Scope(scope)) as conn:
        return replay.replay(conn, read, ids, "ada", **how)


def listed(store: Store, scope: str = "district", **which: Any) -> list[letters.Letter]:
    with store.transaction(Scope(scope)) as conn:
        return list_letters(conn, LetterFilter(**which))


def show(store: Store, letter_id: int) -> letters.LetterShown:
    with store.transaction(Scope.district()) as conn:
        return get_letter(conn, letter_id)


def accepted(store: Store, campus: str) -> list[str]:
    with store.transaction(Scope(campus)) as conn:
        _, events = read_journal(conn, get_campus(store, campus).id)
    return sorted(events["event_id"].to_pylist())


def test_a_letter_is_shown_as_it_was_sent(store: Store, lincoln: str) -> None:
    send(
        store, lincoln, [b'{"id": ', b"\xff\x00", "z\u00fc\ttext".encode()], places=["x", "y", "z"]
    )
    third, second, first = listed(store)
    assert [letter.reason for letter in (first, second, third)] == [NO_JSON] * 3
    assert (first.place, first.size_bytes, first.campus) == ("x", 7, "lincoln")
    assert (show(store, first.id).original, show(store, first.id).is_text) == ('{"id": ', True)
    assert (show(store, second.id).original, show(store, second.id).is_text) == ("ff 00", False)
    assert show(store, third.id).original == "z\u00fc\ttext"


def test_a_mended_letter_is_accepted_once_and_its_bytes_stay(store: Store, lincoln: str) -> None:
    send(store, lincoln, [{"ident": "a", "at": AT}])
    [letter] = listed(store)
    mend = read_mend([{"do": "rename", "field": "ident", "to": "id"}])
    [tried] = try_again(store, [letter.id], mend=mend, note="the LMS was new").tried
    assert (tried.outcome, tried.reason) == ("accepted", None)
    assert accepted(store, lincoln) == ["a"]
    assert try_again(store, [letter.id], mend=mend).skipped == (letter.id,)
    assert accepted(store, lincoln) == ["a"]
    shown = show(store, letter.id)
    assert (shown.letter.state, shown.letter.ended_by) == ("replayed", "ada")
    assert json.loads(shown.original) == {"ident": "a", "at": AT}
    [change] = shown.changes
    assert (change.actor, change.action, change.outcome) == ("ada", "replay", "accepted")
    assert (change.note, change.mend) == ("the LMS was new", mend.as_json())


def test_what_is_refused_again_waits_with_its_new_reason(store: Store, lincoln: str) -> None:
    send(store, lincoln, [{"at": "soon"}])
    [letter] = listed(store)
    assert letter.reason == NO_ID
    mend = read_mend([{"do": "set", "field": "id", "value": "a"}])
    [tried] = try_again(store, [letter.id], mend=mend).tried
    assert (tried.outcome, tried.reason) == ("refused", NO_TIME)
    [again] = listed(store)
    assert (again.id, again.state, again.reason) == (letter.id, "waiting", NO_TIME)
    assert [change.reason for change in show(store, letter.id).changes] == [NO_TIME]


def test_a_mend_that_does_not_fit_leaves_the_letter_as_it_is(store: Store, lincoln: str) -> None:
    send(store, lincoln, [b"nonsense"])
    [letter] = listed(store)
    mend = read_mend([{"do": "set", "field": "id", "value": "a"}])
    [tried] = try_again(store, [letter.id], mend=mend).tried
    assert tried.reason is not None
    assert tried.reason.startswith("the mend does not fit")
    assert listed(store) == [letter]


def test_a_letter_of_an_event_that_has_come_since_is_a_duplicate(
    store: Store, lincoln: str
) -> None:
    send(store, lincoln, [{"ident": "a", "at": AT}, {"ident": "a", "at": AT, "user_id": "9"}])
    send(store, lincoln, [GOOD])
    mend = read_mend([{"do": "rename", "field": "ident", "to": "id"}])
    ids = [letter.id for letter in listed(store)]
    first, second = try_again(store, ids, mend=mend).tried
    assert first.outcome == "duplicate"
    assert (second.outcome, second.detail) == ("refused", "a")
    assert accepted(store, lincoln) == ["a"]


def test_an_event_without_id_gets_that_of_its_message(store: Store, lincoln: str) -> None:
    """So it is the same if the topic is read again from its beginning."""
    lines = [{"may_lack_id": True, "at": "x"}, {"may_lack_id": True, "at": "x"}]
    send(store, lincoln, lines, "kafka:t", places=["my.topic#2/3 at 17", None])
    ids = [letter.id for letter in listed(store)]
    try_again(store, ids, mend=read_mend([{"do": "set", "field": "at", "value": AT}]))
    assert accepted(store, lincoln) == ["kafka:my.topic#2:3:17", f"letter:{max(ids)}"]


def test_a_preview_says_what_would_be_and_changes_nothing(store: Store, lincoln: str) -> None:
    send(store, lincoln, [{"ident": "a", "at": AT}, b"nonsense"])
    before = listed(store)
    mend = read_mend([{"do": "rename", "field": "ident", "to": "id"}])
    with store.transaction(Scope(lincoln)) as conn:
        first, second = preview(conn, read, [letter.id for letter in before], mend).tried
    assert (first.outcome, second.outcome) == ("accepted", "refused")
    assert json.loads(first.before) == {"ident": "a", "at": AT}
    assert json.loads(first.after) == {"id": "a", "at": AT}
    assert listed(store) == before
    assert accepted(store, lincoln) == []
    assert show(store, first.id).changes == ()
    with store.transaction(Scope.district()) as conn:
        counted = conn.execute(text("SELECT source FROM theon.delivery_counts")).scalars()
        assert list(counted) == ["http:lms"]


def test_replays_are_in_the_ledger_under_their_own_name(store: Store, lincoln: str) -> None:
    send(store, lincoln, [{"ident": "a", "at": AT}, b"nonsense"])
    mend = read_mend([{"do": "rename", "field": "ident", "to": "id"}])
    replay_matching(store, Scope(lincoln), read, LetterFilter(), "ada")
    done = replay_matching(store, Scope(lincoln), read, LetterFilter(), "ada", mend=mend)
    assert (done.accepted, done.refused) == (1, 1)
    with store.transaction(Scope(lincoln)) as conn:
        rows = conn.execute(
            text(
                "SELECT source, sum(received), sum(accepted), sum(duplicate), sum(rejected),"
                " sum(dead_lettered) FROM theon.delivery_counts GROUP BY source ORDER BY source"
            )
        ).all()
    assert [tuple(row) for row in rows] == [
        ("http:lms", 2, 0, 0, 2, 2), ("replay:http:lms", 3, 1, 0, 2, 0),
    ]  # fmt: skip
    assert len(listed(store)) == 1


def test_discarded_letters_stay_on_record(store: Store, lincoln: str) -> None:
    send(store, lincoln, [b"one", b"two"])
    second, first = listed(store)
    with store.transaction(Scope(lincoln)) as conn:
        assert discard(conn, [first.id, 99_999], "ada", "a test") == [first.id]
        assert discard(conn, [first.id], "ada") == []
    assert listed(store) == [second]
    [gone] = listed(store, state="discarded")
    assert (gone.id, gone.ended_by) == (first.id, "ada")
    assert [(c.action, c.note) for c in show(store, first.id).changes] == [("discard", "a test")]
    assert try_again(store, [first.id]).skipped == (first.id,)


def test_many_are_found_by_what_they_have_in_common(
    store: Store, lincoln: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letters, "BATCH_LETTERS", 2)
    send(store, lincoln, [b"x"] * 5 + [{"at": AT}] * 3)
    send(store, lincoln, [b"x"] * 2, "kafka:t")
    with store.transaction(Scope.district()) as conn:
        groups = letter_groups(conn)
        newest = list_letters(conn, LetterFilter(source="kafka:t"), limit=1)[0].id
        page = list_letters(conn, LetterFilter(), limit=3)
        rest = list_letters(conn, LetterFilter(), before=page[-1].id)
    assert [(g.source, g.reason, g.letters) for g in groups] == [
        ("http:lms", NO_JSON, 5), ("http:lms", NO_ID, 3), ("kafka:t", NO_JSON, 2),
    ]  # fmt: skip
    assert (len(page), len(rest)) == (3, 7)
    which = LetterFilter(source="http:lms", reason=NO_JSON)
    assert discard_matching(store, Scope(lincoln), which, "ada") == 5
    assert discard_matching(store, Scope(lincoln), LetterFilter(upto=newest - 1), "ada") == 4
    assert [letter.id for letter in listed(store)] == [newest]


def test_letters_of_another_campus_are_not_there(store: Store, lincoln: str) -> None:
    add_campus(store, "elm", "UTC")
    send(store, lincoln, [{"ident": "a", "at": AT}])
    [letter] = listed(store)
    assert listed(store, "elm") == []
    mend = read_mend([{"do": "rename", "field": "ident", "to": "id"}])
    assert try_again(store, [letter.id], "elm", mend=mend).skipped == (letter.id,)
    with store.transaction(Scope("elm")) as conn:
        assert discard(conn, [letter.id], "eve") == []
        with pytest.raises(NoSuchLetterError):
            get_letter(conn, letter.id)
    assert replay_matching(store, Scope("elm"), read, LetterFilter(), "eve").refused == 0
    assert listed(store) == [letter]


def test_a_letter_of_the_district_goes_to_the_campus_that_it_names(
    store: Store, lincoln: str
) -> None:
    """Messages that name no campus are kept by the district, which has no events of its own."""
    send(store, "district", [{"x": 1}, {"x": 2, "campus": "lincon"}])
    ids = [letter.id for letter in listed(store)]
    good = [{"do": "set", "field": "id", "value": "a"}, {"do": "set", "field": "at", "value": AT}]
    second, first = try_again(store, ids, mend=read_mend(good)).tried[::-1]
    assert (first.outcome, first.reason) == ("refused", "no campus named")
    assert (second.outcome, second.reason, second.detail) == ("refused", "no such campus", "lincon")
    for slug, outcome in (("district", "refused"), ("lincoln", "accepted")):
        mend = read_mend([*good, {"do": "set", "field": "campus", "value": slug}])
        assert try_again(store, ids[:1], mend=mend).tried[0].outcome == outcome
    assert accepted(store, "district") == []
    assert accepted(store, lincoln) == ["a"]


def test_a_letter_of_a_mapping_that_is_gone_waits(store: Store, lincoln: str) -> None:
    send(store, lincoln, [b"x"])
    with store.transaction(Scope(lincoln)) as conn:
        conn.execute(text("UPDATE theon.dead_letters SET format = 'other'"))
    [letter] = listed(store)
    [tried] = try_again(store, [letter.id]).tried
    assert (tried.outcome, tried.reason) == ("refused", "there is no mapping 'other'")
    assert listed(store) == [letter]


def test_of_replays_at_the_same_time_one_takes_the_letter(store: Store, lincoln: str) -> None:
    send(store, lincoln, [{"ident": f"e{n}", "at": AT} for n in range(20)])
    ids = [letter.id for letter in listed(store)]
    mend = read_mend([{"do": "rename", "field": "ident", "to": "id"}])
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(try_again(store, ids, mend=mend)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.count("accepted") for one in found) == [0, 0, 0, 20]
    assert len(accepted(store, lincoln)) == 20
