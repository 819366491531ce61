"""Which accesses of streams are ordered: vector clocks over spans of memory."""

from __future__ import annotations

from dataclasses import dataclass, field

Span = tuple[int, int]
"""First address and size in bytes."""

Clock = dict[int, int]
"""Stream -> how many of its works are known to come before."""


class DeviceMisuseError(AssertionError):
    """The code under test would go wrong on a real GPU: a leak, a use after free, a race, a broken capture."""


@dataclass(kw_only=True)
class Accesses:
    """Who touched what: (span, writes, stream, its tick, what)."""

    seen: list[tuple[Span, bool, int, int, str]] = field(default_factory=list)

    def check(self, span: Span, writes: bool, clock: Clock, what: str) -> None:
        """Raise DeviceMisuseError if an access does not come after one before it that it must not meet.

        Args:
            clock: what is known to come before the access.
            what: whose access it is, for the error.
        """
        for other, wrote, stream, tick, before in self.seen:
            if (writes or wrote) and overlap(span, other) and clock.get(stream, 0) < tick:
                raise DeviceMisuseError(
                    f"{what} and {before} touch the same memory with nothing between that orders them"
                )

    def add(self, span: Span, writes: bool, stream: int, clock: Clock, what: str) -> None:
        """Remember an access that was checked."""
        if writes:  # whoever is ordered after this write is ordered after what it was ordered after
            self.seen = [each for each in self.seen if not _inside(each[0], span)]
        self.seen.append((span, writes, stream, clock[stream], what))

    def forget(self, span: Span) -> None:
        """The memory was given back; what gets its address next has nothing to do with it."""
        self.seen = [each for each in self.seen if not _inside(each[0], span)]


def overlap(a: Span, b: Span) -> bool:
    """Whether two spans share a byte."""
    return a[0] < b[0] + b[1] and b[0] < a[0] + a[1]


def join(clock: Clock, other: Clock) -> None:
    """Let `clock` come after all that `other` comes after."""
    for stream, tick in other.items():
        clock[stream] = max(clock.get(stream, 0), tick)


def _inside(inner: Span, outer: Span) -> bool:
    return outer[0] <= inner[0] and inner[0] + inner[1] <= outer[0] + outer[1]
