"""How long a layer's kernel takes: tiles of a matrix product dealt to the multiprocessors, or memory traffic.

A convolution is a matrix product of (batch × output positions) rows and (output channels) columns. A kernel cuts it into
tiles, a thread block each, and deals them to the multiprocessors in waves. Large tiles use a multiprocessor better, small
ones leave fewer of them without work: which is best depends on the batch. TensorRT decides that when it builds, by timing
its kernels at the profile's OPT batch, and so does this, by arithmetic.
"""

from __future__ import annotations

from math import ceil

from sim.device import Device
from sim.network import Layer
from sim.work import Piece

HALF_RATE = 8.0  # multiplications for each element loaded, at which a tile reaches half of the peak rate
SPLIT_NS = 4000.0  # a pass that adds the partial sums of a product split along its depth
SHAPES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (128, 32), (32, 128), (64, 32), (32, 32))
TILES = [(*shape, split) for shape in SHAPES for split in (1, 2, 4, 8)]  # rows, columns, parts of the product's depth


def kernel(device: Device, layer: Layer, images: float, best_for: int) -> Piece:
    """``layer`` on ``images`` images, by the kernel that is best at ``best_for`` images."""
    memory_ns, product_ns, busy = (images * layer.nbytes + layer.weight_bytes) / device.memory_rate, 0.0, 0.0
    if layer.product is not None:
        tile = min(TILES, key=lambda tile: matrix_product(device, layer, best_for, tile)[0])
        product_ns, blocks = matrix_product(device, layer, images, tile)
        busy = blocks / device.multiprocessors
    duration = device.kernel_floor + round(max(memory_ns, product_ns))
    return Piece(layer.name, duration, min(1.0, max(busy, memory_ns / duration)))


def matrix_product(device: Device, layer: Layer, images: float, tile: tuple[int, int, int]) -> tuple[float, int]:
    """Time in ns and number of thread blocks of a layer's matrix product in tiles."""
    assert layer.product is not None
    (rows, columns, depth), (tile_rows, tile_columns, split) = layer.product, tile
    reuse = tile_rows * tile_columns / (tile_rows + tile_columns)
    rate = device.arithmetic_rates[layer.precision] / device.multiprocessors * reuse / (reuse + HALF_RATE)
    block_ns = 2 * tile_rows * tile_columns * depth / split / rate
    blocks = ceil(images * rows / tile_rows) * ceil(columns / tile_columns) * split
    waves, rest = divmod(blocks, device.multiprocessors)
    time_ns = waves * block_ns
    if rest:  # the last wave has nothing behind it to load while it multiplies
        time_ns += block_ns / device.last_wave_shares[layer.precision]
    if split > 1:
        time_ns += SPLIT_NS + 4 * split * images * rows * columns / device.memory_rate
    return time_ns, blocks
