"""
The speedrun: the fewest minutes on two cores to a judge that passes a fixed accuracy.

    python assignment/speedrun.py SUBMISSION                      # a line
    python assignment/speedrun.py SUBMISSION --out results.json   # for Gradescope's leaderboard

Of the submission's files those of METHOD are taken, what it lacks is ours, and so is `data/`. The child
trains a judge from nothing (`spct.train_policies`, with the submission's defaults), then it judges items of a
seed that is drawn when the training is over, without their rewards, 8 weighted votes each. The clock is the
grader's, and runs from the first import to the last answer.
"""

import json
import os
import secrets
import shutil
import sys
import tempfile
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from assignment import checks, grade, make
from assignment.grade import Ask, Child, Crashed, TimedOut
from assignment.submission import own_file
from data import Parser, UserError, command
from data.judgement import correct
from data.world import Item, make_items
from parallel import new_file
from report import interval

METHOD = [path for path in make.CODE if not path.startswith("data/")]
ITEMS, WANTED, HOURS = 1000, 0.85, 2               # accuracy with 8 votes; at most so long

ENTRY = """
import config
import metarm
import run
import sample
import spct
from data.world import make_items


def step(name, *args):
    return globals()[name](*args)


def train(seed):
    flags = ["--preset", "cpu", "--seed", str(seed), "--out", "run"]
    this = run.open_run(*config.make_config(flags, ""))
    points = make_items(seed, "train", this.cfg.points)
    spct.train_policies(this, spct.make_tokenizer(this), points)


def answer(items):
    policy, tok, _ = sample.load_judge("run", "rl", "cpu")
    groups = sample.judge(policy, tok, items, 8, 0, "speedrun")
    return [metarm.RULES["weighted"](group) for group in groups]
"""


def code_of(submission, out):
    """Our code with the submission's method, and the entry, in a folder."""
    for path in make.CODE:
        theirs = own_file(submission, path) if path in METHOD else None
        source = theirs or os.path.join(make.ROOT, path)
        os.makedirs(os.path.dirname(os.path.join(out, path)), exist_ok=True)
        shutil.copyfile(source, os.path.join(out, path))
    with open(os.path.join(out, "entry.py"), "w", encoding="utf-8") as f:
        f.write(ENTRY)


def checked(answers, items):
    """An answer for each item: None, or a number for each response; anything else is no answer."""
    good = type(answers) is list and len(answers) == len(items) and all(
        a is None or checks.numbers(a) and len(a) == item.n for a, item in zip(answers, items))
    if not good:
        raise Crashed(f"expected {len(items)} answers, each None or a number for each response")
    return answers


def speedrun(submission, seed, count=ITEMS):
    """-> minutes, (items,) right or wrong"""
    if hasattr(os, "sched_setaffinity"):           # the child inherits it: two cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    lock, users = grade.own_users()
    with lock, tempfile.TemporaryDirectory() as parent:
        os.chmod(parent, 0o711)
        code_of(submission, os.path.join(parent, "code"))
        folder = grade.new_folder(parent, os.path.join(parent, "code"))
        start = time.monotonic()
        child = Child(folder, "entry.py", "step", next(users), "speedrun", HOURS * 3600)
        try:
            ask = Ask(child)
            ask("train", seed)
            items = make_items(secrets.randbits(40), "test", count, least=2)     # nobody has seen them
            asked = [Item(item.id, "", item.query, item.responses) for item in items]
            answers = checked(ask("answer", asked), items)
            minutes = (time.monotonic() - start) / 60
        finally:
            child.close()
    return minutes, np.array([correct(a, item.gold) for a, item in zip(answers, items)], float)


def leaderboard(minutes, right):
    """Gradescope's results.json."""
    passed = bool(right.mean() >= WANTED)
    board = [{"name": "minutes", "value": round(minutes, 2) if passed else "-", "order": "asc"},
             {"name": "accuracy", "value": round(float(right.mean()), 3), "order": "desc"}]
    return {"score": int(passed), "leaderboard": board, "output": line(minutes, right)}


def line(minutes, right):
    says = "passes" if right.mean() >= WANTED else "does not pass"
    return (f"{minutes:.1f} minutes; accuracy with 8 votes on {len(right)} unknown items {right.mean():.3f} "
            f"{interval(right)}, {says} {WANTED}")


def main(argv):
    parser = Parser(__doc__)
    parser.add_argument("submission", help="a folder with the student's files")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--out", help="a file for Gradescope; else a line is printed")
    args = parser.parse_args(argv)
    if not os.path.isdir(args.submission):
        raise UserError(f"there is no folder {args.submission}: name that of a submission")
    try:
        found = speedrun(args.submission, args.seed)
        report, text = leaderboard(*found), line(*found)
    except (Crashed, TimedOut) as error:
        text = f"the submission did not get to its last answer: {error}"
        report = {"score": 0, "output": text}
    if args.out:
        with new_file(args.out) as f:
            json.dump(report, f, indent=1)
    else:
        print(text)


if __name__ == "__main__":
    command(main)
