"""Which events count as activity, and as what: `activity_rules.toml` compiled to SQL.

The rules are data; this module only turns them into boolean expressions over the columns
of `EVENT_SCHEMA`, so that a rule is evaluated for whole columns and never row by row.
"""

import hashlib
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from theon.errors import InputError
from theon.events.schema import EVENT_SCHEMA

Rule = dict[str, Any]
OneOf = Callable[[str, list[str]], tuple[str, str]]


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _filtered(column: str, values: list[str]) -> tuple[str, str]:
    """`column` is one of `values`, and is not, for a WHERE: engines push it into the reader."""
    listed = ", ".join(map(_text, values))
    return f"{column} IN ({listed})", f"{column} NOT IN ({listed})"


def _computed(column: str, values: list[str]) -> tuple[str, str]:
    """The same for an expression over rows that were read.

    DuckDB evaluates a function once per distinct value of a column that was read from a
    dictionary, but IN once per row.
    """
    found = f"array_position([{', '.join(map(_text, values))}], {column})"
    return f"{found} IS NOT NULL", f"{found} IS NULL"


def _condition(key: str, value: Any, one_of: OneOf) -> tuple[str, str]:
    """A condition and its negation, neither ever null.

    The negation is spelt out because engines push `column IN (…)` into the file reader, and
    not `NOT coalesce(column NOT IN (…), true)`.
    """
    columns = set(EVENT_SCHEMA.names)
    if key in columns:
        positive, negative = one_of(key, value)
        return f"({key} IS NOT NULL AND {positive})", f"({key} IS NULL OR {negative})"
    if key.removeprefix("not_") in columns:
        positive, negative = _condition(key.removeprefix("not_"), value, one_of)
        return negative, positive
    for suffix, function in (("_contains", "contains"), ("_prefix", "starts_with")):
        column = key.removesuffix(suffix)
        if column != key and column in columns:
            found = f"{function}({column}, {_text(value)})"
            return f"({column} IS NOT NULL AND {found})", f"({column} IS NULL OR NOT {found})"
    kinds = {
        "absent": ("IS NULL", "IS NOT NULL"),
        "present": ("IS NOT NULL", "IS NULL"),
        "true": ("IS TRUE", "IS NOT TRUE"),
    }
    if key in kinds and set(value) <= columns:
        positive, negative = kinds[key]
        return (
            _join(" AND ", [f"{c} {positive}" for c in value]),
            _join(" OR ", [f"{c} {negative}" for c in value]),
        )
    raise InputError(
        f"unknown condition {key!r} = {value!r}",
        where="activity_rules.toml",
        next_step=f"Conditions are explained at the top of the file; columns: {sorted(columns)}.",
    )


def _join(operator: str, conditions: list[str]) -> str:
    return conditions[0] if len(conditions) == 1 else f"({operator.join(conditions)})"


def _any_of(rules: list[Rule], one_of: OneOf) -> tuple[str, str]:
    """SQL that is true where one of `rules` holds, and SQL that is true where none does."""
    pairs = [[_condition(key, value, one_of) for key, value in rule.items()] for rule in rules]
    holds = _join(" OR ", [_join(" AND ", [yes for yes, _ in rule]) for rule in pairs])
    fails = _join(" AND ", [_join(" OR ", [no for _, no in rule]) for rule in pairs])
    return holds, fails


@dataclass(frozen=True)
class ActivityRules:
    """The compiled rules.

    Attributes:
        exclusions: (reason, SQL that holds where it applies, SQL that holds where it does not)
            in order; the first that applies gives the reason.
        measures: measure name to boolean SQL.
        hash: changes when a rule changes; cells built under another hash are built again.
    """

    exclusions: tuple[tuple[str, str, str], ...]
    measures: dict[str, str]
    hash: str

    def reason_sql(self) -> str:
        """SQL text expression: null for activity, else why the event does not count."""
        cases = " ".join(f"WHEN {sql} THEN {_text(reason)}" for reason, sql, _ in self.exclusions)
        return f"CASE {cases} END"

    def counts_sql(self) -> str:
        """SQL boolean expression: true where the event is activity; cheaper than the reason."""
        return " AND ".join(fails for _, _, fails in self.exclusions)

    @property
    def reasons(self) -> list[str]:
        """Every reason an event may have for not counting, in order of precedence."""
        return [reason for reason, _, _ in self.exclusions]


def parse_rules(text: str) -> ActivityRules:
    """Compile rules from the text of a rules file.

    Raises:
        InputError: a condition or column is unknown.
    """
    data = tomllib.loads(text)
    exclusions = tuple((e["reason"], *_any_of(e["any"], _filtered)) for e in data["excluded"])
    measures = {name: _any_of(m["any"], _computed)[0] for name, m in data["measures"].items()}
    canonical = repr((exclusions, measures))
    return ActivityRules(exclusions, measures, hashlib.sha256(canonical.encode()).hexdigest()[:16])


@cache
def load_rules() -> ActivityRules:
    """The rules Theon ships with."""
    return parse_rules(resources.files("theon.events").joinpath("activity_rules.toml").read_text())
