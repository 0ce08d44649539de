"""The output array is refilled only after the printing thread has said that it has read it."""

from __future__ import annotations

import queue
import threading

from cuda.bindings import runtime as cudart
from pipeline import BATCHES, INPUT, OUTPUT, bind, call, copy_in, copy_out, device, give_back, load, page_locked, stream

context, host_input, host_output = load(), page_locked(INPUT), page_locked(OUTPUT)
device_input, device_output, one = device(INPUT), device(OUTPUT), stream()
full, free = queue.Queue(), queue.Queue()


def print_outputs():
    while (array := full.get()) is not None:
        print(array.argmax(axis=1))
        free.put(array)


printer = threading.Thread(target=print_outputs)
printer.start()
bind(context, device_input, device_output)
for batch in range(BATCHES):
    copy_in(device_input, host_input, one)
    assert context.execute_async_v3(one)
    if batch > 0:
        free.get()
    copy_out(host_output, device_output, one)
    call(cudart.cudaStreamSynchronize(one))
    full.put(host_output)
full.put(None)
printer.join()
give_back(memory=[device_input, device_output], arrays=[host_input, host_output], streams=[one])
