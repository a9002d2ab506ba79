"""Adapters added to the linear modules of a shared base, each to the rows of its own requests.

The rows of a step are sorted by adapters, so that each mix owns one slice of them, a segment. A linear module that
becomes a site computes its base product for all rows at once; then each segment's slice gains scaling * (x A^T) B^T
by `addmm_`, with the adapter's true rank. Modules that are given the same input tensor (q, k and v; gate and up)
form a group: their A factors lie side by side and are multiplied once.

Where all segments are one adapter each, of as many rows and of the same ranks, as when streams of several adapters
are decoded together, the segments of a site are one batched product.

Shape suffixes: T rows of the step, I inputs, O outputs, R ranks of a group side by side, N segments, M rows of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ModelError
from tunesmith.models.modules import is_hooked
from tunesmith.serving.lora_files import LoraFactors

_STACKS_KEPT = 4


@dataclass(frozen=True)
class SitePart:
    """One adapter at one site.

    Args:
        columns: its columns in the group's product.
        b_RO: the second factor.
        scaling: of the product.
        bias_O: added as it is.
    """

    columns: slice
    b_RO: Tensor
    scaling: float
    bias_O: Tensor | None


@dataclass(frozen=True)
class GroupPart:
    """One adapter at the sites of a group.

    Args:
        a_IR: the first factors of its sites side by side.
        sites: by the site's number.
    """

    a_IR: Tensor
    sites: dict[int, SitePart]


@dataclass(frozen=True, eq=False)
class SiteWeights:
    """An adapter as the sites need it.

    Args:
        groups: by the group's number; groups without any factor are missing.
        shape: equal for adapters that can be stacked.
    """

    groups: dict[int, GroupPart] = field(repr=False)
    shape: tuple[Any, ...] = field(repr=False)


@dataclass(frozen=True)
class Segment:
    """Rows of one mix.

    Args:
        begin: the first row.
        end: one past the last.
        parts: adapters, each with the request's scale; at least one.
    """

    begin: int
    end: int
    parts: tuple[tuple[SiteWeights, float], ...]


class LoraSites:
    """The linear modules of a model as places where adapters can be added; undone by `close`.

    Args:
        model: the base model.

    Raises:
        ModelError: hooks run with a linear module already.
    """

    def __init__(self, model: nn.Module) -> None:
        head = cast(Any, model).get_output_embeddings()
        self._modules: list[nn.Module] = []
        self.index: dict[str, int] = {}
        for name, module in model.named_modules():
            if not isinstance(module, (nn.Linear, Conv1D)):
                continue
            if is_hooked(module):
                raise ModelError(f"{name} runs hooks, so it cannot be shared between adapters")
            site = _Site(self, len(self._modules), cast(Any, module).forward, is_head=module is head)
            self.index[name] = site.number
            self._modules.append(module)
            cast(Any, module).forward = site
        self._group_of = list(range(len(self._modules)))
        self._body: Sequence[Segment] = ()
        self._head: Sequence[Segment] = ()
        self._trace: list[tuple[int, Tensor]] | None = None
        self._stacks: dict[tuple[SiteWeights, ...], _Stack] = {}
        self._body_stack: _Stack | None = None
        self._input: Tensor | None = None
        self._shrunk: list[list[Tensor]] = []
        self._shrunk_NMR: Tensor | None = None

    def close(self) -> None:
        """Gives the modules their own forward back."""
        for module in self._modules:
            del module.forward
        self._modules.clear()

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Within, one forward pass shows which sites share an input; they become groups."""
        self._trace = []
        try:
            yield
            for (last, before), (number, x) in zip(self._trace, self._trace[1:], strict=False):
                if x is before:
                    self._group_of[number] = self._group_of[last]
        finally:
            self._trace = None

    def prepare(self, factors: dict[str, LoraFactors]) -> SiteWeights:
        """An adapter's factors in the layout of the sites. Any thread may do this.

        Raises:
            KeyError: a module is no site.
        """
        members: dict[int, dict[int, LoraFactors]] = {}
        for name, lora in factors.items():
            number = self.index[name]
            members.setdefault(self._group_of[number], {})[number] = lora
        groups, shape = {}, []
        for group, sites in sorted(members.items()):
            parts, begin = {}, 0
            for number, lora in sorted(sites.items()):
                rank = len(lora.a_RI)
                columns = slice(begin, begin + rank)
                parts[number] = SitePart(columns, lora.b_OR.t().contiguous(), lora.scaling, lora.bias_O)
                shape.append((number, rank, lora.scaling, lora.bias_O is None))
                begin += rank
            a_IR = torch.cat([sites[number].a_RI for number in sorted(sites)]).t().contiguous()
            groups[group] = GroupPart(a_IR, parts)
        return SiteWeights(groups, tuple(shape))

    @contextmanager
    def segments(self, body: Sequence[Segment], head: Sequence[Segment], rows: int) -> Iterator[None]:
        """Within, the model's forward pass adds these.

        Args:
            body: segments of the rows of the step, those without adapters left out.
            head: segments of the rows that the head is given.
            rows: how many rows the step has.
        """
        self._body, self._head = body, head
        self._body_stack = self._stack(body, rows)
        try:
            yield
        finally:
            self._body = self._head = ()
            self._body_stack = self._input = self._shrunk_NMR = None
            self._shrunk = []

    def forget(self, weights: SiteWeights) -> None:
        """Drops what was kept of an adapter that is gone."""
        self._stacks = {key: stack for key, stack in self._stacks.items() if weights not in key}

    def _stack(self, body: Sequence[Segment], rows: int) -> _Stack | None:
        """The segments as one batch, where they are alike."""
        count = len(body)
        if count < 2 or any(len(segment.parts) != 1 for segment in body):
            return None
        height = body[0].end - body[0].begin
        first = body[0].parts[0][0]
        if count * height != rows or any(segment.end - segment.begin != height for segment in body):
            return None
        if any(weights.shape != first.shape or scale != 1.0 for ((weights, scale),) in (s.parts for s in body)):
            return None
        if not all(alone for *_, alone in first.shape):  # biases are added one by one
            return None
        key = tuple(segment.parts[0][0] for segment in body)
        stack = self._stacks.pop(key, None) or _Stack(key)
        self._stacks[key] = stack
        while len(self._stacks) > _STACKS_KEPT:
            del self._stacks[next(iter(self._stacks))]
        return stack

    def add(self, number: int, is_head: bool, x_1TI: Tensor, y_1TO: Tensor) -> None:
        """Adds to a site's output what the segments' adapters have there."""
        group = self._group_of[number]
        stack = None if is_head else self._body_stack
        if stack is not None:
            self._add_stacked(stack, group, number, x_1TI, y_1TO)
            return
        segments = self._head if is_head else self._body
        x_TI, y_TO = x_1TI.view(-1, x_1TI.shape[-1]), y_1TO.view(-1, y_1TO.shape[-1])
        if self._input is not x_1TI:
            self._input = x_1TI
            self._shrunk = [
                [x_TI[s.begin : s.end] @ w.groups[group].a_IR for w, _ in s.parts if group in w.groups]
                for s in segments
            ]
        for segment, products in zip(segments, self._shrunk, strict=True):
            own = [(w.groups[group], scale) for w, scale in segment.parts if group in w.groups]
            for (part, scale), product_MR in zip(own, products, strict=True):
                site = part.sites.get(number)
                if site is None:
                    continue
                rows_MO = y_TO[segment.begin : segment.end]
                rows_MO.addmm_(product_MR[:, site.columns], site.b_RO, alpha=site.scaling * scale)
                if site.bias_O is not None:
                    rows_MO.add_(site.bias_O, alpha=scale)

    def _add_stacked(self, stack: _Stack, group: int, number: int, x_1TI: Tensor, y_1TO: Tensor) -> None:
        if group not in stack.first.groups:
            return
        count = len(stack.members)
        if self._input is not x_1TI:
            self._input = x_1TI
            self._shrunk_NMR = torch.bmm(x_1TI.view(count, -1, x_1TI.shape[-1]), stack.first_factors(group))
        site = stack.first.groups[group].sites.get(number)
        if site is None or self._shrunk_NMR is None:
            return
        product_NMR = self._shrunk_NMR[..., site.columns]
        b_NRO = stack.second_factors(group, number)
        y_1TO.view(count, -1, y_1TO.shape[-1]).baddbmm_(product_NMR, b_NRO, alpha=site.scaling)


class _Stack:
    """Adapters of one shape, their factors one above the other."""

    def __init__(self, members: tuple[SiteWeights, ...]) -> None:
        self.members = members
        self.first = members[0]
        self._a: dict[int, Tensor] = {}
        self._b: dict[int, Tensor] = {}

    def first_factors(self, group: int) -> Tensor:
        """a_NIR of the members."""
        if group not in self._a:
            self._a[group] = torch.stack([member.groups[group].a_IR for member in self.members])
        return self._a[group]

    def second_factors(self, group: int, number: int) -> Tensor:
        """b_NRO of the members."""
        if number not in self._b:
            self._b[number] = torch.stack([member.groups[group].sites[number].b_RO for member in self.members])
        return self._b[number]


class _Site:
    """The forward of one linear module."""

    __slots__ = ("_forward", "_is_head", "_sites", "number")

    def __init__(self, sites: LoraSites, number: int, forward: Any, *, is_head: bool) -> None:
        self._sites = sites
        self._forward = forward
        self._is_head = is_head
        self.number = number

    def __call__(self, x_1TI: Tensor) -> Tensor:
        y_1TO: Tensor = self._forward(x_1TI)
        sites = self._sites
        if sites._trace is not None:
            sites._trace.append((self.number, x_1TI))
        elif sites._body:
            sites.add(self.number, self._is_head, x_1TI, y_1TO)
        return y_1TO
