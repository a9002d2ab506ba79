"""Which blocks of the cache are free, in use, or kept for their content; runs of neighbours where possible. No torch.

A request whose blocks lie side by side is read as one view of memory, without a copy. So a new run is looked for
with room for all that the request may become. The rest of the room is only promised: it is free for others when
nothing else is. A block that nobody uses but whose content may be wanted again is evicted in the order of last use,
at most `_PATIENCE` times the blocks that are needed, to find a run.
"""

from __future__ import annotations

from collections import OrderedDict

_FREE, _TAKEN, _PROMISED = 0, 1, 2
_PATIENCE = 2


class BlockPool:
    """Blocks 0 to `size` - 1.

    A block is free, used (its reference count says by how many), or kept: not used, but its content has a key.

    Args:
        size: how many blocks there are.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._map = bytearray(size)
        self._references = [0] * size
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._promises: dict[int, int] = {}  # first block of a run: one past its last
        self._taken = 0

    @property
    def available(self) -> int:
        """Blocks that can be taken: free ones, and kept ones after eviction."""
        return self.size - self._taken + len(self._kept)

    @property
    def kept(self) -> int:
        """Blocks that are not used, but whose content can be found again."""
        return len(self._kept)

    def references(self, block: int) -> int:
        """How many requests use the block."""
        return self._references[block]

    def find(self, key: bytes) -> int | None:
        """The block with this content, used or kept."""
        return self._block_of.get(key)

    def share(self, block: int) -> None:
        """Adds a reference to a block that `find` gave."""
        if self._references[block] == 0:
            del self._kept[block]
        self._references[block] += 1

    def name(self, block: int, key: bytes) -> None:
        """Says what a used block holds; if another block holds the same, this one stays without a key."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def take(self, after: int | None, room: int) -> int | None:
        """A block for new content, with one reference; None if there is none.

        Args:
            after: the request's last block: its right neighbour is best.
            room: how many more blocks the request may come to need, this one included; a run of that length is
                looked for where a new one must begin.
        """
        if self.available == 0:
            return None
        if after is not None and after + 1 < self.size and self._map[after + 1] != _TAKEN:
            return self._occupy(after + 1)
        block = self._run(max(1, room))
        if block is None:
            block = self._map.find(_FREE)
            if block < 0:
                block = self._map.find(_PROMISED)
            if block < 0:
                block = self._evict()
        return self._occupy(block)

    def give(self, blocks: list[int]) -> None:
        """Takes one reference from each of a request's blocks. The last ones will be evicted first.

        What was promised to them is free again.
        """
        for block in reversed(blocks):
            for promised in range(block, self._promises.pop(block, block)):
                if self._map[promised] == _PROMISED:
                    self._map[promised] = _FREE
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._key_of:
                    self._kept[block] = None
                else:
                    self._release(block)

    def check_integrity(self, references: dict[int, int]) -> None:
        """Raises AssertionError unless every block is accounted for.

        Args:
            references: how often each block occurs in the tables of the requests.
        """
        for block in range(self.size):
            count, kept = self._references[block], block in self._kept
            assert count == references.get(block, 0), f"block {block} has {count} references, tables say otherwise"
            assert not (kept and count), f"block {block} is used and kept"
            assert (self._map[block] == _TAKEN) == (count > 0 or kept), f"block {block} is neither used nor free"
            assert not kept or block in self._key_of, f"block {block} is kept without a key"
            assert block not in self._key_of or count > 0 or kept, f"free block {block} has a key"
        assert self._taken == sum(state == _TAKEN for state in self._map)
        assert {block: key for key, block in self._block_of.items()} == self._key_of

    def _run(self, room: int) -> int | None:
        """The first block of a free run of `room` blocks, the rest of it promised; evicts a little to find one."""
        room = min(_rounded(room), self.size)
        run = bytes(room)
        start = self._map.find(run)
        for _ in range(_PATIENCE * room):
            if start >= 0 or not self._kept:
                break
            self._evict()
            start = self._map.find(run)
        if start < 0:
            return None
        self._map[start + 1 : start + room] = bytes([_PROMISED]) * (room - 1)
        self._promises[start] = start + room
        return start

    def _occupy(self, block: int) -> int:
        self._map[block] = _TAKEN
        self._taken += 1
        self._references[block] = 1
        return block

    def _release(self, block: int) -> None:
        self._map[block] = _FREE
        self._taken -= 1

    def _evict(self) -> int:
        block, _ = self._kept.popitem(last=False)
        del self._block_of[self._key_of.pop(block)]
        self._release(block)
        return block


def _rounded(room: int) -> int:
    """Up to a quarter more, so that runs have few lengths and requests lie at equal distances."""
    step = max(1, (1 << (room - 1).bit_length()) // 4)
    return -(-room // step) * step
