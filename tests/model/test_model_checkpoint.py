"""Checkpoints: the layouts that are read, and one clear error for everything else."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ebseg_deploy.errors import CheckpointError
from ebseg_deploy.model import checkpoint
from ebseg_deploy.model.checkpoint import ALIASES, load_model, published_state, read_state, save_checkpoint
from ebseg_deploy.model.config import EBSEG_B
from ebseg_deploy.model.ebseg import EBSeg
from safetensors.torch import save_file
from tiny_models import TINY_B, TINY_L, TINY_NANO, tiny_model
from torch import Tensor

NAME = "tiny-nano"
SCALING = "sem_seg_head.predictor.bias_scaling.weight"
BACKGROUND = "ov_classifier.bg_embed"


def state() -> dict[str, Tensor]:
    return published_state(tiny_model(NAME))


def assert_equal(model: EBSeg, wanted: EBSeg) -> None:
    found = model.state_dict()
    assert found.keys() == wanted.state_dict().keys()
    for key, tensor in wanted.state_dict().items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=0)


def refusal(path: Path, config=TINY_NANO) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(path, config)
    assert "\n" not in str(caught.value)
    assert caught.value.cure
    assert str(path) in caught.value.message
    return str(caught.value)


def torch_file(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors"])
def test_saved_and_read(tmp_path: Path, name: str) -> None:
    save_checkpoint(tiny_model(NAME), tmp_path / name)
    loaded = load_model(tmp_path / name, TINY_NANO)
    assert_equal(loaded, tiny_model(NAME))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_published_layout_has_the_model_entry_and_aliases(tmp_path: Path) -> None:
    save_checkpoint(tiny_model(NAME), tmp_path / "w.pth")
    content = torch.load(tmp_path / "w.pth", weights_only=True)
    assert list(content) == ["model"]
    for alias, original in ALIASES.items():
        torch.testing.assert_close(content["model"][alias], content["model"][original])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"model": state, "iteration": 119_999, "optimizer": {"lr": 1e-4}},
        lambda state: {"model": {key: value for key, value in state.items() if key not in ALIASES}},
    ],
    ids=["plain", "model entry", "training state beside it", "without aliases"],
)
def test_layouts_of_pth(tmp_path: Path, wrap: Callable[[dict[str, Tensor]], object]) -> None:
    assert_equal(load_model(torch_file(tmp_path / "w.pth", wrap(state())), TINY_NANO), tiny_model(NAME))


def test_old_torch_format(tmp_path: Path) -> None:
    torch.save({"model": state()}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert_equal(load_model(tmp_path / "w.pth", TINY_NANO), tiny_model(NAME))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_other_float_types_become_float32(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    changed = {key: value.to(dtype) for key, value in tiny_model(NAME).state_dict().items()}
    save_file(changed, path) if suffix == "safetensors" else torch.save({"model": changed}, path)
    loaded = load_model(path, TINY_NANO).state_dict()
    for key, tensor in tiny_model(NAME).state_dict().items():
        assert loaded[key].dtype == torch.float32
        torch.testing.assert_close(loaded[key], tensor.to(dtype).float(), rtol=0, atol=0)


def test_all_faults_in_one_error(tmp_path: Path) -> None:
    faulty = state()
    del faulty[BACKGROUND]
    faulty["module.extra.weight"] = torch.zeros(3)
    faulty[SCALING] = torch.zeros(2, 1)
    faulty["criterion.empty_weight"] = torch.ones(6, dtype=torch.int64)
    faulty["clip_visual_extractor.proj"] = faulty["clip_visual_extractor.proj"] + 1
    message = refusal(torch_file(tmp_path / "w.pth", {"model": faulty}))
    assert "is not a checkpoint of tiny-nano" in message
    assert f"1 missing: {BACKGROUND}" in message
    assert "1 unexpected: module.extra.weight" in message
    assert f"1 mis-shaped: {SCALING} (2, 1) wanted (1, 1)" in message
    assert "1 not floating point: criterion.empty_weight torch.int64" in message
    assert "1 alias differs from its original: clip_visual_extractor.proj" in message


def test_many_faults_are_counted(tmp_path: Path) -> None:
    message = refusal(torch_file(tmp_path / "w.pth", {"module." + key: value for key, value in state().items()}))
    unexpected = len(state())
    assert f"{unexpected - len(ALIASES)} missing" in message
    assert f"{unexpected} unexpected" in message
    assert f"and {unexpected - checkpoint.LISTED} more" in message
    assert len(message) < 3000


@pytest.mark.parametrize("other", [TINY_B, TINY_L], ids=lambda config: config.name)
def test_checkpoint_of_another_variant(tmp_path: Path, other) -> None:
    save_checkpoint(tiny_model(NAME), tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth", other)
    assert f"is not a checkpoint of {other.name}" in message
    assert "check --model" in message


def test_layout_of_l_for_b(tmp_path: Path) -> None:
    """Keys alone tell: L's 24 CLIP blocks are no B."""
    save_checkpoint(tiny_model("tiny-l"), tmp_path / "w.pth")
    assert "mis-shaped" in refusal(tmp_path / "w.pth", EBSEG_B)


class Dangerous:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("harm-was-done"),))


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_are_refused_and_never_run(tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    torch.save({"model": state(), "trainer": Dangerous()}, path, _use_new_zipfile_serialization=zipped)
    message = refusal(path)
    assert "holds objects other than tensors" in message
    assert "torch.save({'model'" in message
    assert not (tmp_path / "harm-was-done").exists()


def test_plain_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"model": [1, 2, 3]}, protocol=2))
    assert refusal(tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"w.{suffix}"
    save_checkpoint(tiny_model(NAME), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    message = refusal(path)
    assert "download or copy the file again" in message


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_something_else(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(b"<!DOCTYPE html><html>Not found</html>" * 20)
    assert refusal(path)


@pytest.mark.parametrize("content", [{"model": {"a": 1}}, {"model": 3}, [torch.zeros(2)], {"epoch": 3}])
def test_file_without_tensors_by_name(tmp_path: Path, content: object) -> None:
    assert "no tensors by name" in refusal(torch_file(tmp_path / "w.pth", content))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "w.pth")
    assert "no such file" in refusal(tmp_path)


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), RuntimeError("write"), KeyboardInterrupt()]
)
def test_failed_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"the last good one")

    def fail(content: object, target: Path) -> None:
        target.write_bytes(b"half")
        raise failure

    monkeypatch.setattr(checkpoint.torch, "save", fail)
    with pytest.raises(CheckpointError if isinstance(failure, Exception) else KeyboardInterrupt):
        save_checkpoint(tiny_model(NAME), path)
    assert path.read_bytes() == b"the last good one"
    assert [each.name for each in tmp_path.iterdir()] == ["w.pth"]


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tiny_model(NAME), tmp_path / "missing" / "w.pth")


def test_read_state_keeps_names_and_types(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(2, dtype=torch.float16)}}, tmp_path / "w.pth")
    found = read_state(tmp_path / "w.pth")
    assert found["a"].dtype == torch.float16
