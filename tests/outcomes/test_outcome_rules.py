"""What an event says of an outcome, by `outcome_rules.toml`."""

import json
from typing import Any

import pytest

from tests.events import native_events
from theon.errors import InputError
from theon.events.outcomes import FACT_SCHEMA, parse_rules
from theon.outcomes.observer import facts_of

Fact = dict[str, Any]
LOG = {"course_id": "6", "context_instance_id": 152, "object_id": "45"}


def facts(*rows: dict[str, Any]) -> list[Fact]:
    given = [{"event_id": f"e{n}", **row} for n, row in enumerate(rows)]
    found = facts_of(native_events("", given))
    told = [dict(zip(FACT_SCHEMA.names, row, strict=True)) for row in found]
    return sorted(told, key=lambda fact: fact["event_id"])


def test_what_is_no_outcome_says_nothing() -> None:
    """Views and other activity pass by."""
    assert facts({"event_name": "PageViewed"}, {"event_name": "\\core\\event\\user_loggedin"}) == []


def test_an_attempt_is_about_the_same_thing_by_log_and_by_database() -> None:
    """Course module and attempt's row are what both roads know."""
    log, database = facts(
        {**LOG, "event_name": "\\mod_quiz\\event\\attempt_started", "related_user_id": "9"},
        {
            "event_name": "AssessmentCompleted",
            "user_id": "9",
            "other": {"assessment_id": "152", "attempt": "45", "score": 3, "max_score": 4},
        },
    )
    thing = ("kind", "user_id", "course_id", "item_id", "attempt")
    assert [log[k] for k in thing] == [database[k] for k in thing]
    assert (log["state"], database["state"]) == ("started", "finished")
    assert (database["score"], database["max_score"]) == (3, 4)


@pytest.mark.parametrize(
    ("other", "state"),
    [
        ('{"relateduserid":"104","overrideby":null,"completionstate":1}', "complete"),
        ('{"relateduserid":"104","completionstate":"2"}', "complete"),
        ('{"relateduserid":"104","completionstate":0}', "incomplete"),
        ('{"relateduserid":"104","completionstate":3}', "incomplete"),
        (
            'a:3:{s:13:"relateduserid";s:3:"104";s:10:"overrideby";N;s:15:"completionstate";i:1;}',
            "complete",
        ),
        (
            'a:3:{s:13:"relateduserid";s:3:"104";s:10:"overrideby";N;s:15:"completionstate";i:0;}',
            "incomplete",
        ),
    ],
)
def test_moodle_writes_completions_as_json_or_as_php_does(other: str, state: str) -> None:
    """The learner stands in `other`; 3 is complete and failed, which Moodle counts as not done."""
    [fact] = facts(
        {**LOG, "event_name": "\\core\\event\\course_module_completion_updated", "other": other}
    )
    assert (fact["user_id"], fact["item_id"], fact["state"]) == ("104", "152", state)


def test_a_report_that_names_no_attempt_says_nothing() -> None:
    """It could not be told apart from what log and database say of the same attempt."""
    row = {**LOG, "event_name": "\\mod_quiz\\event\\attempt_started"}
    assert len(facts(row)) == 1
    assert facts({**row, "object_id": None}) == []


@pytest.mark.parametrize(
    "missing",
    [{"user_id": None}, {"user_id": "0"}, {"user_id": "-1"}, {"course_id": "1"}, {"other": {}}],
)
def test_without_learner_course_or_item_nothing_is_said(missing: dict[str, Any]) -> None:
    """Nobody has outcomes, and none belongs to the front page."""
    row = {"event_name": "ActivityCompleted", "other": {"activity_id": "x"}}
    assert len(facts(row)) == 1
    assert facts({**row, **missing}) == []


@pytest.mark.parametrize(
    "other",
    [
        "no JSON", '{"assessment_id":', "[" * 5_000, '{"assessment_id": {"a": 1}}', "null", "[]",
        '"text"', '{"assessment_id": "\\ud800"}', "a:1:{", "\x00", '{"assessment_id":"q\\u0000"}',
        '{"assessment_id": "' + "q" * 1_000_000 + '"}', '{"assessment_id":"q","score":"NaN"}',
        '{"assessment_id":"q","score":1e999,"max_score":{}}', '{"assessment_id":"q","score":"٣"}',
        '{"assessment_id":"q","score":-1e300}', '{"assessment_id":"q","score":1e-300}',
    ],
)  # fmt: skip
def test_whatever_stands_in_other_does_no_harm(other: str) -> None:
    """Texts that are odd, deep, long or no numbers give a fact that a database takes, or none."""
    for fact in facts(
        {"event_name": "AssessmentCompleted", "other": other, "event_id": "i" * 9_999}
    ):
        assert fact["score"] is None
        assert all(len(str(value)) <= 200 for value in fact.values())
        assert "\x00" not in json.dumps(fact, default=str, ensure_ascii=False)


def test_the_structure_of_a_course_may_name_its_activities() -> None:
    """A list of ids, or only how many there are."""
    known, counted = facts(
        {"event_name": "CourseStructure", "other": {"completable": 2, "activities": ["x", 7]}},
        {"event_name": "CourseStructure", "other": {"completable": 3}},
    )
    assert (known["score"], known["items"], known["user_id"]) == (2, "x\x1f7", "")
    assert (counted["score"], counted["items"]) == (3, None)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ('event_name = ["a"]\nkind = "k"', "lacks"),
        ('event_name = ["a"]\nkind = "k"\nstate = "s"\nscores = ["$.x"]', "scores"),
        ('event_name = ["a"]\nkind = "k"\nstate = "s"\nitem = ["itm"]', "neither a column"),
        ('event_name = ["a", "a"]\nkind = "k"\nstate = "s"', "two rules are for a"),
    ],
)
def test_a_wrong_rule_is_refused_in_words(rule: str, says: str) -> None:
    """A typing error in the file must not silently lose outcomes."""
    with pytest.raises(InputError, match=says):
        parse_rules(f"[[rule]]\n{rule}")
