"""Which block of the cache holds which tokens of which request; and prefixes found again. No torch.

A block holds the keys and values of `block_size` consecutive tokens, in all layers. They depend on every token before
and on the adapters, so a full block's key is a chain: key(i) = H(key(i - 1), tokens of block i), begun with the mix's
salt. Requests with a common beginning share its blocks, which are never written again.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b

from tunesmith.serving.block_pool import BlockPool
from tunesmith.serving.request import Request

_KEY_BYTES = 20


@dataclass
class BlockTable:
    """A request's blocks in order, and the same as runs of neighbours.

    Args:
        blocks: block numbers; block i holds tokens i * block_size and on.
        extents: (first block, how many) of each run.
        keys: the keys of its full blocks, as far as they were needed.
    """

    blocks: list[int] = field(default_factory=list)
    extents: list[tuple[int, int]] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    named: int = 0

    def append(self, block: int) -> None:
        """Adds a block at the end."""
        self.blocks.append(block)
        if self.extents and sum(self.extents[-1]) == block:
            first, count = self.extents[-1]
            self.extents[-1] = (first, count + 1)
        else:
            self.extents.append((block, 1))


class KvCache:
    """The block tables of the running requests, over one pool.

    Args:
        num_blocks: how many blocks there are.
        block_size: tokens in a block.
        prefix_cache: whether content is kept after its request ended, and shared.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_cache: bool = True) -> None:
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self._pool = BlockPool(num_blocks)
        self._tables: dict[str, BlockTable] = {}

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self._pool.size * self.block_size

    @property
    def used_share(self) -> float:
        """Share of the blocks that running requests hold."""
        return 1 - self._pool.available / self._pool.size

    @property
    def kept_blocks(self) -> int:
        """Blocks with content of ended requests."""
        return self._pool.kept

    def blocks_for(self, tokens: int) -> int:
        """Blocks that this many tokens take."""
        return -(-tokens // self.block_size)

    def can_begin(self, request: Request) -> bool:
        """Whether all tokens that the request has now would fit beside the running ones."""
        wanted = self.blocks_for(len(request.token_ids))
        shared = [block for block in self._found(request, []) if self._pool.references(block)]
        return wanted - len(shared) <= self._pool.available

    def begin(self, request: Request) -> int:
        """Gives the request a table with what is known of its tokens; returns how many tokens that is.

        The last token is never among them: its logits are needed.
        """
        table = BlockTable()
        for block in self._found(request, table.keys):
            self._pool.share(block)
            table.append(block)
        table.named = len(table.blocks)
        self._tables[request.request_id] = table
        return len(table.blocks) * self.block_size

    def grow(self, request: Request, tokens: int) -> bool:
        """Makes room for the first `tokens` tokens; False, and nothing taken, if there is none."""
        table = self._tables[request.request_id]
        wanted = self.blocks_for(tokens) - len(table.blocks)
        if wanted > self._pool.available:
            return False
        for _ in range(wanted):
            last = table.blocks[-1] if table.blocks else None
            room = self.blocks_for(request.longest) - len(table.blocks)
            block = self._pool.take(last, room)
            assert block is not None
            table.append(block)
        return True

    def commit(self, request: Request) -> None:
        """Makes the blocks that are full by now known to others."""
        if not self.prefix_cache:
            return
        table = self._tables[request.request_id]
        full = request.computed // self.block_size
        while table.named < full:
            if len(table.keys) <= table.named:
                self._extend_keys(request, table.keys)
            self._pool.name(table.blocks[table.named], table.keys[table.named])
            table.named += 1

    def release(self, request: Request) -> None:
        """Gives the request's blocks back; content that is known stays until the space is needed."""
        self._pool.give(self._tables.pop(request.request_id).blocks)

    def table(self, request: Request) -> BlockTable:
        """The request's table."""
        return self._tables[request.request_id]

    def check_integrity(self) -> None:
        """Raises AssertionError unless tables, references and keys agree."""
        references = Counter(block for table in self._tables.values() for block in table.blocks)
        self._pool.check_integrity(references)
        for table in self._tables.values():
            runs = [block for first, count in table.extents for block in range(first, first + count)]
            assert runs == table.blocks, "the runs of a table are not its blocks"
            assert len(set(table.blocks)) == len(table.blocks), "a table holds a block twice"

    def _found(self, request: Request, keys: list[bytes]) -> list[int]:
        """The blocks that hold the beginning of the request's tokens; `keys` is filled with theirs."""
        if not self.prefix_cache or request.scores_prompt:
            return []
        blocks: list[int] = []
        for _ in range((len(request.token_ids) - 1) // self.block_size):
            self._extend_keys(request, keys)
            block = self._pool.find(keys[-1])
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _extend_keys(self, request: Request, keys: list[bytes]) -> None:
        begin = len(keys) * self.block_size
        tokens = array("q", request.token_ids[begin : begin + self.block_size])
        parent = keys[-1] if keys else blake2b(request.mix.salt, digest_size=_KEY_BYTES).digest()
        keys.append(blake2b(parent + tokens.tobytes(), digest_size=_KEY_BYTES).digest())
