"""What a mapping compiles to: each step has what the steps above it need, and nothing else."""

import duckdb

from theon.intake.steps import Steps


def answer(steps: Steps, columns: dict[str, str]) -> list[tuple[object, ...]]:
    return duckdb.sql(steps.select(columns)).fetchall()


def made() -> Steps:
    steps = Steps("(SELECT 1 AS a, 2 AS b, 'x' AS unused)", ["a", "b", "unused"])
    steps.add({"c": "a + b", "d": "error('nobody asked')"})
    steps.let({"e": "c * 10", "f": "a", "g": "e + f"})
    return steps


def test_names_may_use_those_before_them() -> None:
    assert answer(made(), {"g": "g", "b": "b"}) == [(31, 2)]


def test_what_nobody_asks_for_does_not_stand_there() -> None:
    assert "error" not in made().select({"g": "g"})
    assert made().select({"a": "a"}) == (
        "SELECT a AS a FROM (SELECT 1 AS a, 2 AS b, 'x' AS unused)"
    )


def test_a_name_that_is_given_anew_has_its_old_meaning_below() -> None:
    steps = made()
    steps.add({"a": "a + 100", "h": "a"})
    steps.let({"i": "a + h"})
    assert answer(steps, {"a": "a", "h": "h", "i": "i", "g": "g"}) == [(101, 1, 102, 31)]
