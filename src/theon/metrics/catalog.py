"""The catalog of metrics: every file in `definitions/` is one metric.

A definition starts with a block comment that holds TOML: the question the metric answers, its
owner, grain, version and columns. The rest is one SELECT in DuckDB's dialect over the tables

- `days`: one row per learner, course and local day with activity: campus, user_id,
  course_id, day, week_start, month_start, total_actions, time_spent_s, a column per measure
  of the activity rules, first_access, last_access;
- `cells`: the same per quarter of an hour (`slot`), without time_spent_s.

A row of a metric must depend only on the rows of `days` (or `cells`) that agree with its grain.

Where a metric has outcome columns, a second SELECT follows after a semicolon: the grain without
campus, and these columns, over the states of outcomes (`theon/outcomes/states`). PostgreSQL runs
it when events come, for the learners and courses they are about, and DuckDB when metrics are
verified, so it is written in what both understand. A row must depend only on the states of its
learner in its course.
"""

import hashlib
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

import pyarrow as pa

from theon.errors import InputError

_HEADER = re.compile(r"\A/\*(?P<toml>.*?)\*/\s*(?P<sql>.*)\Z", re.DOTALL)
_STATEMENT_END = re.compile(r";[ \t]*(?:\n|\Z)")

# How a column's type is called in a definition, in Arrow and in PostgreSQL.
_TYPES: dict[str, tuple[pa.DataType, str]] = {
    "text": (pa.string(), "text"),
    "integer": (pa.int64(), "bigint"),
    "number": (pa.float64(), "double precision"),
    "date": (pa.date32(), "date"),
    "timestamp": (pa.timestamp("us", tz="UTC"), "timestamptz"),
}
PERIODS = {"day": "day", "week_start": "week", "month_start": "month"}


@dataclass(frozen=True)
class Column:
    """One column of a metric.

    Attributes:
        name: as in the query, the export and the page.
        type: `text`, `integer`, `number`, `date` or `timestamp` (UTC).
        unit: what a value counts, e.g. `actions`, `seconds`; empty for keys.
        description: one sentence.
        family: `key`, `activity` (written by the refresh) or `outcome` (by observers).
    """

    name: str
    type: str
    unit: str
    description: str
    family: str

    @property
    def arrow_type(self) -> pa.DataType:
        """The column's Arrow type."""
        return _TYPES[self.type][0]

    @property
    def postgres_type(self) -> str:
        """The column's PostgreSQL type."""
        return _TYPES[self.type][1]


@dataclass(frozen=True)
class Metric:
    """One definition.

    Attributes:
        name: the file's name.
        question: what it answers, in words.
        owner: who answers for it.
        grain: its key columns, beginning with `campus`.
        columns: all columns in export order.
        version: raised when columns change.
        requirements: ids of the promises it keeps.
        sql: the query.
        outcome_sql: the query of the outcome columns; empty where there are none.
        hash: changes with the queries or the columns.
    """

    name: str
    question: str
    owner: str
    grain: tuple[str, ...]
    columns: tuple[Column, ...]
    version: int
    requirements: tuple[str, ...]
    sql: str
    hash: str
    outcome_sql: str = ""

    def family(self, name: str) -> list[Column]:
        """The columns of one family, in order."""
        return [c for c in self.columns if c.family == name]

    @property
    def keys(self) -> list[str]:
        """The grain without the campus."""
        return [k for k in self.grain if k != "campus"]

    @property
    def period(self) -> str:
        """`day`, `week` or `month`: what one row covers."""
        return next(PERIODS[k] for k in self.grain if k in PERIODS)

    @property
    def period_column(self) -> str:
        """The grain's column that says when the period begins."""
        return next(k for k in self.grain if k in PERIODS)

    @property
    def table(self) -> str:
        """The physical table of this version; readers use the view `metrics.<name>`."""
        return f"metrics.{self.name}_v{self.version}"

    @property
    def outcome_table(self) -> str:
        """The same for the outcome columns, if there are any."""
        return f"{self.table}_outcomes"

    def schema(self, *families: str) -> pa.Schema:
        """Arrow schema of the columns of some families (all: none given), in order."""
        wanted = [c for c in self.columns if not families or c.family in families]
        return pa.schema([pa.field(c.name, c.arrow_type) for c in wanted])


def parse_metric(name: str, text: str) -> Metric:
    """Read one definition.

    Raises:
        InputError: the header is missing, is no TOML, or lacks something; says what.
    """
    where = f"metrics/definitions/{name}.sql"
    match = _HEADER.match(text)
    if match is None:
        raise InputError(
            "the definition has no header",
            where=where,
            next_step="Begin the file with /* question = …, owner = …, grain = […], version = … */",
        )
    try:
        header = tomllib.loads(match["toml"])
        columns = tuple(
            Column(
                name=column,
                type=c["type"],
                unit=c.get("unit", ""),
                description=c["description"],
                family="key" if column in header["grain"] else c.get("family", "activity"),
            )
            for column, c in header["columns"].items()
        )
        statements = [s.strip() for s in _STATEMENT_END.split(match["sql"]) if s.strip()]
        metric = Metric(
            name=name,
            question=header["question"],
            owner=header["owner"],
            grain=tuple(header["grain"]),
            columns=columns,
            version=header["version"],
            requirements=tuple(header.get("requirements", [])),
            sql=statements[0],
            outcome_sql="".join(statements[1:]),
            hash=hashlib.sha256(f"{columns}{match['sql']}".encode()).hexdigest()[:16],
        )
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the header is no TOML: {error}", where=where) from error
    except KeyError as error:
        raise InputError(f"the header lacks {error}", where=where) from error
    _check(metric, where)
    return metric


def _check(metric: Metric, where: str) -> None:
    names = [c.name for c in metric.columns]
    problems = []
    if metric.grain[0] != "campus" or names[: len(metric.grain)] != list(metric.grain):
        problems.append("columns must begin with the grain, and the grain with campus")
    if sum(k in PERIODS for k in metric.grain) != 1:
        problems.append(f"the grain needs exactly one of {sorted(PERIODS)}")
    problems += [
        f"column {c.name} has the unknown type {c.type}"
        for c in metric.columns
        if c.type not in _TYPES
    ]
    outcomes = [c.name for c in metric.columns if c.family == "outcome"]
    if bool(outcomes) != bool(metric.outcome_sql):
        problems.append(
            f"{', '.join(outcomes)} have no query: a second SELECT after a semicolon"
            if outcomes
            else "there is a second query, but no column of the family outcome"
        )
    if outcomes and not {"user_id", "course_id"} <= set(metric.grain):
        problems.append("outcome columns need user_id and course_id in the grain")
    if problems:
        raise InputError("; ".join(problems), where=where)


@cache
def load_catalog() -> dict[str, Metric]:
    """Every metric Theon ships with, by name, in alphabetical order."""
    folder = resources.files("theon.metrics").joinpath("definitions")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return {f.name[:-4]: parse_metric(f.name[:-4], f.read_text()) for f in files}


def get_metric(name: str) -> Metric:
    """The metric called `name`.

    Raises:
        InputError: there is none; lists those there are.
    """
    catalog = load_catalog()
    if name not in catalog:
        raise InputError(
            f"there is no metric {name!r}",
            next_step=f"Metrics: {', '.join(catalog)}. See `theon metrics list`.",
        )
    return catalog[name]
