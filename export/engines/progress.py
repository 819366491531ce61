"""How far a builder is, from its nested phases."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class _Phase:
    name: str
    steps: int
    done: int = 0


class PhaseTree:
    """The phases that a builder is in, outermost first; a phase is one step of the one around it.

    Steps take unequal time, so `fraction` is a guide and no clock. It never falls: builders open phases that they had
    closed before.
    """

    def __init__(self) -> None:
        self._open: list[_Phase] = []
        self._fraction = 0.0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of `steps` steps begins, inside `parent`."""
        names = [each.name for each in self._open]
        del self._open[names.index(parent) + 1 if parent in names else 0 :]
        self._open.append(_Phase(phase, max(1, steps)))

    def step(self, phase: str, step: int) -> None:
        """Step number `step` of a phase is done; the first one is 0."""
        for each in self._open:
            if each.name == phase:
                each.done = min(each.steps, max(each.done, step + 1))

    def finish(self, phase: str) -> None:
        """A phase ends, with everything inside it."""
        names = [each.name for each in self._open]
        if phase in names:
            if names.index(phase) == 0:
                self._fraction = 1.0
            del self._open[names.index(phase) :]

    @property
    def fraction(self) -> float:
        """0 to 1."""
        value = 0.0
        for each in reversed(self._open):
            value = min(1.0, (each.done + value * (each.done < each.steps)) / each.steps)
        self._fraction = max(self._fraction, value)
        return self._fraction
