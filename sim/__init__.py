"""A simulated GPU: drop-ins for ``cuda.bindings.runtime``, ``tensorrt`` and ``nvtx`` in virtual time.

``python -m sim SCRIPT`` runs any TensorRT script on them. Outputs are right (ONNX Runtime computes them on the
CPU); times are modelled from a device file in ``devices/``. Nothing here needs cuda-python or TensorRT.

    cudart, tensorrt, nvtx        the three drop-ins              simulator   the simulated process, which they share
    runtime                       TensorRT's run-time half        enums       constants, error codes, handles
    work                          operations, streams, the GPU    memory      the address space and its rules
    clock                         host threads' clocks, units     threads     Python's synchronisation in virtual time
    network, kernels, device      layers, their time, the GPU     trace       the timeline, as Nsight Systems exports it
    calibrate, device_file        a device file from a real GPU   predict     the simulator against reality
"""
