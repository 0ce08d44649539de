"""DALI, the field's own answer to pictures in files, in front of the same plan: the GPU's JPEG engines and its kernels decode
them, and cut out and scale what the stages do.

    python -m peers.dali --images photos/                      on a GPU, with nvidia-dali-cuda130 (or -cuda120) installed
    python -m peers.dali --images photos/ --plan my.plan --json out/dali.json

`alone` is what DALI does with nothing behind it; `from disk to names` has inference and top-1 behind it, three batches on their
way. It is to be compared with stage 11 on the same folder: python -m scripts.decoders --images photos/
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from common import backend, program
from common.buffers import DeviceBuffer, copy_to_host_async, page_locked
from common.console import out
from common.cuda import Event, Stream, cudart
from common.engine import Engine
from common.errors import EnvironmentFault, UsageFault
from common.files import write_json
from common.images import write
from common.libraries import first
from common.options import positive
from common.photographs import BLEED, load_pixels
from common.pictures import SUFFIXES
from common.plans import default_plan
from common.verify import run_serially

WARM_UP, SECONDS, ON_THEIR_WAY = 20, 2.0, 3


def pictures(paths: list[Path], batch: int, side: int, threads: int, device: str = "mixed", channels: int = 3) -> Any:
    """DALI's pipeline from files to N×channels×side×side uint8, RGB and opacity; ``device``: "mixed" for the GPU, or "cpu"."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def
    def line() -> Any:
        files, _ = fn.readers.file(files=[str(path) for path in paths], name="files")
        shape = fn.cast(fn.slice(fn.peek_image_shape(files), 0, 2, axes=[0]), dtype=types.FLOAT)
        half = fn.reductions.min(shape) * (0.5 - BLEED)
        decoded = fn.decoders.image(files, device=device, output_type=types.RGB)
        bounds = {"roi_start": shape / 2 - half, "roi_end": shape / 2 + half}
        small = fn.resize(decoded, size=(side, side), interp_type=types.INTERP_LINEAR, antialias=True, **bounds)
        whole = fn.pad(small, axes=[2], shape=[channels], fill_value=255) if channels > 3 else small
        return fn.transpose(whole, perm=[2, 0, 1])

    made = line(batch_size=batch, num_threads=threads, device_id=0 if device == "mixed" else None, prefetch_queue_depth=2)
    made.build()
    return made


def rate(step: Callable[[], object], batch: int) -> float:
    """Images a second of a step that does a batch."""
    for _ in range(WARM_UP):
        step()
    started, steps = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < SECONDS:
        step()
        steps += 1
    return steps * batch / seconds


def main() -> None:
    p = program.parser(__doc__, prog="python -m peers.dali")
    p.add_argument("--images", type=Path, required=True, metavar="DIR")
    p.add_argument("--plan", type=Path, help="it takes N×3×S×S or N×4×S×S uint8 (default: stage 10's)")
    p.add_argument("--trust-plan", action="store_true", help="as in the stages")
    p.add_argument("--batch", type=positive, default=128, metavar="N", help="default: %(default)s")
    p.add_argument("--threads", type=positive, default=16, metavar="N", help="DALI's, of the host (default: %(default)s)")
    p.add_argument("--json", type=Path, metavar="PATH")
    options = p.parse_args()
    dali, here = first("nvidia.dali"), backend.select("tensorrt")
    if dali is None:
        raise EnvironmentFault("DALI is not installed: pip install nvidia-dali-cuda130 (or -cuda120).")
    paths = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in SUFFIXES)
    engine = Engine(options.plan or default_plan("fp16", layout="nchw"), options.trust_plan)
    taken, side = engine.input_shape(options.batch), engine.input_shape(1)[-1]
    if engine.input_type != np.uint8 or taken[1] not in (3, 4) or taken[2:] != (side, side) or len(paths) < options.batch:
        raise UsageFault(f"{engine.plan} takes {engine.input}, and there are {len(paths)} files: N×C×S×S uint8, and a batch.")
    asked = paths, options.batch, side, options.threads, "mixed", taken[1]
    alone = rate(pictures(*asked).run, options.batch)
    line, waiting, top1 = pictures(*asked), deque[Any](), deque[np.ndarray](maxlen=1)
    with ExitStack() as resources:
        stream, free = resources.enter_context(Stream()), deque[Any]()
        for _ in range(ON_THEIR_WAY):
            host = page_locked(engine.output_shape(options.batch), engine.output_type(options.batch))
            device_input, device_output = (resources.enter_context(DeviceBuffer(n)) for n in engine.nbytes(options.batch))
            context = engine.create_context(engine.profile_for(options.batch))
            context.set_input_shape(taken)
            context.bind(device_input, device_output)
            event = resources.enter_context(Event())
            free.append(SimpleNamespace(host=host, input=device_input, output=device_output, context=context, returned=event))

        def step() -> None:
            (decoded,) = line.run()
            address = decoded.as_tensor().data_ptr()
            slot = free.popleft()
            kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
            cudart.cudaMemcpyAsync(slot.input.address, address, slot.input.nbytes, kind, stream.handle)
            slot.context.execute_async_v3(stream)
            copy_to_host_async(slot.host, slot.output, stream)
            slot.returned.record(stream)
            waiting.append((slot, decoded))  # which the copy is reading
            if not free:
                slot, _ = waiting.popleft()
                slot.returned.synchronize()
                top1.append(slot.host.argmax(axis=1))
                free.append(slot)

        for _ in range(ON_THEIR_WAY):
            step()
        first_top1 = top1[0]
        through = rate(step, options.batch)
        stream.synchronize()
    right = np.empty(taken, np.uint8)
    write(np.stack([load_pixels(path, side, side) for path in paths[: options.batch]]), right)
    same = float((first_top1 == run_serially(engine, [right])[0].argmax(axis=1)).mean())
    found = {"dali": dali.__version__, "device": here.device, "engine": here.library, "batch": options.batch}
    found |= {"files": len(paths), "alone": alone, "images_per_s": through, "same_top1_as_pillow": same}
    out.print(f"DALI {dali.__version__}, {here.device}, {here.library}, batch {options.batch}, {len(paths)} files")
    out.print(f"alone {alone:,.0f} images/s, from disk to names {through:,.0f}, the same top-1 as Pillow on {same:.1%}")
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    program.run(main)
