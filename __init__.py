"""ebseg-deploy: EBSeg, an open-vocabulary segmentation model, from a checkpoint to ONNX graphs and a light runtime.

The public names are few; each loads only the room it lives in, so that `import ebseg_deploy` never imports torch.

    from ebseg_deploy import Segmenter

    segmenter = Segmenter.load("b.ebseg")
    result = segmenter("street.jpg", vocabulary=segmenter.vocabulary(["road", "car", "tree"]))
    result.overlay().save("overlay.png")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["EbsegError", "Segmentation", "Segmenter", "Vocabulary", "__version__"]

if TYPE_CHECKING:
    from .errors import EbsegError
    from .runtime.segmenter import Segmentation, Segmenter
    from .runtime.vocabulary import Vocabulary

_HOMES = {
    "EbsegError": ".errors",
    "Segmentation": ".runtime.segmenter",
    "Segmenter": ".runtime.segmenter",
    "Vocabulary": ".runtime.vocabulary",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
