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


def test_what_it_does_not_have_it_says_in_a_sentence():
    missing = [name for name in dir(runtime) if name.startswith("cuda") and not hasattr(cudart, name)]
    for name in missing:
        with pytest.raises(AttributeError, match=f"^the simulated CUDA runtime has no {name}; it has .*$"):
            getattr(cudart, name)
    assert "cudaMemAdvise" in missing and len(missing) > 300
    for name in ENUMS:
        missing = [member for member in vars(getattr(runtime, name)) if member.startswith("cuda")]
        for member in set(missing) - set(getattr(cudart, name).__members__):
            with pytest.raises(AttributeError, match=f"^the simulated CUDA runtime has no {name}.{member}; it has .*$"):
                getattr(getattr(cudart, name), member)


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


# -- what ordinary scripts use besides


def ok(result):
    assert result[0] == 0, result
    return result[1] if len(result) == 2 else result[1:] or None


def test_memory_of_a_stream_s_order(simulator):
    streams = [ok(cudart.cudaStreamCreateWithFlags(1)) for _ in range(2)]
    address = ok(cudart.cudaMallocAsync(4096, streams[0]))
    ok(cudart.cudaMemsetAsync(address, 1, 4096, streams[0]))
    ok(cudart.cudaFreeAsync(address, streams[0]))
    assert simulator.gpu.races.found() == []
    assert cudart.cudaMemsetAsync(address, 1, 4096, streams[0])[0].name == "cudaErrorInvalidValue"
    address = ok(cudart.cudaMallocAsync(4096, streams[0]))
    ok(cudart.cudaMemsetAsync(address, 1, 4096, streams[1]))
    assert "after its write by the allocation" in simulator.gpu.races.found()[0]


def test_registered_memory_is_copied_from_late(simulator):
    import numpy as np

    array, back, stream = np.ones(4096, np.uint8), np.zeros(4096, np.uint8), ok(cudart.cudaStreamCreateWithFlags(1))
    address, device = array.ctypes.data, ok(cudart.cudaMalloc(4096))
    ok(cudart.cudaHostRegister(address, 4096, 0))
    assert ok(cudart.cudaPointerGetAttributes(address)).type.name == "cudaMemoryTypeHost"
    ok(cudart.cudaMemcpyAsync(device, address, 4096, 1, stream))
    array[:] = 2
    ok(cudart.cudaStreamSynchronize(stream))
    ok(cudart.cudaHostUnregister(address))
    ok(cudart.cudaMemcpy(back.ctypes.data, device, 4096, 2))
    assert (back == 2).all()


def test_rows_are_copied_with_their_pitch(simulator):
    import numpy as np

    host, back = np.arange(40, dtype=np.uint8).reshape(4, 10), np.zeros((4, 6), np.uint8)
    device, pitch = ok(cudart.cudaMallocPitch(6, 4))
    ok(cudart.cudaMemcpy2D(device, pitch, host.ctypes.data + 2, 10, 6, 4, 1))
    ok(cudart.cudaMemcpy2D(back.ctypes.data, 6, device, pitch, 6, 4, 2))
    assert (back == host[:, 2:8]).all()
    assert cudart.cudaMemcpy2D(device, 4, host.ctypes.data, 10, 6, 4, 1)[0].name == "cudaErrorInvalidValue"


def test_a_child_graph_runs_where_it_was_added(simulator):
    device, stream = ok(cudart.cudaMalloc(4096)), ok(cudart.cudaStreamCreateWithFlags(1))
    children = []
    for value in (1, 2):
        ok(cudart.cudaStreamBeginCapture(stream, 1))
        ok(cudart.cudaMemsetAsync(device, value, 4096, stream))
        children.append(ok(cudart.cudaStreamEndCapture(stream)))
    graph = ok(cudart.cudaGraphCreate(0))
    first = ok(cudart.cudaGraphAddChildGraphNode(graph, None, 0, children[1]))
    ok(cudart.cudaGraphAddChildGraphNode(graph, [first], 1, children[0]))
    assert cudart.cudaGraphLaunch(graph, stream)[0].name == "cudaErrorInvalidResourceHandle"
    ok(cudart.cudaGraphLaunch(ok(cudart.cudaGraphInstantiate(graph, 0)), stream))
    ok(cudart.cudaStreamSynchronize(stream))
    import numpy as np

    back = np.zeros(4096, np.uint8)
    ok(cudart.cudaMemcpy(back.ctypes.data, device, 4096, 2))
    assert (back == 1).all() and simulator.gpu.races.found() == []


def test_a_host_function_tells_a_thread_that_its_work_is_over(simulator):
    import ctypes
    import threading

    import numpy as np

    host, device, stream = (
        ok(cudart.cudaMallocHost(1 << 20)),
        ok(cudart.cudaMalloc(1 << 20)),
        ok(cudart.cudaStreamCreateWithFlags(1)),
    )
    array, done = np.frombuffer((ctypes.c_ubyte * (1 << 20)).from_address(host), np.uint8), threading.Event()
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda data: done.set())
    ok(cudart.cudaMemsetAsync(device, 7, 1 << 20, stream))
    ok(cudart.cudaMemcpyAsync(host, device, 1 << 20, 2, stream))
    ok(cudart.cudaLaunchHostFunc(stream, ctypes.cast(function, ctypes.c_void_p).value, 0))
    assert done.wait(5) and (array == 7).all()
    assert simulator.gpu.races.found() == []
    assert simulator.clock.thread().now >= max(end for _, end, *_ in simulator.trace.operations)


def test_each_thread_has_a_default_stream_of_its_own(simulator):
    device = ok(cudart.cudaMalloc(1 << 20))
    ok(cudart.cudaMemsetAsync(device, 1, 1 << 20, cudart.cudaStreamPerThread))
    assert cudart.cudaStreamQuery(cudart.cudaStreamPerThread)[0].name == "cudaErrorNotReady"
    ok(cudart.cudaMemset(device, 2, 1 << 20))  # the legacy stream waits for it
    assert simulator.gpu.races.found() == []


def test_destroying_a_stream_ends_its_capture(simulator):
    stream = ok(cudart.cudaStreamCreateWithFlags(1))
    ok(cudart.cudaStreamBeginCapture(stream, 0))
    ok(cudart.cudaStreamDestroy(stream))
    ok(cudart.cudaDeviceSynchronize())
    ok(cudart.cudaMalloc(4096))


@pytest.mark.parametrize("waits", [True, False])
def test_what_a_worker_has_happened_to_finish_orders_nothing(simulator, waits):
    """Nobody asks for the result of the job that reads the array; that the worker was idle again is luck."""
    import ctypes
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    array = np.frombuffer((ctypes.c_ubyte * 4096).from_address(ok(cudart.cudaMallocHost(4096))), np.uint8)
    device = ok(cudart.cudaMalloc(1 << 24))
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(array.sum)
        ok(cudart.cudaMemset(device, 0, 1 << 24))
        ok(cudart.cudaDeviceSynchronize())
        if waits:
            job.result()
        pool.submit(int)
        array[:] = 1
    races = simulator.gpu.races.found()
    assert races == [] if waits else "by the host" in races[0]
