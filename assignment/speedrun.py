"""
The speedrun: the fewest minutes on two cores to a judge that passes a fixed accuracy.

    python assignment/speedrun.py SUBMISSION                      # a line
    python assignment/speedrun.py SUBMISSION --out results.json   # for Gradescope's leaderboard

Of the submission's files those of METHOD are taken. What it lacks is ours, and so is `data/`. The child
trains a judge from nothing, with the submission's defaults: by the function `speedrun(cfg)` of its spct.py if
there is one, else by `method` below, which is spct.main up to RL. It then judges items of a seed that is
drawn when the training is over, without their rewards. A plurality of 8 samples counts. The clock is the
grader's, and runs from the first import to the last answer.
"""

import argparse
import json
import math
import os
import secrets
import sys
import time
from contextlib import closing

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from assignment import grade, make
from assignment.checks import Failed, kind
from assignment.grade import Ask, Child, own_file
from data import UserError, new_file, run_command
from data.judgement import correct
from data.world import Item, make_items
from report import interval

METHOD = [path for path in make.CODE if not path.startswith("data/")]
ITEMS, WANTED, HOURS = 1000, 0.85, 2               # accuracy with 8 votes; at most so long

ENTRY = """
import metarm
import sample
import spct
import torch
from data.world import make_items, seed_of


def train(seed):
    global cfg, policy, tok
    cfg = spct.parse_args(["--preset", "cpu", "--device", "cpu", "--seed", str(seed), "--out", "run"])
    spct.open_folder(cfg)
    torch.set_num_threads(cfg.threads)
    policy, tok = getattr(spct, "speedrun", method)(cfg)


def method(cfg):
    tok = spct.make_tokenizer(cfg)
    items = make_items(cfg.seed, "train", cfg.items)
    several = [item for item in items if item.n > 1]
    base = spct.pretrain(cfg, tok)
    samples = sample.judge(base, tok, items, cfg.n_rft, seed_of(cfg.seed, "rft"))
    hinted = sample.judge(base, tok, several, 1, seed_of(cfg.seed, "hinted"), hinted=True)
    kept = [j for group, item in zip(samples, items) for j in spct.keep(group, item)]
    kept += [j for group, item in zip(hinted, several) for j in spct.keep_hinted(group, item)]
    rft = spct.finetune(cfg, tok, base, kept)
    hard = [item for group, item in zip(samples, items) if not spct.too_easy(group, item)]
    return spct.reinforce(cfg, tok, rft, hard), tok


def answer(items):
    groups = sample.judge(policy, tok, items, 8, 0, cfg.temperature)
    return [metarm.RULES["plurality"](group) for group in groups]
"""


def code_of(submission):
    """{path: source}: our code with the submission's method, and the entry."""
    theirs = {path: make.read(own) for path in METHOD if (own := own_file(submission, path))}
    return {**make.reading_code(), **theirs, "entry.py": ENTRY}


def checked(answers, items):
    """An answer for each item: None, or for each response a pair (votes, sum of scores). Anything else is no
    answer."""
    number = lambda x: kind(x) == "a number" and math.isfinite(x)
    pair = lambda x: kind(x) == "a list" and len(x) == 2 and all(map(number, x))
    fits = lambda a, item: a is None or kind(a) == "a list" and len(a) == item.n and all(map(pair, a))
    if not (kind(answers) == "a list" and len(answers) == len(items) and all(map(fits, answers, items))):
        raise Failed("crashed", f"expected {len(items)} answers, each None or a pair of numbers for each response")
    return answers


def speedrun(submission, seed, count=ITEMS, trusted=False):
    """-> minutes, and for each item 1.0 if its vote is correct, else 0.0"""
    grade.refuse_without_sandbox(trusted)
    if hasattr(os, "sched_setaffinity"):           # the child inherits it: two cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    files, start = code_of(submission), time.monotonic()
    with closing(Child(files, {}, "entry", trusted, "speedrun", HOURS * 3600)) as child:
        Ask(child, "train")([seed])
        items = make_items(secrets.randbits(40), "test", count, least=2)         # nobody has seen them
        asked = [Item(item.id, "", item.query, item.responses) for item in items]
        answers = checked(Ask(child, "answer")([asked]), items)
        minutes = (time.monotonic() - start) / 60
    return minutes, np.array([correct(a, item.gold) for a, item in zip(answers, items)], float)


def leaderboard(minutes, hits):
    """Gradescope's results.json."""
    passed = bool(hits.mean() >= WANTED)
    board = [{"name": "minutes", "value": round(minutes, 2) if passed else "-", "order": "asc"},
             {"name": "accuracy", "value": round(float(hits.mean()), 3), "order": "desc"}]
    return {"score": int(passed), "leaderboard": board, "output": line(minutes, hits)}


def line(minutes, hits):
    says = "passes" if hits.mean() >= WANTED else "does not pass"
    return (f"{minutes:.1f} minutes; accuracy with 8 votes on {len(hits)} unknown items {hits.mean():.3f} "
            f"{interval(hits)}, {says} {WANTED}")


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("submission", help="a folder with the student's files")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--trusted", action="store_true", help="without a sandbox: see grade.py")
    parser.add_argument("--out", help="a file for Gradescope; else a line is printed")
    args = parser.parse_args(argv)
    if not os.path.isdir(args.submission):
        raise UserError(f"There is no folder {args.submission}. Name the folder of a submission.")
    try:
        found = speedrun(args.submission, args.seed, trusted=args.trusted)
        report, text = leaderboard(*found), line(*found)
    except Failed as error:
        text = f"the submission did not get to its last answer: {error}"
        report = {"score": 0, "output": text}
    if args.out:
        with new_file(args.out) as f:
            json.dump(report, f, indent=1)
    else:
        print(text)


if __name__ == "__main__":
    run_command(main)
