"""Ids that are noted beside the lake, for whoever accepts events one by one.

The register of accepted ids is in PostgreSQL and has a row for each. To enter what files bring
would take longer than to read them, and to keep all for ever would fill it. So the ids of files,
and those that the register gives up, stand beside the lake in sorted arrays, 16 bytes an event,
which are searched where they lie.

What is found here is in the lake, or accepted and on its way there. What is not found may be in the
lake all the same: a run was killed before it noted its ids, or the event has an id of Moodle's log.
Then the landing finds it.
"""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from theon.lake.actions import flush_to_disk
from theon.settings import Settings

# An array that has grown to so many ids (64 MB) is not merged any further.
MOST_MERGED_IDS = 1 << 22

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Found:
    """What is known of some ids, in their order.

    Attributes:
        known: of each, whether it is noted.
        contents: the hash of what it stands for; 0 where it is not noted.
    """

    known: npt.NDArray[np.bool_]
    contents: Hashes


class LakeIds:
    """The ids of one lake. Ids and contents are the first 8 bytes of their MD5, as numbers.

    Any number of processes may read and add at a time.
    """

    def __init__(self, settings: Settings) -> None:
        """Name those of the lake of `settings`; reads nothing yet."""
        # Names with _ are none of the table's for who reads it; they go where it goes.
        self._root = settings.home_dir / "lake" / "events" / "_ids"
        self._open: dict[Path, dict[str, Hashes]] = {}

    def find(self, campus: str, ids: Hashes) -> Found:
        """Look for ids; of a campus of which none is noted this costs nothing."""
        known, contents = np.zeros(len(ids), np.bool_), np.zeros(len(ids), np.uint64)
        arrays = self._arrays(campus)
        if not arrays or not len(ids):
            return Found(known, contents)
        order = np.argsort(ids)  # neighbours lie on the same pages
        wanted = ids[order]
        for keys, said in arrays:
            at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            here = keys[at] == wanted
            known[order[here]] = True
            contents[order[here]] = said[at[here]]
        return Found(known, contents)

    def add(self, campus: str, ids: Hashes, contents: Hashes) -> None:
        """Note ids, each given once, with what they stand for; one that is noted stays as it is."""
        folder = self._folder(campus)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            fresh = ~self.find(campus, ids).known
            if not fresh.any():
                return
            for left in folder.glob("*.half"):  # by whoever was killed
                left.unlink()
            added = np.stack([ids[fresh], contents[fresh]])
            merged: list[Path] = []
            # Of arrays that each have twice as many as the next there are few, and each id is
            # merged few times.
            for path, array in sorted(self._stored(folder), key=lambda one: one[1].shape[1]):
                if array.shape[1] > min(2 * added.shape[1], MOST_MERGED_IDS):
                    break
                added = np.concatenate([added, array], axis=1)
                merged.append(path)
            _write(folder, added[:, np.argsort(added[0], kind="stable")])
            for path in merged:
                path.unlink()

    def _folder(self, campus: str) -> Path:
        return self._root / f"campus={campus}"

    def _arrays(self, campus: str) -> list[Hashes]:
        while True:
            try:
                return [array for _, array in self._stored(self._folder(campus))]
            except FileNotFoundError:  # merged into another since they were listed
                continue

    def _stored(self, folder: Path) -> list[tuple[Path, Hashes]]:
        """The arrays of a folder, mapped into memory; each has ids, ascending, and contents."""
        try:
            with os.scandir(folder) as entries:
                paths = [entry.path for entry in entries if entry.name.endswith(".npy")]
        except FileNotFoundError:
            return []
        before = self._open.get(folder, {})
        found = {
            path: before[path] if path in before else np.load(path, mmap_mode="r") for path in paths
        }
        self._open[folder] = found
        return [(Path(path), array) for path, array in found.items()]


def _write(folder: Path, array: Hashes) -> None:
    """Under its name at once or not at all."""
    path = folder / f"{uuid4().hex}.npy"
    half = path.with_suffix(".half")
    with half.open("wb") as out:
        np.save(out, array)
    flush_to_disk(half)
    half.rename(path)
    # The name too, before those go that it stands for.
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)
