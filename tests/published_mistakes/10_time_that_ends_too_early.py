"""The clock is read while the work is still on the GPU: what is timed is the submission."""

from __future__ import annotations

import time

from cuda.bindings import runtime as cudart
from pipeline import INPUT, OUTPUT, bind, call, copy_in, copy_out, device, give_back, load, page_locked, stream

context, host_input, host_output = load(), page_locked(INPUT), page_locked(OUTPUT)
device_input, device_output, one = device(INPUT), device(OUTPUT), stream()
bind(context, device_input, device_output)
started = time.perf_counter()
copy_in(device_input, host_input, one)
assert context.execute_async_v3(one)
copy_out(host_output, device_output, one)
print(f"{1e3 * (time.perf_counter() - started):.3f} ms")
call(cudart.cudaStreamSynchronize(one))
print(host_output.sum())
give_back(memory=[device_input, device_output], arrays=[host_input, host_output], streams=[one])
