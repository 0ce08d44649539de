"""The simulated runtime has the real one's names, argument orders, constants and error texts."""

from __future__ import annotations

import inspect

import pytest

from sim import cudart, enums

runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
FUNCTIONS = sorted(
    name
    for name, value in vars(cudart).items()
    if name.startswith("cuda") and name != "cuda_call" and inspect.isfunction(value)
)
ENUMS = ["cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode", "cudaStreamCaptureStatus"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_take_the_same_arguments(name):
    ours, real = inspect.signature(getattr(cudart, name)), inspect.signature(getattr(runtime, name))
    assert list(ours.parameters) == list(real.parameters)


@pytest.mark.parametrize("name", ENUMS)
def test_enumerations_have_the_same_values(name):
    for member in getattr(enums, name):
        assert int(getattr(getattr(runtime, name), member.name)) == int(member), member.name


@pytest.mark.parametrize("name", sorted(enums.FLAGS))
def test_constants_are_the_same(name):
    assert int(getattr(runtime, name)) == getattr(cudart, name)


@pytest.mark.parametrize("error", list(enums.cudaError_t))
def test_errors_have_the_same_names_and_texts(error):
    real = runtime.cudaError_t(int(error))
    assert cudart.cudaGetErrorName(error)[1] == runtime.cudaGetErrorName(real)[1]
    assert cudart.cudaGetErrorString(error)[1] == runtime.cudaGetErrorString(real)[1]


def test_there_is_something_to_compare():
    assert len(FUNCTIONS) > 35


# -- the simulator's own instruments


def test_the_nth_call_can_be_made_to_fail(simulator):
    simulator.fail_at(2, enums.cudaError_t.cudaErrorMemoryAllocation)
    assert cudart.cudaGetDevice() == (enums.cudaError_t.cudaSuccess, 0)
    assert cudart.cudaMalloc(512) == (enums.cudaError_t.cudaErrorMemoryAllocation, None)
    assert cudart.cudaGetLastError() == (enums.cudaError_t.cudaErrorMemoryAllocation,)
    assert cudart.cudaMalloc(512)[0] == enums.cudaError_t.cudaSuccess


def test_what_is_not_given_back_is_listed_with_its_line(simulator):
    cudart.cudaMalloc(1024)
    cudart.cudaEventCreate()
    assert [line.rsplit(":", 1)[0] for line in simulator.leaks()] == [
        "1,024 bytes of device memory, test_cudart_surface.py",
        "event, test_cudart_surface.py",
    ]


def test_fresh_and_freed_memory_is_never_what_was_hoped_for(simulator):
    import numpy as np

    address, host = cudart.cudaMalloc(64)[1], np.zeros(64, np.uint8)
    cudart.cudaMemcpy(host.ctypes.data, address, 64, 2)
    assert (host == 0xCD).all()


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("cudaStreamSynchronize", (5,)),
        ("cudaStreamWaitEvent", (5, 6, 0)),
        ("cudaStreamDestroy", (5,)),
        ("cudaStreamEndCapture", (5,)),
        ("cudaEventRecord", (5, 6)),
        ("cudaEventSynchronize", (5,)),
        ("cudaEventDestroy", (5,)),
        ("cudaEventElapsedTime", (5, 6)),
        ("cudaGraphLaunch", (5, 6)),
        ("cudaGraphUpload", (5, 6)),
        ("cudaGraphExecDestroy", (5,)),
        ("cudaFree", (4096,)),
        ("cudaFreeHost", (4096,)),
        ("cudaMemcpyAsync", (4096, 8192, 16, 1, 5)),
    ],
)
def test_the_real_runtime_takes_integers_for_handles(name, arguments):
    """As common/ passes them. Without a GPU every call gets as far as the missing driver; with one these would crash."""
    from tests.conftest import real_runtime

    if real_runtime() is not None:
        pytest.skip("there is a GPU, and these handles are made up")
    if name == "cudaMemcpyAsync":
        arguments = (*arguments[:3], runtime.cudaMemcpyKind.cudaMemcpyHostToDevice, arguments[4])
    assert getattr(runtime, name)(*arguments)[0].name in ("cudaErrorInsufficientDriver", "cudaErrorNoDevice")
