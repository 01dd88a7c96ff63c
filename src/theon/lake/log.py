"""The lake's commit log, read for what changed: a commit that only moves events changes nothing."""

import json
from pathlib import Path
from urllib.parse import unquote


def changed_paths(log: Path, since: int, version: int) -> set[str] | None:
    """The data files with events that came after a version.

    A file that a compaction has merged into others meanwhile is not there any more; these others
    are given in its place.

    Args:
        log: the folder of the commits.
        since: what came with this version is known already.
        version: the last version to look at.

    Returns:
        Paths relative to the table; None if the log does not say, because a commit was cleared
        away or took events out.
    """
    changed: set[str] = set()
    for number in range(since + 1, version + 1):
        try:
            commit = (log / f"{number:020}.json").read_bytes()
        except FileNotFoundError:
            return None
        moved_from: set[str] = set()
        moved_to: set[str] = set()
        for line in commit.splitlines():
            action = json.loads(line)
            if "add" in action:
                came = moved_to if action["add"]["dataChange"] is False else changed
                came.add(unquote(action["add"]["path"]))
            elif "remove" in action:
                if action["remove"]["dataChange"] is not False:
                    return None
                moved_from.add(unquote(action["remove"]["path"]))
        if moved_from & changed:
            changed = changed - moved_from | moved_to
    return changed


def clear(log: Path, needed: int, before: float) -> int:
    """Delete commits that nobody asks for any more; what they say is in a checkpoint.

    Whoever opens the table lists its log, and events that arrive one by one commit twice a second.

    Args:
        log: the folder of the commits.
        needed: the oldest version that some reader remembers.
        before: epoch seconds; files that were written later stay.

    Returns:
        How many files were deleted.
    """
    found = [
        int(path.name.partition(".")[0]) for path in log.glob(f"{'[0-9]' * 20}.checkpoint.parquet")
    ]
    kept = max((version for version in found if version <= needed), default=0)
    old = [
        path
        for path in log.glob(f"{'[0-9]' * 20}.*")
        if int(path.name.partition(".")[0]) < kept and path.stat().st_mtime < before
    ]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)
