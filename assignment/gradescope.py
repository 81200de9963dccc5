"""
The zip that Gradescope takes (setup.sh and run_autograder at its root, our code beside them), and the results that
it reads.

    python assignment/gradescope.py autograder.zip
"""

import glob
import os
import secrets
import sys
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from assignment import make
from data import UserError, run_command

SETUP = """#!/usr/bin/env bash
# builds the image: Python with the packages of the project, which students' functions may use (torch's CPU
# build is enough, and far smaller: install it in a line before)
set -euo pipefail
apt-get update && apt-get install -y python3 python3-venv
python3 -m venv /autograder/venv
/autograder/venv/bin/pip install -r /autograder/source/requirements.txt
"""

RUN = """#!/usr/bin/env bash
# grades one submission; the file of results is written anew after each problem
root="${AUTOGRADER:-/autograder}"
chmod 700 "$root/source"                           # students' processes, which are not root's, cannot read it
python="$root/venv/bin/python"
mkdir -p "$root/results"
cd "$root/source" && "${PYTHON:-$python}" assignment/grade.py "$root/submission" --trusted \\
    --format gradescope --out "$root/results/results.json"
"""


def gradescope(results):
    """https://gradescope-autograders.readthedocs.io: results.json"""
    tests = [{"name": f"{r.problem.id} {r.problem.title}", "number": r.problem.id, "score": r.points,
              "max_score": r.problem.points, "status": "passed" if r.state == "passed" else "failed",
              "output": ": ".join(text for text in (r.state, r.message) if text), "output_format": "text",
              "visibility": "visible"} for r in results]
    return {"score": sum(r.points for r in results), "output_format": "text", "visibility": "visible",
            "stdout_visibility": "hidden", "tests": tests}


def write_zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, text in (("setup.sh", SETUP), ("run_autograder", RUN)):
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o755 << 16       # executable
            z.writestr(info, text)
        for name in [*make.CODE, "requirements.txt"]:
            z.write(os.path.join(make.ROOT, name), name)
        for source in sorted(glob.glob(os.path.join(HERE, "*.py")) + glob.glob(os.path.join(HERE, "*s.txt"))):
            z.write(source, os.path.relpath(source, make.ROOT))
        z.writestr("assignment/salt.txt", secrets.token_hex())       # of the inputs: nobody can compute them


def main(argv):
    if len(argv) != 1 or argv[0].startswith("-"):
        raise UserError("Name the zip: python assignment/gradescope.py autograder.zip")
    if os.path.exists(argv[0]):
        raise UserError(f"{argv[0]} exists. Name another file, or delete it.")
    write_zip(argv[0])
    print(f"{argv[0]}: upload it under Configure Autograder")


if __name__ == "__main__":
    run_command(main)
