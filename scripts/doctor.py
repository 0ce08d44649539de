import runpy
import sys

try:
    runpy.run_module("harness.doctor", run_name="__main__", alter_sys=True)
except ModuleNotFoundError as error:  # of what the doctor itself needs
    print(f"doctor: there is no {error.name} in this Python: pip install -e .", file=sys.stderr)
    sys.exit(3)
