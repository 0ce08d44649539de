"""The simulator against reality: each stage as modelled from a GPU's calibration, beside what was measured on that GPU.

    python -m scripts.predict h200 reports/h200-trt8.6-batch128 reports/h200-trt8.6-batch1

Runs the stages on the simulated device with the batch and the number of batches of each report and writes prediction.json
and prediction.md into it; the stages that the report lacks, too, so that the table's advice (made anew by scripts/compare.py)
has the model's word on what to try next. The device file knows no stage's time (see scripts/calibrate.py): what is compared is
how the scripts put the parts together. Measured is the median of the report's runs. What else goes on on a host only adds
time, and the model knows of nothing else, so the fastest run stands beside it.
"""

from __future__ import annotations

from pathlib import Path

from common import backend, program
from common.children import record_of
from common.console import err
from common.errors import EnvironmentFault, UsageFault
from common.files import grid, publish
from common.libraries import SIMULATED
from common.plans import ROOT, path_of
from common.record import LADDER, Record, numbered
from sim import device as devices

COLUMNS = [
    ("stage", "stage", "{}"),
    ("predicted", "predicted_ms", "{:.3f}"),
    ("measured", "measured_ms", "{:.3f}"),
    ("off by", "off", "{:+.1%}"),
    ("fastest run", "fastest_ms", "{:.3f}"),
    ("off by", "off_fastest", "{:+.1%}"),
]

FOLLOWS = """\
On the host of the calibration, stages 3, 4, 6 and 7 at batch 128 follow from what was timed: a copy, compute, their sum or the
longer of the two. Everything else tests the model: the other stages, other batches, another host, another GPU."""
INT8_FOLLOWS = "\nBut not INT8's compute: its rate is fitted to a timed plan, of the same modelled kernels but for the input's."


def ladder(batch: int | None) -> list[Record]:
    """What there is to run of the ladder; stage 10 in INT8, too, where its plan is there."""
    stages = [path.stem for path in numbered(ROOT, LADDER)]
    found = [Record(stage=name, batch=batch) for name in stages]
    if path_of("int8", [], "nchw", SIMULATED).exists():
        found += [Record(stage=name, batch=batch, precision="int8") for name in stages if name.endswith("uint8_input")]
    return found


def called(run: Record) -> str:
    return f"{run.stage}{' --precision int8' * (run.precision == 'int8')}"


def modelled(device: str, stage: str, *options: object) -> Record:
    """A stage's record on the simulated device. Raises ``EnvironmentFault`` where it ended without one."""
    where = ("--backend", "simulated", "--device", device)
    with err.status(f"{stage} on the simulated {device}"):
        return record_of(ROOT / f"{stage}.py", *where, "--no-verify", *options)


def predict(device: str, measured: Record) -> float:
    """Milliseconds a batch of a measured stage on the simulated device."""
    computed = min(measured.batch or 1, backend.SIMULATED_BATCH)
    sizes = {"--batch": computed, "--charge-batch": measured.batch, "--batches": min(measured.batches or 60, 60)}
    sizes["--measure"] = min(measured.measured or 50, 50)
    precision = ["--precision", measured.precision] if measured.precision else []
    given = [*precision, *(part for option in sizes.items() for part in option)]
    return modelled(device, measured.stage, *given).per_batch_ms


def main() -> None:
    p = program.parser(__doc__)
    p.add_argument("device", choices=devices.available())
    p.add_argument("reports", type=Path, nargs="+", metavar="DIR")
    options = p.parse_args()
    for folder in options.reports:
        if not (records := Record.read_all(folder)):
            raise EnvironmentFault(f"{folder} holds no stage's record.")
        if any(each.backend == "simulated" for each in records):
            raise UsageFault(f"{folder} is modelled itself; a prediction is held against what was measured, as in reports/.")
        if strange := [each for each in records if each.device not in (None, devices.load(options.device).name)]:
            raise UsageFault(f"{folder}: {strange[0].stage} was measured on {strange[0].device}, not on {options.device}.")
        if strange := [each for each in records if not (ROOT / f"{each.stage}.py").is_file()]:
            raise UsageFault(f"{folder}: {strange[0].stage} is no stage of this ladder, so no script predicts it.")
        rows = []
        for record in records:
            predicted, measured = predict(options.device, record), record.per_batch_ms
            fastest = min(record.repeats_ms or [measured])
            row = (record.stage, predicted, measured, predicted / measured - 1, fastest, predicted / fastest - 1)
            rows.append(dict(zip((key for _, key, _ in COLUMNS), row)))
        known = {called(record): row["predicted_ms"] for record, row in zip(records, rows)}
        for other in ladder(records[0].batch):
            if called(other) not in known:
                known[called(other)] = predict(options.device, other)
        above = f"Measured: {records[0]}. Predicted: the simulated `{options.device}`, ms a batch:"
        text = "\n".join([above, "", *grid(rows, COLUMNS), "", FOLLOWS + INT8_FOLLOWS * (records[0].precision == "int8"), ""])
        publish(text, {"device": options.device, "stages": rows, "modelled_ms": known}, folder / "prediction")


if __name__ == "__main__":
    program.run(main)
