"""Which rows of a step need logits: the last of each request that samples, and those that score a prompt.

Shape suffixes: P rows with logits in row order, S those that are sampled, N those of one prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tunesmith.serving.scheduler import Chunk, StepPlan


class WantedRows:
    """The rows of a plan by what they are for.

    Args:
        plan: the step.
        done: for each request, how many tokens of its prompt were scored before (they are computed again after a
            preemption).

    Attributes:
        scored: for each chunk that scores tokens of its prompt, the rows that predict them.
        sampled: the chunks that give a next token, in row order.
        all: the rows with logits, ascending.
    """

    def __init__(self, plan: StepPlan, done: Mapping[str, int]) -> None:
        self.scored: dict[Chunk, list[int]] = {}
        last: dict[Chunk, int] = {}
        row = 0
        for chunk in plan.chunks:
            request = chunk.request
            if request.scores_prompt:
                first = max(chunk.start, done.get(request.request_id, 0))
                end = min(chunk.end, len(request.prompt_ids) - 1)
                if first < end:
                    self.scored[chunk] = list(range(row + first - chunk.start, row + end - chunk.start))
            row += chunk.count
            if chunk.samples:
                last[chunk] = row - 1
        self.sampled = list(last)
        wanted = {*last.values(), *(row for rows in self.scored.values() for row in rows)}
        self.all = sorted(wanted)
        place = {row: at for at, row in enumerate(self.all)}
        self._prompt_places = {chunk: [place[row] for row in rows] for chunk, rows in self.scored.items()}
        self._sample_places = [place[row] for row in last.values()]

    def of_prompt(self, chunk: Chunk, logits_PV: Tensor) -> Tensor:
        """logits_NV of the rows that score this chunk's prompt."""
        return logits_PV[self._prompt_places[chunk]]

    def of_samples(self, logits_PV: Tensor) -> Tensor:
        """logits_SV of the rows that are sampled."""
        return logits_PV if not self.scored else logits_PV[self._sample_places]
