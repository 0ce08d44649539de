"""Plans and sidecars that were cut, edited, nested, replaced by something else; outputs that are no files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

from common.plans import sidecar
from tests.fuzz.place import Draw, Place, Try, endlessly, refused, right_or_refused

VALUES = (
    None,
    0,
    -1,
    1.5,
    True,
    "",
    "x",
    [],
    {},
    [[]],
    [None],
    {"a": {"b": []}},
    [[1, 2]],
    [["a", 1, 2]],
    [[3, 2, 1]],
    "\ud800",
)


def tries(place: Place, draw: Draw) -> Iterator[Try]:
    facts = json.loads(sidecar(place.plan).read_text())

    def one() -> Try:
        what = draw.choice(
            ("plan byte", "plan byte, no sidecar", "plan cut", "sidecar key", "sidecar value", "sidecar text", "odd", "output")
        )
        key, value, where = draw.choice([*facts]), draw.choice(VALUES), draw.random()
        return f"{what}: {key} {value!r} {where}", lambda: attempt(place, facts, what, key, value, where, draw)

    return endlessly(one)


def attempt(place: Place, facts: dict[str, Any], what: str, key: str, value: object, where: float, draw: Draw) -> str:
    folder = place.folder / "files"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    plan, content = folder / "mine.plan", place.plan.read_bytes()
    beside, text = sidecar(plan), json.dumps(facts)
    at = int(where**3 * len(content))  # the header is at the front
    if what.startswith("plan byte"):
        content = content[:at] + bytes([content[at] ^ draw.randrange(1, 256)]) + content[at + 1 :]
    elif what == "plan cut":
        content = content[:at]
    elif what == "sidecar key":
        text = json.dumps({name: each for name, each in facts.items() if name != key})
    elif what == "sidecar value":
        text = json.dumps({**facts, key: value})
    elif what == "sidecar text":
        text = draw.choice(("null", "[]", "1", '"a"', "{", "", "[" * 100_000, text[: int(where * len(text))], "\0", "{}"))
    if what == "output":
        return output(place, folder, draw)
    plan.write_bytes(content)
    if not what.endswith("no sidecar"):
        beside.write_text(text)
    if what == "odd":
        odd = draw.choice((plan, beside))
        odd.unlink()
        draw.choice((odd.mkdir, lambda: os.mkfifo(odd), lambda: odd.symlink_to(odd), lambda: odd.symlink_to("/dev/null")))()
    code, said = place.run("5_multi_streams.py", "--batch", "2", "--charge-batch", "2048", "--plan", str(plan))
    if what.startswith(("plan", "odd", "sidecar text")):
        unchecked = what == "odd" and not beside.exists()  # a link that leads nowhere is no sidecar
        return right_or_refused(code, said) if unchecked else refused(code, said, 3)
    return right_or_refused(code, said)


def output(place: Place, folder, draw: Draw) -> str:
    """What is not an ordinary file is refused before the run, and is afterwards what it was; a link stays one."""
    result = folder / "result"
    kind = draw.choice(("folder", "pipe", "device", "link", "file", "missing folder"))
    target = folder / "target"
    if kind == "folder":
        result.mkdir()
    elif kind == "pipe":
        os.mkfifo(result)
    elif kind == "device":
        result.symlink_to("/dev/null")
    elif kind == "link":
        result.symlink_to(target)
    elif kind == "missing folder":
        result = folder / "none" / "result"
    before = result.lstat().st_mode if os.path.lexists(result) else None
    code, said = place.stage("1_baseline.py", draw.choice(("--json", "--trace", "--predictions")), str(result))
    if kind in ("link", "file"):
        assert code == 0 and result.is_file() and (kind == "file" or (target.is_file() and result.is_symlink())), said[-600:]
        return "right"
    assert (result.lstat().st_mode if os.path.lexists(result) else None) == before
    return refused(code, said, 3)
