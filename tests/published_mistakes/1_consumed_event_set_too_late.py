"""The consumed event is set after the enqueue that it should cover: the copy waits for what nobody has recorded."""

from __future__ import annotations

from cuda.bindings import runtime as cudart
from pipeline import BATCHES, INPUT, OUTPUT, bind, call, copy_in, copy_out, device, event, give_back, load, page_locked, stream

context, host_inputs = load(), [page_locked(INPUT) for _ in range(BATCHES)]
host_outputs = [page_locked(OUTPUT) for _ in range(BATCHES)]
device_input, device_output = device(INPUT), device(OUTPUT)
copies, compute, copied, consumed = stream(), stream(), event(), event()
bind(context, device_input, device_output)
for host_input, host_output in zip(host_inputs, host_outputs):
    call(cudart.cudaStreamWaitEvent(copies, consumed, 0))
    copy_in(device_input, host_input, copies)
    call(cudart.cudaEventRecord(copied, copies))
    call(cudart.cudaStreamWaitEvent(compute, copied, 0))
    assert context.execute_async_v3(compute)
    context.set_input_consumed_event(consumed)
    copy_out(host_output, device_output, compute)
call(cudart.cudaStreamSynchronize(compute))
print(sum(output.sum() for output in host_outputs))
arrays = [*host_inputs, *host_outputs]
give_back(memory=[device_input, device_output], arrays=arrays, streams=[copies, compute], events=[copied, consumed])
