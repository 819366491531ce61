"""What can go wrong, as a tree a caller can catch at the height it needs.

    EbsegError
    ├── InputError            a picture, a folder or an option the user gave
    │   └── VocabularyError   class names, or a vocabulary file
    ├── CheckpointError       weights that do not fit the model
    ├── ExportError           a graph that could not be made
    │   └── ParityError       a graph whose numbers differ from the model's
    ├── CalibrationError      activations without a usable range, or ranges that do not fit a graph
    ├── BundleError           a bundle that is damaged, incomplete or of another version
    └── BackendError          an execution engine that is missing, or refused a graph or a tensor

Every message says what, what was got, what was wanted, and how to cure it, on one line.
"""

from __future__ import annotations


class EbsegError(Exception):
    """Base of all errors raised on purpose. `message` is one line; `cure` is what to do about it."""

    def __init__(self, message: str, *, cure: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.message}; {self.cure}" if self.cure else self.message


class InputError(EbsegError):
    """A picture, a folder or an option the user gave cannot be used."""


class VocabularyError(InputError):
    """Class names or a vocabulary file cannot be used."""


class CheckpointError(EbsegError):
    """Weights do not fit the model, or cannot be read."""


class ExportError(EbsegError):
    """A graph could not be made."""


class ParityError(ExportError):
    """A graph's names, shapes, types or values differ from the model's."""


class CalibrationError(EbsegError):
    """Activations have no usable range, or ranges do not fit a graph."""


class BundleError(EbsegError):
    """A bundle is damaged, incomplete, or of a version this release cannot read."""


class BackendError(EbsegError):
    """An execution engine is missing, or refused a graph or a tensor."""
