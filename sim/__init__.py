"""A simulated GPU: drop-ins for ``cuda.bindings.runtime``, ``tensorrt`` and ``nvtx`` in virtual time.

``python -m sim SCRIPT`` runs any TensorRT script on them. Outputs are right (ONNX Runtime computes them on the
CPU); times are modelled from a device file in ``devices/``. Nothing here needs cuda-python or TensorRT.

    cudart, tensorrt, nvtx        the three drop-ins              simulator   the simulated process, which they share
    calls, calls_memory, …_graphs CUDA's calls, one by one        enums       constants, error codes, handles
    runtime, context              TensorRT's run-time half        memory      the address space and its rules
    order, races                  what comes before what          views       NumPy's views of page-locked memory
    work, gpu                     operations, streams, the GPU    sites       places and names in the script
    clock, exchange               host threads' clocks, units     threads, locks   Python's synchronisation in virtual time
    network, kernels, device      layers, their time, the GPU     trace       the timeline, as Nsight Systems exports it
    stand_in, overview, faults    ``python -m sim``: the vendors' names, what is said afterwards, failing calls
    calibrate, device_file        a device file from a real GPU   predict     the simulator against reality
"""

import common as common  # from here on Ctrl-C ends in one line
