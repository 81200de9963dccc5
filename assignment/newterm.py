"""
Another term: the same method in another world, so that last year's figures, reports and judges are of no use.

    python assignment/newterm.py OUT --term 2027      # OUT: a copy to make the assignment from; half an hour

These depend on the term: which cue asks for which style, the cues' and the styles' words, how much style
counts beside content. Then the copy trains its own judge, which becomes its bundled checkpoint. What students
should see, over three seeds, is written to OUT/expected.md. A copy that was interrupted goes on. (Examples in
docstrings keep the words of the reading copy.)
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from assignment import make
from data import UserError, run_command
from data.world import seed_of

SEEDS = (1, 2, 3)                                  # of the milestones
WORDS = {                                          # what is there, then what may take its place
    "for my boss: ": ["for my teacher: ", "for the mayor: ", "for a judge: "],
    "in a hurry: ": ["be quick: ", "before the bus: ", "at the last minute: "],
    "for a child: ": ["for my son: ", "at a party: ", "for a clown: "],
    "kindly": ["gladly", "humbly"], "dear friend": ["my lady", "noble one"],
    "yay yay": ["hop hop", "wow wow"], "whee": ["hooray", "yippee"], "tada": ["hihi", "ole"],
    "um": ["er", "uh"], "hmm": ["ah", "oh"]}


def new_world(source, term):
    """data/world.py of another term."""
    rng = random.Random(seed_of("term", term))
    for old, others in WORDS.items():
        source = source.replace(f'"{old}"', f'"{rng.choice(others)}"')
    cues = ["boss", "hurry", "child"]
    asks = dict(zip(cues, rng.choice([["hurry", "child", "boss"], ["child", "boss", "hurry"]])))

    def row(match):
        """One row of TASTE: its cue becomes another one. A weight of 1 may go from content to style."""
        cue, content, count, style, more = match.groups()
        step = rng.choice((0, 1)) if int(count) > 2 else 0
        return f"{asks[cue]:8s}{content}={int(count) - step} {style}={int(more) + step}"

    style = r"((?:kind=\d )?(?:polite|concise|playful))"
    return re.sub(rf"(boss|hurry|child) +([a-z]+)=(\d) {style}=(\d)", row, source)


def copy(out, term):
    """The project, its world changed."""
    for path in [*make.CODE, *make.MORE]:
        os.makedirs(os.path.dirname(os.path.join(out, path)), exist_ok=True)
        shutil.copyfile(os.path.join(make.ROOT, path), os.path.join(out, path))
    for folder in ("assignment", "experiments"):
        shutil.copytree(os.path.join(make.ROOT, folder), os.path.join(out, folder), dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns("__pycache__", "reference"))
    path = os.path.join(out, "data", "world.py")
    with open(path, encoding="utf-8") as f:
        source = new_world(f.read(), term)
    with open(path, "w", encoding="utf-8") as f:
        f.write(source)


def expected(out, term):
    """Train the copy's bundled checkpoint -> a text: what it and the milestones reach."""
    def run(*argv, check=True):
        return subprocess.run([sys.executable, *argv], cwd=out, env={**os.environ, "PYTHONPATH": "."},
                              check=check, stdout=subprocess.PIPE, text=True).stdout.strip()

    folder = f"runs/term-{term}"
    run("spct.py", "--preset", "cpu", "--seed", str(seed_of(term) % 1000), "--out", folder)
    table = run("report.py", folder)
    run("-m", "experiments.runs", "--ship", folder)
    reached = [run("assignment/milestones.py", str(seed), check=False).splitlines()[-4:] for seed in SEEDS]
    milestones = "\n\n".join(f"seed {seed}\n" + "\n".join(four) for seed, four in zip(SEEDS, reached))
    return f"""# What students should see

```
{table}
```

The milestones:

```
{milestones}
```
"""


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="a folder for the copy")
    parser.add_argument("--term", required=True, help="a name, for instance 2027")
    args = parser.parse_args(argv)
    there, before = os.path.join(args.out, "term"), None
    if os.path.exists(there):
        with open(there, encoding="utf-8") as f:
            before = f.read()
    if os.path.exists(args.out) and before != args.term:
        raise UserError(f"{args.out} exists. Name another folder.")
    os.makedirs(args.out, exist_ok=True)
    with open(there, "w", encoding="utf-8") as f:
        f.write(args.term)
    if not os.path.exists(os.path.join(args.out, "runs")):                   # else it was copied before
        copy(args.out, args.term)
    text = expected(args.out, args.term)
    with open(os.path.join(args.out, "expected.md"), "w", encoding="utf-8") as f:
        f.write(text)
    print(text)


if __name__ == "__main__":
    run_command(main)
