"""``python -m sim`` runs a script that knows nothing of this project."""

from __future__ import annotations

import re
import sqlite3
import textwrap

import numpy as np
import pytest

from export import models
from tests.conftest import ROOT

SCRIPT = """
    import sys
    import numpy as np
    import tensorrt as trt
    from cuda.bindings import runtime as cudart

    logger = trt.Logger(trt.Logger.ERROR)
    engine = trt.Runtime(logger).deserialize_cuda_engine(open(sys.argv[1], "rb").read())
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    context.set_input_shape(names[0], (2, 3, 224, 224))
    host = [np.ones(tuple(context.get_tensor_shape(name)), trt.nptype(engine.get_tensor_dtype(name))) for name in names]
    device = [cudart.cudaMalloc(array.nbytes)[1] for array in host]
    for name, address in zip(names, device):
        context.set_tensor_address(name, address)
    _, stream = cudart.cudaStreamCreate()
    cudart.cudaMemcpyAsync(device[0], host[0].ctypes.data, host[0].nbytes, cudart.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)
    assert context.execute_async_v3(stream)
    cudart.cudaMemcpyAsync(host[1].ctypes.data, device[1], host[1].nbytes, cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)
    cudart.cudaStreamSynchronize(stream)
    print("sum", float(host[1].sum()))
    cudart.cudaFree(device[0])
"""


def test_a_foreign_script_runs_and_its_leaks_are_named(checkout, tmp_path):
    script = tmp_path / "foreign.py"
    script.write_text(textwrap.dedent(SCRIPT))
    trace = tmp_path / "foreign.sqlite"
    done = checkout.run(
        "-m", "sim", "--device", "h200", "--trace", trace, script, checkout.plans / "resnet18-fp16.simulated.plan"
    )
    assert done.returncode == 0, done.stderr
    expected = models.run_onnx(checkout.models / "resnet18-fp16.onnx", np.ones((2, 3, 224, 224), np.float32)).sum()
    assert abs(float(done.stdout.split()[1]) - expected) < 1e-2
    assert "not given back: 8,000 bytes of device memory, foreign.py:13" in done.stderr
    assert "not given back: stream, foreign.py:16" in done.stderr
    assert "602,112" not in done.stderr  # this one was freed
    with sqlite3.connect(trace) as connection:
        assert connection.execute("SELECT COUNT(*) FROM CUPTI_ACTIVITY_KIND_KERNEL").fetchone()[0] == 25


def test_the_exit_code_is_the_script_s(checkout, tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("import sys; sys.exit(7)")
    assert checkout.run("-m", "sim", script).returncode == 7
    assert checkout.run("-m", "sim", tmp_path / "none.py").returncode == 2


OLD = """
    import sys
    import numpy as np
    import tensorrt as trt
    from cuda import cuda, cudart, nvrtc
    import nvtx

    def check(err):
        if isinstance(err, cuda.CUresult):
            assert err == cuda.CUresult.CUDA_SUCCESS
        elif isinstance(err, cudart.cudaError_t):
            assert err == cudart.cudaError_t.cudaSuccess
        else:
            assert err == nvrtc.nvrtcResult.NVRTC_SUCCESS

    def cuda_call(call):
        err, *res = call
        check(err)
        return res[0] if len(res) == 1 else res

    trt_logger = trt.Logger(trt.Logger.WARNING)
    trt.init_libnvinfer_plugins(trt_logger, namespace="")
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    with trt.Builder(trt_logger) as builder, builder.create_network(flags) as network, \\
            trt.OnnxParser(network, trt_logger) as parser:
        config = builder.create_builder_config()
        config.max_workspace_size = 1 << 30
        config.set_flag(trt.BuilderFlag.FP16)
        profile = builder.create_optimization_profile()
        with open(sys.argv[1], "rb") as model:
            assert parser.parse(model.read())
        profile.set_shape(network.get_input(0).name, (1, 3, 32, 32), (2, 3, 32, 32), (4, 3, 32, 32))
        config.add_optimization_profile(profile)
        engine = builder.build_engine(network, config)
    with engine.create_execution_context() as context:
        context.set_binding_shape(0, (2, 3, 32, 32))
        bindings, host, device = [], [], []
        for binding in engine:
            shape = context.get_binding_shape(engine.get_binding_index(binding))
            dtype = trt.nptype(engine.get_binding_dtype(binding))
            assert engine.get_binding_dtype(binding) == trt.float32
            host.append(np.ones(tuple(shape), dtype))
            device.append(cuda_call(cudart.cudaMalloc(host[-1].nbytes)))
            bindings.append(int(device[-1]))
            assert engine.binding_is_input(binding) == (binding == "images")
        stream = cuda_call(cudart.cudaStreamCreate())
        kinds = cudart.cudaMemcpyKind
        with nvtx.annotate("batch", color="green"):
            cuda_call(cudart.cudaMemcpyAsync(device[0], host[0], host[0].nbytes, kinds.cudaMemcpyHostToDevice, stream))
            assert context.execute_async_v2(bindings=bindings, stream_handle=stream)
            cuda_call(cudart.cudaMemcpyAsync(host[1], device[1], host[1].nbytes, kinds.cudaMemcpyDeviceToHost, stream))
            cuda_call(cudart.cudaStreamSynchronize(stream))
        first = host[1].copy()
        assert context.execute_v2(bindings)
        cuda_call(cudart.cudaMemcpy(host[1], device[1], host[1].nbytes, kinds.cudaMemcpyDeviceToHost))
        assert (host[1] == first).all()
        print("sum", float(first.sum()))
    for address in device:
        cuda_call(cudart.cudaFree(address))
    cuda_call(cudart.cudaStreamDestroy(stream))
"""

THREADS = """
    import sys, threading, queue
    from collections import deque
    sys.path.insert(0, sys.argv[2])
    from pipeline import *

    context, host_input, host_output = load(), page_locked(INPUT), page_locked(OUTPUT)
    device_input, device_output, one = device(INPUT), device(OUTPUT), stream()
    bind(context, device_input, device_output)
    lock, ready, barrier, items = threading.Lock(), threading.Condition(), threading.Barrier(2), deque()

    def consume():
        barrier.wait()
        for _ in range(3):
            with ready:
                while not items:
                    ready.wait()
                items.popleft()
            with lock:
                host_output.sum()
            done.put(None)

    done = queue.Queue()
    thread = threading.Thread(target=consume)
    thread.start()
    barrier.wait()
    for _ in range(3):
        with lock:
            copy_in(device_input, host_input, one)
            assert context.execute_async_v3(one)
            copy_out(host_output, device_output, one)
            call(cudart.cudaStreamSynchronize(one))
        with ready:
            items.append(1)
            ready.notify()
        done.get()
    thread.join()
    give_back(memory=[device_input, device_output], arrays=[host_input, host_output], streams=[one])
"""

POLLS = """
    import sys, threading
    from concurrent.futures import ThreadPoolExecutor, as_completed, wait
    from queue import Empty, Queue, SimpleQueue
    sys.path.insert(0, sys.argv[2])
    from pipeline import *

    host_output, device_output, one = page_locked(OUTPUT), device(OUTPUT), stream()

    def round_of(way):
        lock, ready, event, permits = threading.Lock(), threading.Condition(), threading.Event(), threading.Semaphore(0)
        items, said = Queue(), SimpleQueue()
        lock.acquire()

        def read():
            host_output.sum()
            items.put(1), said.put(1), event.set(), lock.release(), permits.release()
            with ready:
                ready.notify()

        def later():  # sees the reader's future done, and learns nothing from that
            while future._state != "FINISHED":
                pass

        def got(queue):
            try:
                return queue.get_nowait()
            except Empty:
                return False

        with ThreadPoolExecutor(2) as pool:
            copy_out(host_output, device_output, one)
            call(cudart.cudaStreamSynchronize(one))
            future = thread = None
            ready.acquire()
            if way in ("done", "wait", "as_completed"):
                future = pool.submit(read)
                both = [future, *([pool.submit(later)] if way == "wait" else [])]
            else:
                thread = threading.Thread(target=read)
                thread.start()
            while way == "condition" and not ready.wait(0.01):
                pass
            ready.release()
            asks = {
                "done": lambda: future.done(),
                "wait": lambda: not wait(both, 0).not_done,
                "as_completed": lambda: [*as_completed(both)],
                "is_alive": lambda: not thread.is_alive(),
                "get_nowait": lambda: got(items),
                "SimpleQueue": lambda: got(said),
                "is_set": event.is_set,
                "acquire": lambda: lock.acquire(blocking=False),
                "semaphore": lambda: permits.acquire(blocking=False),
                "timeout": lambda: permits.acquire(timeout=0),
            }
            while way in asks and not asks[way]():
                pass
            copy_out(host_output, device_output, one)
            call(cudart.cudaStreamSynchronize(one))
            thread is None or thread.join()

    for way in sys.argv[3].split(","):
        round_of(way)
    give_back(memory=[device_output], arrays=[host_output], streams=[one])
"""


def run_text(checkout, tmp_path, text, *arguments):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(text))
    return checkout.run("-m", "sim", script, *arguments)


def test_a_script_for_tensorrt_8_and_cuda_python_11_runs(checkout, tmp_path):
    done = run_text(checkout, tmp_path, OLD, checkout.folder / "tiny.onnx")
    assert done.returncode == 0, done.stderr
    expected = models.run_onnx(checkout.folder / "tiny.onnx", np.ones((2, 3, 32, 32), np.float32)).sum()
    assert abs(float(done.stdout.split()[1]) - expected) < 1e-3
    assert "race" not in done.stderr and "not given back" not in done.stderr and "ignored" not in done.stderr
    assert "from the first operation to the last" in done.stderr


def test_locks_conditions_and_barriers_order_threads(checkout, tmp_path):
    done = run_text(checkout, tmp_path, THREADS, checkout.tiny, ROOT / "tests" / "published_mistakes")
    assert done.returncode == 0 and "race" not in done.stderr, done.stderr


def test_who_asks_and_hears_yes_comes_after_what_was_done_before(checkout, tmp_path):
    ways = "done,wait,as_completed,is_alive,get_nowait,SimpleQueue,is_set,acquire,semaphore,timeout,condition"
    done = run_text(checkout, tmp_path, POLLS, checkout.tiny, ROOT / "tests" / "published_mistakes", ways)
    assert done.returncode == 0 and "race" not in done.stderr, done.stderr


def test_who_does_not_ask_races(checkout, tmp_path):
    done = run_text(checkout, tmp_path, POLLS, checkout.tiny, ROOT / "tests" / "published_mistakes", "nothing")
    assert done.returncode == 1 and "race: nothing orders the write of host_output" in done.stderr, done.stderr


PROFILES = """
    import sys
    import numpy as np
    import tensorrt as trt
    from common import LIMIT
    from cuda import cudart

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network, config = builder.create_network(1), builder.create_builder_config()
    assert trt.OnnxParser(network, logger).parse(open(sys.argv[1], "rb").read())
    for _ in range(2):
        profile = builder.create_optimization_profile()
        profile.set_shape("images", (1, 3, 32, 32), (2, 3, 32, 32), (LIMIT, 3, 32, 32))
        config.add_optimization_profile(profile)
    engine = trt.Runtime(logger).deserialize_cuda_engine(builder.build_serialized_network(network, config))
    context, stream = engine.create_execution_context(), cudart.cudaStreamCreate()[1]
    context.set_optimization_profile_async(1, stream)
    assert engine.num_bindings == 4 and engine.binding_is_input(2) and context.set_binding_shape(2, (2, 3, 32, 32))
    output = np.empty(context.get_binding_shape(3), np.float32)
    bindings = [0, 0, cudart.cudaMalloc(2 * 3 * 32 * 32 * 4)[1], cudart.cudaMalloc(output.nbytes)[1]]
    cudart.cudaMemset(bindings[2], 0, 2 * 3 * 32 * 32 * 4)
    assert context.execute_async_v2(bindings, stream)
    cudart.cudaStreamBeginCapture(stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal)
    assert context.execute_async_v2(bindings, stream)
    graph = cudart.cudaStreamEndCapture(stream)[1]
    _, executable, _ = cudart.cudaGraphInstantiate(graph, b"", 0)
    cudart.cudaGraphLaunch(executable, stream)
    cudart.cudaStreamSynchronize(stream)
    page_locked = cudart.cudaMallocHost(output.nbytes)[1]
    cudart.cudaMemcpy(page_locked, bindings[3], output.nbytes, cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost)
    cudart.cudaMemcpy(output, page_locked, output.nbytes, cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost)
    print(float(np.abs(output).sum()))
"""


def test_bindings_of_profiles_graphs_of_cuda_11_and_a_module_called_common(checkout, tmp_path):
    (tmp_path / "common.py").write_text("LIMIT = 4\n")
    done = run_text(checkout, tmp_path, PROFILES, checkout.folder / "tiny.onnx")
    assert done.returncode == 0 and float(done.stdout) == 0.0 and "ignored" not in done.stderr, done.stderr


GRAPH = """
    import sys
    sys.path.insert(0, sys.argv[2])
    from pipeline import *

    host_input, host_output, one = page_locked(INPUT), page_locked(OUTPUT), stream()
    device_input, device_output = device(INPUT), device(OUTPUT)
    context = load()
    bind(context, device_input, device_output)
    copy_in(device_input, host_input, one)
    assert context.execute_async_v3(one)
    call(cudart.cudaStreamSynchronize(one))
    call(cudart.cudaStreamBeginCapture(one, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
    assert context.execute_async_v3(one)
    graph = call(cudart.cudaStreamEndCapture(one))
    executable = call(cudart.cudaGraphInstantiate(graph, 0))
    call(cudart.cudaGraphDestroy(graph))
    {between}
    error, = cudart.cudaGraphLaunch(executable, one)
    copy_out(host_output, device_output, one)
    call(cudart.cudaStreamSynchronize(one))
    print(error.name, host_output.any())
"""


@pytest.mark.parametrize(
    "between, what",
    [
        ("del context", r"the activations of the execution context made at pipeline.py:\d+ from script.py:8"),
        ("call(cudart.cudaFree(device_input))", r"24,576 bytes of device memory \(pipeline.py:\d+ from script.py:7\)"),
        ("pass", None),
    ],
)
def test_a_graph_does_not_keep_what_it_uses(checkout, tmp_path, between, what):
    text = textwrap.dedent(GRAPH).format(between=between)
    done = run_text(checkout, tmp_path, text, checkout.tiny, ROOT / "tests" / "published_mistakes")
    sentence = f"freed too early: the graph launched at script.py:19 uses {what}, gone since script.py:18"
    assert done.stdout.split()[0] == ("cudaErrorIllegalAddress" if what else "cudaSuccess"), done.stderr
    assert re.search(sentence, done.stderr) if what else "freed too early" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "text, said",
    [
        ("trt.Builder(trt.Logger()).create_network().add_input('x', trt.float32, (1,))", "networks from ONNX files only"),
        ("cudart.cudaMallocManaged(8, 1)", "the simulated CUDA runtime has no cudaMallocManaged; it has"),
        ("cudart.cudaMemAdvise(8, 1)", "the simulated CUDA runtime has no cudaMemAdvise; it has"),
        ("trt.ICudaEngine.refittable", "the simulated TensorRT has no ICudaEngine.refittable; it has"),
        ("from cuda.bindings import driver; driver.cuInit(0)", "the simulated CUDA has the runtime's calls only"),
    ],
)
def test_what_is_beyond_it_is_said_in_a_sentence(checkout, tmp_path, text, said):
    done = run_text(checkout, tmp_path, f"import tensorrt as trt\nfrom cuda.bindings import runtime as cudart\n{text}\n")
    assert done.returncode == 1 and said in done.stderr, done.stderr


def test_every_call_of_a_script_is_made_to_fail(checkout):
    script = ROOT / "tests" / "published_mistakes" / "10_time_that_ends_too_early_mended.py"
    done = checkout.run("-m", "sim", "--faults", script, checkout.tiny)
    *runs, summary = done.stdout.splitlines()
    assert len(runs) == 13 and all("ended with its name" in line for line in runs), done.stdout
    assert runs[0].startswith("1 of 13: cudaMallocHost at pipeline.py:") and "not given back" not in runs[0]
    assert summary.startswith("13 of 13 calls: 13 ended with its name") and done.returncode == 1


def test_a_dropped_error_is_seen_by_failing_it(checkout):
    script = ROOT / "tests" / "published_mistakes" / "9_return_codes_dropped.py"
    done = checkout.run("-m", "sim", "--faults", script, checkout.tiny)
    assert [line.split(" at ")[0].split()[-1] for line in done.stdout.splitlines() if line.endswith(": went on")] == [
        "cudaMemcpyAsync"
    ]


ENDS = {
    "a clock waited for": "import time\nstart = time.time()\nwhile time.time() - start < 0.01: pass\n",
    "asyncio": "import asyncio\nasync def main():\n    await asyncio.to_thread(print, 1)\nasyncio.run(main())\n",
}


@pytest.mark.parametrize("script", ENDS.values(), ids=ENDS)
def test_a_script_that_ends_in_python_ends_here(checkout, tmp_path, script):
    path = tmp_path / "script.py"
    path.write_text(script)
    done = checkout.run("-m", "sim", path, timeout=60)
    assert done.returncode == 0, done.stderr


def test_an_interrupted_script_is_reported_all_the_same(checkout, tmp_path):
    path = tmp_path / "script.py"
    path.write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(9)\nwhile True: pass\n")
    done = checkout.run("-m", "sim", path, timeout=60)
    assert done.returncode == 130 and "KeyboardInterrupt" in done.stderr and "0 CUDA calls" in done.stderr
