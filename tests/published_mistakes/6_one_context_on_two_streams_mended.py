"""Each stream has a context of its own."""

from __future__ import annotations

from cuda.bindings import runtime as cudart
from pipeline import INPUT, OUTPUT, bind, call, copy_in, copy_out, device, give_back, load, page_locked, stream

LANES = 2
host_inputs, host_outputs = [page_locked(INPUT) for _ in range(LANES)], [page_locked(OUTPUT) for _ in range(LANES)]
inputs, outputs, streams = [], [], []
contexts = []
for _ in range(LANES):
    context = load()
    contexts.append(context)
    inputs.append(device(INPUT))
    outputs.append(device(OUTPUT))
    streams.append(stream())
for lane in range(LANES):
    copy_in(inputs[lane], host_inputs[lane], streams[lane])
    context = contexts[lane]
    bind(context, inputs[lane], outputs[lane])
    assert context.execute_async_v3(streams[lane])
    copy_out(host_outputs[lane], outputs[lane], streams[lane])
for lane in range(LANES):
    call(cudart.cudaStreamSynchronize(streams[lane]))
    print(host_outputs[lane].sum())
give_back(memory=[*inputs, *outputs], arrays=[*host_inputs, *host_outputs], streams=streams)
