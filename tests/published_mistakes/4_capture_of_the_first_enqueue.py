"""The first enqueue is captured: TensorRT prepares itself there, which breaks the capture."""

from __future__ import annotations

from cuda.bindings import runtime as cudart
from pipeline import INPUT, OUTPUT, bind, call, copy_in, copy_out, device, give_back, load, page_locked, stream

context, host_input, host_output = load(), page_locked(INPUT), page_locked(OUTPUT)
device_input, device_output, one = device(INPUT), device(OUTPUT), stream()
bind(context, device_input, device_output)
copy_in(device_input, host_input, one)
executables = []
call(cudart.cudaStreamBeginCapture(one, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
context.execute_async_v3(one)
error, graph = cudart.cudaStreamEndCapture(one)
if error == cudart.cudaError_t.cudaSuccess:
    executables.append(call(cudart.cudaGraphInstantiate(graph, 0)))
    call(cudart.cudaGraphDestroy(graph))
    call(cudart.cudaGraphLaunch(executables[0], one))
else:
    print("this model cannot be captured")
    assert context.execute_async_v3(one)
copy_out(host_output, device_output, one)
call(cudart.cudaStreamSynchronize(one))
print(host_output.sum())
give_back(memory=[device_input, device_output], arrays=[host_input, host_output], streams=[one], executables=executables)
