"""The harness against real Nsight Systems binaries, old ones included. Without a GPU they still trace NVTX."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.nsys import Nsys, NsysError, find
from scripts.trace_reader import PUSH_POP, START_END, Reader, TraceError, read
from tests.conftest import ROOT, run
from tests.debian_nsys import Unavailable, install

CACHE = ROOT / "tests" / ".cache"


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def nsys(request) -> Nsys:
    """Debian's nsys of two ages: 2022.4 (bookworm) and 2023.4 (trixie)."""
    try:
        path = install(CACHE / f"nsys-{request.param}", request.param)
    except Unavailable as reason:
        pytest.skip(f"no Nsight Systems here: {reason}")
    os.environ["NSYS"] = str(path)
    yield find()
    del os.environ["NSYS"]


@pytest.fixture(scope="module")
def old_nvtx() -> Path:
    """nvtx 0.2.11, whose ranges old profilers record."""
    folder = CACHE / f"nvtx-0.2.11-py{sys.version_info[0]}{sys.version_info[1]}"
    if not (folder / "nvtx").exists():
        done = subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, "nvtx==0.2.11"],
                              capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip("nvtx 0.2.11 cannot be installed for this Python")
    return folder


def profile(nsys: Nsys, folder: Path, script: Path, arguments: list[str], nvtx: Path | None) -> Path:
    report, sqlite, log = folder / "report", folder / "report.sqlite", folder / "log"
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, filter(None, [nvtx, ROOT])))
    try:
        nsys.profile(report, [sys.executable, str(script), *arguments], nsys.flags(False, False), log)
        nsys.export(report, sqlite, log)
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    return sqlite


def reader(path: Path) -> Reader:
    import sqlite3

    return Reader(sqlite3.connect(path), path)


LADDER = """
import sys
from dataclasses import replace

import nvtx

from common import backend, ranges

backend._current = replace(backend.select("simulated"), nvtx=nvtx)
for index in range(4):
    with ranges.pushed(ranges.INFER, index):
        pass
    with ranges.pushed(ranges.POSTPROCESS, 8):
        pass
    if index == 0:
        window = ranges.start(ranges.MEASURED)
ranges.end(window)
"""


@pytest.mark.nsys
def test_our_ranges_are_recorded(nsys, old_nvtx, tmp_path):
    """The stages' own range helpers, under the real profiler, read back by the one reader."""
    script = tmp_path / "ranges.py"
    script.write_text(LADDER)
    found = reader(profile(nsys, tmp_path, script, [], old_nvtx))
    assert len(found.ranges("infer", PUSH_POP)) == 4
    assert len(found.ranges("postprocess", PUSH_POP)) == 4
    assert len(found.ranges("measured batches", START_END)) == 1
    with pytest.raises(TraceError, match="no GPU work"):
        read(found.path)


DOUBLED = """
import runpy, sys
import nvtx
from common.sim import nvtx as simulated

def double(name):  # the simulated ranges lie in virtual time; the profiler sees the same ones in its own
    ours, theirs = getattr(simulated, name), getattr(nvtx, name)
    if name == "end_range":
        setattr(simulated, name, lambda pair: (ours(pair[0]), theirs(pair[1])))
    else:
        setattr(simulated, name, lambda *args, **kwargs: (ours(*args, **kwargs), theirs(*args, **kwargs)))

for name in ("push_range", "pop_range", "start_range", "end_range"):
    double(name)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.nsys
def test_a_stage_under_the_profiler(nsys, old_nvtx, plans, tmp_path):
    """A whole stage, its ranges doubled into real NVTX."""
    script = tmp_path / "stage.py"
    script.write_text(DOUBLED)
    arguments = [str(ROOT / "6_multi_threads.py"), "--backend", "simulated", "--batch", "1", "--batches", "6", "--no-verify"]
    found = reader(profile(nsys, tmp_path, script, arguments, old_nvtx))
    assert len(found.ranges("infer", PUSH_POP)) == 6
    assert len(found.ranges("postprocess", PUSH_POP)) == 6
    assert len({row[2] for row in found.ranges("infer", PUSH_POP) + found.ranges("postprocess", PUSH_POP)}) == 2  # two threads
    assert len(found.ranges("measured batches", START_END)) == 1


@pytest.mark.nsys
def test_a_new_nvtx_under_an_old_profiler_is_explained(nsys, tmp_path):
    import importlib.metadata

    if tuple(map(int, importlib.metadata.version("nvtx").split(".")[:3])) < (0, 2, 12):
        pytest.skip("this nvtx works with every nsys")
    script = tmp_path / "ranges.py"
    script.write_text(LADDER)
    path = profile(nsys, tmp_path, script, [], None)
    with pytest.raises(TraceError, match=r"nvtx<0\.2\.12"):
        read(path)


@pytest.mark.nsys
def test_only_flags_that_this_version_has_are_used(nsys):
    flags = nsys.flags(gpu_metrics=False, backtraces=False)
    assert flags[0] == "--trace=cuda,nvtx" and "--cuda-memory-usage=true" in flags
    assert all(flag.split("=")[0] in nsys.help for flag in flags)
    metrics = nsys.flags(gpu_metrics=True, backtraces=True)
    assert metrics[0] == "--trace=cuda,nvtx,osrt"
    assert "--gpu-metrics-device=all" in metrics and "--cudabacktrace=all" in metrics


# -- without a profiler, and with one that misbehaves


def fake(folder: Path, body: str) -> Path:
    path = folder / "nsys"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_a_named_profiler_that_does_not_run(monkeypatch, tmp_path):
    monkeypatch.setenv("NSYS", str(tmp_path / "none"))
    with pytest.raises(NsysError, match="does not run"):
        find()


def test_newer_spellings_are_preferred(monkeypatch, tmp_path):
    body = ('case "$1" in --version) echo "NVIDIA Nsight Systems version 2025.3.1.0";; '
            'profile) echo " --gpu-metrics-devices= --cuda-graph-trace= --cuda-event-trace= --cudabacktrace=";; esac')
    monkeypatch.setenv("NSYS", str(fake(tmp_path, body)))
    found = find()
    assert found.version == "2025.3.1.0"
    assert "--gpu-metrics-devices=all" in found.flags(True, False)
    assert "--cuda-event-trace=false" in found.flags(False, False)
    assert "--cuda-memory-usage=true" not in found.flags(False, False)


def test_missing_permission_for_metrics_is_one_sentence(monkeypatch, tmp_path):
    body = ('case "$1" in --version) echo "version 2025.3.1";; profile) if [ "$2" = --help ]; then '
            'echo "--gpu-metrics-devices="; else echo "ERR_NVGPUCTRPERM"; exit 1; fi;; esac')
    monkeypatch.setenv("NSYS", str(fake(tmp_path, body)))
    found = find()
    with pytest.raises(NsysError, match="no permission to sample GPU metrics"):
        found.profile(tmp_path / "report", ["true"], found.flags(True, False), tmp_path / "log")


def test_a_profiler_that_writes_nothing_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("NSYS", str(fake(tmp_path, 'echo "version 2025.3.1"')))
    found = find()
    found.profile(tmp_path / "report", ["true"], [], tmp_path / "log")
    with pytest.raises(NsysError, match="wrote no report"):
        found.export(tmp_path / "report", tmp_path / "x.sqlite", tmp_path / "log")


# -- the page


def test_the_page_is_whole_and_needs_no_network(plans, tmp_path):
    done = run("-m", "scripts.profile_stages", "--backend", "simulated", "--batch", "2", "--charge-batch", "128",
               "--out", tmp_path, "--perfetto", "--figures", "4", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http://www.w3.org", "") and "<script" not in page
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page and 'tabindex="0"' in page
    assert page.count("<svg") == 4 and "4_use_fp16 → 5_multi_streams" in page  # two timelines, and the pair again
    trace = json.loads((tmp_path / "5_multi_streams.perfetto.json").read_text())["traceEvents"]
    assert {event["ph"] for event in trace} == {"X", "M"}
    assert {event["args"]["name"] for event in trace if event["name"] == "thread_name"} >= {"H2D copy", "compute", "D2H copy"}
    assert sum(event["name"] == "infer" for event in trace) == 10
    for name in ("timelines", "timeline_5_multi_streams"):
        for suffix in (".svg", ".png"):
            assert (tmp_path / f"{name}{suffix}").stat().st_size > 1000


def test_the_page_renders_in_a_browser(plans, tmp_path):
    import shutil

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium")
    run("-m", "scripts.profile_stages", "--backend", "simulated", "--batch", "2", "--charge-batch", "128",
        "--out", tmp_path, "5")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
               "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}"]
    for width in (390, 1250):
        shot = tmp_path / f"{width}.png"
        subprocess.run([browser, *options, f"--window-size={width},1200", f"--screenshot={shot}",
                        f"file://{tmp_path}/comparison.html"], check=True, capture_output=True, timeout=120)
        assert shot.stat().st_size > 20_000
    page = subprocess.run([browser, *options, "--dump-dom", f"file://{tmp_path}/comparison.html"], check=True,
                          capture_output=True, text=True, timeout=120).stdout
    assert "5_multi_streams" in page and "<svg" in page
