"""What README.md and docs/ tell a reader to type works as written, and their tables are what the committed reports say."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import EnvironmentFault
from tests.conftest import ROOT, SIMULATED, stage_scripts

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "reports").glob("*.md"))]
TYPED = [page for page in PAGES if page.parent in (ROOT, ROOT / "docs")]


def commands() -> list[str]:
    """The lines of the pages' shell blocks, in order, each once and without its comment."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in TYPED)
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.split(" # ")[0].strip() for block in blocks for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


@pytest.fixture(scope="module")
def reader(tmp_path_factory, checkout) -> Path:
    """A folder as a reader has it: the repository's files, a model of their own, photographs, a run's results."""
    folder = tmp_path_factory.mktemp("reader") / "checkout"
    shutil.copytree(checkout.folder, folder)
    (folder / "photos").mkdir()
    for file in ("resnet18-fp16.simulated.plan", "resnet18-fp16.simulated.plan.json"):  # where there is no network
        shutil.copy(checkout.plans / file, folder / "plans" / file.replace("resnet18-fp16.simulated", "imagenet"))
    shutil.copy(checkout.models / "resnet18-fp32.onnx", folder / "model.onnx")
    datasets = pytest.importorskip("sklearn.datasets")
    shutil.copy(Path(datasets.__file__).parent / "images" / "china.jpg", folder / "photos")
    (folder / "out").mkdir()
    trace = folder / "out" / "4_use_fp16.sqlite"
    done = checkout.run("4_use_fp16.py", *SIMULATED, "--batch", "2", "--no-verify", "--trace", trace)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", [line for line in commands() if not line.startswith(("scripts/", ". "))])
def test_a_command_of_the_pages(reader, command):
    words = shlex.split(command)
    if "--train" in words:
        pytest.skip("trains for minutes; tests/test_precision.py trains a little")
    if re.match(r"python (([1-9]|1[01])_|-m scripts.decoders)", command):
        words += ["--batches", "4"]  # half as many images, for the same lines
    if "scripts.compare_engines" in words:
        words += ["--batches", "1", "--seconds", "0.1", "--rounds", "1"]  # twenty runs of each row at least
    if words[0] == "python":
        words[0] = sys.executable
    done = subprocess.run(words, cwd=reader, capture_output=True, text=True, timeout=300, check=False)
    expected, said = {1} if words[0] == "git" else {0}, " ".join((done.stdout + done.stderr).split())
    if "imagenet" in words and done.returncode == 3:  # no network here, or no PyTorch: then the reason is one sentence
        assert "--weights FILE" in said or "'.[export]'" in said
        expected |= {3}
    assert done.returncode in expected, done.stdout + done.stderr


def test_the_two_commands_exist():
    for name in ("scripts/profile_all.sh", "scripts/test.sh"):
        assert name in " ".join(commands()) and os.access(ROOT / name, os.X_OK)


def test_tables_are_current():
    command = [sys.executable, "-m", "scripts.update_readme", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_tables_of_other_rules_are_refused(monkeypatch):
    from harness import readme

    monkeypatch.setattr(readme, "RULES", readme.RULES + 1)
    monkeypatch.setattr(sys, "argv", ["update_readme", "--check"])
    with pytest.raises(EnvironmentFault, match="was made by other rules"):
        readme.main()


def test_a_measured_number_in_a_docstring_is_one_of_its_report():
    import json

    checked = 0
    for script in map(ROOT.joinpath, stage_scripts()):
        text = " ".join(script.read_text(encoding="utf-8").split('"""')[1].split())
        parent = text.split("Differs from: ")[1].split(".py")[0]
        for before, after, report in re.findall(r"Measured: ([\d.]+) → ([\d.]+) ms a batch \((reports/[\w.-]+)\)", text):
            rows = json.loads((ROOT / report / "comparison.json").read_text())["stages"]
            times = {row["stage"]: f"{row['per_batch_ms']:.2f}" for row in rows}
            assert (times[parent], times[script.stem]) == (before, after), script.name
            checked += 1
    assert checked >= 6


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for path, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8")):
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {path}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {path}#{anchor}"


def test_the_readme_is_short():
    """One table of five columns, and at most 130 lines."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert [line.count("|") - 1 for line in text.splitlines() if line.startswith("|---")] == [5, 3]  # the results, the ladder


def test_every_report_names_its_conditions():
    import json

    for path in (ROOT / "reports").rglob("comparison.json"):
        facts = json.loads(path.read_text())["run"]
        assert facts["backend"] and facts["device"] and facts["engine"] and facts["batch"], path
        text = path.read_text()
        assert "/home/" not in text and "/root/" not in text and "/work/" not in text


def test_tables_round_their_figures():
    """But for comparisons of engines, whose differences are small."""
    for page in (
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        ROOT / "reports" / "README.md",
        ROOT / "reports" / "stages.md",
    ):
        for row in [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]:
            assert not re.search(r"\d\.\d{5,}", row), (page.name, row)


def test_every_module_that_a_page_runs_exists():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "reports").glob("*.md")):
        for module in re.findall(r"python -m ([a-z][\w.]+)", page.read_text(encoding="utf-8")):
            path = ROOT / module.replace(".", "/")
            installed = module.split(".")[0] in ("pytest", "pip", "venv", "mypy", "ruff")
            assert installed or path.with_suffix(".py").exists() or (path / "__main__.py").exists(), (page.name, module)
