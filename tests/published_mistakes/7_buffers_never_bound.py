"""The buffers that are copied into are never given to the context."""

from __future__ import annotations

from cuda.bindings import runtime as cudart
from pipeline import INPUT, OUTPUT, bind, call, copy_in, copy_out, device, give_back, load, page_locked, stream

context, host_input, host_output = load(), page_locked(INPUT), page_locked(OUTPUT)
device_input, device_output, one, spare = device(INPUT), device(OUTPUT), stream(), device(INPUT)
call(cudart.cudaMemsetAsync(spare, 0, host_input.nbytes, one))
bind(context, spare, device_output)
copy_in(device_input, host_input, one)
assert context.execute_async_v3(one)
copy_out(host_output, device_output, one)
call(cudart.cudaStreamSynchronize(one))
print(host_output.sum())
give_back(memory=[device_input, device_output, spare], arrays=[host_input, host_output], streams=[one])
