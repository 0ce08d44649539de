"""The simulator against reality: each stage as modelled from a GPU's calibration, beside what was measured on that GPU.

    python -m scripts.predict h200 reports/h200-trt8.6-batch128 reports/h200-trt8.6-batch1

Runs the stages on the simulated device with the batch and the number of batches of each report and writes prediction.json
and prediction.md into it. The device file knows no stage's time (see scripts/calibrate.py): what is compared is how the
scripts put the parts together. Measured is the median of the report's runs. What else goes on on a host only adds time, and
the model knows of nothing else, so the fastest run stands beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from common import backend
from common.files import atomic_path, write_json
from common.sim import device as devices
from scripts.compare import read_json
from scripts.tables import conditions, grid

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = [("stage", "stage", "{}"), ("predicted", "predicted_ms", "{:.3f}"), ("measured", "measured_ms", "{:.3f}"),
           ("spread", "spread", "{:.1%}"), ("off by", "off", "{:+.1%}"), ("fastest run", "fastest_ms", "{:.3f}"),
           ("off by", "off_fastest", "{:+.1%}")]
console = Console(highlight=False, soft_wrap=True)


def predict(device: str, stage: str, record: dict[str, Any]) -> float:
    """Milliseconds a batch of one stage on the simulated device."""
    batch = record["batch"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.json"
        subprocess.run(
            [sys.executable, str(ROOT / f"{stage}.py"), "--backend", "simulated", "--device", device, "--no-verify",
             "--batch", str(min(batch, backend.SIMULATED_BATCH)), "--charge-batch", str(batch), "--json", str(path),
             "--batches", str(min(record["batches"], 60)), "--measure", str(min(record["measured"], 50))],
            check=True, capture_output=True, text=True)
        return json.loads(path.read_text())["per_batch_ms"]


def table(run: dict[str, Any], rows: list[dict[str, Any]], device: str) -> str:
    above = f"Measured: {conditions(run)}. Predicted: the simulated `{device}`, ms a batch:"
    return "\n".join([above, "", *grid(rows, COLUMNS), ""])


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("device", choices=devices.available())
    p.add_argument("reports", type=Path, nargs="+", metavar="DIR")
    options = p.parse_args()
    for folder in options.reports:
        comparison = read_json(folder / "comparison.json")
        if not comparison:
            console.print(f"predict: error: {folder} holds no comparison.json.", style="red", markup=False)
            return 3
        rows = []
        for stage in comparison["stages"]:
            record = read_json(folder / f"{stage['stage']}.json")
            predicted, measured = predict(options.device, stage["stage"], record), stage["per_batch_ms"]
            fastest = min(record.get("repeats_ms") or [measured])
            rows.append({"stage": stage["stage"], "predicted_ms": predicted, "measured_ms": measured,
                         "spread": stage.get("spread"), "off": predicted / measured - 1, "fastest_ms": fastest,
                         "off_fastest": predicted / fastest - 1})
        write_json(folder / "prediction.json", {"device": options.device, "stages": rows})
        text = table(comparison["run"], rows, options.device)
        with atomic_path(folder / "prediction.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
        console.print(text, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
