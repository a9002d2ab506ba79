"""Several processes share a step's micro-batches; none is left out, none counted twice."""

from hypothesis import given
from hypothesis import strategies as st

from tests.training.conftest import make_examples
from tunesmith.data.batching import collate
from tunesmith.training.parallel import rank_share, without_targets


@given(micro_batches=st.integers(1, 20), world_size=st.integers(1, 6))
def test_every_micro_batch_is_run_once_and_every_rank_runs_as_many(micro_batches: int, world_size: int) -> None:
    shares = [rank_share(range(micro_batches), rank, world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(number for share in shares for number, is_spare in share if not is_spare) == list(
        range(micro_batches)
    )


def test_a_spare_batch_counts_for_nothing() -> None:
    spare = without_targets(collate(make_examples(3), 0))
    assert spare.target_count == spare.token_count == 0
    assert set(spare.labels_BT.flatten().tolist()) == {-100}
