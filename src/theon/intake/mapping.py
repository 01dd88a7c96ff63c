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
    set = { <output> = "text" }      read below as rule_<output>; null where no rule holds
    [then]                  as `let`, after the rules
    [columns]               column of the canonical event = SQL over all of these

Every expression works on whole columns, also where a line is refused: there the fields of the kind
object are null, and others may hold anything, so they are cast with try_cast.
"""

import json
import re
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
    lines_sql,
    quick_structure_sql,
    quick_value_sql,
    structure_sql,
    value_sql,
)
from theon.lake.engine import sql_text

MAPPINGS = ("native", "messages", "xapi", "edx")
_TYPES = {"timestamp[us, tz=UTC]": "TIMESTAMPTZ", "int16": "SMALLINT", "int32": "INTEGER"}
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
        quick_sql: a query over the table `lines_` (ordinal, line, default_id) with the parameter
            $latest (the latest time that is believed, epoch µs): the columns of `ARRIVAL_SCHEMA`
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
    reason, detail = value_sql(fields, refused, closed=closed)
    thorough = f"SELECT *, {reason} AS reason FROM ({_thoroughly(fields, prefix)})"
    thorough = f"SELECT *, {detail} AS detail FROM ({thorough})"
    queries = []
    for read, fits, more in (
        (_quickly(fields, prefix, refused, closed=closed), "fits", "fits"),
        (thorough, "reason IS NULL", "reason, detail"),
    ):
        steps = _let(_guarded(fields, read, fits), data.get("let", {}))
        if data["rules"]:
            steps = _rules(steps, data["rules"], where)
        steps = _let(steps, data.get("then", {}))
        columns = {"source": sql_text(data["source"]), **data["columns"]}
        selected = ", ".join(
            f"CAST({columns.get(column.name, 'NULL')} AS {_TYPES[str(column.type)]}) "
            f"AS {column.name}"
            for column in EVENT_COLUMNS
        )
        queries.append(f"SELECT {selected}, {ORDINAL}, {more} FROM ({steps})")
    return queries[0], queries[1]


def _thoroughly(fields: tuple[Field, ...], prefix: str) -> str:
    taken = f"SELECT *, {_taken(fields, 'structure IS NULL')} FROM ({structure_sql(prefix)})"
    types = ", ".join(f"types_[{at}] AS {field.name}_type" for at, field in enumerate(fields, 1))
    return f"SELECT *, {types} FROM ({_named(fields, taken)})"


def _quickly(
    fields: tuple[Field, ...], prefix: str, refused: Table[str, str], *, closed: bool
) -> str:
    checked = f"SELECT *, {quick_structure_sql()} AS sound FROM ({lines_sql(prefix)})"
    taken = f"SELECT *, {_taken(fields, 'sound')} FROM ({checked})"
    return (
        f"SELECT *, coalesce({quick_value_sql(fields, refused, closed=closed)}, false) AS fits "
        f"FROM ({_named(fields, taken)})"
    )


def _guarded(fields: tuple[Field, ...], read: str, fits: str) -> str:
    """`read` with what is JSON only where it is: functions of JSON fail on anything else."""
    names = ["json_line", *(field.name for field in fields if field.kind == "object")]
    replaced = ", ".join(f"CASE WHEN {fits} THEN {name} END AS {name}" for name in names)
    return f"SELECT * REPLACE ({replaced}) FROM ({read})"


def _taken(fields: tuple[Field, ...], usable: str) -> str:
    paths = "[" + ", ".join(sql_text(_path(field.path)) for field in fields) + "]"
    return ", ".join(
        f"CASE WHEN {usable} THEN {function} END AS {name}"
        for function, name in (
            (f"json_extract_string(json_line, {paths})", "values_"),
            (f"json_type(json_line, {paths})", "types_"),
            ("json_keys(json_line)", "keys_"),
        )
    )


def _named(fields: tuple[Field, ...], taken: str) -> str:
    """The values under their names, and the times as times."""
    named = [f"values_[{at}] AS {_name(field)}" for at, field in enumerate(fields, 1)]
    times = [
        f"try_cast(upper(values_[{at}]) AS TIMESTAMPTZ) AS {field.name}"
        for at, field in enumerate(fields, 1)
        if field.kind == "time"
    ]
    return f"SELECT *, {', '.join(named + times)} FROM ({taken})"


def _name(field: Field) -> str:
    """A time's text has another name, as its own is that of the time."""
    return f"{field.name}_text" if field.kind == "time" else field.name


def _path(path: str) -> str:
    return path if path.startswith("$") else f"$.{json.dumps(path)}"


def _let(source: str, names: Table[str, str]) -> str:
    """`source` with more columns, each of which may use those before it."""
    level: dict[str, str] = {}
    for name, sql in names.items():
        # Every level costs the planner, so a new one begins only where a name of this one is used.
        if any(re.search(rf"\b{earlier}\b", sql) for earlier in level):
            source, level = _level(source, level), {}
        level[name] = sql
    return _level(source, level)


def _level(source: str, names: Table[str, str]) -> str:
    listed = "".join(f", {sql} AS {name}" for name, sql in names.items())
    return f"SELECT *{listed} FROM ({source})" if names else source


def _rules(source: str, rules: list[dict[str, Any]], where: str) -> str:
    cases = " ".join(
        f"WHEN {_condition(rule['when'], where)} THEN {at}" for at, rule in enumerate(rules, 1)
    )
    outputs = list(dict.fromkeys(name for rule in rules for name in rule["set"]))
    lists = {
        name: ", ".join(
            sql_text(rule["set"][name]) if name in rule["set"] else "NULL" for rule in rules
        )
        for name in outputs
    }
    values = ", ".join(f"([{lists[name]}])[rule_] AS rule_{name}" for name in outputs)
    return f"SELECT *, {values} FROM (SELECT *, CASE {cases} END AS rule_ FROM ({source}))"


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
