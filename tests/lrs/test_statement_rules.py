"""Each rule of xAPI on the properties of a statement, by one that keeps it and one that breaks it.

The numbers are those of ADL's conformance requirements (XAPI-00001 and on).
"""

import copy
import itertools
from typing import Any

import pytest

from theon.lrs.errors import StatementError
from theon.lrs.statements import VOIDED, check_statement
from theon.lrs.versions import Version

ANN = {"mbox": "mailto:ann@example.org"}
BEN = {"objectType": "Agent", "openid": "https://ben.example.org/"}
ACCOUNT = {"homePage": "https://lms.example.org", "name": "7"}
GROUP = {"objectType": "Group", "member": [ANN]}
ACTIVITY = {"objectType": "Activity", "id": "https://example.org/a"}
ID = "12345678-1234-4234-8234-123456789abc"
REF = {"objectType": "StatementRef", "id": ID}
VERB = {"id": "https://example.org/did"}
INNER = {"objectType": "SubStatement", "actor": ANN, "verb": VERB, "object": ACTIVITY}
FILE = {
    "usageType": "https://example.org/u", "display": {"en": "A"}, "contentType": "text/plain",
    "length": 3, "sha2": "0" * 64,
}  # fmt: skip
NOT_TEXT: list[Any] = [None, 1, 1.5, True, [], {}]
NOT_OBJECT: list[Any] = [None, 1, True, "text", []]
NOT_IRI: list[Any] = [*NOT_TEXT, "", "no scheme", "/path", "http://a b", "1http://a", "a=b://c"]


def told(**changes: Any) -> dict[str, Any]:
    """A statement about an activity with these changes; `__` goes into a property."""
    whole: dict[str, Any] = {"actor": ANN, "verb": VERB, "object": ACTIVITY}
    for place, value in changes.items():
        at = whole
        *above, last = place.split("__")
        for name in above:
            at[name] = copy.deepcopy(at.get(name, {}))
            at = at[name]
        at[last] = value
    return whole


def holds(value: Any, version: Version = Version.ONE) -> bool:
    try:
        check_statement(value, version)
    except StatementError as error:
        return not (error.what and error.where.startswith("statement"))
    return True


def cases(place: str, good: list[Any], bad: list[Any]) -> list[Any]:
    """Statements whose property at `place` has each of these values."""
    return [
        pytest.param(told(**{place: value}), fine, id=f"{place}={str(value)[:40]}-{fine}")
        for fine, values in ((True, good), (False, bad))
        for value in values
    ]


PROPERTIES = [
    # 00021 to 00030: the statement itself
    *cases("id", [ID, ID.upper()], [*NOT_TEXT, "", ID[:-1], ID + "0", ID.replace("-", ""),
                                    "g" + ID[1:], f"{{{ID}}}", f"urn:uuid:{ID}"]),
    *cases("timestamp",
           ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.123456789+05:30", "2026-01-02T03:04Z",
            "20260102T030405Z", "2026-01-02T03:04:05", "2026-01-02 03:04:05.601+00:00"],
           [*NOT_TEXT, "", "yesterday", "2026-01-02", "01/02/2026", "2026-13-02T03:04:05Z",
            "2026-01-02T25:04:05Z", "2026-01-02T03:04:05-00", "2026-01-02T03:04:05-0000",
            "2026-01-02T03:04:05-00:00", "2026-01-02T03:04:05+99:00", "0000-01-02T03:04:05Z"]),
    *cases("stored", ["2026-01-02T03:04:05Z"], [None, 1, "later"]),
    *cases("version", ["1.0", "1.0.0", "1.0.9", "2.0.0"], [*NOT_TEXT, "", "1", "0.9.5", "1.1.0"]),
    *cases("unknown", [], ["x"]),
    *cases("Actor", [], [ANN]),
    *cases("authority",
           [ANN, BEN, {"objectType": "Group", "member": [ANN, {"account": ACCOUNT}]}],
           [*NOT_OBJECT, {}, GROUP, {"objectType": "Group", "member": [ANN, BEN, BEN]},
            {"objectType": "Group", "member": [ANN, BEN], **ANN}]),
    # 00031 to 00043: who
    *cases("actor",
           [ANN, BEN, GROUP, {"account": ACCOUNT}, {"name": "Ann", **ANN},
            {"mbox_sha1sum": "0" * 40}, {"objectType": "Group", **ANN},
            {"objectType": "Group", "member": [], **ANN}],
           [*NOT_OBJECT, {}, {"name": "Ann"}, {**ANN, **BEN}, {**ANN, "account": ACCOUNT},
            {**ANN, "objectType": "agent"}, {**ANN, "objectType": 1},
            {**ANN, "objectType": "Person"}, {**ANN, "member": [BEN]}, {**ANN, "email": "a"},
            {"objectType": "Group"}, {"objectType": "Group", "member": []},
            {"objectType": "Group", "member": ANN}, {"objectType": "Group", "member": [GROUP]},
            {"objectType": "Group", "member": [{}]}, {**GROUP, **ANN, **BEN},
            {"member": [ANN]}]),
    *cases("actor__name", ["", "Ann"], [None, 1, {}, []]),
    *cases("actor__mbox", ["mailto:a@b"],
           [*NOT_TEXT, "", "a@example.org", "mailto:", "mailto:a", "mailto:a@b c", "http://a@b"]),
    *[pytest.param(told(actor={"mbox_sha1sum": v}), False, id=f"sha1={v}")
      for v in (*NOT_TEXT, "", "0" * 39, "g" * 40)],
    *[pytest.param(told(actor={"openid": v}), False, id=f"openid={v}") for v in NOT_IRI],
    *[pytest.param(told(actor={"account": v}), False, id=f"account={v}")
      for v in (*NOT_OBJECT, {}, {"homePage": "https://a.b"}, {"name": "7"},
                {**ACCOUNT, "name": 7}, {**ACCOUNT, "homePage": "lms"}, {**ACCOUNT, "id": "7"})],
    # 00044, 00045: what was done
    *cases("verb", [VERB], [*NOT_OBJECT, {}, {"display": {"en": "did"}}, {**VERB, "name": "x"}]),
    *cases("verb__id", ["https://example.org/é"], NOT_IRI),
    *cases("verb__display",
           [{}, {"en": "did"}, {"en-US": "did", "zh-Hant-TW": "", "x-own": "a", "de-CH-1996": ""},
            {"es-419": "a", "und": "b", "i-klingon": "c"},
            {"sr-Latn-RS": "", "cmn": "", "zh-a-abc-b-abc": "", "de-CH-1901-1996": "",
             "en-a-bb-x-a-b-a": "", "x-a-a": ""}],
           [*NOT_OBJECT, {"en": 1}, {"en": None}, {"no language": "x"}, {"": "x"}, {"e": "x"},
            {"en_US": "x"}, {"123": "x"}, {"a-DE": "x"}, {"a12345": "x"}, {"something": "x"},
            {"en-GB-US": "x"}, {"zh-a-abc-b-bcd-A-cde": "x"}, {"de-1996-1996": "x"}]),
    # 00046 to 00065: to what
    *cases("object",
           [ACTIVITY, {"id": "urn:a:b"}, {**ANN, "objectType": "Agent"}, GROUP, REF, INNER],
           [*NOT_OBJECT, {}, {"objectType": "Activity"}, ANN, {"objectType": "Thing", "id": "a:b"},
            {**ACTIVITY, "objectType": "activity"}, {**ACTIVITY, "name": "x"},
            {**ACTIVITY, "objectType": None}, {"member": [ANN]},
            {"objectType": "StatementRef"}, {**REF, "id": "1"}, {**REF, "name": "x"}]),
    *cases("object__id", ["urn:isbn:1"], NOT_IRI),
    *cases("object__definition", [{}], [None, 1, "text", [], {"unknown": 1}]),
    *cases("object__definition__name", [{"en": "A"}], [*NOT_OBJECT, {"en": 1}, {"a b": "A"}]),
    *cases("object__definition__description", [{"en": "A"}], [*NOT_OBJECT, {"en": 1}]),
    *cases("object__definition__type", ["https://example.org/t"], NOT_IRI),
    *cases("object__definition__moreInfo", ["https://example.org/m"], NOT_IRI),
    *cases("object__definition__extensions",
           [{}, {"https://example.org/e": None}, {"urn:a:b": {"any": [1, None]}}, {"a:b": ""},
            {"a:b": {}}],
           [*NOT_OBJECT, {"no iri": 1}, {"": 1}]),
    *cases("object__definition__interactionType",
           ["true-false", "choice", "fill-in", "long-fill-in", "matching", "performance",
            "sequencing", "likert", "numeric", "other"],
           [*NOT_TEXT, "", "Choice", "true_false", "https://example.org/choice"]),
    *cases("object__definition__correctResponsesPattern", [], [["a"]]),
    *cases("object__definition",
           [{"interactionType": "choice", "correctResponsesPattern": ["a[,]b"],
             "choices": [{"id": "a", "description": {"en": "A"}}, {"id": "b"}]}],
           [{"interactionType": "choice", "correctResponsesPattern": "a"},
            {"interactionType": "choice", "correctResponsesPattern": [1]},
            {"choices": [{"id": "a"}]}]),
    *[pytest.param(told(object__definition={"interactionType": kind, part: value}), fine,
                   id=f"{part}={value}")
      for kind, part in (("choice", "choices"), ("sequencing", "choices"), ("likert", "scale"),
                         ("matching", "source"), ("matching", "target"), ("performance", "steps"))
      for fine, value in (
          (True, []), (True, [{"id": "a"}, {"id": "b", "description": {"en": "B"}}]),
          (False, [{"id": "a"}, {"id": "a"}]), (False, [{}]), (False, [{"id": 1}]),
          (False, {"id": "a"}), (False, ["a"]), (False, [{"id": "a", "description": "A"}]),
          (False, [{"id": "a", "description": {"no language": "A"}}]), (False, None),
          (False, [{"id": "a", "name": "A"}]))],
    # 00066 to 00073: a statement in a statement
    *[pytest.param(told(object={**INNER, name: value}), False, id=f"inner {name}")
      for name, value in (("id", ID), ("stored", "2026-01-02T03:04:05Z"), ("version", "1.0.0"),
                          ("authority", ANN), ("object", INNER), ("actor", {}), ("verb", {}),
                          ("timestamp", "x"), ("result", {"score": {"scaled": 2}}),
                          ("context", {"registration": "x"}), ("unknown", 1),
                          ("objectType", "substatement"), ("context", {"language": "something"}))],
    *[pytest.param(told(object={**INNER, "object": thing, "context": {name: "x"}}), False,
                   id=f"inner {name} {thing}")
      for name in ("revision", "platform") for thing in (REF, GROUP, {**BEN})],
    *[pytest.param(told(object={**INNER, name: value}), True, id=f"inner good {name}")
      for name, value in (("object", REF), ("object", GROUP), ("result", {"success": True}),
                          ("timestamp", "2026-01-02T03:04:05Z"), ("attachments", [FILE]),
                          ("context", {"platform": "x"}))],
    *[pytest.param(told(object={k: v for k, v in INNER.items() if k != name}), False,
                   id=f"inner without {name}") for name in ("actor", "verb", "object")],
    # 00074 to 00081: how it went
    *cases("result", [{}], [None, 1, "x", [], {"unknown": 1}]),
    *cases("result__success", [True, False], [None, "true", 1, 0, {}]),
    *cases("result__completion", [True, False], [None, "false", 1, 0, []]),
    *cases("result__response", ["", "a[,]b"], [None, 1, True, {}, []]),
    *cases("result__duration",
           ["PT0S", "PT4H35M59.14S", "PT16559.14S", "P3Y1M29DT4H35M59.14S", "P3Y", "P4W", "PT1M"],
           [*NOT_TEXT, "", "P", "PT", "P1DT", "PA1H0M0S", "P4W1D", "1D", "-P1D", "P1S",
            "P0003-04-05T06:00:00"]),
    *cases("result__extensions", [{"https://example.org/e": {}}], [*NOT_OBJECT, {"no iri": 1}]),
    *cases("result__score",
           [{}, {"scaled": -1}, {"scaled": 1.0}, {"raw": 5, "min": 0, "max": 10}, {"raw": -0.5},
            {"min": 0}, {"raw": 10, "max": 10}, {"raw": 0, "min": 0}],
           [*NOT_OBJECT, {"scaled": 1.01}, {"scaled": -1.01}, {"scaled": "1"}, {"scaled": True},
            {"raw": "5"}, {"raw": None}, {"min": "0"}, {"max": {}}, {"min": 10, "max": 0},
            {"min": 1, "max": 1}, {"raw": 11, "max": 10}, {"raw": -1, "min": 0}, {"other": 1},
            {"Scaled": 0.5}]),
    # 00082 to 00095: what it has to do with
    *cases("context", [{}], [None, 1, "x", [], {"unknown": 1}]),
    *cases("context__registration", [ID], [*NOT_TEXT, "", "1"]),
    *cases("context__instructor", [ANN, GROUP], [*NOT_OBJECT, {}, {"name": "x"}]),
    *cases("context__team", [GROUP, {"objectType": "Group", **ANN}],
           [*NOT_OBJECT, {}, ANN, {**ANN, "objectType": "Agent"}]),
    *cases("context__revision", ["", "2"], [None, 1, {}]),
    *cases("context__platform", ["", "Moodle"], [None, 1, {}]),
    *cases("context__language", ["en", "en-GB"], [*NOT_TEXT, "", "english language", "e"]),
    *cases("context__statement", [REF], [*NOT_OBJECT, {}, {"id": ID}, {**REF, "id": "1"}]),
    *cases("context__extensions", [{}], [*NOT_OBJECT, {"no iri": 1}]),
    *cases("context__contextActivities", [{}], [None, 1, "x", [], {"unknown": [ACTIVITY]}]),
    *[case for name in ("parent", "grouping", "category", "other")
      for case in cases(f"context__contextActivities__{name}",
                        [ACTIVITY, [ACTIVITY], [], [ACTIVITY, {"id": "a:b"}]],
                        [None, 1, "x", {}, [{}], [ANN], [{**ANN, "objectType": "Agent"}], [REF]])],
    *[pytest.param(told(object=thing, context={name: "x"}), fine, id=f"{name} {fine} {thing}")
      for name in ("revision", "platform")
      for fine, thing in ((True, ACTIVITY), (True, {"id": "a:b"}), (False, GROUP), (False, REF),
                          (False, {**ANN, "objectType": "Agent"}), (False, INNER))],
    # 00102 to 00110: files
    *cases("attachments", [[], [FILE], [{**FILE, "fileUrl": "https://a.b/c"}]],
           [None, 1, "x", {}, FILE, [None], [{}]]),
    *[pytest.param(told(attachments=[{k: v for k, v in FILE.items() if k != name}]), False,
                   id=f"file without {name}") for name in FILE],
    *[pytest.param(told(attachments=[{**FILE, name: value}]), False, id=f"file {name}={value}")
      for name, values in {
          "usageType": NOT_IRI, "display": [*NOT_OBJECT, {"en": 1}], "description": ["x", None],
          "contentType": [*NOT_TEXT, "", "text", "a b/c"], "length": [None, "3", 1.5, -1, True],
          "sha2": [*NOT_TEXT, "", "xyz", "0" * 63], "fileUrl": NOT_IRI, "unknown": [1],
      }.items() for value in values],
]  # fmt: skip


@pytest.mark.parametrize(("statement", "fine"), PROPERTIES)
def test_a_property_keeps_its_rule(statement: dict[str, Any], fine: bool) -> None:
    before = copy.deepcopy(statement)
    assert holds(statement) is fine
    assert statement == before, "checking changes nothing"


WHO = {
    "actor": "actor", "object": "object", "authority": "authority",
    "instructor": "context__instructor", "team": "context__team",
    "inner actor": "object__actor", "inner object": "object__object",
    "inner instructor": "object__context__instructor", "inner team": "object__context__team",
}  # fmt: skip
ONE_EACH = [ANN, {"mbox_sha1sum": "0" * 40}, {"openid": "https://a.b/"}, {"account": ACCOUNT}]


@pytest.mark.parametrize("place", WHO)
def test_who_somebody_is_keeps_its_rules_wherever_it_stands(place: str) -> None:
    """Exactly one identifier, rightly written; a Group may have members in place of it."""

    def fits(value: Any) -> bool:
        changes = {WHO[place]: value}
        return holds(told(**({"object": INNER} if place.startswith("inner") else {}), **changes))

    agents = [{"objectType": "Agent", **one} for one in ONE_EACH]
    groups = [{"objectType": "Group", **one, **more} for one in ONE_EACH
              for more in ({}, {"member": [ANN]})]  # fmt: skip
    assert [fits(one) for one in agents] == [not place.endswith("team")] * 4
    assert [fits(one) for one in groups] == [place != "authority"] * 8
    assert fits({**GROUP, "member": [ANN, BEN]})
    for first, second in itertools.permutations(ONE_EACH, 2):
        assert not fits({"objectType": "Agent", **first, **second})
        assert not fits({"objectType": "Group", "member": [ANN], **first, **second})
    for kind in ("Agent", "Group"):
        for broken in (
            {}, {"mbox": "https://a.b"}, {"mbox": "mailto:a.b"}, {"mbox_sha1sum": {"a": "b"}},
            {"openid": "a=b://c"}, {"account": {"name": "7"}}, {"account": {"homePage": "a:b"}},
            {"account": {**ACCOUNT, "homePage": "a=b://c"}}, {"account": {**ACCOUNT, "name": {}}},
            {**ANN, "name": 1}, {**ANN, "member": ANN},
        ):  # fmt: skip
            assert not fits({"objectType": kind, **broken}), broken
    for kind in ("agent", "group", "Activity" if place == "actor" else "activity", 1, {"a": "b"}):
        assert not fits({**ANN, "objectType": kind})


@pytest.mark.parametrize("name", ["actor", "verb", "object"])
def test_actor_verb_and_object_are_needed(name: str) -> None:
    whole = told()
    del whole[name]
    assert not holds(whole)


@pytest.mark.parametrize("value", [None, 1, "x", [], [told()], {}])
def test_what_is_no_object_is_no_statement(value: Any) -> None:
    assert not holds(value)


def test_only_a_reference_is_voided() -> None:
    assert holds(told(verb={"id": VOIDED}, object=REF))
    for thing in (ACTIVITY, INNER, GROUP):
        assert not holds(told(verb={"id": VOIDED}, object=thing))


@pytest.mark.parametrize("place", ["context", "inner"])
@pytest.mark.parametrize(
    ("context", "fine"),
    [
        ({"contextAgents": [{"objectType": "contextAgent", "agent": ANN}]}, True),
        ({"contextAgents": [{"objectType": "contextAgent", "agent": ANN,
                             "relevantTypes": ["a:b"]}]}, True),
        ({"contextGroups": [{"objectType": "contextGroup", "group": GROUP}]}, True),
        ({"contextAgents": [{"objectType": "Agent", "agent": ANN}]}, False),
        ({"contextAgents": [{"objectType": "contextAgent", "agent": {"key": "x"}}]}, False),
        ({"contextAgents": [{"objectType": "contextAgent"}]}, False),
        ({"contextAgents": [{"agent": ANN}]}, False),
        ({"contextAgents": [{"objectType": "contextAgent", "agent": ANN,
                             "relevantTypes": []}]}, False),
        ({"contextAgents": [{"objectType": "contextAgent", "agent": ANN,
                             "relevantTypes": ["abc"]}]}, False),
        ({"contextGroups": [{"objectType": "contextGroup", "group": ANN}]}, False),
        ({"contextGroups": [{"objectType": "contextGroup", "group": GROUP, "member": []}]}, False),
        ({"contextGroups": [{"objectType": "contextGroup", "group": GROUP,
                             "relevantTypes": []}]}, False),
        ({"contextGroups": [{"objectType": "contextGroup", "group": GROUP,
                             "relevantTypes": ["abc"]}]}, False),
        ({"contextGroups": [{"objectType": "contextAgent", "group": GROUP}]}, False),
        ({"contextGroups": [{"objectType": "contextGroup"}]}, False),
        ({"contextGroups": [{"objectType": "contextGroup", "agent": ANN}]}, False),
        ({"contextGroups": {}}, False),
    ],
)  # fmt: skip
def test_agents_of_a_context_came_with_version_two(
    context: dict[str, Any], fine: bool, place: str
) -> None:
    whole = told(context=context) if place == "context" else told(
        object={**INNER, "context": context}
    )  # fmt: skip
    assert holds(whole, Version.TWO) is fine
    assert not holds(whole, Version.ONE)


def test_version_two_wants_an_offset() -> None:
    """RFC 3339 instead of ISO 8601."""
    assert holds(told(timestamp="2026-01-02 03:04:05+00:00"), Version.TWO)
    assert not holds(told(timestamp="2026-01-02T03:04:05"), Version.TWO)


def test_null_is_refused_wherever_it_stands_but_in_extensions() -> None:
    for place in ("actor__name", "object__definition__type", "context__platform", "result__score"):
        assert not holds(told(**{place: None}))
    assert holds(told(context={"extensions": {"a:b": None}}))
