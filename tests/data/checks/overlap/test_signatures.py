"""MinHash signatures, and the candidates for near-duplicates that they give."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.data.checks.overlap.text_sets import han, prose, reworded
from tunesmith.data.checks.overlap import candidates
from tunesmith.data.checks.overlap.candidates import NEIGHBOURS, PARTNERS, Candidates, find_candidates
from tunesmith.data.checks.overlap.clusters import Clusters
from tunesmith.data.checks.overlap.shingles import words_of
from tunesmith.data.checks.overlap.signatures import BANDS, VALUES, Shingles, SignatureStore, bands_of


def shingles(texts: Sequence[str]) -> Shingles:
    words = words_of(texts)
    return Shingles(words, np.zeros(len(words), dtype=np.bool_))


def signed(folder: Path, texts: Sequence[str]) -> SignatureStore:
    store = SignatureStore(folder)
    for start in range(0, len(texts), 50):
        store.add(*bands_of(shingles(texts[start : start + 50])))
    store.finish()
    return store


def all_pairs(found: Candidates) -> set[tuple[int, int]]:
    places = list(found.by_place())
    return {pair for first, second in places for pair in zip(first.tolist(), second.tolist(), strict=True)}


def candidates_of(
    folder: Path, texts: Sequence[str], in_train: NDArray[np.bool_] | None = None
) -> tuple[Candidates, Candidates]:
    at = np.arange(len(texts))
    in_train = np.ones(len(texts), dtype=np.bool_) if in_train is None else in_train
    return find_candidates(signed(folder, texts), at, in_train, smallest_similarity=0.55, within_train=True)


def test_a_rows_signature_does_not_depend_on_the_rows_beside_it() -> None:
    texts = [prose(random.Random(seed)) for seed in range(5)]
    together = bands_of(shingles(texts))
    for row, text in enumerate(texts):
        alone = bands_of(shingles([text]))
        assert np.array_equal(together[0][row], alone[0][0])
        assert np.array_equal(together[1][row], alone[1][0])


def test_equal_values_are_as_frequent_as_shared_shingles() -> None:
    draw = random.Random(1)
    texts = [prose(draw, 200) for _ in range(40)]
    changed = [reworded(text, draw, every=5) for text in texts]
    _, low = bands_of(shingles([*texts, *changed]))
    measured = np.mean(low[:40] == low[40:])
    sets = shingles([*texts, *changed])
    rows = [set(sets.hashes_H[sets.offsets[r] : sets.offsets[r + 1]].tolist()) for r in range(80)]
    exact = np.mean([len(a & b) / len(a | b) for a, b in zip(rows[:40], rows[40:], strict=True)])
    assert measured == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize("make", [prose, han])
def test_one_word_or_character_in_ten_changed_still_meets(make: Callable[[random.Random], str], tmp_path: Path) -> None:
    draw = random.Random(2)
    texts = [make(draw) for _ in range(150)]
    changed = [reworded(text, draw) for text in texts]
    within, across = candidates_of(tmp_path / "signatures", [*texts, *changed])
    found = all_pairs(within)
    assert sum((row + 150, row) in found for row in range(150)) >= 147
    assert len(found) <= 155
    assert not all_pairs(across)


def test_many_rows_alike_are_joined_by_few_pairs(tmp_path: Path) -> None:
    draw = random.Random(3)
    text = prose(draw)
    texts = [reworded(text, draw, every=12) for _ in range(300)]
    found = all_pairs(candidates_of(tmp_path / "signatures", texts)[0])
    assert max(Counter(first for first, _ in found).values()) == PARTNERS
    assert all(second < first for first, second in found)
    clusters = Clusters(300)
    for first, second in found:
        clusters.join(first, second)
    assert not clusters.smallest().any()


def test_weeding_out_in_between_keeps_the_same_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(5)
    text = prose(draw)
    texts = [reworded(text, draw, every=12) for _ in range(100)]
    found = []
    for pending in (4_000_000, 30):
        monkeypatch.setattr(candidates, "PENDING_PAIRS", pending)
        found.append(all_pairs(candidates_of(tmp_path / str(pending), texts)[0]))
    assert found[0] == found[1]


def test_train_meets_evaluation_but_evaluation_not_itself(tmp_path: Path) -> None:
    draw = random.Random(4)
    text = prose(draw)
    texts = [reworded(text, draw, every=30) for _ in range(3 * NEIGHBOURS)]
    in_train = np.arange(len(texts)) % 3 == 0
    within, across = candidates_of(tmp_path / "signatures", texts, in_train)
    assert all(in_train[first] and in_train[second] for first, second in all_pairs(within))
    pairs = all_pairs(across)
    assert {first for first, _ in pairs} == set(np.flatnonzero(in_train).tolist())
    assert not any(in_train[second] for _, second in pairs)


def test_what_lies_in_a_template_is_no_shingle() -> None:
    words = words_of(["dear shop please send two mugs", "two mugs"])
    in_template = np.array([True] * 4 + [False] * 4)
    assert Shingles(words, in_template).counts.tolist() == [2, 1]
    assert Shingles(words, np.ones(8, dtype=np.bool_)).counts.tolist() == [0, 0]


def test_the_store_gives_back_what_it_was_given(tmp_path: Path) -> None:
    bands, low = bands_of(shingles([prose(random.Random(seed)) for seed in range(120)]))
    store = SignatureStore(tmp_path / "signatures")
    for part in (slice(0, 50), slice(50, 50), slice(50, 120)):
        store.add(bands[part], low[part])
    store.finish()
    assert len(store) == 120
    assert np.array_equal(np.stack([store.band(number) for number in range(BANDS)], axis=1), bands)
    assert np.array_equal(store.low_bytes(), low)
    assert low.shape == (120, VALUES)
