"""A run over many processes: what each does with a shard, how Ray is started, and what is said of them all at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import platform
import signal
import socket
import sys
import time
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import options
from common.console import err, out, printable, wrapped
from common.errors import OURS, EnvironmentFault, UsageFault, reason
from common.feed import shown
from common.files import check_writable, grouped, sha256, write_json
from common.flow import Flow
from common.host import cores
from common.layers import require_precision
from common.plans import read_sidecar
from common.shards import WORK, Pictures, Shard, shards, tidy

BATCHES = 64  # of a shard
STORE = 256 << 20  # bytes of Ray's own memory on this machine: only names go through it
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}  # who feeds a GPU lets nobody go first; by default: 15
ANSWERS_S = 10.0  # in which a cluster takes a connection; Ray itself waits for minutes
DEATHS = 3  # workers in a row, for each GPU, that cannot start
RETRIES = 3  # of a shard whose worker died with it
KEPT = "What is done is kept; the same command does the rest."
Deal = Callable[[Namespace, "list[Shard]"], Iterable["dict[str, Any]"]]


def do(flow: Flow, pictures: Pictures, shard: Shard) -> dict[str, Any]:
    """Predict a shard's pictures and write them; what is to be said of it, or a ``fault`` that all have (a full disk)."""
    numbers = range(shard.first, shard.first + len(shard.names))
    answer = flow.predict(list(zip(map(str, numbers), pictures.sources(shard.names))))
    names = [printable(name or Path(pictures.root).name) for name in shard.names]
    classes, probabilities, reasons = zip(*answer.rows)
    try:
        shard.write(numbers, names, classes, probabilities, reasons)
    except EnvironmentFault as fault:
        return {"fault": EnvironmentFault(f"{fault} {KEPT}")}
    return {
        "shard": Path(shard.path).name,
        "images": len(answer.rows),
        "unreadable": len(reasons) - reasons.count(None),
        "by_pillow": answer.by_pillow,
        "worker": f"{platform.node()}:{os.getpid()}",
        "begun_s": answer.begun_ns / 1e9,
        "ended_s": answer.ended_ns / 1e9,
        "conditions": conditions(flow),
    }


def answer(do: Callable[[Shard], dict[str, Any]], block: dict[str, Any]) -> dict[str, list[bytes]]:
    """What a worker says to Ray of a block. After an error of CUDA its process is good for nothing: Ray starts another."""
    try:
        return {"done": [pickle.dumps(do(pickle.loads(shard))) for shard in block["shard"]]}
    except BaseException:
        traceback.print_exc()
        os._exit(OURS)


def conditions(flow: Flow) -> dict[str, Any]:
    here, chosen = flow.here, flow.options
    engine = {"engine": here.library, "precision": chosen.precision, "input": str(flow.engine.input_type)}
    sizes = {"batch": flow.size.charged, "computed_batch": flow.size.batch, "scale": here.scale}
    gpu = {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "cores": cores() if here.simulator is None else None}
    return {"backend": here.name, "device": here.device, **engine, **sizes, "decoder": flow.decoder.name, **gpu}


@contextlib.contextmanager
def ray(chosen: Namespace, most: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Ray's ``data`` and what a worker takes; Ray starts unless there is an address. Settles ``gpus`` and ``backend``."""
    os.environ.update({**SETTINGS, **os.environ})
    try:
        core, data = import_module("ray"), import_module("ray.data")
    except ModuleNotFoundError as error:
        raise EnvironmentFault(f"there is no {error.name} in this Python: pip install -e '.[ray]', or --part 0/1.") from None
    simulated, elsewhere = chosen.backend == "simulated", chosen.address not in (None, "local")
    where = dict[str, Any](address="local", include_dashboard=False, object_store_memory=STORE, _node_ip_address="127.0.0.1")
    if simulated:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray deals out what the simulator has, by the same code as real ones
    if chosen.backend != "auto" and (chosen.gpus or simulated):
        where["num_gpus"] = chosen.gpus or 2
    if elsewhere:
        where = {"address": answering(core, chosen.address)}
    heard = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def hear() -> None:
        for number, handler in heard.items():
            signal.signal(number, handler)

    try:
        running = core.init(logging_level="error", **where)
    except SystemExit:  # what Ray makes of SIGTERM
        raise KeyboardInterrupt from None
    with contextlib.ExitStack() as ends:
        ends.callback(hear)  # Ray takes away who hears SIGTERM when it ends, too
        ends.enter_context(running)
        hear()
        there = 0 if simulated and elsewhere else int(core.cluster_resources().get("GPU", 0))
        if not there and chosen.backend != "auto" and not simulated:
            raise EnvironmentFault(f"--backend {chosen.backend}: Ray sees no GPU here.")
        if 0 < there < (chosen.gpus or 0):
            raise UsageFault(f"--gpus {chosen.gpus}: Ray sees {there} here.")
        chosen.backend = chosen.backend if there else "simulated"
        wanted = chosen.gpus or there or 2
        chosen.gpus = min(wanted, most)
        what = "each a simulated GPU" if chosen.backend == "simulated" else "a GPU each"
        what += f" (of {wanted}: there are no more shards; --shard makes them smaller)" * (wanted > most)
        err.print(wrapped(f"workers: {chosen.gpus}, {what}", 2, err), markup=False)
        context = data.DataContext.get_current()
        context.print_on_execution_start = False
        context.memory_usage_poll_interval_s = None  # whose thread would be one of the simulated host's
        context.max_errored_blocks = -1  # what is left is told at the end
        context.max_consecutive_actor_init_deaths = DEATHS * chosen.gpus
        warnings.filterwarnings("ignore", ".*ray_remote_args")  # nothing else has max_task_retries
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # a worker that cannot start is one
        try:
            yield data, {"num_gpus": 1 if there else 0, "num_cpus": 0, "max_restarts": -1, "max_task_retries": RETRIES}
        except core.exceptions.RayError as error:
            said = [line for line in str(error).splitlines() if line.strip()][-1]
            raise EnvironmentFault(f"Ray gave up: {said}. {KEPT}") from error


def answering(core: Any, address: str) -> str:
    """The address, or the one that "auto" stands for. Raises ``EnvironmentFault`` where nobody answers."""
    try:
        found: str = core._private.services.canonicalize_bootstrap_address(address)
        host, _, port = found.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), ANSWERS_S).close()
    except (OSError, ValueError) as error:
        raise EnvironmentFault(f"--address {address}: no Ray cluster answers there ({reason(error)}).") from None
    return found


def run(chosen: Namespace, deal: Deal) -> None:
    """Do what is not done yet, and say what came of it. Raises ``EnvironmentFault`` where something is left."""
    started, images = time.monotonic(), chosen.images
    chosen.images = images if "://" in images else str(Path(images).resolve())
    chosen.predictions, name = chosen.predictions.resolve(), Path(sys.argv[0]).stem
    chosen.plan = chosen.plan and chosen.plan.resolve()
    chosen.precision = chosen.precision or (None if chosen.plan else "fp16")
    told = read_sidecar(chosen.plan) if chosen.plan else {}  # faults are said once, not by each worker that dies of them
    if chosen.precision and told.get("precisions"):
        require_precision(told["precisions"], chosen.precision, chosen.plan)
    if chosen.format == "parquet" and find_spec("pyarrow") is None:
        raise EnvironmentFault("there is no pyarrow in this Python: pip install -e '.[ray]', or --format csv.")
    facts = {"plan_sha256": sha256(chosen.plan) if chosen.plan else None, "precision": chosen.precision}
    size = chosen.shard or BATCHES * (chosen.batch or options.usual_batch(chosen.plan))
    every, left = shards(Pictures(chosen.images), chosen.predictions, size, f".{chosen.format}", facts)
    check_writable(chosen.json, kept=[chosen.predictions / WORK, *(Path(shard.path) for shard in every)])
    if chosen.part:
        own = every[chosen.part[0] :: chosen.part[1]]
        every, left = own, [shard for shard in own if shard in left]
        if left and chosen.format == "parquet":  # Ray's workers have it already
            import_module("pyarrow").array([0])  # loads pandas, if there is one: 0.4 s, not to be spent beside the first shards
    if len(left) < len(every):
        err.print(f"{name}: {len(every) - len(left)} of {len(every)} shards are done already")
    done = []
    for each in shown(deal(chosen, left) if left else (), "shards", len(left)):
        if "fault" in each:
            if not any(chosen.predictions.glob("*-*")):
                (chosen.predictions / WORK).unlink(missing_ok=True)  # or the right options would be another run's
            raise each["fault"]
        done.append(each)
    found = {**summary(done), "wall_s": time.monotonic() - started, "shards": done}
    if chosen.json:
        write_json(chosen.json, {"stage": name, "images_from": images, **found})
    for line in said(found) if done else []:
        out.print(wrapped(line, 2), markup=False)
    tidy(chosen.predictions, left)
    if missing := [Path(shard.path).stem for shard in left if not Path(shard.path).exists()]:
        what = f"{len(missing)} of {len(every)} shards are not done ({', '.join(missing[:3])}{', …' * (len(missing) > 3)})"
        raise EnvironmentFault(f"{what}; why is said above. The same command does them.")


def summary(done: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, and images a second of each worker while at work and of all GPUs; of one GPU's two workers the first one died."""
    workers = grouped((each["worker"], each) for each in done)
    places = ((each["worker"].rpartition(":")[0], each["conditions"]["gpu"]) for each in done)
    gpus = grouped((place if place[1] else each["worker"], each) for place, each in zip(places, done))
    rates = [{"worker": worker, **rate(own), **own[0]["conditions"]} for worker, own in sorted(workers.items())]
    counts = {key: sum(each[key] for each in done) for key in ("images", "unreadable", "by_pillow")}
    return {**counts, "images_per_s": sum(rate(own)["images_per_s"] for own in gpus.values()), "workers": rates}


def rate(done: list[dict[str, Any]]) -> dict[str, Any]:
    """Of shards that were done one after the other, or two at a time."""
    span_s = max(each["ended_s"] for each in done) - min(each["begun_s"] for each in done)
    images = sum(each["images"] for each in done)
    return {"images": images, "span_s": span_s, "images_per_s": images * done[0]["conditions"]["scale"] / span_s}


def said(found: dict[str, Any]) -> Iterator[str]:
    for each in found["workers"]:
        what = f"{each['precision']}, batch {each['batch']}, {each['input']} by {each['decoder']}"
        rate = f"{each['images']:,} pictures, {each['images_per_s']:,.0f} images/s"
        yield f"{each['worker']}: {rate} ({each['device']}, {each['engine']}, {what})"
    yield f"{found['images']:,} pictures in {found['wall_s']:.1f} s; {found['images_per_s']:,.0f} images/s while at work"
    if found["unreadable"]:
        yield f"{found['unreadable']:,} of them cannot be read; their rows say why"
    if found["by_pillow"]:
        yield f"{found['by_pillow']:,} were decoded by Pillow"
