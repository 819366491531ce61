"""What the building process is given and what it answers, as JSON on its standard input and output."""

from __future__ import annotations

from typing import Any

import msgspec

from ...contract import EngineName, EngineSettings, EngineTarget, GraphSpec, Record


class BuildJob(Record, frozen=True, kw_only=True):
    """One graph to build."""

    module: str
    """"tensorrt" or "tensorrt_rtx"."""
    target: EngineTarget
    graph: EngineName
    graph_file: str
    spec: GraphSpec
    settings: EngineSettings
    plan_file: str
    """Where the plan goes; it is complete when `Built` was said."""
    log_file: str
    """Where every message of the builder goes, line by line."""
    timing_cache: str | None = None
    """A file to read and to go on with; None measures every kernel afresh."""


class Advanced(Record, frozen=True, kw_only=True, tag="advanced"):
    """The builder got on."""

    fraction: float
    """0 to 1, by the builder's own phases: they take unequal time."""
    phase: str


class Built(Record, frozen=True, kw_only=True, tag="built"):
    """The plan is written."""

    tensorrt_version: str
    compute_capabilities: tuple[str, ...]
    seconds: float
    quantised_nodes: tuple[str, ...]
    """As in the sidecar."""
    peak_bytes: int | None
    """Resident memory at its peak; None where the system does not say."""


class Refused(Record, frozen=True, kw_only=True, tag="refused"):
    """No plan, and why."""

    message: str
    cure: str


Answer = Advanced | Built | Refused


def encode(record: Record) -> bytes:
    """One line."""
    return msgspec.json.encode(record) + b"\n"


def decode_answer(line: bytes) -> Answer:
    """The inverse of `encode`, for answers."""
    kinds: Any = Advanced | Built | Refused
    answer: Answer = msgspec.json.decode(line, type=kinds)
    return answer
