"""The statements that other people's software wrote go in and come out equal."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.api.xapi_service import Lrs

from theon.lrs.identity import fingerprint

pytestmark = pytest.mark.real_data


@pytest.fixture
def written(moodle_data: Path) -> dict[str, list[dict[str, Any]]]:
    folder = moodle_data.parent / "xapi"
    return {
        name: json.loads(gzip.decompress((folder / f"{name}_statements.json.gz").read_bytes()))
        for name in ("moodle", "datasim")
    }


def send_all(lrs: Lrs, values: list[dict[str, Any]]) -> tuple[list[Any], Counter[str]]:
    """Those that are taken, and why the others are not; a batch that is refused goes in halves."""
    answer = lrs.post(values)
    if answer.status_code == 200:
        return values, Counter()
    assert answer.status_code == 400
    if len(values) == 1:
        return [], Counter([re.sub(r"^\S+( \d+\S*)?: |\n.*", "", answer.text)])
    middle = len(values) // 2
    first, refused = send_all(lrs, values[:middle])
    second, more = send_all(lrs, values[middle:])
    return first + second, refused + more


@pytest.mark.parametrize("version", ["1.0.3", "2.0.0"])
def test_statements_of_a_moodle_plugin(
    lrs: Lrs, written: dict[str, list[dict[str, Any]]], version: str
) -> None:
    """8 of 422 break a rule: matching questions with an id twice, an answer that is null.

    The file has 619, some of them twice, word for word; these are stored once.
    """
    speaking = lrs.speaking(version)
    once = list({one["id"]: one for one in written["moodle"]}.values())
    assert len(once) == 422
    taken, refused = send_all(speaking, once)
    assert len(taken) == 414
    assert refused == {
        "two of these have the same id": 5,
        "Input should be a valid string": 3,
    }
    check_equal(speaking, taken)
    ids = {one["id"] for one in taken}
    again = Counter(one["id"] for one in written["moodle"])
    repeated = {one["id"]: one for one in written["moodle"] if again[one["id"]] > 1}
    speaking.add(*[one for one in repeated.values() if one["id"] in ids])
    check_equal(speaking, taken)


def test_statements_of_a_simulator(lrs: Lrs, written: dict[str, list[dict[str, Any]]]) -> None:
    """All 2,814, in batches; again, they change nothing."""
    values = written["datasim"]
    for start in range(0, len(values), 500):
        lrs.add(*values[start : start + 500])
    check_equal(lrs, values)
    lrs.add(*values)
    check_equal(lrs, values)


def check_equal(lrs: Lrs, values: list[dict[str, Any]]) -> None:
    """Every page, in the order in which they were sent."""
    answer = lrs.get(ascending="true").json()
    found = answer["statements"]
    while answer["more"]:
        answer = lrs.client.get(answer["more"]).json()
        found += answer["statements"]
    assert [one["id"] for one in found] == [one["id"] for one in values]
    for one, sent in zip(found, values, strict=True):
        assert fingerprint(one) == fingerprint(sent)
        assert one["timestamp"] == sent["timestamp"]
        assert one["actor"] == sent["actor"]
        assert one["object"] == sent["object"]
        assert one.get("result") == sent.get("result")


def test_each_learner_is_found(lrs: Lrs, written: dict[str, list[dict[str, Any]]]) -> None:
    """As often as the file says."""
    values = written["datasim"]
    for start in range(0, len(values), 500):
        lrs.add(*values[start : start + 500])
    by_actor = Counter(json.dumps({"mbox": one["actor"]["mbox"]}) for one in values)
    for actor, times in by_actor.items():
        assert len(lrs.ids(agent=actor)) == times
    by_verb = Counter(one["verb"]["id"] for one in values)
    for verb, times in by_verb.items():
        assert len(lrs.ids(verb=verb)) == times
