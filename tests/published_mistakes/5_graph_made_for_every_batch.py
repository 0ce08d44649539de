"""The graph is captured and instantiated for every batch, and never destroyed."""

from __future__ import annotations

from cuda.bindings import runtime as cudart
from pipeline import BATCHES, INPUT, OUTPUT, bind, call, copy_in, copy_out, device, give_back, load, page_locked, stream

context, host_input, host_output = load(), page_locked(INPUT), page_locked(OUTPUT)
device_input, device_output, one = device(INPUT), device(OUTPUT), stream()


def captured():
    call(cudart.cudaStreamBeginCapture(one, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
    assert context.execute_async_v3(one)
    graph = call(cudart.cudaStreamEndCapture(one))
    executable = call(cudart.cudaGraphInstantiate(graph, 0))
    call(cudart.cudaGraphDestroy(graph))
    return executable


bind(context, device_input, device_output)
copy_in(device_input, host_input, one)
assert context.execute_async_v3(one)
for _ in range(BATCHES):
    copy_in(device_input, host_input, one)
    executable = captured()
    call(cudart.cudaGraphLaunch(executable, one))
    copy_out(host_output, device_output, one)
    call(cudart.cudaStreamSynchronize(one))
    print(host_output.sum())
give_back(memory=[device_input, device_output], arrays=[host_input, host_output], streams=[one])
