"""Sets of hashes in memory and on disk, against Python's own."""

import pickle
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.checks.overlap.hash_index import HashSet, OwnedHashesWriter

HASHES = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 40) | st.integers(2**64 - 40, 2**64 - 1), max_size=60)


@given(HASHES, HASHES)
def test_a_set_finds_what_is_in_it(inside: list[int], asked: list[int]) -> None:
    hashes = HashSet(np.unique(np.array(inside, dtype=np.uint64)))
    queries = np.array(asked + inside[:5], dtype=np.uint64)
    assert hashes.contains(queries).tolist() == [int(query) in set(inside) for query in queries]


def test_owned_hashes_are_merged_in_parts_and_keep_the_smallest_owner(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    hashes = np.concatenate((draw.integers(0, 2**64, 500, dtype=np.uint64), np.arange(50, dtype=np.uint64)))
    hashes = draw.permutation(np.concatenate((hashes, hashes[:300], np.array([2**64 - 1], dtype=np.uint64))))
    owners = draw.integers(0, 1000, len(hashes)).astype(np.int32)
    expected: dict[int, int] = {}
    for hashed, owner in zip(hashes.tolist(), owners.tolist(), strict=True):
        expected[hashed] = min(owner, expected.get(hashed, owner))
    for at_once in (7, 10**6):
        writer = OwnedHashesWriter(tmp_path / str(at_once), at_once=at_once)
        for start in range(0, len(hashes), 100):
            writer.add(hashes[start : start + 100], owners[start : start + 100])
        owned = pickle.loads(pickle.dumps(writer.finish()))  # noqa: S301 (what this test has written)
        queries = np.concatenate((hashes, draw.integers(0, 2**64, 500, dtype=np.uint64)))
        found, found_owners = owned.find(queries)
        assert found.tolist() == list(range(len(hashes)))
        assert found_owners.tolist() == [expected[hashed] for hashed in hashes.tolist()]


def test_no_hashes_at_all(tmp_path: Path) -> None:
    owned = OwnedHashesWriter(tmp_path / "none").finish()
    assert owned.find(np.arange(5, dtype=np.uint64))[0].tolist() == []
