"""Mappings: how lines of JSON become canonical events, from data files compiled to SQL.

A mapping is `mappings/<name>.toml`:

    source = "…"            column `source` of its events
    closed = true           fields at the top of a line that no field names are refused
    prefix = "regex"        what may stand before the JSON of a line

    include = ["…"]         files whose rules come after its own

    [fields.<name>]         a value in the line, read once, by all that follows as text
    path = "id"             where: a key, or a JSON path that begins with $
    kind = "text"           one of `KINDS`; a line whose value does not fit is refused
    required = true         so is a line without it

    [refused]               reason = SQL that holds where a line is refused for it
    [let]                   name = SQL over the fields and the names before it
    [[rules]]               the first rule whose conditions all hold gives its values
    when = { <name> = ["a", "b"], <name>_prefix = "…", present = ["<name>"], absent = ["<name>"] }
    set = { <output> = "text" }      read below as rule_<output>; null where no rule holds, or ""
    [then]                  as `let`, after the rules
    [columns]               column of the canonical event = SQL over all of these

Every expression works on whole columns, also where a line is refused: there the fields of the kind
object are null, and others may hold anything, so they are cast with try_cast.
"""

import json
import tomllib
from collections.abc import Mapping as Table
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from theon.errors import InputError
from theon.intake.arrivals import EVENT_COLUMNS, ORDINAL
from theon.intake.mapping_checks import (
    KINDS,
    LINES,
    line_sql,
    quick_structure_sql,
    quick_value_sql,
    structure_sql,
    type_name,
    value_sql,
)
from theon.intake.steps import Steps
from theon.lake.engine import sql_text

MAPPINGS = ("native", "messages", "xapi", "edx")
_TYPES = {"timestamp[us, tz=UTC]": "TIMESTAMPTZ", "int16": "SMALLINT", "int32": "INTEGER"}
_BETWEEN = chr(31)
_TYPES |= {"int64": "BIGINT", "bool": "BOOLEAN", "string": "VARCHAR"}


@dataclass(frozen=True)
class Field:
    """A value that a mapping takes from a line.

    Attributes:
        name: as the mapping's expressions call it.
        path: a key at the top of the line, or a JSON path.
        kind: one of `KINDS`.
        required: whether a line without it is refused.
        description: for the published schema.
    """

    name: str
    path: str
    kind: str = "any"
    required: bool = False
    description: str = ""


@dataclass(frozen=True)
class Mapping:
    """A compiled mapping.

    Attributes:
        name: of its file.
        source: of its events.
        fields: what it takes from a line.
        closed: whether a line may have no other fields.
        quick_sql: a query over the table `lines_` (`LINES`): the columns of `ARRIVAL_SCHEMA`
            and `fits`. Where that is false the line has to be looked at thoroughly.
        thorough_sql: the same with `reason` and `detail` instead of `fits`: why a line is refused.
            Its many conditions make it several times as dear for a few lines.
    """

    name: str
    source: str
    fields: tuple[Field, ...]
    closed: bool
    quick_sql: str
    thorough_sql: str
    title: str = ""
    description: str = ""


@cache
def load_mapping(name: str) -> Mapping:
    """The mapping called `name` that Theon ships with.

    Raises:
        InputError: there is none of that name.
    """
    if name not in MAPPINGS:
        raise InputError(
            f"there is no mapping {name!r}",
            where="mapping",
            next_step=f"Use one of {', '.join(MAPPINGS)}.",
        )
    return parse_mapping(name, _file(name))


def _file(name: str) -> str:
    return resources.files("theon.intake.mappings").joinpath(f"{name}.toml").read_text("utf-8")


def parse_mapping(name: str, text: str) -> Mapping:
    """Compile a mapping from the text of its file.

    Raises:
        InputError: a field, condition or column is not one.
    """
    data = tomllib.loads(text)
    where = f"{name}.toml"
    shared = [tomllib.loads(_file(other))["rules"] for other in data.get("include", [])]
    data["rules"] = [*data.get("rules", []), *(rule for rules in shared for rule in rules)]
    fields = tuple(Field(name=key, **value) for key, value in data["fields"].items())
    for field in fields:
        if field.kind not in KINDS:
            raise _wrong(f"field {field.name} is of unknown kind {field.kind!r}", where)
    unknown = set(data["columns"]) - {column.name for column in EVENT_COLUMNS}
    if unknown:
        raise _wrong(f"an event has no column {', '.join(sorted(unknown))}", where)
    # Those of a kind side by side, as `quick_value_sql` needs them.
    kinds = list(KINDS)
    by_kind = tuple(sorted(fields, key=lambda field: kinds.index(field.kind)))
    quick, thorough = _compile(data, by_kind, where)
    return Mapping(
        name=name,
        source=data["source"],
        fields=fields,
        closed=data.get("closed", False),
        quick_sql=quick,
        thorough_sql=thorough,
        title=data.get("title", ""),
        description=data.get("description", ""),
    )


def _compile(data: dict[str, Any], fields: tuple[Field, ...], where: str) -> tuple[str, str]:
    """(quick, thorough): see `Mapping`."""
    closed, prefix = data.get("closed", False), data.get("prefix", "")
    refused: dict[str, str] = data.get("refused", {})
    queries = []
    for check, more in ((_check_quickly, ("fits",)), (_check_thoroughly, ("reason", "detail"))):
        steps = Steps("lines_", LINES.names)
        steps.add({"json_line": line_sql(prefix)})
        check(steps, fields, refused, closed=closed)
        # What is JSON only where it is: functions of JSON fail on anything else.
        objects = [field.name for field in fields if field.kind == "object"]
        fits = "fits" if "fits" in more else "reason IS NULL"
        steps.add({name: f"CASE WHEN {fits} THEN {name} END" for name in ["json_line", *objects]})
        steps.let(data.get("let", {}))
        if data["rules"]:
            _add_rules(steps, data["rules"], where)
        steps.let(data.get("then", {}))
        columns = {"source": sql_text(data["source"]), **data["columns"]}
        selected = {
            column.name: f"CAST({columns.get(column.name, 'NULL')} AS {_TYPES[str(column.type)]})"
            for column in EVENT_COLUMNS
        }
        queries.append(steps.select({**selected, **{name: name for name in (ORDINAL, *more)}}))
    return queries[0], queries[1]


def _check_quickly(
    steps: Steps, fields: tuple[Field, ...], refused: Table[str, str], *, closed: bool
) -> None:
    steps.add({"sound": quick_structure_sql()})
    _take(steps, fields, "sound")
    fits = quick_value_sql(fields, refused, closed=closed)
    steps.add({"fits": f"coalesce({fits}, false)"})


def _check_thoroughly(
    steps: Steps, fields: tuple[Field, ...], refused: Table[str, str], *, closed: bool
) -> None:
    reason, detail = value_sql(fields, refused, closed=closed)
    steps.add({"structure": structure_sql()})
    _take(steps, fields, "structure IS NULL")
    steps.add({type_name(field): f"types_[{at}]" for at, field in enumerate(fields, 1)})
    steps.add({"reason": reason})
    steps.add({"detail": detail})


def _take(steps: Steps, fields: tuple[Field, ...], usable: str) -> None:
    """The values under their names, and the times as times."""
    paths = "[" + ", ".join(sql_text(_path(field.path)) for field in fields) + "]"
    steps.add(
        {
            name: f"CASE WHEN {usable} THEN {function} END"
            for name, function in (
                ("values_", f"json_extract_string(json_line, {paths})"),
                ("types_", f"json_type(json_line, {paths})"),
                ("keys_", "json_keys(json_line)"),
            )
        }
    )
    named = {_name(field): f"values_[{at}]" for at, field in enumerate(fields, 1)}
    times = {
        field.name: f"try_cast(upper(values_[{at}]) AS TIMESTAMPTZ)"
        for at, field in enumerate(fields, 1)
        if field.kind == "time"
    }
    steps.add(named | times)


def _name(field: Field) -> str:
    """A time's text has another name, as its own is that of the time."""
    return f"{field.name}_text" if field.kind == "time" else field.name


def _path(path: str) -> str:
    return path if path.startswith("$") else f"$.{json.dumps(path)}"


def _add_rules(steps: Steps, rules: list[dict[str, Any]], where: str) -> None:
    """The first rule that holds gives its values, all in one text."""
    outputs = list(dict.fromkeys(name for rule in rules for name in rule["set"]))
    cases = []
    for rule in rules:
        values = [rule["set"].get(name, "") for name in outputs]
        if any(_BETWEEN in value for value in values):
            raise _wrong("a rule sets a value that holds the character 31", where)
        cases.append(
            f"WHEN {_condition(rule['when'], where)} THEN {sql_text(_BETWEEN.join(values))}"
        )
    steps.add({"rule_": f"string_split(CASE {' '.join(cases)} END, {sql_text(_BETWEEN)})"})
    steps.add({f"rule_{name}": f"nullif(rule_[{at}], '')" for at, name in enumerate(outputs, 1)})


def _condition(conditions: dict[str, Any], where: str) -> str:
    parts = []
    for key, value in conditions.items():
        if key in ("present", "absent"):
            test = "IS NOT NULL" if key == "present" else "IS NULL"
            parts += [f"{name} {test}" for name in value]
        elif key.endswith("_prefix"):
            parts.append(f"starts_with({key.removesuffix('_prefix')}, {sql_text(value)})")
        elif key.endswith("_matches"):
            parts.append(f"regexp_matches({key.removesuffix('_matches')}, {sql_text(value)})")
        elif isinstance(value, list):
            parts.append(f"{key} IN ({', '.join(map(sql_text, value))})")
        else:
            raise _wrong(f"unknown condition {key!r} = {value!r}", where)
    return " AND ".join(parts) or "true"


def _wrong(what: str, where: str) -> InputError:
    return InputError(
        what, where=where, next_step="How a mapping is written stands at the top of mapping.py."
    )


def native_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a native event, as its mapping checks it."""
    mapping = load_mapping("native")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": mapping.title,
        "description": mapping.description,
        "type": "object",
        "properties": {field.name: _schema(field) for field in mapping.fields},
        "required": [field.name for field in mapping.fields if field.required],
        "additionalProperties": not mapping.closed,
    }


def _schema(field: Field) -> dict[str, Any]:
    said = dict(KINDS[field.kind].schema)
    if not field.required:
        said["type"] = [*said["type"], "null"]
    return {**said, "description": field.description}
