"""What the vocabulary tests share: CLIP's tokenizer as it is exported, and vocabularies with seeded embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ebseg_deploy.runtime.tokenizer import ClipTokenizer
from ebseg_deploy.runtime.vocabulary import Vocabulary, unit_rows
from quick_text_encoder import WIDTH


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("open_clip")
    from ebseg_deploy.export.tokenizer import write_tokenizer

    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file: Path) -> ClipTokenizer:
    return ClipTokenizer.load(tokenizer_file)


@pytest.fixture
def make_vocabulary() -> Callable[..., Vocabulary]:
    """make_vocabulary("cat", "dog", encoder_sha256=…) -> a vocabulary with seeded embeddings."""

    def make(*names: str, **changes: object) -> Vocabulary:
        random = np.random.default_rng(len(names))
        parts: dict[str, object] = {
            "names": names,
            "synonyms": tuple((f"{name}let",) for name in names),
            "seen": np.arange(len(names)) % 2 == 0,
            "embeddings": unit_rows(random.normal(size=(len(names), WIDTH))),
            "background": random.normal(size=(1, WIDTH)).astype(np.float32),
            "model": "ebseg-test",
            "encoder_sha256": "a" * 64,
            "templates": ("a photo of a {}.",),
            "logit_scale": 100.0,
        }
        return Vocabulary(**(parts | changes))  # type: ignore[arg-type]

    return make
