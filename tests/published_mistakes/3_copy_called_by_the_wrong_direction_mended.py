"""Each copy is called what it is."""

from __future__ import annotations

from cuda.bindings import runtime as cudart
from pipeline import INPUT, OUTPUT, TO_DEVICE, bind, call, copy_out, device, give_back, load, page_locked, stream

context, host_input, host_output = load(), page_locked(INPUT), page_locked(OUTPUT)
device_input, device_output, one = device(INPUT), device(OUTPUT), stream()
bind(context, device_input, device_output)
call(cudart.cudaMemcpyAsync(device_input, host_input.ctypes.data, host_input.nbytes, TO_DEVICE, one))
assert context.execute_async_v3(one)
copy_out(host_output, device_output, one)
call(cudart.cudaStreamSynchronize(one))
print(host_output.sum())
give_back(memory=[device_input, device_output], arrays=[host_input, host_output], streams=[one])
