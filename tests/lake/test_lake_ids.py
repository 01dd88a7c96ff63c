"""Ids that files brought: what was noted is found, with what it stands for, and nothing else is."""

import multiprocessing
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theon.lake import lake_ids
from theon.lake.lake_ids import Hashes, LakeIds
from theon.settings import Settings

LARGEST = (1 << 64) - 1
HASHES = st.integers(0, LARGEST) | st.integers(0, 9)


def of(home: Path) -> LakeIds:
    return LakeIds(Settings(home=home))


def numbers(values: Sequence[int]) -> Hashes:
    return np.array(values, np.uint64)


def arrays(home: Path, campus: str = "lincoln") -> list[int]:
    """How many ids each has."""
    folder = home / "lake" / "events" / "_ids" / f"campus={campus}"
    return sorted(np.load(path).shape[1] for path in folder.glob("*.npy"))


@given(
    batches=st.lists(st.dictionaries(HASHES, HASHES, max_size=20), max_size=8),
    others=st.lists(HASHES, max_size=5),
)
def test_what_was_noted_is_found_with_the_first_content_and_nothing_else_is(
    batches: list[dict[int, int]], others: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        reader, noted = of(home), dict[int, int]()
        for batch in batches:
            of(home).add("lincoln", numbers(list(batch)), numbers(list(batch.values())))
            noted = batch | noted
            asked = [*noted, *others]
            found = reader.find("lincoln", numbers(asked))
            assert found.known.tolist() == [one in noted for one in asked]
            assert found.contents.tolist() == [noted.get(one, 0) for one in asked]
        assert not reader.find("elm", numbers(list(noted))).known.any()
        assert sum(arrays(home)) == len(noted)


def test_there_are_few_arrays_however_often_a_few_ids_are_added(tmp_path: Path) -> None:
    ids = of(tmp_path)
    for number in range(300):
        ids.add("lincoln", numbers([number]), numbers([number]))
    assert sum(arrays(tmp_path)) == 300
    assert len(arrays(tmp_path)) <= 9


def test_a_large_array_is_not_written_again_for_a_few_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lake_ids, "MOST_MERGED_IDS", 100)
    ids = of(tmp_path)
    for first in (0, 1_000, 2_000):
        ids.add("lincoln", numbers(range(first, first + 150)), numbers(range(150)))
    assert arrays(tmp_path) == [150, 150, 150]
    assert ids.find("lincoln", numbers([1_149, 2_000])).contents.tolist() == [149, 0]


def add_some(home: Path, first: int) -> None:
    ids = of(home)
    for number in range(first, 400, 4):
        ids.add("lincoln", numbers([number, 1_000]), numbers([number, 7]))


def test_processes_that_add_and_look_at_a_time_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    adding = [context.Process(target=add_some, args=(tmp_path, first)) for first in range(4)]
    for process in adding:
        process.start()
    ids, seen = of(tmp_path), 0
    while any(process.is_alive() for process in adding):
        found = int(ids.find("lincoln", numbers(range(400))).known.sum())
        assert found >= seen  # what was there once stays there
        seen = found
    for process in adding:
        process.join()
    assert [process.exitcode for process in adding] == [0] * 4
    found = ids.find("lincoln", numbers(range(400)))
    assert found.known.all()
    assert found.contents.tolist() == list(range(400))


def test_what_a_killed_writer_left_is_no_array_and_goes(tmp_path: Path) -> None:
    ids = of(tmp_path)
    ids.add("lincoln", numbers([1]), numbers([2]))
    [array] = tmp_path.rglob("*.npy")
    left = array.with_name("half-written.half")
    left.write_bytes(array.read_bytes()[:100])
    assert ids.find("lincoln", numbers([1])).known.all()
    ids.add("lincoln", numbers([3]), numbers([4]))
    assert not left.exists()
