"""Adapters by name and version, and who still uses which.

A name leads to one version, the current one. A reload makes a new version under the same name; requests that began with
the old one finish on it, and the one before the current is kept, so that `rollback` is a matter of names. What no name
leads to and no request uses is dropped. Work on files (`lora_files.read_lora`) is done before; nothing here takes time.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.errors import AdapterError, ServingError
from tunesmith.serving.lora_files import LoraWeights
from tunesmith.serving.lora_sites import LoraSites, SiteWeights
from tunesmith.serving.request import BASE, Mix

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
MAX_MIXED = 16
"""Most adapters of one request."""

Adapters = str | tuple[str, float] | Sequence[str | tuple[str, float]] | None
"""A name, or a name and a scale, or several of either, or None for the base alone."""


@dataclass(frozen=True, eq=False)
class AdapterVersion:
    """One version of an adapter.

    Args:
        number: unique in the engine.
        name: its name.
        folder: where it came from.
        digest: of its content.
        ranks: the smallest and the largest rank.
        bytes: memory of its factors.
        weights: as the model's sites need it.
    """

    number: int
    name: str
    folder: Path
    digest: bytes
    ranks: tuple[int, int]
    bytes: int
    weights: SiteWeights = field(repr=False)


@dataclass
class _Entry:
    current: AdapterVersion
    previous: AdapterVersion | None = None


class AdapterBank:
    """The adapters of an engine.

    Args:
        sites: the model's linear modules.
    """

    def __init__(self, sites: LoraSites) -> None:
        self._sites = sites
        self._entries: dict[str, _Entry] = {}
        self._versions: dict[int, AdapterVersion] = {}
        self._users: dict[int, int] = {}
        self._made = 0

    @property
    def names(self) -> list[str]:
        """The names there are, sorted."""
        return sorted(self._entries)

    @property
    def draining(self) -> list[AdapterVersion]:
        """Versions that no name leads to, but that running requests still use."""
        named = self._named()
        return [version for number, version in self._versions.items() if number not in named]

    def current(self, name: str) -> AdapterVersion:
        """The version that new requests get.

        Raises:
            AdapterError: there is none of this name.
        """
        entry = self._entries.get(name)
        if entry is None:
            known = ", ".join(self.names[:10]) or "none"
            raise AdapterError(f"there is no adapter of this name; loaded: {known}", place=repr(name[:128]))
        return entry.current

    def version(self, name: str, folder: Path, weights: LoraWeights) -> AdapterVersion:
        """A version that is not published yet, so that it can be tried."""
        check_name(name)
        self._made += 1
        prepared = self._sites.prepare(weights.factors)
        return AdapterVersion(self._made, name, folder, weights.digest, weights.ranks, weights.bytes, prepared)

    def publish(self, version: AdapterVersion) -> None:
        """Makes a version the current one of its name; the one before is kept for `rollback`."""
        entry = self._entries.get(version.name)
        self._versions[version.number] = version
        self._entries[version.name] = _Entry(version, entry.current if entry else None)
        self._drop_unused()

    def rollback(self, name: str) -> AdapterVersion:
        """Makes the version before the current one again; the two change places.

        Raises:
            AdapterError: there is no such name, or no version before.
        """
        self.current(name)
        entry = self._entries[name]
        if entry.previous is None:
            raise AdapterError("there is no version before this one", place=repr(name))
        self._entries[name] = _Entry(entry.previous, entry.current)
        return entry.previous

    def remove(self, name: str) -> None:
        """Takes a name away; requests under way finish.

        Raises:
            AdapterError: there is none of this name.
        """
        self.current(name)
        del self._entries[name]
        self._drop_unused()

    def mix(self, adapters: Adapters) -> Mix:
        """What a request with these adapters is computed with.

        Raises:
            AdapterError: a name is unknown.
            ServingError: a name comes twice, there are too many, or a scale is no number from -100 to 100.
        """
        if adapters is None:
            return BASE
        single = isinstance(adapters, str) or (len(adapters) == 2 and not isinstance(adapters[1], (str, tuple, list)))
        pairs = [_pair(item) for item in ([adapters] if single else adapters)]
        if len(pairs) > MAX_MIXED or len({name for name, _ in pairs}) < len(pairs):
            raise ServingError(f"name at most {MAX_MIXED} adapters, each once", place="adapters")
        for name, scale in pairs:
            if not -100 <= scale <= 100:  # also false for NaN
                raise ServingError(f"the scale of {name} is {scale!r}; it must be from -100 to 100", place="adapters")
        chosen = sorted(((self.current(name), float(scale)) for name, scale in pairs), key=lambda pair: pair[0].number)
        chosen = [(version, scale) for version, scale in chosen if scale != 0]
        if not chosen:
            return BASE
        salt = hashlib.sha256()
        for version, scale in chosen:
            salt.update(version.digest + struct.pack("<d", scale))
        return Mix(
            tuple((version.number, scale) for version, scale in chosen),
            salt.digest(),
            "+".join(version.name for version, _ in chosen),
        )

    def weights(self, mix: Mix) -> tuple[tuple[SiteWeights, float], ...]:
        """The factors of a mix whose versions are in use."""
        return tuple((self._versions[number].weights, scale) for number, scale in mix.parts)

    def acquire(self, mix: Mix) -> None:
        """Keeps the versions of a mix until `release`."""
        for number, _ in mix.parts:
            self._users[number] = self._users.get(number, 0) + 1

    def release(self, mix: Mix) -> None:
        """The request of this mix is done."""
        for number, _ in mix.parts:
            self._users[number] -= 1
            if not self._users[number]:
                del self._users[number]
        self._drop_unused()

    def check_idle(self) -> None:
        """Raises AssertionError if a version is held though no request runs."""
        assert not self._users, "adapters are in use though no request is"
        assert not self.draining, "a version is kept though nothing leads to it"

    def _named(self) -> set[int]:
        entries = self._entries.values()
        return {v.number for entry in entries for v in (entry.current, entry.previous) if v is not None}

    def _drop_unused(self) -> None:
        if len(self._versions) == len(self._named() | self._users.keys()):
            return
        for number in self._versions.keys() - self._named() - self._users.keys():
            self._sites.forget(self._versions.pop(number).weights)


def check_name(name: str) -> None:
    """Raises AdapterError unless this is a name: letters, digits, `.`, `_` and `-`, never a path."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name or name == ".":
        shown = repr(name)[:80]
        raise AdapterError(
            f"{shown} is no name for an adapter", remedy="use up to 128 letters, digits, '.', '_' and '-', without '..'"
        )


def _pair(item: object) -> tuple[str, float]:
    if isinstance(item, str):
        return item, 1.0
    if isinstance(item, (tuple, list)) and len(item) == 2:
        name, scale = item
        if isinstance(name, str) and isinstance(scale, (int, float)) and not isinstance(scale, bool):
            return name, float(scale)
    raise ServingError("give adapters as names, or as pairs of a name and a scale", place="adapters")
