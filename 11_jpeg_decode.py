"""11 · JPEG decode: from files to names, with the decoder at work beside the link and the kernels.

What changes: the batches are JPEG files. They are read two batches ahead (beside a GPU by a process of its own), and two
threads decode a batch each into the slots of stage 10's pipeline. Where there is nvImageCodec, the files' bytes go over the
link, a third of stage 10's, and the GPU decodes and scales them straight into the memory that the plan reads. Elsewhere the
host's cores do it (``--decoder``), and the pixels are copied as before.

Where the decoder runs: GPUs like the A100 and the H200 have JPEG engines of their own beside the multiprocessors. On others
nvImageCodec shares the work between kernels, which then compete with inference, and the host's cores. Scaling is a kernel in
either case. A batch is handed over whole, because the engines work on many pictures at a time, and each call costs the host.

Differs from: 10_uint8_input.py; a side branch

Why it helps: pictures come in files, and the decoder is slower than all the rest: for files of 500×375, by a factor of 5 on
an H200, and of 66 with Pillow on its host. With the decoder at work ahead of them, copies and kernels cost no time any more.

When it does not: with few pictures, which no engine is busy with. With files that are no plain JPEGs (progressive, CMYK, grey,
lying on their side, no JPEG at all): they are left to Pillow, counted and named. And behind a decoder that takes all the time
a faster engine or graph is worth nothing: what helps is a faster decoder, or a second machine.

    python 11_jpeg_decode.py
    python 11_jpeg_decode.py --images photos/ --decoder pillow

In the timeline: the row `decode` without a gap, and short pieces of compute below it. (The files' way over the link is in it.)

Measured (H200, TensorRT 10.16): 6.1 ms a batch, 20,948 images a second; with Pillow 92 ms (reports/h200-jpeg/table). DALI does
as much, and with files of 224×224 1.05 to 1.55 times as much: docs/decoding.md.

Try (simulated H200): 6.78 ms a batch, and 1.37 in stage 10; ``--decoder pillow`` 77.3. ``SLOTS, AHEAD = 5, 3``: no difference;
on the H200 5.3 and 6.9 ms, where 4, 2 took 5.9 and 6.6. Tables of your own files: ``python -m scripts.decoders``.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from importlib import import_module

from common import options, session
from common.buffers import Slot, copy_to_device_async, page_locked
from common.cuda import CaptureError, Stream
from common.decode import Files, GpuDecoder

SLOTS, AHEAD = 4, 2  # two are read or decoded, one computes, one is post-processed
stage_7 = import_module("7_cuda_graph")  # its inference, captured into a graph


def infer(run: session.Session) -> None:
    """Decode the batches ahead on other threads, launch a graph for each, finish them in the same order on another thread."""
    contexts, decoder = run.engine.graph_contexts(SLOTS, run.batch_shape), run.decoder
    with ExitStack() as resources:
        slots = [Slot(run, resources) for _ in range(SLOTS)]
        pixels = [page_locked(run.batch_shape, run.engine.input_type) for _ in slots if not isinstance(decoder, GpuDecoder)]
        copy_in, compute = (resources.enter_context(Stream()) for _ in range(2))
        try:
            graphs = [resources.enter_context(stage_7.capture(*each, compute)) for each in zip(contexts, slots)]
        except CaptureError as error:
            run.notes.append(f"not captured, so launched one by one: {error}")
            graphs = []
        decoding, worker = (resources.enter_context(ThreadPoolExecutor(threads)) for threads in (decoder.threads, 1))
        decoded: list[Future[None]] = []
        finished: list[Future[None]] = []

        def decode(index: int, slot: Slot, files: Future[Files]) -> None:
            if isinstance(decoder, GpuDecoder):
                decoder.decode(files.result(), slot.device_input, copy_in)
            else:
                decoder.decode(files.result(), pixels[index % SLOTS])
                copy_to_device_async(slot.device_input, pixels[index % SLOTS], copy_in)
            slot.copied.record(copy_in)

        def finish(index: int, slot: Slot) -> None:
            slot.returned.synchronize()
            run.finish(index, slot.host_output)

        for ahead in range(len(run.batches) + AHEAD):
            if ahead >= SLOTS:
                finished[ahead - SLOTS].result()  # the slot's last batch; only now may this one overwrite it
            if ahead < len(run.batches):
                run.begin(ahead)
                decoded.append(decoding.submit(decode, ahead, slots[ahead % SLOTS], run.read_files(ahead)))
            index, slot = ahead - AHEAD, slots[(ahead - AHEAD) % SLOTS]
            if index < 0:
                continue
            decoded[index].result()  # raises what the decoder raised
            with run.submit(index):
                compute.wait(slot.copied)
                if graphs:
                    graphs[index % SLOTS].launch(compute)
                else:
                    stage_7.enqueue(contexts[index % SLOTS], slot, compute)
                slot.returned.record(compute)
            finished.append(worker.submit(finish, index, slot))
        for batch in finished[-SLOTS:]:
            batch.result()  # raises what the worker raised


if __name__ == "__main__":
    parser = options.parser(__doc__)
    parser.set_defaults(decoder="auto", layout=None)
    session.main(parser, infer, precision="fp16", page_lock=True, encoded=True)
