"""The harness against real Nsight Systems binaries, old ones included. Without a GPU they still trace NVTX."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.trace import PUSH_POP, START_END, Reader, TraceError, read
from harness.nsys import Nsys, NsysError, find
from tests.conftest import ROOT, SIMULATED


@pytest.fixture(scope="module")
def nsys() -> Nsys:
    """This machine's, or the one that NSYS names."""
    try:
        return find()
    except NsysError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def old_nvtx(tmp_path_factory) -> Path:
    """nvtx 0.2.11, whose ranges old profilers record."""
    folder = tmp_path_factory.mktemp("nvtx")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, "nvtx==0.2.11"]
    if subprocess.run(pip, capture_output=True, check=False).returncode != 0:
        pytest.skip("nvtx 0.2.11 cannot be installed for this Python")
    return folder


def profile(nsys: Nsys, folder: Path, script: Path, arguments: list[str], nvtx: Path | None) -> Path:
    sqlite, log = folder / "report.sqlite", folder / "log"
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, filter(None, [nvtx, ROOT])))
    try:
        nsys.trace([sys.executable, str(script), *arguments], sqlite, log)
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
from sim import nvtx as simulated

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
def test_a_stage_under_the_profiler(nsys, old_nvtx, checkout, tmp_path):
    """A whole stage, its ranges doubled into real NVTX."""
    script = tmp_path / "stage.py"
    script.write_text(DOUBLED)
    options = "--backend simulated --batch 1 --batches 6 --no-verify --no-parts"
    found = reader(profile(nsys, tmp_path, script, [str(ROOT / "6_multi_threads.py"), *options.split()], old_nvtx))
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
    flags = nsys.flags()
    assert flags[0] == "--trace=cuda,nvtx" and all(flag.split("=")[0] in nsys.help for flag in flags)


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


def test_flags_that_a_version_does_not_have_are_left_out(monkeypatch, tmp_path):
    body = 'case "$1" in --version) echo "version 2025.3.1.0";; profile) echo " --cuda-graph-trace= --cuda-event-trace=";; esac'
    monkeypatch.setenv("NSYS", str(fake(tmp_path, body)))
    found = find()
    assert found.version == "2025.3.1.0"
    assert found.flags() == ["--trace=cuda,nvtx", "--cuda-graph-trace=node", "--cuda-event-trace=false"]


def test_a_profiler_that_writes_nothing_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("NSYS", str(fake(tmp_path, 'echo "version 2025.3.1"')))
    found = find()
    with pytest.raises(NsysError, match="wrote no report"):
        found.trace(["true"], tmp_path / "report.sqlite", tmp_path / "log")


# -- the page


@pytest.fixture(scope="module")
def compared(checkout, tmp_path_factory) -> Path:
    """The results of two stages, and all that is made of them."""
    folder = tmp_path_factory.mktemp("compared")
    size = ("--batch", "2", "--charge-batch", "128")
    done = checkout.run("-m", "harness.profile", *SIMULATED, *size, "--out", folder, "--perfetto", "--figures", "4", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_page_is_whole_and_needs_no_network(compared):
    page = (compared / "comparison.html").read_text(encoding="utf-8")
    assert "http" not in page and "<script" not in page
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page and 'tabindex="0"' in page
    assert page.count("<svg") == 4 and "4_use_fp16 → 5_multi_streams" in page  # two timelines, and the pair again
    trace = json.loads((compared / "5_multi_streams.perfetto.json").read_text())["traceEvents"]
    assert {event["ph"] for event in trace} == {"X", "M", "s", "f"}
    assert min(event["ts"] for event in trace if "ts" in event) == 0
    names = {event["name"] for event in trace}
    assert {"/conv1/Conv", "cudaMemcpyAsync", "cudaLaunchKernel"} <= names
    begun = {event["id"]: event["ts"] for event in trace if event["ph"] == "s"}
    ended = {event["id"]: event["ts"] for event in trace if event["ph"] == "f"}
    assert begun.keys() == ended.keys() and all(begun[arrow] <= ended[arrow] for arrow in begun)
    assert {event["args"]["name"] for event in trace if event["name"] == "thread_name"} >= {"H2D copy", "compute", "D2H copy"}
    assert sum(event["name"] == "infer" for event in trace) == 58


def test_pictures_are_whole_svg_of_their_own(compared):
    """Each bar of the timeline stands in it, with the batch that it works for and its length."""
    from xml.etree import ElementTree

    svg = "{http://www.w3.org/2000/svg}"
    for name, count in (("timelines", 2), ("timeline_5_multi_streams", 2), ("timeline_4_use_fp16", 1)):
        root = ElementTree.parse(compared / f"{name}.svg").getroot()
        drawn = root.findall(f"{svg}svg")
        assert len(drawn) == count and drawn[-1].get("aria-label").startswith("Timeline of ")
        titles = [title.text for title in drawn[-1].iter(f"{svg}title")]
        assert sum(title.startswith("compute, batch") for title in titles) >= 3
        assert sum(title.startswith("limit: ") for title in titles) == 8


def test_the_page_renders_in_a_browser(compared, tmp_path):
    import shutil

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}"]
    for width in (390, 1250):
        shot = tmp_path / f"{width}.png"
        page = [f"--window-size={width},1200", f"--screenshot={shot}", f"file://{compared}/comparison.html"]
        subprocess.run([browser, *options, *page], check=True, capture_output=True, timeout=120)
        assert shot.stat().st_size > 20_000
