"""A question finds exactly the statements that fit, in order, over pages, in the wanted form."""

import json
import threading
import time
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from tests.api.xapi_service import (
    ANN,
    BEN,
    STATEMENTS,
    THROUGH,
    Lrs,
    about,
    attachment,
    multipart,
    statement,
    voiding,
)

from theon.lrs import asking
from theon.lrs.references import FURTHEST
from theon.lrs.storing import moment
from theon.lrs.values import read_time
from theon.store.scope import Scope

PAGE = {"id": "https://lms.example.org/page/1"}
COURSE = {"id": "https://lms.example.org/course/1"}
VERB = "http://adlnet.gov/expapi/verbs/completed"
NOT_IDS = ["", "x", "1234", "{}"]


def agent(who: dict[str, Any]) -> str:
    return json.dumps(who)


def test_the_newest_come_first_unless_the_oldest_are_wanted(lrs: Lrs) -> None:
    made = lrs.add(*[statement() for _ in range(7)])
    made += lrs.add(statement())
    assert lrs.ids(ascending="true") == made
    assert lrs.ids() == list(reversed(made))
    times = [read_time(s["stored"]) for s in lrs.get(ascending="true").json()["statements"]]
    assert times == sorted(set(times))


@pytest.mark.parametrize("ascending", ["true", "false"])
def test_pages_hold_every_statement_once(lrs: Lrs, ascending: str) -> None:
    """Also while new ones are stored."""
    made = lrs.add(*[statement() for _ in range(10)])
    answer = lrs.get(limit=3, ascending=ascending).json()
    found = []
    late = None
    while True:
        assert len(answer["statements"]) <= 3
        found += [s["id"] for s in answer["statements"]]
        if not answer["more"]:
            break
        late = late or lrs.add(statement())[0]
        assert answer["more"].startswith(f"{STATEMENTS}?more=")
        answer = lrs.client.get(answer["more"]).json()
    if ascending == "true":
        assert found == [*made, late]
    else:
        assert found == list(reversed(made))


def test_the_next_page_has_the_form_and_the_files_of_the_first(lrs: Lrs) -> None:
    content = b"a report"
    course = {**COURSE, "definition": {"name": {"en": "C"}}}
    made = [statement(object=course, attachments=[attachment(content)]) for _ in range(3)]
    lrs.client.post(STATEMENTS, **multipart(made, content))
    more = lrs.get(limit=1, format="ids", verb=made[0]["verb"]["id"]).json()["more"]
    (found,) = (answer := lrs.client.get(more)).json()["statements"]
    assert found["object"] == COURSE
    assert THROUGH in answer.headers
    first = lrs.get(limit=2, attachments="true").content
    more = json.loads(first.split(b"\r\n")[3])["more"]
    assert content in lrs.client.get(more).content


def test_a_page_is_no_larger_than_it_may_be(lrs: Lrs, monkeypatch: pytest.MonkeyPatch) -> None:
    """By count, by bytes, and by the bytes of files; at least one statement is on each."""
    monkeypatch.setattr(asking, "MOST", 4)
    files = [bytes([n]) * 900 for n in range(5)]
    sent = [statement(attachments=[attachment(content)]) for content in files]
    lrs.client.post(STATEMENTS, **multipart(sent, *files))
    ids = [s["id"] for s in sent]
    assert len(lrs.get().json()["statements"]) == 4
    assert len(lrs.get(limit=3).json()["statements"]) == 3
    assert len(lrs.get(limit=9).json()["statements"]) == 4
    monkeypatch.setattr(asking, "LARGEST_PAGE_BYTES", 1000)
    assert len(lrs.get().json()["statements"]) == 2
    assert lrs.ids(ascending="true") == ids
    found = lrs.get(attachments="true", ascending="true")
    assert found.content.count(b"Content-Transfer-Encoding") == 1
    monkeypatch.setattr(asking, "LARGEST_PAGE_BYTES", 1)
    assert lrs.ids(ascending="true") == ids


def test_since_and_until_are_about_when_it_was_stored(lrs: Lrs) -> None:
    made = lrs.add(*[statement(timestamp="1999-01-01T00:00:00Z") for _ in range(4)])
    stored = [lrs.one(one)["stored"] for one in made]
    assert lrs.ids(since=stored[1], ascending="true") == made[2:]
    assert lrs.ids(until=stored[1], ascending="true") == made[:2]
    assert lrs.ids(since=stored[0], until=stored[2], ascending="true") == made[1:3]
    at = read_time(stored[0]) + timedelta(hours=2)
    assert lrs.ids(since=at.isoformat()) == []
    assert lrs.ids(until=stored[0].replace("Z", "")) == made[:1]


def test_agents_are_found_by_what_identifies_them(lrs: Lrs) -> None:
    """As actor, as object, and as a member of a group that is one of the two."""
    first = statement(actor={"name": "Ann", **ANN})
    second = statement(actor=BEN, object={"objectType": "Agent", **ANN})
    third = statement(actor={"objectType": "Group", "name": "Us", "member": [BEN, ANN]})
    team = {"objectType": "Group", "mbox": "mailto:us@example.org"}
    fourth = statement(actor={**team, "member": [ANN]})
    other = statement(actor=BEN, context={"instructor": ANN})
    lrs.add(first, second, third, fourth, other)
    found = lrs.ids(agent=agent(ANN), ascending="true")
    assert found == [s["id"] for s in (first, second, third, fourth)]
    assert lrs.ids(agent=agent({"name": "Another name", **BEN}), ascending="true") == [
        s["id"] for s in (second, third, other)
    ]
    assert lrs.ids(agent=agent(team)) == [fourth["id"]]


def test_related_agents_are_found_wherever_they_stand(lrs: Lrs) -> None:
    ben = BEN | {"objectType": "Agent"}
    inner = {"objectType": "SubStatement", "verb": {"id": VERB}, "actor": ANN, "object": PAGE}
    group = {"objectType": "Group", "member": [BEN]}
    sent = [
        statement(context={"instructor": BEN}),
        statement(context={"team": group}),
        statement(object={**inner, "actor": BEN}),
        statement(object={**inner, "object": ben}),
        statement(object={**inner, "context": {"instructor": group}}),
        statement(context={"contextAgents": [{"objectType": "contextAgent", "agent": BEN}]}),
        statement(context={"contextGroups": [{"objectType": "contextGroup", "group": group}]}),
    ]
    two = lrs.speaking("2.0.0")
    made = two.add(*sent)
    lrs.add(statement())
    assert lrs.ids(agent=agent(BEN)) == []
    assert lrs.ids(agent=agent(BEN), related_agents="true", ascending="true") == made
    key = lrs.one(made[0])["authority"]
    assert len(lrs.ids(agent=agent(key), related_agents="true")) == len(sent) + 1


def test_activities_are_found_as_object_or_wherever_they_stand(lrs: Lrs) -> None:
    inner = {"objectType": "SubStatement", "verb": {"id": VERB}, "actor": ANN, "object": COURSE}
    (first,) = lrs.add(statement(object=COURSE))
    related = lrs.add(
        *[
            statement(context={"contextActivities": {name: [COURSE]}})
            for name in ("parent", "grouping", "category", "other")
        ],
        statement(object=inner),
        statement(
            object={**inner, "object": PAGE, "context": {"contextActivities": {"other": [COURSE]}}}
        ),
    )
    lrs.add(statement())
    assert lrs.ids(activity=COURSE["id"]) == [first]
    found = lrs.ids(activity=COURSE["id"], related_activities="true", ascending="true")
    assert found == [first, *related]


def test_verb_and_registration_are_found(lrs: Lrs) -> None:
    registration = str(uuid4())
    first, second = lrs.add(
        statement(verb={"id": "urn:example:did"}),
        statement(context={"registration": registration.upper()}),
    )
    assert lrs.ids(verb="urn:example:did") == [first]
    assert lrs.ids(registration=registration) == [second]
    assert lrs.ids(registration=registration, verb="urn:example:did") == []
    assert lrs.ids(registration=str(uuid4())) == []


def test_what_is_about_a_statement_is_found_by_what_that_one_says(lrs: Lrs) -> None:
    """Over any number of steps, in whichever order they came; times are its own."""
    target = statement(actor=BEN, verb={"id": "urn:example:did"})
    near, far = about(target["id"]), statement(object=None)
    far = about(near["id"])
    lrs.add(far)
    lrs.add(near)
    assert lrs.ids(verb="urn:example:did") == []
    lrs.add(target)
    third = about(far["id"])
    lrs.add(third)
    wanted = {s["id"] for s in (far, near, target, third)}
    assert set(lrs.ids(verb="urn:example:did", agent=agent(BEN))) == wanted
    assert lrs.ids(agent=agent(BEN), since=lrs.one(target["id"])["stored"]) == [third["id"]]


@given(data=st.data())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_order_in_which_they_come_changes_nothing(lrs: Lrs, data: Any) -> None:
    """However statements refer to each other, in rings too, and however they are batched."""
    size = data.draw(st.integers(2, 14))
    targets = data.draw(st.lists(st.integers(0, size) | st.none(), min_size=size, max_size=size))
    ids = [str(uuid4()) for _ in range(size + 1)]  # nobody sends the last one
    sent = [
        (statement if target is None else lambda one=ids[target], **how: about(one, **how))(
            id=ids[n], verb={"id": f"urn:{ids[n]}"}
        )
        for n, target in enumerate(targets)
    ]
    rest = data.draw(st.permutations(sent))
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        lrs.add(*rest[:count])
        rest = rest[count:]
    wanted: dict[int, set[str]] = {n: set() for n in range(size)}
    for n in range(size):
        at, steps = n, 0
        while at < size and steps <= FURTHEST:
            wanted[at].add(ids[n])
            if targets[at] is None:
                break
            at, steps = targets[at], steps + 1
    for n in range(size):
        assert set(lrs.ids(verb=f"urn:{ids[n]}")) == wanted[n]


def test_a_voiding_statement_is_found_where_the_voided_one_would_be(lrs: Lrs) -> None:
    sent = statement(verb={"id": "urn:example:did"})
    _, made, near = lrs.add(sent, voiding(sent["id"]), about(sent["id"]))
    assert lrs.ids(verb="urn:example:did", ascending="true") == [made, near]


def test_statements_in_a_ring_are_found(lrs: Lrs) -> None:
    first, second = str(uuid4()), str(uuid4())
    lrs.add(about(second, id=first, verb={"id": "urn:example:one"}), about(first, id=second))
    assert sorted(lrs.ids(verb="urn:example:one")) == sorted([first, second])


# -- forms --------------------------------------------------------------------------------


def rich() -> dict[str, Any]:
    definition = {"name": {"en": "Page", "de": "Seite"}, "type": "https://example.org/t"}
    group = {"objectType": "Group", "name": "Us", "member": [{"name": "Ann", **ANN}]}
    return statement(
        actor={"objectType": "Agent", "name": "Ann", **ANN},
        verb={"id": VERB, "display": {"en-US": "completed", "fr": "achevé"}},
        object={"objectType": "Activity", **PAGE, "definition": definition},
        context={
            "team": {**group, "mbox": "mailto:us@example.org"},
            "instructor": group,
            "contextActivities": {"parent": [{**COURSE, "definition": {"name": {"en": "C"}}}]},
        },
    )


def test_ids_are_all_that_is_left(lrs: Lrs) -> None:
    sent = rich()
    lrs.add(sent)
    found = lrs.one(sent["id"], format="ids")
    assert found["actor"] == {"objectType": "Agent", **ANN}
    assert found["verb"] == {"id": VERB}
    assert found["object"] == PAGE
    assert found["context"]["team"] == {"objectType": "Group", "mbox": "mailto:us@example.org"}
    assert found["context"]["instructor"] == {"objectType": "Group", "member": [ANN]}
    assert found["context"]["contextActivities"] == {"parent": [COURSE]}


@pytest.mark.parametrize(
    ("languages", "name", "display"),
    [
        ("de", {"de": "Seite"}, {"en-US": "completed"}),
        ("en", {"en": "Page"}, {"en-US": "completed"}),
        ("en-GB, fr;q=0.5", {"en": "Page"}, {"fr": "achevé"}),
        ("de;q=0.1, fr;q=0.9", {"de": "Seite"}, {"fr": "achevé"}),
        ("", {"en": "Page"}, {"en-US": "completed"}),
        ("*;q=x, ,;", {"en": "Page"}, {"en-US": "completed"}),
        ("de;q=0", {"en": "Page"}, {"en-US": "completed"}),
    ],
)
def test_canonical_is_what_is_known_in_one_language(
    lrs: Lrs, languages: str, name: dict[str, str], display: dict[str, str]
) -> None:
    sent = rich()
    bare = statement(object=PAGE)
    lrs.add(sent, bare)
    for one in (sent, bare):
        parameters = {"statementId": one["id"], "format": "canonical"}
        answer = lrs.client.get(
            STATEMENTS, params=parameters, headers={"Accept-Language": languages}
        )
        found = answer.json()
        assert found["object"]["definition"]["name"] == name
        assert found["actor"] == one["actor"]
    assert (
        lrs.client.get(
            STATEMENTS, params={"format": "canonical"}, headers={"Accept-Language": languages}
        ).json()["statements"][1]["verb"]["display"]
        == display
    )


# -- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "agent", "verb", "activity", "registration", "related_activities", "related_agents", "since",
    "until", "limit", "format", "attachments", "ascending", "statementId", "voidedStatementId",
    "more",
])  # fmt: skip
def test_a_parameter_is_written_as_it_is(lrs: Lrs, name: str) -> None:
    assert lrs.get(**{name.capitalize(): "x"}).status_code == 400
    assert lrs.get(**{name: "no such value"}).status_code == 400
    assert lrs.get(**{name: "\0"}).status_code == 400
    assert lrs.get(**{name: ""}).status_code == 400
    assert lrs.client.get(f"{STATEMENTS}?{name}=x&{name}=y").status_code == 400


@pytest.mark.parametrize("name", ["statementId", "voidedStatementId"])
def test_an_id_goes_with_form_and_files_alone(lrs: Lrs, name: str) -> None:
    sent = statement()
    lrs.add(sent)
    if name == "voidedStatementId":
        lrs.add(voiding(sent["id"]))
    wanted = {name: sent["id"]}
    for also in ("ids", "exact", "canonical"):
        assert lrs.get(**wanted, format=also).status_code == 200
    assert lrs.get(**wanted, attachments="true").status_code == 200
    others = {
        "agent": agent(ANN), "verb": VERB, "activity": PAGE["id"], "registration": str(uuid4()),
        "related_activities": "true", "related_agents": "true", "limit": "1", "ascending": "true",
        "since": "2026-01-01T00:00:00Z", "until": "2026-01-01T00:00:00Z", "more": "x",
    }  # fmt: skip
    for other, value in others.items():
        assert lrs.get(**wanted, **{other: value}).status_code == 400
    both = {"statementId": sent["id"], "voidedStatementId": sent["id"]}
    assert lrs.get(**both).status_code == 400


@pytest.mark.parametrize(
    "value",
    ["[]", "3", "{}", '{"name":"Ann"}', "{", '{"objectType":"Group","member":[]}',
     '{"objectType":"Group","member":[{"mbox":"mailto:a@b"}]}', '{"mbox":"a@b"}', "[" * 5000],
)  # fmt: skip
def test_who_is_asked_for_can_be_recognised(lrs: Lrs, value: str) -> None:
    assert lrs.get(agent=value).status_code == 400


def test_a_limit_is_a_whole_number_from_zero(lrs: Lrs) -> None:
    lrs.add(statement())
    for value in ("-1", "1.5", "x", "9" * 30, "\u0665"):
        assert lrs.get(limit=value).status_code == 400
    for value in ("0", "1", "999999999"):
        assert lrs.get(limit=value).status_code == 200


def test_a_made_up_more_is_refused(lrs: Lrs) -> None:
    for token in ("x", "e30", "bnVsbA", "W10", "\u00e9", "A" * 5000):
        assert lrs.get(more=token).status_code == 400
    assert lrs.get(more="e30", limit=3).status_code == 400


def test_a_more_shows_nobody_anything_else(lrs: Lrs) -> None:
    """It is a question, and the key that comes with it says whose statements answer it."""
    lrs.add(statement(), statement())
    more = lrs.get(limit=1).json()["more"]
    assert lrs.of("elm").client.get(more).json()["statements"] == []


# -- consistent through -------------------------------------------------------------------


def test_every_answer_says_up_to_when_it_is_whole(lrs: Lrs) -> None:
    (made,) = lrs.add(statement())
    stored = read_time(lrs.one(made)["stored"])
    for parameters in ({}, {"statementId": made}, {"statementId": str(uuid4())}, {"limit": "x"}):
        answer = lrs.get(**parameters)
        assert read_time(answer.headers[THROUGH], with_offset=True) >= stored
    nobody = lrs.client.get(STATEMENTS, headers={"Authorization": "Basic x"})
    assert read_time(nobody.headers[THROUGH])
    modified = lrs.get(statementId=made).headers["last-modified"]
    assert parsedate_to_datetime(modified) == stored.replace(microsecond=0)


def test_what_is_being_stored_is_not_promised(lrs: Lrs) -> None:
    """While somebody stores, the promise ends before them; then it goes on."""
    campus = lrs.of("elm")  # another campus's are no hindrance
    with lrs.store.transaction(Scope("oak")) as conn:
        conn.execute(
            text("SELECT pg_advisory_xact_lock(:lock, id) FROM theon.campuses WHERE slug = 'oak'"),
            {"lock": asking.LOCK},
        )
        begun = conn.execute(text("SELECT clock_timestamp()")).scalar_one()
        time.sleep(0.05)
        assert lrs.get().headers[THROUGH] < moment(begun)
        assert campus.get().headers[THROUGH] > moment(begun)
    assert lrs.get().headers[THROUGH] > moment(begun)


def test_statements_sent_at_the_same_time_are_each_stored_once(lrs: Lrs) -> None:
    """The same ones from many sides, in any order; the answer to each is the same."""
    sent = [statement() for _ in range(20)]
    answers = []

    def send(values: list[dict[str, Any]]) -> None:
        answers.append(lrs.post(values).status_code)

    threads = [
        threading.Thread(target=send, args=(sent[n:] + sent[:n],)) for n in (0, 3, 7, 11, 15, 19)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * len(threads)
    assert sorted(lrs.ids()) == sorted(s["id"] for s in sent)
