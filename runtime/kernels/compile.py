"""Compile CUDA C for the GPU at hand with NVRTC, which comes with cuda-python and needs neither nvcc nor a driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import BackendError
from ..device.cuda_python import load_cuda

LABEL_MAP_SOURCE = Path(__file__).with_name("label_map.cu")


def compile_kernels(source: Path, compute_capability: tuple[int, int]) -> bytes:
    """A cubin of all kernels in a file.

    Args:
        source: CUDA C++ without includes.
        compute_capability: of the GPU that is to run it, e.g. (8, 7).

    Raises:
        BackendError: NVRTC is missing, does not know the GPU, or refuses the source (says where).
    """
    nvrtc = load_cuda("nvrtc")
    major, minor = compute_capability
    options = [f"--gpu-architecture=sm_{major}{minor}".encode(), b"--std=c++17"]
    try:
        program = _checked(nvrtc, nvrtc.nvrtcCreateProgram(source.read_bytes(), source.name.encode(), 0, [], []))
    except RuntimeError as error:  # cuda-python's, when it finds no libnvrtc
        text = " ".join(str(error).split())
        raise BackendError(f"NVRTC: {text}", cure="pip install nvidia-cuda-nvrtc") from error
    try:
        answer = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(answer[0]) != 0:
            raise BackendError(
                f"NVRTC: {source.name} for sm_{major}{minor}: {answer[0].name}: {_log(nvrtc, program)}",
                cure="install an NVRTC of a CUDA version that knows this GPU",
            )
        cubin = b" " * int(_checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program)))  # written in place
        _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, cubin))
        return cubin
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _log(nvrtc: Any, program: Any) -> str:
    text = b" " * int(_checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program)))
    _checked(nvrtc, nvrtc.nvrtcGetProgramLog(program, text))
    return " ".join(text.decode(errors="replace").strip("\0").split())[:600]


def _checked(nvrtc: Any, answer: tuple[Any, ...]) -> Any:
    if int(answer[0]) != 0:
        raise BackendError(f"NVRTC: {answer[0].name}", cure="see `ebseg doctor`")
    return answer[1] if len(answer) > 1 else None
