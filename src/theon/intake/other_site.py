"""Refuses rows of another Moodle site than the one that a campus's log came from.

Every site counts its log rows from 1. An id that stands for another row here would be taken for a
known one, and its event would be missing in silence. A file does not name its site; but of two
sites the rows of one id differ, so some rows of the file are compared.
"""

from dataclasses import replace

from theon.errors import InputError
from theon.intake.staged import Staged
from theon.lake.engine import open_engine, sql_list, sql_text
from theon.lake.table import EventLake
from theon.roster.campuses import Campus
from theon.settings import Settings

LOOKED_AT = 10_000
# What stays as it is whichever columns an export has.
_SAID = ("occurred_at", "user_id", "event_name")
_DIFFERS = " OR ".join(f"s.{name} IS DISTINCT FROM l.{name}" for name in _SAID)


def refuse_other_site(
    lake: EventLake, settings: Settings, campus: Campus, staged: Staged, where: str
) -> Staged:
    """Compare rows of a staged log with those of the same ids in the lake.

    Args:
        lake: of its files those of the times in the log, as only these hide a row of it.
        settings: of the engine.
        campus: whose events.
        staged: the log.
        where: the log is, for the message.

    Returns:
        The same, with a note if some do.

    Raises:
        InputError: most of them stand for something else.
    """
    rows = f"read_parquet({sql_text(staged.path)})"
    with open_engine(settings) as engine:
        near = lake.files_near(engine, campus.slug, staged.path)
        if not near:
            return staged
        said = ", ".join(_SAID)
        # By their hashes, so that it is not some one hour or day.
        engine.execute(
            f"CREATE TEMP TABLE looked_at AS SELECT event_id, {said} FROM {rows}"
            f" ORDER BY hash(event_id) LIMIT {LOOKED_AT}"
        )
        engine.execute(
            f"CREATE TEMP TABLE both_have AS SELECT s.event_id, ({_DIFFERS}) AS differs,"
            " s.occurred_at AS at_there, s.event_name AS name_there,"
            " l.occurred_at AS at_here, l.event_name AS name_here"
            f" FROM looked_at s JOIN read_parquet({sql_list(near)}, hive_partitioning = false) l"
            " USING (event_id)"
        )
        [(same, other)] = engine.sql(
            "SELECT count(*) FILTER (NOT differs), count(*) FILTER (differs) FROM both_have"
        ).fetchall()
        if other == 0:
            return staged
        [example] = engine.sql(
            "SELECT substr(event_id, 8), name_there, at_there::VARCHAR, name_here, at_here::VARCHAR"
            " FROM both_have WHERE differs ORDER BY event_id LIMIT 1"
        ).fetchall()
    number, name_there, at_there, name_here, at_here = example
    found = (
        f"of {other + same:,} ids that were looked at {other:,} stand for something else here; "
        f"id {number} is {name_there} of {at_there} in the log, and {name_here} of {at_here} here"
    )
    if other <= same:
        note = f"Rows were changed since they were read: {found}. What was read first stays."
        return replace(staged, notes=(*staged.notes, note))
    raise InputError(
        "this seems to be the log of another Moodle site than the one that campus "
        f"{campus.slug!r} was read from: {found}",
        where=where,
        next_step="Nothing was read in. Read each Moodle site into a campus of its own (`theon "
        "campus add`): log ids of two sites would be taken for one another.",
    )
