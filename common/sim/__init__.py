"""A simulated GPU: drop-ins for ``cuda.bindings.runtime``, ``tensorrt`` and ``nvtx`` in virtual time.

``python -m common.sim SCRIPT`` runs any TensorRT script on them. Outputs are right (ONNX Runtime computes them on the
CPU); times are modelled from a device file in ``devices/``. Nothing here needs cuda-python or TensorRT.

    enums      CUDA's constants and error codes          clock      host threads' clocks, the GPU's engines
    memory     the address space and its rules           threads    Python's own synchronisation, in virtual time
    work       operations, streams, events, graphs       trace      the timeline, as Nsight Systems exports it
    cudart, tensorrt, nvtx                               the three drop-ins
"""
