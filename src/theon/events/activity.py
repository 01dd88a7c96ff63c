"""Which events count as activity, and as what: `activity_rules.toml` compiled to SQL.

The rules are data; this module only turns them into boolean expressions over the columns
of `EVENT_SCHEMA`, in SQL that every engine understands, so that a rule is evaluated for
whole columns and never row by row.
"""

import hashlib
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from theon.errors import InputError
from theon.events.schema import EVENT_SCHEMA

Rule = dict[str, Any]


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _condition(key: str, value: Any) -> str:
    columns = set(EVENT_SCHEMA.names)
    if key in columns:
        return f"{key} IN ({', '.join(map(_text, value))})"
    if key.removeprefix("not_") in columns:
        column = key.removeprefix("not_")
        return f"({column} IS NULL OR {column} NOT IN ({', '.join(map(_text, value))}))"
    if key.removesuffix("_contains") in columns:
        return f"contains({key.removesuffix('_contains')}, {_text(value)})"
    if key.removesuffix("_prefix") in columns:
        return f"starts_with({key.removesuffix('_prefix')}, {_text(value)})"
    kinds = {"absent": "{} IS NULL", "present": "{} IS NOT NULL", "true": "{} IS TRUE"}
    if key in kinds and set(value) <= columns:
        return " AND ".join(kinds[key].format(column) for column in value)
    raise InputError(
        f"unknown condition {key!r} = {value!r}",
        where="activity_rules.toml",
        next_step=f"Conditions are explained at the top of the file; columns: {sorted(columns)}.",
    )


def _any_of(rules: list[Rule]) -> str:
    """SQL that is true where one of `rules` holds, and never null."""
    alternatives = [" AND ".join(_condition(k, v) for k, v in rule.items()) for rule in rules]
    return f"coalesce({' OR '.join(f'({a})' for a in alternatives)}, false)"


@dataclass(frozen=True)
class ActivityRules:
    """The compiled rules.

    Attributes:
        exclusions: (reason, boolean SQL) in order; the first that holds gives the reason.
        measures: measure name to boolean SQL.
        hash: changes when a rule changes; cells built under another hash are built again.
    """

    exclusions: tuple[tuple[str, str], ...]
    measures: dict[str, str]
    hash: str

    def reason_sql(self) -> str:
        """SQL text expression: null for activity, else why the event does not count."""
        cases = " ".join(f"WHEN {sql} THEN {_text(reason)}" for reason, sql in self.exclusions)
        return f"CASE {cases} END"

    def counts_sql(self) -> str:
        """SQL boolean expression: true where the event is activity; cheaper than the reason."""
        return " AND ".join(f"NOT {sql}" for _, sql in self.exclusions)

    @property
    def reasons(self) -> list[str]:
        """Every reason an event may have for not counting, in order of precedence."""
        return [reason for reason, _ in self.exclusions]


def parse_rules(text: str) -> ActivityRules:
    """Compile rules from the text of a rules file.

    Raises:
        InputError: a condition or column is unknown.
    """
    data = tomllib.loads(text)
    exclusions = tuple((e["reason"], _any_of(e["any"])) for e in data["excluded"])
    measures = {name: _any_of(m["any"]) for name, m in data["measures"].items()}
    canonical = repr((exclusions, measures))
    return ActivityRules(exclusions, measures, hashlib.sha256(canonical.encode()).hexdigest()[:16])


@cache
def load_rules() -> ActivityRules:
    """The rules Theon ships with."""
    return parse_rules(resources.files("theon.events").joinpath("activity_rules.toml").read_text())
