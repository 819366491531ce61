"""Stage 1: contrastive pre-training of CLIP on pictures and prompts; the only stage that meets the new classes.

Without a curriculum a nano CLIP learns nothing for a long while, so it begins with one object on an almost flat
colour, against a text tower left at its random start. Difficulty rises only while accuracy holds; then the pictures
grow, objects multiply, the text tower thaws, the templates vary, one change at a time. Nothing depends on the clock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..model.config import ClipConfig
from .contrastive import ContrastiveClip
from .emoji_classes import CLASSES, THINGS
from .optimizer import adamw
from .prompts import prompt_tokens
from .scenes import SceneConfig, SceneSource, batch

STUFF_SHARE = 0.3  # of a stuff pixel against a thing's: things are what is asked for


@dataclass(frozen=True, kw_only=True)
class Level:
    """One rung of the curriculum."""

    side: int
    """Pixels of the pictures."""
    objects: tuple[int, int]
    object_side: tuple[int, int]
    batch: int
    promote_at: float
    """Go on when the running accuracy (share of pictures whose best class is there) exceeds this at difficulty 1 …"""
    least_steps: int
    most_steps: int
    """… or when so many steps were done."""
    text: bool = True
    """Does the text tower train?"""
    templates: bool = True
    """All templates at random, or the first alone?"""
    review: bool = False
    """Does every other step show the first level's pictures? Single objects are what stage 2's teacher looks at, and
    what is forgotten first."""


LEVELS: tuple[Level, ...] = (
    Level(side=96, objects=(1, 1), object_side=(64, 92), batch=32, promote_at=0.75, least_steps=500, most_steps=6000,
          text=False, templates=False),
    Level(side=96, objects=(1, 1), object_side=(64, 92), batch=32, promote_at=0.73, least_steps=150, most_steps=600,
          templates=False),
    Level(side=96, objects=(1, 1), object_side=(64, 92), batch=32, promote_at=0.70, least_steps=250, most_steps=600),
    Level(side=128, objects=(1, 3), object_side=(52, 110), batch=32, promote_at=0.75, least_steps=250, most_steps=300,
          review=True),
    Level(side=160, objects=(2, 4), object_side=(48, 120), batch=24, promote_at=2.0, least_steps=900, most_steps=900,
          review=True),
)  # fmt: skip
"""What was found to work for 72 classes; the last level decays the learning rate."""


@dataclass(frozen=True, kw_only=True)
class ClipStageConfig:
    """What stage 1 learns and how."""

    clip: ClipConfig
    levels: tuple[Level, ...] = LEVELS
    seed: int = 0
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    first_difficulty: float = 0.05
    raise_at: float = 0.70
    """Running accuracy above which the first level's difficulty rises …"""
    raise_by: float = 0.001
    """… by so much a step."""
    bf16: bool = True
    """Autocast the towers to bfloat16: 1.6 × as fast on a CPU that has it, slower on one that has not."""


class ClipStage:
    """See the module's docstring. `source` must hold all things by the training artists."""

    name = "clip"

    def __init__(self, config: ClipStageConfig, source: SceneSource) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.source = source
        self.model = ContrastiveClip(config.clip)
        self.tokens = prompt_tokens([each.name for each in CLASSES])
        self.optimizer = adamw(
            self.model.clip, learning_rate=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
        )
        self.level = 0
        self.level_steps = 0
        self.difficulty = config.first_difficulty
        self.accuracy = 0.0

    def config_values(self) -> dict[str, Any]:
        values = dataclasses.asdict(self.config)
        levels = [
            {name: list(v) if isinstance(v, tuple) else v for name, v in level.items()} for level in values["levels"]
        ]
        return {**values, "levels": levels}

    def finished(self, step: int) -> bool:
        return self.level >= len(self.config.levels)

    def step(self, step: int) -> Mapping[str, float]:
        config, level = self.config, self.config.levels[self.level]
        rng = np.random.default_rng([config.seed, 1, step])
        review = level.review and self.level_steps % 2 == 1
        shown = config.levels[0] if review else level
        scene = SceneConfig(
            side=shown.side, objects=shown.objects, object_side=shown.object_side, difficulty=self.difficulty
        )
        images, labels = batch(self.source, range(step * 64, step * 64 + shown.batch), scene)
        self._set_trainable(level)
        rate = self._set_learning_rate(step)
        room = self.model.grid - shown.side // config.clip.patch + 1
        corner = (int(rng.integers(room)), int(rng.integers(room)))
        template = int(rng.integers(len(self.tokens))) if level.templates else 0

        targets = area_targets(torch.from_numpy(labels))
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            cls, pooled = self.model.encode_images(torch.from_numpy(images), corner)
            text = self.model.encode_texts(self.tokens[template])
        scale = self.model.scale
        logits = scale * cls.float() @ text.float().T
        logits_pooled = scale * pooled.float() @ text.float().T
        loss = 0.5 * (F.cross_entropy(logits, targets) + F.cross_entropy(logits_pooled, targets))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

        hits, hits_pooled = hit_rate(logits, targets), hit_rate(logits_pooled, targets)
        kind = "review_" if review else ""
        self._climb(level, None if review else hits)
        return {
            f"{kind}loss": float(loss.detach()), f"{kind}accuracy": hits, f"{kind}accuracy_pooled": hits_pooled,
            "level": self.level, "difficulty": self.difficulty, "scale": float(scale.detach()), "learning_rate": rate,
        }  # fmt: skip

    def _set_trainable(self, level: Level) -> None:
        clip = self.model.clip
        for module in (clip.token_embedding, clip.transformer, clip.ln_final):
            module.requires_grad_(level.text)
        for parameter in (clip.positional_embedding, clip.text_projection):
            parameter.requires_grad_(level.text)

    def _set_learning_rate(self, step: int) -> float:
        """Warm-up, constant, and a half cosine to 2 % over the last level."""
        rate = self.config.learning_rate * min(1.0, (step + 1) / self.config.warmup_steps)
        if self.level == len(self.config.levels) - 1:
            done = self.level_steps / self.config.levels[-1].most_steps
            rate *= 0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * done)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _climb(self, level: Level, hits: float | None) -> None:
        if hits is not None:
            self.accuracy += 0.02 * (hits - self.accuracy)
        self.level_steps += 1
        if self.difficulty < 1:
            if self.accuracy > self.config.raise_at:
                self.difficulty = min(1.0, self.difficulty + self.config.raise_by)
        elif self.accuracy > level.promote_at and self.level_steps >= level.least_steps:
            self._next_level()
            return
        if self.level_steps >= level.most_steps:
            self._next_level()

    def _next_level(self) -> None:
        self.level += 1
        self.level_steps = 0
        self.difficulty = 1.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "level": self.level,
            "level_steps": self.level_steps,
            "difficulty": self.difficulty,
            "accuracy": self.accuracy,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.level, self.level_steps = state["level"], state["level_steps"]
        self.difficulty, self.accuracy = state["difficulty"], state["accuracy"]


def area_targets(labels: Tensor) -> Tensor:
    """What a picture shows, as a distribution over classes: shares proportional to √area, stuff counting 0.3.

    Args:
        labels: (B, H, W) indices into CLASSES.

    Returns:
        (B, classes), rows summing to 1.
    """
    flat = labels.long().flatten(1)
    area = torch.zeros(len(labels), len(CLASSES)).scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float32))
    weight = area.sqrt()
    weight[:, len(THINGS) :] *= STUFF_SHARE
    return weight / weight.sum(1, keepdim=True)


def hit_rate(logits: Tensor, targets: Tensor) -> float:
    """Share of pictures whose most likely thing is in the picture."""
    best = logits.detach()[:, : len(THINGS)].argmax(1)
    return float((targets[torch.arange(len(best)), best] > 0).float().mean())
