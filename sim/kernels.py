"""How long a layer's kernel takes: tiles of a matrix product dealt to the multiprocessors, or memory traffic.

A convolution is a matrix product of (batch × output positions) rows and (output channels) columns. A kernel cuts it into
tiles, a thread block each, and deals them to the multiprocessors in waves. Large tiles use a multiprocessor better, small
ones leave fewer of them without work: which is best depends on the batch. TensorRT decides that when it builds, by timing
its kernels at the profile's OPT batch, and so does this, by arithmetic.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from sim.device import Device
from sim.network import Layer
from sim.work import Piece

HALF_RATE = 8.0  # multiplications for each element loaded, at which a tile reaches half of the peak rate
SPLIT_NS = 4000.0  # a pass that adds the partial sums of a product split along its depth
SHAPES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (128, 32), (32, 128), (64, 32), (32, 32))
ROWS, COLUMNS, SPLIT = np.array([(*shape, split) for shape in SHAPES for split in (1, 2, 4, 8)], float).T  # the depth in parts
REUSE = ROWS * COLUMNS / (ROWS + COLUMNS)


def kernel(device: Device, layer: Layer, images: float, best_for: int) -> Piece:
    """``layer`` on ``images`` images, by the kernel that is best at ``best_for`` images."""
    memory_ns, product_ns, busy = (images * layer.nbytes + layer.weight_bytes) / device.memory_rate, 0.0, 0.0
    if layer.product is not None:
        tile = matrix_product(device, layer, layer.product, best_for)[0].argmin()
        product_ns, busy = (float(each[tile]) for each in matrix_product(device, layer, layer.product, images))
    duration = device.kernel_floor + round(max(memory_ns, product_ns))
    return Piece(layer.name, duration, min(1.0, max(busy, memory_ns / duration)))


def matrix_product(device: Device, layer: Layer, shape: tuple[int, int, int], images: float) -> tuple[np.ndarray, np.ndarray]:
    """Time in ns of a layer's product, and blocks a multiprocessor, by tile. The last wave has nothing behind it to load."""
    work, busy, waves, rest, sums_ns = dealt(*shape, images, device.multiprocessors, device.memory_rate)
    block_ns = work / (device.arithmetic_rates[layer.precision] / device.multiprocessors * REUSE / (REUSE + HALF_RATE))
    return waves * block_ns + (rest > 0) * (block_ns / device.last_wave_shares[layer.precision]) + sums_ns, busy


@lru_cache(1 << 12)
def dealt(rows: int, columns: int, depth: int, images: float, processors: int, memory_rate: float) -> tuple[np.ndarray, ...]:
    """By tile: operations of a block, blocks a multiprocessor, full waves and blocks of the last, ns to add parts."""
    blocks = np.ceil(images * rows / ROWS) * np.ceil(columns / COLUMNS) * SPLIT
    sums_ns = (SPLIT > 1) * (SPLIT_NS + 4 * SPLIT * images * rows * columns / memory_rate)
    return 2 * ROWS * COLUMNS * depth / SPLIT, blocks / processors, *np.divmod(blocks, processors), sums_ns
