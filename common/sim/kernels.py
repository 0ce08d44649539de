"""How long a layer's kernel takes: tiles of a matrix product dealt to the multiprocessors, or memory traffic.

A convolution is a matrix product of (batch × output positions) rows and (output channels) columns. A kernel cuts it into
tiles, a thread block each, and deals them to the multiprocessors in waves. Large tiles use a multiprocessor better, small
ones leave fewer of them without work: which is best depends on the batch. TensorRT decides that when it builds, by timing
its kernels at the profile's OPT batch, and so does this, by arithmetic.
"""

from __future__ import annotations

from math import ceil

from common.sim.device import Device
from common.sim.network import Layer
from common.sim.work import Piece

HALF_RATE = 8.0  # multiplications for each element loaded, at which a tile reaches half of the peak rate
SPLIT_NS = 4000.0  # a pass that adds the partial sums of a product split along its depth
TILES = [(rows, columns, split) for rows, columns in
         ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (128, 32), (32, 128), (64, 32), (32, 32))
         for split in (1, 2, 4, 8)]
"""Rows and columns of a tile, and into how many parts the product's depth is split."""


def kernel(device: Device, layer: Layer, images: float, best_for: int) -> Piece:
    """``layer`` on ``images`` images, by the kernel that is best at ``best_for`` images."""
    memory_ns, product, busy = (images * layer.nbytes + layer.weight_bytes) / device.memory_rate, 0.0, 0.0
    if layer.product is not None:
        tile = tactic(device, layer.precision, layer.product, best_for)
        product = product_ns(device, layer.precision, layer.product, images, tile)
        busy = blocks(layer.product, images, tile) / device.multiprocessors
    duration = device.kernel_floor + round(max(memory_ns, product))
    return Piece(layer.name, duration, min(1.0, max(busy, memory_ns / duration)))


def tactic(device: Device, precision: str, shape: tuple[int, int, int], images: int) -> tuple[int, int, int]:
    """The tile with the shortest time at a batch of ``images``."""
    return min(TILES, key=lambda tile: product_ns(device, precision, shape, images, tile))


def blocks(shape: tuple[int, int, int], images: float, tile: tuple[int, int, int]) -> int:
    """Thread blocks of a product."""
    return ceil(images * shape[0] / tile[0]) * ceil(shape[1] / tile[1]) * tile[2]


def product_ns(device: Device, precision: str, shape: tuple[int, int, int], images: float, tile: tuple[int, int, int]) -> float:
    """Time of a matrix product of ``shape`` (rows an image, columns, depth) in tiles."""
    rows, columns, depth = images * shape[0], shape[1], shape[2]
    tile_rows, tile_columns, split = tile
    reuse = tile_rows * tile_columns / (tile_rows + tile_columns)
    rate = device.arithmetic_rates[precision] / device.multiprocessors * reuse / (reuse + HALF_RATE)
    block_ns = 2 * tile_rows * tile_columns * depth / split / rate
    waves, rest = divmod(blocks(shape, images, tile), device.multiprocessors)
    time_ns = waves * block_ns
    if rest:  # the last wave has nothing behind it to load while it multiplies
        time_ns += block_ns / device.last_wave_shares[precision]
    if split > 1:
        time_ns += SPLIT_NS + 4 * split * rows * columns / device.memory_rate
    return time_ns

