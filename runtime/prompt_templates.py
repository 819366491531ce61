"""The sentences a class name is put into before it is encoded."""

from __future__ import annotations

_SIZES = ("small", "medium", "large")

VILD_TEMPLATES = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    *(f"a photo of a {size} {{}}." for size in _SIZES),
    *(f"This is a photo of a {size} {{}}." for size in _SIZES),
    *(f"There is a {size} {{}} in the scene." for size in _SIZES),
)
"""ViLD's 14 templates, as SAN and EBSeg use them; the missing full stops are theirs and change the tokens.

A bundle carries its own list (`contract.TextRecord.templates`); this is what the exporter writes into it.
"""
