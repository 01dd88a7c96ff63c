"""A mend changes what it says in a copy, and nothing else."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theon.errors import InputError
from theon.intake.mends import Mend, UnfitMendError, read_mend

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.text(min_size=1).filter(lambda name: not name.startswith("/"))
OBJECTS = st.dictionaries(FIELDS, VALUES, max_size=5)


def mended(original: Any, *steps: dict[str, Any]) -> Any:
    return json.loads(read_mend(steps).apply(json.dumps(original).encode()))


@given(letter=OBJECTS, field=FIELDS, value=VALUES)
def test_a_set_field_has_the_value_and_the_others_are_as_before(
    letter: dict[str, Any], field: str, value: Any
):
    try:
        found = mended(letter, {"do": "set", "field": field, "value": value})
    except InputError:  # half a character: PostgreSQL could not keep the mend
        assert any(
            0xD800 <= ord(c) < 0xE000 for c in json.dumps([field, value], ensure_ascii=False)
        )
        return
    assert found == {**letter, field: value}


@given(letter=OBJECTS, field=st.text(st.characters(codec="utf-8"), min_size=1))
def test_a_removed_field_is_gone_and_set_again_is_the_letter(letter: dict[str, Any], field: str):
    field = field.lstrip("/") or "x"
    rest = mended(letter, {"do": "remove", "field": field})
    assert rest == {name: value for name, value in letter.items() if name != field}


def test_a_renamed_field_keeps_its_value_and_may_go_further_in():
    step = {"do": "rename", "field": "userid", "to": "/actor/user_id"}
    assert mended({"userid": 5, "a": 1}, step) == {"a": 1, "actor": {"user_id": 5}}
    assert mended({"a": 1}, step) == {"a": 1}


def test_a_pointer_reaches_keys_with_slashes():
    step = {"do": "set", "field": "/a/http:~1~1x~01", "value": 2}
    assert mended({"a": {"b": 1}}, step) == {"a": {"b": 1, "http://x~1": 2}}


def test_text_is_replaced_also_where_nothing_can_be_read():
    steps = [
        {"do": "replace", "text": "NaN", "by": "null"},
        {"do": "replace", "text": "'", "by": '"'},
        {"do": "set", "field": "b", "value": "ü"},
    ]
    assert read_mend(steps).apply(b"{'a': NaN}") == '{"a": null, "b": "ü"}'.encode()
    assert read_mend(steps[:1]).apply(b"\xff NaN") == b"\xff null"


def test_no_step_changes_no_byte():
    assert Mend().apply(b"\xff{ ") == b"\xff{ "


@pytest.mark.parametrize(
    "letter", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"a": 1e999}']
)
def test_a_field_of_what_is_no_object_cannot_be_set(letter: bytes):
    with pytest.raises(UnfitMendError):
        read_mend([{"do": "set", "field": "a.b", "value": 1}]).apply(letter)


def test_a_mend_cannot_blow_a_letter_up():
    steps = [{"do": "replace", "text": "a", "by": "a" * 1000}] * 3
    with pytest.raises(UnfitMendError):
        read_mend(steps).apply(b"a" * 1000)


@pytest.mark.parametrize(
    "step",
    [
        5,
        {},
        {"do": "eval", "field": "a"},
        {"do": "set", "field": "a"},
        {"do": "set", "field": "", "value": 1},
        {"do": "set", "field": 5, "value": 1},
        {"do": "set", "field": "a", "value": float("nan")},
        {"do": "set", "field": "a", "value": "\ud800"},
        {"do": "remove", "field": "a", "more": 1},
        {"do": "replace", "text": "", "by": "b"},
        {"do": "rename", "field": "a", "to": ""},
    ],
)
def test_a_step_that_is_none_is_refused(step: Any):
    with pytest.raises(InputError):
        read_mend([step])


def test_a_mend_is_what_it_was_when_it_is_read_back():
    steps = [
        {"do": "set", "field": "a", "value": [1, {"b": None}]},
        {"do": "rename", "field": "a", "to": "b"},
        {"do": "remove", "field": "c"},
        {"do": "replace", "text": "x", "by": ""},
    ]
    assert read_mend(steps).as_json() == steps
    assert read_mend(read_mend(steps).as_json()) == read_mend(steps)
