"""What a line and its values must be like to become an event, as SQL that gives the reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from theon.intake.arrivals import ORDINAL
from theon.lake.engine import sql_text

if TYPE_CHECKING:
    from theon.intake.mapping import Field

EARLIEST = "2000-01-01T00:00:00Z"
AHEAD_S = 86_400  # clocks differ, and zones are mistaken; a day covers both
LONGEST_TEXT = 1_000  # characters
LARGEST_OBJECT_BYTES = 1 << 20
LARGEST_LINE_BYTES = 2 << 20
DEEPEST = 64
_SHOWN = 200  # characters of a value that a refusal quotes

_OFFSET = r"[Tt ]\d\d:\d\d(:\d\d([.,]\d+)?)?\s?([Zz]|[+-]([01]\d|2[0-3])(:?[0-5]\d)?)$"
# DuckDB reads it all the same, as a time hours or days away.
_NO_SUCH_OFFSET = r":\d\d([.,]\d+)?\s?[+-](2[4-9]|[3-9]\d|\d\d:?[6-9]\d)"
_HALF_PAIR = r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
_STRINGS = r'"(?:[^"\\]|\\.)*"'
_BARE_NUL = r"(^|[^\\])(\\\\)*\\u0000"

# Reasons are short and few, as people count by them; the detail names the field and the value.
LINE_TOO_LARGE = "larger than 2 MB"
NOT_UTF8 = "not UTF-8"
HALF_PAIR = "half of a surrogate pair"
NOT_JSON = "not JSON"
TOO_DEEP = "nested deeper than 64"
NOT_OBJECT = "not a JSON object"
NUL = "NUL character"
NOT_FINITE = "holding NaN or Infinity"
UNKNOWN_FIELD = "unknown field"
DOUBLED_FIELD = "a field twice"
MISSING = "missing"
WRONG_TYPE = "of the wrong type"
EMPTY = "empty"
TOO_LONG = "longer than 1,000 characters"
TOO_LARGE = "larger than 1 MB"
UNREADABLE_TIME = "not a time"
NO_OFFSET = "a time without offset"
TOO_EARLY = "before 2000"
TOO_LATE = "more than a day ahead"


@dataclass(frozen=True)
class Kind:
    """What a value may be.

    Attributes:
        types: names that DuckDB gives to the types of JSON; none: any.
        schema: the same as a JSON schema.
    """

    types: tuple[str, ...]
    schema: dict[str, Any]


_WHOLE = ("UBIGINT", "BIGINT")
_TEXT_SCHEMA = {"minLength": 1, "maxLength": LONGEST_TEXT}
_WHOLE_SCHEMA = {"minimum": -(1 << 63), "maximum": (1 << 64) - 1}
KINDS = {
    "id": Kind(
        ("VARCHAR", *_WHOLE), {"type": ["string", "integer"], **_TEXT_SCHEMA, **_WHOLE_SCHEMA}
    ),
    "text": Kind(("VARCHAR",), {"type": ["string"], **_TEXT_SCHEMA}),
    "time": Kind(
        ("VARCHAR",), {"type": ["string"], "format": "date-time", "maxLength": LONGEST_TEXT}
    ),
    "object": Kind(("OBJECT",), {"type": ["object"]}),
    "number": Kind((*_WHOLE, "DOUBLE"), {"type": ["number"]}),
    "flag": Kind(("BOOLEAN",), {"type": ["boolean"]}),
    "any": Kind((), {}),
}


SHORT = ("id", "text")  # kinds of texts that have a greatest length


# What a mapping reads. `latest` is the latest time that is believed, epoch µs: a statement with a
# parameter is planned anew for every execution.
_LINES: "list[pa.Field[Any]]" = [
    pa.field(ORDINAL, pa.int32()),
    pa.field("line", pa.string()),
    pa.field("default_id", pa.string()),
    pa.field("latest", pa.int64()),
]
LINES = pa.schema(_LINES)


def line_sql(prefix: str) -> str:
    """SQL: what of a line is JSON.

    Args:
        prefix: a regular expression of what may stand before it.
    """
    return f"regexp_replace(line, {sql_text(prefix)}, '')" if prefix else "line"


def _too_deep() -> str:
    """SQL: whether a line that is JSON is nested too deep."""
    openers = "strlen(json_line) - strlen(replace(replace(json_line, '{', ''), '[', ''))"
    # A text may hold brackets, so only what stands outside of texts counts; and pairs that hold
    # nothing are taken out as often as they may be nested.
    brackets = f"regexp_replace({_without_texts('json_line')}, '[^\\[\\]{{}}]+', '', 'g')"
    left = (
        f"list_reduce(list_prepend({brackets}, range({DEEPEST})::VARCHAR[]), "
        r"lambda s, x: regexp_replace(s, '\[\]|\{\}', '', 'g'))"
    )
    return f"CASE WHEN {openers} > {DEEPEST} THEN {left} <> '' ELSE false END"


def structure_sql() -> str:
    """SQL: why a line is no JSON object, or null."""
    return (
        f"CASE "
        f"WHEN json_line IS NULL THEN {sql_text(NOT_UTF8)} "
        f"WHEN strlen(json_line) > {LARGEST_LINE_BYTES} THEN {sql_text(LINE_TOO_LARGE)} "
        f"WHEN NOT json_valid(json_line) THEN CASE WHEN json_valid(regexp_replace("
        f"json_line, {sql_text(_HALF_PAIR)}, '', 'g')) THEN {sql_text(HALF_PAIR)} "
        f"ELSE {sql_text(NOT_JSON)} END "
        f"WHEN {_too_deep()} THEN {sql_text(TOO_DEEP)} "
        f"WHEN json_type(json_line) <> 'OBJECT' THEN {sql_text(NOT_OBJECT)} "
        f"WHEN contains(json_line, '\\u0000') AND regexp_matches(json_line, "
        f"{sql_text(_BARE_NUL)}) THEN {sql_text(NUL)} "
        "END"
    )


def quick_structure_sql() -> str:
    """SQL that holds only where `structure_sql` finds nothing, and nearly always then."""
    return (
        f"strlen(json_line) <= {LARGEST_LINE_BYTES} AND json_valid(json_line) "
        f"AND NOT ({_too_deep()}) AND starts_with(ltrim(json_line), '{{') "
        "AND NOT contains(json_line, '\\u0000')"
    )


def quick_value_sql(fields: "Sequence[Field]", refused: Mapping[str, str], *, closed: bool) -> str:
    """SQL that holds only where `value_sql` finds no reason, and nearly always then."""
    tests = [f"{_value(field)} IS NOT NULL" for field in fields if field.required]
    # One comparison per kind, whose fields stand side by side, costs less than one per field.
    kinds = [field.kind for field in fields]
    for kind in dict.fromkeys(kinds):
        first, last = kinds.index(kind) + 1, kinds.index(kind) + kinds.count(kind)
        types = KINDS[kind].types
        if types:
            listed = ", ".join(map(sql_text, (*types, "NULL")))
            tests.append(_none(f"types_[{first}:{last}]", f"x NOT IN ({listed})"))
        if kind in SHORT:
            found = f"x = '' OR strlen(x) > {LONGEST_TEXT}"
            tests.append(_none(f"values_[{first}:{last}]", found))
    if closed:
        tests.append("len(keys_) = list_count(types_)")
    for field in fields:
        if field.kind == "object":
            tests.append(
                f"({field.name} IS NULL OR (strlen({field.name}) <= {LARGEST_OBJECT_BYTES} AND "
                f"NOT contains({field.name}, 'NaN') AND NOT contains({field.name}, 'Infinity')))"
            )
        if field.kind == "time":
            fits = (
                f"({field.name} BETWEEN TIMESTAMPTZ '{EARLIEST}' AND make_timestamptz(latest) "
                f"AND regexp_matches({field.name}_text, {sql_text(_OFFSET)}))"
            )
            tests.append(fits if field.required else f"({field.name}_text IS NULL OR {fits})")
    tests += [f"({condition}) IS NOT TRUE" for condition in refused.values()]
    return " AND ".join(tests)


def _value(field: "Field") -> str:
    """A time's text has another name, as its own is that of the time."""
    return f"{field.name}_text" if field.kind == "time" else field.name


def type_name(field: "Field") -> str:
    """What the type of a field's value is called; a field might be called `<name>_type` itself."""
    return f"type_of_{field.name}"


def _none(values: str, found: str) -> str:
    return f"len(list_filter({values}, lambda x: {found})) = 0"


def _without_texts(json: str) -> str:
    return f"regexp_replace({json}, {sql_text(_STRINGS)}, '', 'g')"


def value_sql(
    fields: "Sequence[Field]", refused: Mapping[str, str], *, closed: bool
) -> tuple[str, str]:
    """SQL of the reason why a line is refused, or null, and of the detail of a refusal."""
    reasons, details = ["WHEN structure IS NOT NULL THEN structure"], []
    if closed:
        known = "[" + ", ".join(sql_text(field.path) for field in fields) + "]"
        there = "list_count(types_)"
        reasons.append(
            f"WHEN len(keys_) <> {there} THEN CASE WHEN len(list_distinct(keys_)) < len(keys_) "
            f"THEN {sql_text(DOUBLED_FIELD)} ELSE {sql_text(UNKNOWN_FIELD)} END"
        )
        twice = "list_filter(list_distinct(keys_), lambda k: len(list_filter(keys_, "
        details += [
            f"WHEN {sql_text(UNKNOWN_FIELD)} THEN array_to_string(list_filter(keys_, "
            f"lambda k: NOT list_contains({known}, k)), ', ')",
            f"WHEN {sql_text(DOUBLED_FIELD)} THEN array_to_string({twice}"
            f"lambda j: j = k)) > 1), ', ')",
        ]
    for field in fields:
        for reason, condition in _faults(field):
            phrase = f"{field.name} is {reason}"
            if reason == MISSING:
                details.append(f"WHEN {sql_text(phrase)} THEN NULL")
            reasons.append(f"WHEN {condition} THEN {sql_text(phrase)}")
            if reason != MISSING:
                details.append(f"WHEN {sql_text(phrase)} THEN {_value(field)}")
    for reason, condition in refused.items():
        reasons.append(f"WHEN {condition} THEN {sql_text(reason)}")
    detail = f"left(CASE reason {' '.join(details)} END, {_SHOWN})" if details else "NULL"
    return f"CASE {' '.join(reasons)} END", detail


def _faults(field: "Field") -> list[tuple[str, str]]:
    """(reason, SQL that holds where it applies) of a field, in order."""
    value, type_ = field.name, type_name(field)
    found: list[tuple[str, str]] = []
    if field.required:
        found.append((MISSING, f"coalesce({type_}, 'NULL') = 'NULL'"))
    types = KINDS[field.kind].types
    if types:
        listed = ", ".join(map(sql_text, (*types, "NULL")))
        found.append((WRONG_TYPE, f"{type_} NOT IN ({listed})"))
    if field.kind in ("id", "text"):
        found += [
            (EMPTY, f"{value} = ''"),
            (TOO_LONG, f"strlen({value}) > {LONGEST_TEXT} AND length({value}) > {LONGEST_TEXT}"),
        ]
    if field.kind == "object":
        found += [
            (TOO_LARGE, f"strlen({value}) > {LARGEST_OBJECT_BYTES}"),
            (
                NOT_FINITE,
                f"(contains({value}, 'NaN') OR contains({value}, 'Infinity')) AND "
                f"regexp_matches({_without_texts(value)}, 'NaN|Infinity')",
            ),
        ]
    if field.kind == "time":
        text = f"{value}_text"
        found += [
            (
                UNREADABLE_TIME,
                f"{text} IS NOT NULL AND ({value} IS NULL OR "
                f"regexp_matches({text}, {sql_text(_NO_SUCH_OFFSET)}))",
            ),
            (NO_OFFSET, f"NOT regexp_matches({text}, {sql_text(_OFFSET)})"),
            (TOO_EARLY, f"{value} < TIMESTAMPTZ '{EARLIEST}'"),
            (TOO_LATE, f"epoch_us({value}) > latest"),
        ]
    return found
