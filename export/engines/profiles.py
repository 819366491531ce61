"""Lengths of dynamic dimensions: from what a user writes to what the builder is told."""

from __future__ import annotations

from collections.abc import Mapping

from ...contract import DimensionRange, GraphSpec
from ...errors import InputError
from ...runtime.bundle import Bundle

LIMITS = {"classes": (1, 65535), "prompts": (1, 65535), "tokens": (2, 77), "batch": (1, 1024)}
"""What the graphs were exported for; for batch see `batch_range`."""

DEFAULTS = {
    "classes": DimensionRange(min=1, opt=150, max=1024),
    # 14 templates make one class; the runtime never gives more than 64 prompts at once.
    "prompts": DimensionRange(min=1, opt=14, max=64),
    "tokens": DimensionRange(min=2, opt=16, max=77),
    "batch": DimensionRange(min=1, opt=1, max=8),
}


def parse_range(name: str, text: str) -> DimensionRange:
    """ "1:150:1024" (shortest, most usual, longest) or "150" (this length alone).

    Raises:
        InputError: not of that form, min > opt or opt > max, or beyond what the graphs take.
    """
    form = "give MIN:OPT:MAX, for example " + str(DEFAULTS[name])
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(part.strip().isdecimal() and len(part) < 10 for part in parts):
        raise InputError(f"--{name} {text!r}: not three numbers", cure=form)
    lengths = [int(part) for part in parts] * (3 if len(parts) == 1 else 1)
    low, high = LIMITS[name]
    if not lengths[0] <= lengths[1] <= lengths[2]:
        raise InputError(f"--{name} {text}: min ≤ opt ≤ max does not hold", cure=form)
    if lengths[0] < low or lengths[2] > high:
        raise InputError(f"--{name} {text}: the graphs take {low} to {high}", cure=form)
    return DimensionRange(min=lengths[0], opt=lengths[1], max=lengths[2])


def batch_range(bundle: Bundle, asked: DimensionRange | None) -> DimensionRange:
    """Pictures per run: what was asked for, or 1 to the most the bundle was exported for.

    Raises:
        InputError: more than that, or another number than a bundle of a fixed batch runs.
    """
    most = bundle.manifest.batch
    if not bundle.dynamic_batch:
        fixed = DimensionRange(min=most, opt=most, max=most)
        if asked not in (None, fixed):
            raise InputError(
                f"--batch {asked}: the graphs of {bundle.source} run {most} at a time, fixed at export",
                cure=f"export it with `ebseg export --batch {asked.max if asked else 8} --dynamic-batch`",
            )
        return fixed
    if asked is not None and asked.max > most:
        raise InputError(
            f"--batch {asked}: {bundle.source} was exported for 1 to {most} pictures",
            cure=f"export it with `ebseg export --batch {asked.max} --dynamic-batch`",
        )
    return asked or DimensionRange(min=1, opt=1, max=most)


def profile_for(spec: GraphSpec, ranges: Mapping[str, DimensionRange]) -> dict[str, DimensionRange]:
    """The lengths of every dynamic dimension of a graph's inputs.

    Raises:
        InputError: a dimension nobody gave lengths for.
    """
    known = dict(ranges)
    if "classes" in known:
        classes = known["classes"]
        known["classes_and_background"] = DimensionRange(min=classes.min + 1, opt=classes.opt + 1, max=classes.max + 1)
    names = dict.fromkeys(each for tensor in spec.inputs for each in tensor.shape if isinstance(each, str))
    for name in names:
        if name not in known:
            raise InputError(f"dimension {name}: no lengths for it", cure="export the bundle with this release")
    return {name: known[name] for name in names}
