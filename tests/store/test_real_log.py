"""The log of a real Moodle site through the database and back, value for value."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pytest
from sqlalchemy import text

from theon.roster.campuses import add_campus
from theon.roster.people_and_courses import upsert_people
from theon.store.bulk import copy_in, read_arrow
from theon.store.engine import Store
from theon.store.scope import Scope

pytestmark = pytest.mark.real_data

TYPES = {"other": pa.string(), "ip": pa.string(), "userid": pa.string()}


@pytest.fixture(scope="module")
def log(moodle_data: Path) -> pa.Table:
    """All rows of the log: JSON and PHP-serialised payloads, quotes, log-in-as, odd ids."""
    with gzip.open(moodle_data / "logstore_standard_log_43.csv.gz") as file:
        return pacsv.read_csv(
            file,
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                column_types=TYPES, strings_can_be_null=True, quoted_strings_can_be_null=False
            ),
        )


def test_a_real_log_comes_back_as_it_went_in(store: Store, log: pa.Table) -> None:
    """Every value of every row, whichever way it is quoted or serialised."""
    columns = {
        field.name: "bigint" if pa.types.is_integer(field.type) else "text" for field in log.schema
    }
    declared = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
    with store.transaction(Scope.district()) as conn:
        conn.exec_driver_sql(f"CREATE TEMPORARY TABLE log ({declared}) ON COMMIT DROP")
        assert copy_in(conn, "log", log) == log.num_rows == 5_798
        back = read_arrow(conn, "SELECT * FROM log ORDER BY id", None, log.schema).read_all()
    assert back.sort_by("id") == log.sort_by("id").combine_chunks()


def test_the_people_of_a_real_log_become_ids_once(store: Store, log: pa.Table) -> None:
    """As many people as distinct ids; again changes none."""
    campus = add_campus(store, "lincoln", "Europe/London")
    ids = pc.unique(log["userid"])
    people = pa.table({"user_id": ids})
    assert upsert_people(store, campus, people) == len(ids)
    assert upsert_people(store, campus, people) == 0
    with store.transaction(Scope("lincoln")) as conn:
        count = conn.execute(text("SELECT count(*) FROM theon.people")).scalar_one()
    assert count == len(ids)
