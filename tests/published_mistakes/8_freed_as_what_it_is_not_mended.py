"""Each memory is freed by its own call, after its last use."""

from __future__ import annotations

from cuda.bindings import runtime as cudart
from pipeline import INPUT, OUTPUT, bind, call, copy_in, copy_out, device, load, page_locked, stream

context, host_input, host_output = load(), page_locked(INPUT), page_locked(OUTPUT)
device_input, device_output, one = device(INPUT), device(OUTPUT), stream()
bind(context, device_input, device_output)
copy_in(device_input, host_input, one)
assert context.execute_async_v3(one)
copy_out(host_output, device_output, one)
call(cudart.cudaStreamSynchronize(one))
call(cudart.cudaStreamDestroy(one))
cudart.cudaFree(device_input)
cudart.cudaFree(device_output)
print(host_output.sum())
cudart.cudaFreeHost(host_output.ctypes.data)
cudart.cudaFreeHost(host_input.ctypes.data)
