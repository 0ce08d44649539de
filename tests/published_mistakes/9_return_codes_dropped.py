"""Every error code is dropped: the copy is larger than its buffer and does nothing."""

from __future__ import annotations

from cuda.bindings import runtime as cudart
from pipeline import INPUT, OUTPUT, TO_DEVICE, bind, call, copy_out, device, give_back, load, page_locked

context, host_input, host_output = load(), page_locked((4, *INPUT[1:])), page_locked(OUTPUT)
device_input, device_output = device(INPUT), device(OUTPUT)
_, one = cudart.cudaStreamCreate()
bind(context, device_input, device_output)
_ = cudart.cudaMemcpyAsync(device_input, host_input.ctypes.data, host_input.nbytes, TO_DEVICE, one)
context.execute_async_v3(one)
copy_out(host_output, device_output, one)
call(cudart.cudaStreamSynchronize(one))
print(host_output.sum())
give_back(memory=[device_input, device_output], arrays=[host_input, host_output], streams=[one])
