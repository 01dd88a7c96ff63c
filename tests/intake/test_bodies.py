"""A body is cut into the events that were sent, or refused whole; a bomb is never unpacked."""

import gzip
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theon.errors import InputError
from theon.intake.bodies import MOST_BYTES, TooLargeError, cut, unpack

NDJSON = "application/x-ndjson"
JSON = "application/json"


def texts(body: bytes, kind: str = NDJSON) -> list[bytes]:
    return cut(body, kind).events


def test_lines_are_events_and_empty_lines_are_none() -> None:
    assert texts(b'{"a":1}\r\n\n  \n{"b":2}') == [b'{"a":1}', b'{"b":2}']


def test_the_elements_of_an_array_are_events_word_for_word() -> None:
    body = b' [ {"a" : 1, "t":"x\\u00e4"} , {"b":[1,{"c":2}]}, 5 ]'
    got = texts(body, JSON)
    assert [json.loads(one) for one in got] == [{"a": 1, "t": "xä"}, {"b": [1, {"c": 2}]}, 5]


def test_an_element_that_is_no_event_is_one_all_the_same() -> None:
    """So that the answer can say of each by its place what is wrong with it."""
    assert texts(b'[null, {"a":null}, [], "null"]') == [b"null", b'{"a":null}', b"[]", b'"null"']


@pytest.mark.parametrize(
    "body", [b'[{"a":1}]', b'{"a":1}', b'{"a":\n1}'], ids=["array", "line", "object"]
)
@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", b" \n" * 100], ids=["mark", "blanks"])
def test_what_stands_before_the_first_event_does_not_count(body: bytes, before: bytes) -> None:
    """A byte order mark, as programs on Windows write it, or blanks."""
    [got] = texts(before + body, JSON)
    assert json.loads(got) == {"a": 1}


@pytest.mark.parametrize("body", [b'{\n "a": 1,\n "b": {}\n}', b'{"a":1}\n', b'  {"a":1}'])
def test_one_object_may_stand_on_several_lines(body: bytes) -> None:
    [got] = texts(body, JSON)
    assert json.loads(got)["a"] == 1


def test_lines_under_the_name_of_json_are_lines() -> None:
    assert texts(b'{"a":1}\n{"b":2}', JSON) == [b'{"a":1}', b'{"b":2}']


@pytest.mark.parametrize("body", [b"", b" \n\r\n ", b"[]"])
def test_a_body_without_an_event_is_refused(body: bytes) -> None:
    with pytest.raises(InputError, match="no event"):
        cut(body, JSON)


@pytest.mark.parametrize("body", [b'[{"a":1},', b'[{"a":"\\ud800"}]', b"[\xff]", b"[" * 50_000])
def test_an_array_that_is_no_json_is_refused_whole(body: bytes) -> None:
    with pytest.raises(InputError, match="no JSON array"):
        cut(body, JSON)


def test_gzip_is_unpacked_also_with_several_members() -> None:
    assert unpack(gzip.compress(b"one\n") + gzip.compress(b"two\n"), "gzip") == b"one\ntwo\n"
    assert unpack(gzip.compress(b"one"), "X-GZIP") == b"one"
    assert unpack(b"plain", "identity") == b"plain"


@pytest.mark.parametrize(
    ("body", "encoding", "said"),
    [
        (b"plain", "br", "packed as 'br'"),
        (b"plain", "gzip", "does not unpack"),
        (gzip.compress(b"x" * 1000)[:-9], "gzip", "ends in the middle"),
        (gzip.compress(b"x") + b"more", "gzip", "does not unpack"),
        (gzip.compress(b"x"), "", "does not say so"),
    ],
    ids=["another packing", "not packed", "cut off", "followed by more", "not named"],
)
def test_what_does_not_unpack_is_refused(body: bytes, encoding: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        unpack(body, encoding)


def test_a_bomb_is_refused_and_not_unpacked() -> None:
    bomb = gzip.compress(bytes(40 * MOST_BYTES))
    many = gzip.compress(b"x" * 1000) * 20_000
    tracemalloc.start()
    for body in (bomb, many):
        with pytest.raises(TooLargeError):
            unpack(body, "gzip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MOST_BYTES


def test_a_body_beyond_the_limit_is_refused() -> None:
    with pytest.raises(TooLargeError):
        unpack(b"x" * (MOST_BYTES + 1), "")


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=200), kind=st.sampled_from([NDJSON, JSON, "", "text/plain;x"]))
def test_any_bytes_are_cut_or_refused(body: bytes, kind: str) -> None:
    """And nothing else happens: no other error, no event made up."""
    try:
        got = texts(body, kind)
    except InputError:
        return
    assert all(got)
    assert sum(map(len, got)) <= len(body) * 6


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=5), max_size=2), min_size=1))
def test_array_and_lines_say_the_same(events: list[dict[str, str]]) -> None:
    try:
        array = json.dumps(events, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    lines = "\n".join(json.dumps(event) for event in events).encode()
    as_read = [json.loads(one) for one in texts(array, JSON)]
    assert as_read == [json.loads(one) for one in texts(lines)] == events
