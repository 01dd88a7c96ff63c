"""Moodle's log columns as canonical events, in SQL: the same for a file and a database."""

from theon.events.schema import SOURCE_MOODLE_LOG
from theon.intake.staged import STAGED_COLUMNS

NEEDED = ("id", "timecreated", "userid", "courseid", "eventname")
OPTIONAL = (
    "component", "action", "target", "objecttable", "objectid", "crud", "edulevel",
    "contextid", "contextlevel", "contextinstanceid", "relateduserid", "realuserid",
    "anonymous", "origin", "ip", "other",
)  # fmt: skip
EARLIEST_S = 946_684_800  # 2000-01-01; Moodle is younger than that
AHEAD_S = 366 * 86_400


def canonical_sql(source: str, present: set[str], *, escaped: bool, latest_s: int) -> str:
    """SQL that turns text columns named as Moodle's into `STAGED_COLUMNS`, row by row.

    `event_id` and `occurred_at` are null where a row does not fit (see `reason_sql`).
    """

    def text(name: str) -> str:
        if name not in present:
            return "NULL::VARCHAR"
        if not escaped:
            return name
        # \\ last, by way of a character that no log holds, so that '\\n' stays '\n'.
        return (
            f"replace(replace(replace(replace({name}, '\\\\', chr(1)), '\\t', chr(9)), "
            f"'\\n', chr(10)), chr(1), '\\')"
        )

    def number(name: str, kind: str) -> str:
        return f"try_cast({name} AS {kind})" if name in present else f"NULL::{kind}"

    fits = f"({reason_sql(latest_s)}) IS NULL"
    columns = {
        "event_id": f"CASE WHEN {fits} THEN 'moodle:' || id END",
        "source": f"'{SOURCE_MOODLE_LOG}'",
        "occurred_at": f"CASE WHEN {fits} THEN make_timestamptz(second_ * 1000000) END",
        "user_id": "userid",
        "course_id": "courseid",
        "event_name": text("eventname"),
        "object_table": text("objecttable"),
        "object_id": text("objectid"),
        "edulevel": number("edulevel", "SMALLINT"),
        "context_id": number("contextid", "BIGINT"),
        "context_level": number("contextlevel", "INTEGER"),
        "context_instance_id": number("contextinstanceid", "BIGINT"),
        "related_user_id": text("relateduserid"),
        # 0 is nobody: some versions write it where others leave the column empty.
        "real_user_id": f"nullif({text('realuserid')}, '0')",
        "anonymous": "anonymous IN ('1', 't', 'true')"
        if "anonymous" in present
        else "NULL::BOOLEAN",
    }
    selected = ", ".join(f"{columns.get(name, text(name))} AS {name}" for name in STAGED_COLUMNS)
    return f"SELECT {selected} FROM ({numbers_sql(source)})"


def reason_sql(latest_s: int) -> str:
    """SQL: why a row cannot be an event, or null. Casts round, so each is compared back."""
    return (
        "CASE WHEN id IS NULL OR id_ IS NULL OR id_ <= 0 OR id_::VARCHAR <> id "
        "THEN 'id is not a whole number' "
        "WHEN timecreated IS NULL OR second_ IS NULL OR second_::VARCHAR <> timecreated "
        "THEN 'timecreated is not a whole number' "
        f"WHEN second_ NOT BETWEEN {EARLIEST_S} AND {latest_s} "
        "THEN 'timecreated is before 2000 or more than a year ahead' "
        "WHEN userid IS NULL OR user_ IS NULL OR user_::VARCHAR <> userid "
        "THEN 'userid is not a whole number' "
        "WHEN courseid IS NOT NULL AND (course_ IS NULL OR course_::VARCHAR <> courseid) "
        "THEN 'courseid is not a whole number' "
        "WHEN eventname IS NULL THEN 'eventname is empty' END"
    )


def numbers_sql(source: str) -> str:
    """SQL: `source` with the columns that `reason_sql` needs: the numbers as numbers."""
    return (
        f"SELECT *, try_cast(id AS BIGINT) AS id_, try_cast(timecreated AS BIGINT) AS second_, "
        f"try_cast(userid AS BIGINT) AS user_, try_cast(courseid AS BIGINT) AS course_ "
        f"FROM {source}"
    )
