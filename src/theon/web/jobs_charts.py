"""Small charts as shapes for SVG, whose places are attributes: the pages allow no inline styles."""

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, GAP = 600.0, 120.0, 0.2


@dataclass(frozen=True)
class Column:
    """A column of two parts; all numbers are in the units of the chart's view box."""

    x: float
    width: float
    lower_y: float
    lower: float
    upper_y: float
    upper: float


@dataclass(frozen=True)
class Columns:
    """A chart of columns; `top` is the value at its upper edge."""

    columns: tuple[Column, ...]
    top: int
    width: float = WIDTH
    height: float = HEIGHT


def columns(pairs: Sequence[tuple[int, int]]) -> Columns:
    """Columns for pairs of values; of each pair the second stands on the first."""
    top = max((lower + upper for lower, upper in pairs), default=0)
    scale = HEIGHT / max(top, 1)
    step = WIDTH / max(len(pairs), 1)
    return Columns(
        tuple(
            Column(
                round(n * step + step * GAP / 2, 2),
                round(step * (1 - GAP), 2),
                round(HEIGHT - lower * scale, 2),
                round(lower * scale, 2),
                round(HEIGHT - (lower + upper) * scale, 2),
                round(upper * scale, 2),
            )
            for n, (lower, upper) in enumerate(pairs)
        ),
        top,
    )
