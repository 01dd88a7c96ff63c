"""SQL in steps: columns over columns over columns, each step with what is needed above it only.

Statements that run for one line at a time are not optimized (`theon.intake.mapped`), so what nobody
asks for must not stand in them.
"""

import re
from collections.abc import Iterable, Mapping


class Steps:
    """Named expressions, in steps that may use what the steps before them name."""

    def __init__(self, source: str, columns: Iterable[str]) -> None:
        """Begin.

        Args:
            source: what stands behind FROM.
            columns: that it has.
        """
        self._source = source
        self._columns = set(columns)
        self._steps: list[dict[str, str]] = []

    def add(self, names: Mapping[str, str]) -> None:
        """A step: names and their expressions, which may use names of earlier steps.

        A name that was there already has its new meaning from now on.
        """
        if names:
            self._steps.append(dict(names))

    def let(self, names: Mapping[str, str]) -> None:
        """As many steps as it takes for each name to use those before it in `names`."""
        step: dict[str, str] = {}
        for name, sql in names.items():
            # Every step costs, so a new one begins only where a name of this one is used.
            if not step.keys().isdisjoint(_words(sql)):
                self.add(step)
                step = {}
            step[name] = sql
        self.add(step)

    def select(self, columns: Mapping[str, str]) -> str:
        """A SELECT of expressions over all names, as these columns."""
        needed = {word for sql in columns.values() for word in _words(sql)}
        levels: list[str] = []
        for at in reversed(range(len(self._steps))):
            step = {name: sql for name, sql in self._steps[at].items() if name in needed}
            if not step:
                continue
            before = self._columns.union(*self._steps[:at])
            kept = sorted((needed - step.keys()) & before)
            levels.append(", ".join([*kept, *(f"{sql} AS {name}" for name, sql in step.items())]))
            needed = set(kept).union(*map(_words, step.values()))
        source = self._source
        for listed in reversed(levels):
            source = f"(SELECT {listed} FROM {source})"
        wanted = ", ".join(f"{sql} AS {name}" for name, sql in columns.items())
        return f"SELECT {wanted} FROM {source}"


def _words(sql: str) -> set[str]:
    """What may be names in an expression, and more."""
    return set(re.findall(r"\w+", sql))
