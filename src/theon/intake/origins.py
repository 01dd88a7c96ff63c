"""Where events stood in a file of JSON: for whoever is to look at a line that was refused."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from theon.intake.arrivals import ORDINAL, REFUSED_SCHEMA
from theon.intake.json_lines import Blocks, Ending, cut_file
from theon.intake.mapped import map_lines
from theon.intake.staged import Staged, Unread, rejects_table
from theon.jobs.context import clean

# Of lines that are read again, so much is kept; of more only the numbers are known.
MOST_ORIGINAL_BYTES = 1 << 26


@dataclass(frozen=True)
class Origins:
    """Of the rows of a staged file.

    Attributes:
        path: the file that they came from.
        shown: its name within the folder that is read, '' where it is read alone.
        mapping: by which its lines are read.
        line_numbers: of each row, where it begins in the unpacked file, from 1.
        numbers: of each row, which event of the file it is, from 0.
    """

    path: Path
    shown: str
    mapping: str
    line_numbers: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]

    def lines(self, rows: npt.NDArray[np.int64], ids: Sequence[str]) -> list[bytes | None]:
        """Read lines again, as they stand in the file.

        Args:
            rows: of the staged file, ascending.
            ids: of their events.

        Returns:
            Of each row its line; None where the file holds another event there by now, or none,
            and beyond `MOST_ORIGINAL_BYTES`.
        """
        try:
            found = list(self._lines(self.numbers[rows]))
        except OSError:  # it was read a moment ago; a log may have been rotated since
            found = []
        if not found:
            return [None] * len(rows)
        at = pa.array(range(len(found)), pa.int32())
        events = map_lines(
            pa.table({ORDINAL: at, "line": pa.array(found, pa.binary())}), self.mapping
        ).events.select([ORDINAL, "event_id"])
        said = {row[ORDINAL]: row["event_id"] for row in events.to_pylist()}
        same = [said.get(number) == one for number, one in enumerate(ids)]
        found += [b""] * (len(rows) - len(found))
        return [line if fits else None for line, fits in zip(found, same, strict=True)]

    def _lines(self, wanted: npt.NDArray[np.int64]) -> Iterator[bytes]:
        """The events with these numbers, up to `MOST_ORIGINAL_BYTES`."""
        first = size_bytes = 0
        for cut in cut_file(Blocks(self.path), Ending()):
            here = (wanted >= first) & (wanted < first + len(cut.events))
            lines: list[Any] = cut.events.take(wanted[here] - first).to_pylist()
            for line in lines:
                size_bytes += len(line)
                if size_bytes > MOST_ORIGINAL_BYTES:
                    return
                yield line
            first += len(cut.events)
            if first > wanted[-1]:
                return


@dataclass(frozen=True, kw_only=True)
class StagedLines(Staged):
    """A part of a file of JSON.

    Attributes:
        origins: where its rows stood.
        unread: its rejects, as `rejects` lists them.
    """

    origins: Origins
    unread: Unread


def name_places(
    refused: pa.Table, path: Path, shown: str, line_numbers: "npt.NDArray[np.int64]"
) -> pa.Table:
    """`refused` (`REFUSED_SCHEMA`) with its places: file and line, of each ordinal."""
    name = clean(shown or path.name)
    places = [f"{name}, line {line_numbers[at]}" for at in refused[ORDINAL].to_pylist()]
    column = refused.schema.get_field_index("place")
    return refused.set_column(column, REFUSED_SCHEMA.field("place"), pa.array(places, pa.string()))


def as_rejects(refused: pa.Table, shown: str, line_numbers: "npt.NDArray[np.int64]") -> pa.Table:
    """`refused` (`REFUSED_SCHEMA`) as `REJECT_SCHEMA`; `line_numbers` of each ordinal."""
    listed: list[tuple[int | None, str, str | None, str | None]] = []
    for row in refused.to_pylist():
        said = row["detail"]
        if shown:
            said = f"{clean(shown)}: {said}" if said else clean(shown)
        original: Any = row["original"].decode("utf-8", "backslashreplace")
        line = int(line_numbers[row[ORDINAL]])
        listed.append((line, row["reason"], said, original))
    return rejects_table(listed)
