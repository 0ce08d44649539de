"""12 · Many GPUs: a folder or a bucket of pictures, on all GPUs of a machine or of a cluster.

What changes: nothing in the pipeline. A worker a GPU runs stage 11 as it is, and Ray Data deals out the work: ranges of the
pictures' numbers, "shards", of which each worker always has two, so that its pipeline never runs dry. Only names go through
Ray. A worker reads the files itself, and writes a shard's predictions whole or not at all.

Differs from: nothing; its workers run 11_jpeg_decode.py

Why it helps: N GPUs are N links, N sets of JPEG engines, N times the multiprocessors. And with a million pictures something
always breaks. A worker that dies is started anew, and its shards are done again. One that cannot start does no harm to the
others. A picture that nobody can read has a row that says why. The same command, given again, does what is not done yet.

When it does not: where the GPUs wait for something that they share: the host's cores, if they decode; the disk or the network;
a link that goes through one switch. docs/scale.md says where each of these limits lies. On one GPU stage 11 is simpler.

    python 12_many_gpus.py --images photos/ --predictions out/names/
    python 12_many_gpus.py --images s3://bucket/photos --predictions out/names/
    python 12_many_gpus.py --images photos/ --predictions out/names/ --gpus 4

Without a GPU the four are simulated. ``--address auto`` takes all GPUs of a Ray cluster (docs/scale.md).

In the timeline: the rows of stage 11, once for each GPU, without a gap between two shards.

Try: ``kill -9`` a worker (``ray::MapWorker``) in the middle; Ctrl-C, and the same command again. ``--part 0/2`` and
``--part 1/2``, each on its GPU (``CUDA_VISIBLE_DEVICES``), are the same work without Ray: what it costs is the difference.
"""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing
from importlib import import_module
from typing import Any

from common import many, options, program
from common.decoders import shared_out
from common.errors import Fault, MissingModule, UsageFault
from common.flow import Flow
from common.shards import Pictures, Shard

IN_FLIGHT = 2  # shards of a worker: while it waits for the last batches of one, the next one's follow

stage_11 = import_module("11_jpeg_decode")  # its pipeline


class Worker:
    """One GPU: an engine, and a pipeline that has no end. A fault of the options is every worker's, and each shard's answer."""

    flow: Flow | None = None
    fault: Fault | None = None

    def __init__(self, chosen: Namespace) -> None:
        self.pictures = Pictures(chosen.images)
        try:
            self.flow = Flow(chosen, stage_11.infer)
        except (MissingModule, UsageFault) as fault:
            self.fault = fault

    def do(self, shard: Shard) -> dict[str, Any]:
        return many.do(self.flow, self.pictures, shard) if self.flow else {"fault": self.fault}

    def __call__(self, block: dict[str, Any]) -> dict[str, list[bytes]]:
        return many.answer(self.do, block)

    def close(self) -> None:
        if self.flow:
            self.flow.close()

    __del__ = close


def with_ray(chosen: Namespace, shards: list[Shard]) -> Iterator[dict[str, Any]]:
    """Deal the shards out to a worker a GPU; yields what each says of its shard. One that has killed four workers is left."""
    with many.ray(chosen, len(shards)) as (data, resources):
        rows = data.from_items([{"shard": pickle.dumps(shard)} for shard in shards], override_num_blocks=len(shards))
        pool = data.ActorPoolStrategy(
            size=chosen.gpus,
            max_concurrent_calls_per_actor=IN_FLIGHT,
            max_tasks_in_flight_per_actor=IN_FLIGHT + 1,
            enable_true_multi_threading=True,
        )
        done = rows.map_batches(Worker, batch_size=1, compute=pool, fn_constructor_args=(chosen,), **resources)
        for row in done.iter_rows():
            yield pickle.loads(row["done"])


def by_itself(chosen: Namespace, shards: list[Shard]) -> Iterator[dict[str, Any]]:
    """Do the shards in this process."""
    with closing(Worker(chosen)) as worker:
        yield from shared_out(IN_FLIGHT)(worker.do, shards)


def main() -> None:
    chosen = options.many(__doc__).parse_args()
    many.run(chosen, by_itself if chosen.part else with_ray)


if __name__ == "__main__":
    program.run(main)
