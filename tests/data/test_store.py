"""Examples and tokens on disk come back as they went in."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.records import IGNORED_LABEL, Example, Message, Place
from tunesmith.data.store import (
    Blobs,
    ExampleRows,
    ExampleStore,
    Places,
    Scratch,
    TokenizedRows,
    pack_example,
    pack_tokens,
    unpack_tokens,
)
from tunesmith.errors import DiskError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLACES = st.builds(Place, st.sampled_from(["a.jsonl", "hub:x/train"]), st.integers(1, 10**12), st.booleans())
CHATS = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), TEXTS), max_size=4).map(tuple)
EXAMPLES = st.one_of(st.builds(Example, CHATS, PLACES), st.builds(Example, st.just(()), PLACES, TEXTS))


def stored(scratch: Scratch, examples: list[Example]) -> ExampleStore:
    places, blobs = Places(), Blobs(scratch, "examples")
    for example in examples:
        packed = pack_example(example)
        blobs.extend(packed, [len(packed)])
        places.append(example.place)
    return ExampleStore(blobs, places)


@given(examples=st.lists(EXAMPLES, max_size=8), cut=st.slices(8))
def test_examples_come_back_one_by_one_and_in_slices(examples: list[Example], cut: slice) -> None:
    scratch = Scratch()
    store = stored(scratch, examples)
    assert len(store) == len(examples)
    assert list(store) == examples
    assert store[cut] == examples[cut]
    if examples:
        assert store[-1] == examples[-1]
    with pytest.raises(IndexError):
        store[len(examples)]
    scratch.close()


@given(
    ids=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=12),
    borders=st.lists(st.integers(0, 12), max_size=6, unique=True),
    limit=st.integers(1, 14),
)
def test_tokens_come_back_with_their_labels_and_are_cut(ids: list[int], borders: list[int], limit: int) -> None:
    inside = sorted(border for border in borders if border <= len(ids))
    spans = list(zip(inside[::2], inside[1::2], strict=False))
    assert unpack_tokens(pack_tokens(ids, spans))[1] == spans
    scratch = Scratch()
    blobs, places = Blobs(scratch, "tokens"), Places()
    packed = pack_tokens(ids, spans)
    blobs.extend(packed, [len(packed)])
    places.append(Place("a", 1))
    counts = np.array([len(ids)], np.uint32)
    rows = TokenizedRows(blobs, places, np.array([0]), counts, max_length=limit)
    labels = [ids[at] if any(first <= at < last for first, last in spans) else IGNORED_LABEL for at in range(len(ids))]
    assert rows[0].input_ids == tuple(ids[:limit])
    assert rows[0].labels == tuple(labels[:limit])
    assert rows[0].tokens_cut == max(len(ids) - limit, 0)
    assert rows.lengths.tolist() == [min(len(ids), limit)]
    scratch.close()


def test_rows_are_chosen_repeated_and_weighed(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    examples = [Example((Message("user", str(n)),), Place("a", n + 1)) for n in range(4)]
    chosen = ExampleRows(stored(scratch, examples), np.array([3, 1, 1]))
    assert list(chosen) == [examples[3], examples[1], examples[1]]
    blobs, places = Blobs(scratch, "tokens"), Places()
    for number, example in enumerate(examples):
        packed = pack_tokens([number, 7], [(1, 2)])
        blobs.extend(packed, [len(packed)])
        places.append(example.place)
    counts = np.full(3, 2, np.uint32)

    def rows(weights: list[float] | None = None, order: tuple[int, ...] = (3, 1, 1)) -> TokenizedRows:
        weights_N = None if weights is None else np.array(weights, np.float32)
        return TokenizedRows(blobs, places, np.array(order), counts, max_length=None, weights_N=weights_N)

    assert [one.input_ids[0] for one in rows()] == [3, 1, 1]
    assert [one.weight for one in rows([0.5, 2, 1])] == [0.5, 2.0, 1.0]
    digests = {rows().digest(), rows(order=(1, 3, 1)).digest(), rows([0.5, 2, 1]).digest()}
    assert len(digests) == 3


def test_the_scratch_folder_goes_with_its_owner(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    (scratch.folder / "x").write_bytes(b"1")
    assert len(list(tmp_path.iterdir())) == 1
    blobs = Blobs(scratch, "y")
    del scratch
    assert len(list(tmp_path.iterdir())) == 1
    del blobs
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = Scratch()
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    monkeypatch.setattr(Path, "open", lambda *_: open(full, "wb"))  # noqa: PTH123, SIM115
    blobs = Blobs(scratch, "examples")
    with pytest.raises(DiskError, match="the disk is full"):
        blobs.extend(bytes(100_000), [100_000])
