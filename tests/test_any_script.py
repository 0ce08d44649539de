"""``python -m sim`` runs a script that knows nothing of this project."""

from __future__ import annotations

import sqlite3
import textwrap

import numpy as np

from export import models

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
