"""What the stages are built on: backend, CUDA, buffers, engines, plans, options, the measured window, verification."""
