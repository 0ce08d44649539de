"""Device memory is freed as page-locked memory, and page-locked memory while an array on it is still read."""

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
cudart.cudaFreeHost(device_input)
cudart.cudaFree(device_output)
cudart.cudaFreeHost(host_output.ctypes.data)
print(host_output.sum())
cudart.cudaFreeHost(host_input.ctypes.data)
