"""Options with odd values, alone and together: a right run, a usage message, or one sentence."""

from __future__ import annotations

from collections.abc import Iterator

from tests.fuzz.place import STAGES, Draw, Place, Try, endlessly, refused

NUMBERS = ("0", "-1", "1", "2", "3", "7", "x", "", "1e3", "1.5", "٣", "99999999999999999999", " 2 ", "+2")
STAGE = {
    **dict.fromkeys(("--batch", "--charge-batch", "--measure", "--top"), NUMBERS),
    "--batches": tuple(number for number in NUMBERS if len(number) < 9),
    "--seed": ("0", "-1", "7", "x", "99999999999999999999999"),
    "--device": ("", "h200", "v100-sxm2-32gb", "../h200", "x"),
    "--precision": ("fp32", "fp16", "int8", ""),
    "--images": ("", "/nowhere", "/dev/null", "/proc/self/environ"),
    "--json": ("", "/nowhere/x", "/proc/x", "."),
    "--no-verify": None,
    "--traceback": None,
}
OWN = {
    "9_multi_profiles.py": {"--sizes": ("1,2,3", "0", "1,,2", "1,1,1", "", "x", "5", "-1,2")},
    "8_multi_context.py": {"--contexts": NUMBERS[:7]},
    "10_uint8_input.py": {"--layout": ("nchw", "nhwc", "")},
}
BUILD = {
    "--profile": ("1,1,1", "1,2048,2048", "3,2,1", "0,1,1", "1,2", "a,b,c", "", "1,1,99999999999"),
    "--seed": STAGE["--seed"],
    "--aux-streams": NUMBERS[:7],
    "--calibration-count": NUMBERS[:7],
    "--calibration": ("entropy", "minmax", ""),
    "--calibration-images": ("", "/nowhere", "/dev/null"),
    "--weights": ("", "/nowhere", ".", "/dev/null"),
    "--model": ("", "resnet18", "x"),
    "--timing-cache": ("/proc/x", "", "/dev/null"),
    "--output": ("/proc/nowhere/x.plan", "/dev/null", "/nowhere\0x"[:8]),
    "--input": ("floats", "bytes", ""),
    "--layout": ("nchw", "nhwc", ""),
    "--share-profile": None,
    "--int8": None,
    "--fp16": None,
}


def tries(place: Place, draw: Draw) -> Iterator[Try]:
    def one() -> Try:
        script = draw.choice([*STAGES, "0_build.py", "0_build.py"])
        known = BUILD if script == "0_build.py" else {**STAGE, **OWN.get(script, {})}
        words: list[str] = []
        for option in draw.sample([*known], draw.randrange(1, 4)):
            words += [option] if known[option] is None else [option, draw.choice(known[option])]
        return f"{script} {words}", lambda: attempt(place, script, words)

    return endlessly(one)


def attempt(place: Place, script: str, words: list[str]) -> str:
    if script == "0_build.py":
        code, said = place.run(script, *place.build_options(place.folder / "mine.plan", place.onnx), *words)
    else:
        code, said = place.stage(script, *words)
    if code == 2 and "usage: " in said:
        assert said.count("error: ") == 1 and "Traceback" not in said, said[-600:]
        return "usage"
    if code == 0:
        assert "error:" not in said, said[-600:]
        return "right"
    return refused(code, said.replace("Traceback", "") if "--traceback" in words else said)
