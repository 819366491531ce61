"""A bundle against the published order in eager PyTorch: the same picture and words, in turn, in one run.

Each side lives in a process of its own, so that neither's threads or memory disturb the other's, and they run one
after the other: A B A B …, so that a machine whose speed drifts slows both. The ratio is the median of the pairs'.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ..contract import Size
from ..errors import EbsegError, InputError
from ..runtime.bundle import Bundle
from .latency import synthetic_picture, synthetic_vocabulary
from .machine import Machine, describe_machine
from .memory import peak_rss_bytes
from .statistics import LatencySummary

Progress = Callable[[int, int], None]
Labels = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What to compare."""

    bundle: Path
    checkpoint: Path | None = None
    """Weights for the eager side; None takes the seeded ones."""
    size: Size | None = None
    """Canvas, and size of the synthetic picture; the bundle's first by default."""
    classes_count: int = 150
    repeats: int = 5
    warmup: int = 1
    threads: int | None = None
    backend: str = "auto"
    precision: str | None = None
    overlap: bool = True
    """The two image encoders at the same time."""
    sentinel: bool = True
    """See runtime.sentinel."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class CompareReport:
    """What was measured. Every latency is from the decoded picture to the label map, with encoded words."""

    ratio: float
    """Median over the pairs of eager latency / bundle latency."""
    ratio_min: float
    ratio_max: float
    eager: LatencySummary
    bundle: LatencySummary
    eager_peak_rss_bytes: int
    bundle_peak_rss_bytes: int
    label_agreement: float | None
    """Share of pixels with the same label; None when the two sides have different weights."""
    canvas: str
    classes: int
    threads: int | None
    model: str
    precision: str
    machine: Machine

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare_with_eager(config: CompareConfig, *, progress: Progress = lambda done, total: None) -> CompareReport:
    """Run both sides in turn.

    Raises:
        EbsegError: what either side raised while it loaded or ran.
    """
    bundle = Bundle.open(config.bundle, check_hashes=False)
    size = config.size or bundle.sizes[0]
    if size not in bundle.sizes:
        raise InputError(f"bundle {config.bundle} has no canvas {size}", cure="see `ebseg inspect`")
    total = 2 * (config.warmup + config.repeats)
    with _Side(_eager_side, config, size) as eager, _Side(_bundle_side, config, size) as ours:
        pairs = []
        for i in range(config.warmup + config.repeats):
            slow, slow_labels = eager.run()
            progress(2 * i + 1, total)
            fast, fast_labels = ours.run()
            progress(2 * i + 2, total)
            if i >= config.warmup:
                pairs.append((slow, fast))
        peaks = eager.peak_rss(), ours.peak_rss()
    ratios = sorted(slow / fast for slow, fast in pairs)
    return CompareReport(
        ratio=float(np.median(ratios)),
        ratio_min=ratios[0],
        ratio_max=ratios[-1],
        eager=LatencySummary.of([slow for slow, _ in pairs]),
        bundle=LatencySummary.of([fast for _, fast in pairs]),
        eager_peak_rss_bytes=peaks[0],
        bundle_peak_rss_bytes=peaks[1],
        label_agreement=_agreement(bundle, config, slow_labels, fast_labels),
        canvas=str(size),
        classes=config.classes_count,
        threads=config.threads,
        model=bundle.model.name,
        precision=config.precision or bundle.precisions[0],
        machine=describe_machine(),
    )


def _agreement(bundle: Bundle, config: CompareConfig, eager: Labels, ours: Labels) -> float | None:
    """Agreement means something only when both sides have the same weights."""
    provenance = bundle.manifest.provenance
    if config.checkpoint is None:
        same = provenance.get("weights", "").startswith("seeded")
    else:
        from ..runtime.hashing import file_sha256

        same = provenance.get("weights_sha256") == file_sha256(config.checkpoint)
    return float((eager == ours).mean()) if same else None


class _Side:
    """One side in its own process; answers ("run" | "peak") over a pipe."""

    def __init__(self, body: Callable[[CompareConfig, Size], Callable[[], Labels]], config: CompareConfig, size: Size):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, body, config, size), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> _Side:
        self._answer()
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        self._process.join()

    def run(self) -> tuple[float, Labels]:
        """Milliseconds and labels of one run."""
        self._pipe.send("run")
        milliseconds, labels = self._answer()
        return milliseconds, labels

    def peak_rss(self) -> int:
        self._pipe.send("peak")
        return int(self._answer())

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError as error:
            raise EbsegError(
                "a side of the comparison ended without an answer", cure="it may have run out of memory"
            ) from error
        if isinstance(answer, EbsegError):
            raise answer
        return answer


def _serve(
    pipe: Connection, body: Callable[[CompareConfig, Size], Callable[[], Labels]], config: CompareConfig, size: Size
) -> None:
    try:
        run = body(config, size)
        pipe.send("ready")
        while True:
            if pipe.recv() == "peak":
                pipe.send(peak_rss_bytes()[0])
                continue
            start = time.perf_counter()
            labels = run()
            pipe.send(((time.perf_counter() - start) * 1000, labels))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):  # the other end has gone, or goes
        return
    except EbsegError as error:
        pipe.send(EbsegError(str(error)))
    except ModuleNotFoundError as error:
        pipe.send(EbsegError(f"{error.name} is not installed", cure="pip install 'ebseg-deploy[export]'"))
    except Exception as error:  # as an answer; here it would be a traceback, and silence there
        text = " ".join(f"{type(error).__name__}: {error}".split())
        pipe.send(EbsegError(f"a side of the comparison failed: {text}", cure="check memory with `ebseg doctor`"))


def _eager_side(config: CompareConfig, size: Size) -> Callable[[], Labels]:
    """The published order in PyTorch, dense label map included."""
    import torch

    from ..model.checkpoint import load_model
    from ..model.config import config_named
    from ..model.reference import dense_label_map, segment_in_published_order
    from ..model.seeded import seeded_model

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    bundle = Bundle.open(config.bundle, check_hashes=False)
    variant = config_named(bundle.model.name)
    model = load_model(config.checkpoint, variant) if config.checkpoint else seeded_model(variant)
    vocabulary = synthetic_vocabulary(bundle, config.classes_count, seed=config.seed)
    text = torch.from_numpy(np.array(vocabulary.text_embeddings))
    seen = torch.from_numpy(np.array(vocabulary.seen_flags))
    picture = torch.from_numpy(synthetic_picture(size, seed=config.seed).copy()).permute(2, 0, 1).contiguous()
    pixels = (size.height, size.width)

    def run() -> Labels:
        with torch.no_grad():
            output = segment_in_published_order(model, picture, text, seen)
            masks = output.predictions[-1]["masks"][0]
            return dense_label_map(masks, output.class_probabilities[0], pixels, pixels)[0].numpy()

    return run


def _bundle_side(config: CompareConfig, size: Size) -> Callable[[], Labels]:
    """The bundle in the runtime, as a user runs it."""
    from ..runtime.segmenter import Segmenter

    bundle = Bundle.open(config.bundle, check_hashes=False)
    segmenter = Segmenter.load(
        bundle,
        config.backend,
        threads=config.threads,
        precision=config.precision,
        overlap=config.overlap,
        sentinel=config.sentinel,
    )
    segmenter.warm_up(size)
    vocabulary = synthetic_vocabulary(bundle, config.classes_count, seed=config.seed)
    picture = synthetic_picture(size, seed=config.seed)

    def run() -> Labels:
        return segmenter(picture, vocabulary, canvas=size).labels

    return run
