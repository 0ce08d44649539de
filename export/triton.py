"""From a plan to a model repository of Triton, NVIDIA's inference server.

    python -m scripts.export_triton plans/resnet18-fp16.plan served
    python -m scripts.export_triton plans/resnet18-fp16.plan served --name resnet18 --instances 3

What the stages do by hand, the server does from a page of configuration: REPOSITORY/NAME/config.pbtxt, beside the plan
(1/model.plan) and, where the plan's sidecar knows the classes, labels.txt. The plan is loaded first, so run this where it
runs: names, types, shapes and profiles are what the engine says. docs/serving.md says how to start the server, and which
stage each line is. All is written or nothing, and what is there already stays.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import backend, program
from common.console import err, out
from common.engine import Engine
from common.errors import EnvironmentFault, UsageFault
from common.files import write_text
from common.options import natural, positive
from common.tensors import End

INSTANCES, DELAY_US = 2, 500
"""As stage 8's contexts. The delay is less than half of what a batch of 128 computes for on an H200 (1.3 ms in FP16)."""
SETS = 2
"""Of buffers that an instance has with an output stream of its own: stage 5's slots."""
POOL = 256 << 20
"""Bytes of page-locked memory that Triton takes where nothing is said; what does not fit is copied from pageable memory."""
TYPES = {"FLOAT": "FP32", "HALF": "FP16", "FLOAT16": "FP16"}


def quoted(text: str) -> str:
    """A string of protobuf's text format: its UTF-8, with what is not plain ASCII as octal escapes."""
    plain = {*range(32, 127)} - {*b'"\\'}
    return '"' + "".join(chr(each) if each in plain else f"\\{each:03o}" for each in text.encode()) + '"'


def dims(end: End, fixed: bool) -> str:
    """The shape as Triton has it: without the batch where the server forms batches."""
    return f"[ {', '.join(map(str, end.shape if fixed else end.shape[1:]))} ]"


def tensor(kind: str, end: End, fixed: bool, more: str = "") -> str:
    """An input or output; one of N numbers has a dimension of 1, because Triton knows no empty shape."""
    shape = "[ 1 ]  reshape { }" if end.shape[1:] == () and not fixed else dims(end, fixed)
    return f"{kind} [ {{ name: {quoted(end.name)}  data_type: TYPE_{TYPES.get(end.dtype, end.dtype)}  dims: {shape}{more} }} ]"


def configuration(engine: Engine, name: str, instances: int, delay_us: int, labelled: bool = False) -> str:
    """The text of config.pbtxt. A plan for batches of one size only gets them whole: max_batch_size is 0 then."""
    fixed, count = engine.input.shape[0] > 0, len(engine.profiles)
    largest = 0 if fixed else max(high for *_, high in engine.profiles)
    captured = [0] if fixed else sorted({size for low, opt, _ in engine.profiles for size in (low, opt)})
    key, dim = quoted(engine.input.name), dims(engine.input, fixed)
    profile = f"  profile: [ {', '.join(quoted(str(index)) for index in range(count))} ]" * (count > 1)
    built = "{tensorrt} for {gpu}".format_map({"tensorrt": "an unknown TensorRT", "gpu": "an unknown GPU", **engine.facts})
    preferred = ", ".join(map(str, sorted({opt for _, opt, _ in engine.profiles})))
    batching = [
        "dynamic_batching {",
        f"  preferred_batch_size: [ {preferred} ]  # stage 9: what the kernels were chosen for",
        f"  max_queue_delay_microseconds: {delay_us}",
        "}",
    ]
    lines = [
        f"# {' '.join(f'{engine.plan.name}, built by {built}'.split())}. docs/serving.md explains the lines.",
        f"name: {quoted(name)}",
        'platform: "tensorrt_plan"',
        f"max_batch_size: {largest}",
        tensor("input", engine.input, fixed) + "  # stage 10: bytes" * (engine.input_type.itemsize == 1),
        *(tensor("output", end, fixed, '  label_filename: "labels.txt"' * labelled) for end in engine.outputs),
        *([] if fixed else batching),
        f"instance_group [ {{ kind: KIND_GPU  count: {instances}{profile} }} ]  # stage 8{', stage 9' * (count > 1)}",
        "optimization {",
        "  input_pinned_memory { enable: true }  # stage 3",
        "  output_pinned_memory { enable: true }",
        "  eager_batching: true  # stage 6: the next batch is prepared while this one computes",
        "  cuda {",
        f"    output_copy_stream: true  # stage 5: a stream for the outputs, {SETS} sets of buffers",
        "    graphs: true  # stage 7",
        *(f"    graph_spec {{ batch_size: {size}  input {{ key: {key}  value {{ dim: {dim} }} }} }}" for size in captured),
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success it becomes ``path``, which must not be there, otherwise it is removed."""
    if os.path.lexists(path):
        raise EnvironmentFault(f"{path} is there already: remove it, or choose another --name.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
            folder = Path(temporary) / path.name
            folder.mkdir()  # an ordinary one: the temporary is private, and Triton may be another user
            yield folder
            os.rename(folder, path)
    except OSError as error:
        raise EnvironmentFault(f"cannot write {path}: {error.strerror or error}.") from None


def warn(engine: Engine) -> None:
    """Say what the server will not do with this plan."""
    if backend.current().simulator is not None:
        err.print("a simulated plan: Triton loads none. Export the real one where it runs.", style="yellow")
    sizes = range(1, max(high for *_, high in engine.profiles) + 1)
    if engine.input.shape[0] < 0 and (refused := [size for size in sizes if engine.profile_for(size) is None]):
        some = ", ".join(map(str, refused[:4])) + ", …" * (len(refused) > 4)
        err.print(f"no profile takes batches of {some}: Triton answers such requests with an error.", style="yellow")


def command(engine: Engine, repository: Path, instances: int) -> str:
    """What starts the server on this repository."""
    batch = max(high for *_, high in engine.profiles)
    words, locked = ["tritonserver", f"--model-repository={repository}"], SETS * instances * sum(engine.nbytes(batch))
    words += [f"--pinned-memory-pool-byte-size={locked}"] * (locked > POOL)
    words += ["--backend-config=tensorrt,version-compatible=true"] * (engine.facts.get("version_compatible") is True)
    return shlex.join(words)


def main() -> None:
    parser = program.parser(__doc__, "scripts.export_triton")
    parser.add_argument("plan", type=Path, metavar="PLAN")
    parser.add_argument("repository", type=Path, metavar="REPOSITORY", help="Triton's folder of models; made if it is missing")
    parser.add_argument("--name", help="the model's (default: the plan's, up to its first dot)")
    instances = "contexts that run side by side on each GPU (default: %(default)s)"
    parser.add_argument("--instances", type=positive, default=INSTANCES, metavar="N", help=instances)
    delay = "how long a request may wait for others to share its batch, in µs (default: %(default)s)"
    parser.add_argument("--delay-us", type=natural, default=DELAY_US, metavar="N", help=delay)
    parser.add_argument("--backend", choices=backend.NAMES, default="auto", help="what the plan is for (default: %(default)s)")
    parser.add_argument("--trust-plan", action="store_true", help="load a version-compatible plan that no sidecar proves")
    options = parser.parse_args()
    name = options.plan.name.split(".")[0] if options.name is None else options.name
    if name != Path(name).name or name in ("", "..") or not name.isprintable():
        raise UsageFault(f"--name {name}: a model's name is that of a folder.")
    here = backend.select(options.backend)
    if here.kind.backend == "rtx":
        raise EnvironmentFault(f"Triton runs TensorRT's plans, and none of {here.kind.called}.")
    engine, folder = Engine(options.plan, options.trust_plan), options.repository / name
    labels = engine.facts.get("labels", [])
    labelled = engine.classifies and len(labels) == engine.outputs[0].shape[1]
    with whole_folder(folder) as new:
        (new / "1").mkdir()
        shutil.copyfile(options.plan, new / "1" / "model.plan")
        if labelled:
            write_text(new / "labels.txt", "".join(" ".join(label.split()) + "\n" for label in labels))
        write_text(new / "config.pbtxt", configuration(engine, name, options.instances, options.delay_us, labelled))
    warn(engine)
    out.print(f"wrote {folder}; start it: {command(engine, options.repository, options.instances)}", markup=False)


if __name__ == "__main__":
    program.run(main)
