"""Courses and people of a campus, in bulk. Of people, ids alone: no name, no address."""

from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, text

from theon.errors import InputError
from theon.roster.campuses import Campus
from theon.store.bulk import copy_in
from theon.store.engine import Store
from theon.store.scope import Scope

_COURSE: list["pa.Field[Any]"] = [
    pa.field("course_id", pa.string()),
    pa.field("short_name", pa.string()),
    pa.field("full_name", pa.string()),
    pa.field("visible", pa.bool_()),  # null: the source does not say
    pa.field("deleted", pa.bool_()),
]
_PERSON: list["pa.Field[Any]"] = [pa.field("user_id", pa.string()), pa.field("deleted", pa.bool_())]
COURSE_SCHEMA = pa.schema(_COURSE)
PEOPLE_SCHEMA = pa.schema(_PERSON)


def upsert_courses(store: Store, campus: Campus, courses: pa.Table | pa.RecordBatchReader) -> int:
    """Add these courses to the campus, or bring them up to date.

    Args:
        store: where to.
        campus: whose courses they are.
        courses: columns of `COURSE_SCHEMA`, `course_id` and any of the others; a column that
            is missing, or a null in it, leaves what is known as it is.

    Returns:
        The number of courses added or changed; what was so already is not counted.

    Raises:
        InputError: a column is unknown, missing or of another type, an id is null, or a
            course stands there twice.
    """
    return _upsert(store, campus, courses, COURSE_SCHEMA, "theon.courses")


def upsert_people(store: Store, campus: Campus, people: pa.Table | pa.RecordBatchReader) -> int:
    """Add these people's ids to the campus, or bring them up to date; see `upsert_courses`.

    Columns of `PEOPLE_SCHEMA`: `user_id`, `deleted`.
    """
    return _upsert(store, campus, people, PEOPLE_SCHEMA, "theon.people")


def _upsert(
    store: Store,
    campus: Campus,
    rows: pa.Table | pa.RecordBatchReader,
    schema: pa.Schema,
    table: str,
) -> int:
    key = schema.names[0]
    given = _given(rows.schema, schema, table)
    others = [name for name in given.names if name != key]
    # A null says nothing: what is known stays, or the column's default stands in.
    values = [f"coalesce(n.{name}, o.{name}, {_DEFAULTS[name]})" for name in others]
    old = [f"o.{name}" for name in others]
    new = [f"excluded.{name}" for name in others]
    merge = f"""
        INSERT INTO {table} AS o ({", ".join(["campus_id", key, *others])})
        SELECT {", ".join([":campus_id", f"n.{key}", *values])}
        FROM incoming AS n
        LEFT JOIN {table} AS o ON o.campus_id = :campus_id AND o.{key} = n.{key}
        ON CONFLICT (campus_id, {key}) DO
    """
    if others:
        sets = ", ".join(f"{name} = excluded.{name}" for name in others)
        merge += f"""UPDATE SET {sets}, updated_at = now()
            WHERE ({", ".join(old)}) IS DISTINCT FROM ({", ".join(new)})"""
    else:
        merge += "NOTHING"
    with store.transaction(Scope(campus.slug)) as conn:
        conn.exec_driver_sql(
            f"CREATE TEMPORARY TABLE incoming ON COMMIT DROP AS"
            f" SELECT {', '.join(given.names)} FROM {table} WITH NO DATA"
        )
        copy_in(conn, "incoming", rows.cast(given))
        _check_keys(conn, key, table)
        done = conn.execute(text(merge), {"campus_id": campus.id})
        return int(done.rowcount)


_DEFAULTS = {"short_name": "NULL", "full_name": "NULL", "visible": "true", "deleted": "false"}


def _given(found: pa.Schema, wanted: pa.Schema, table: str) -> pa.Schema:
    """The columns that were given, with the types they are to have."""
    problems = [f"unknown column {name!r}" for name in found.names if name not in wanted.names]
    problems += [f"no column {wanted.names[0]!r}"] if wanted.names[0] not in found.names else []
    for field in found:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if field.name in wanted.names and not _fits(kind, wanted.field(field.name).type):
            problems.append(f"column {field.name!r} is {field.type}")
    if problems:
        raise InputError(
            f"these rows do not fit: {'; '.join(problems)}",
            where=f"table {table}",
            next_step=f"Give columns out of: {', '.join(f'{f.name} ({f.type})' for f in wanted)}.",
        )
    return pa.schema([pa.field(name, wanted.field(name).type) for name in found.names])


def _fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    text_like = pa.types.is_string(found) or pa.types.is_large_string(found)
    if pa.types.is_null(found) or (pa.types.is_string(wanted) and text_like):
        return True
    return bool(found == wanted)


def _check_keys(conn: Connection, key: str, table: str) -> None:
    bad = conn.execute(
        text(
            f"SELECT {key}, count(*) FROM incoming GROUP BY {key}"
            f" HAVING {key} IS NULL OR count(*) > 1 ORDER BY {key} NULLS FIRST LIMIT 1"
        )
    ).first()
    if bad is not None:
        value, times = bad
        what = f"{times} without {key}" if value is None else f"{key} {value!r} {times} times"
        raise InputError(
            f"these rows do not fit: {what}",
            where=f"table {table}",
            next_step=f"Give each {key} once; nothing of this was kept.",
        )
