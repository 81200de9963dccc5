"""
Four things to see when all problems P are solved: the method at a small size, from the bundled base model.

    python milestones.py            # some minutes on a CPU; if it was stopped, it goes on with the same stage
    python milestones.py 1          # with another seed than 0
"""

import json
import os
import sys

import spct
from data import run_command

FLAGS = ("--preset short --items 500 --rl_steps 10 --rl_items 32 --temperature 1 --eval_items 200 "
         "--k 8").split()


def milestones(folder):
    """-> (what, its value, the least that it should be) of each."""
    with open(os.path.join(folder, "results.json"), encoding="utf-8") as f:
        stages = json.load(f)["stages"]
    with open(os.path.join(folder, "metrics-rl.jsonl"), encoding="utf-8") as f:
        rewards = [json.loads(line)["reward"] for line in f]
    of = lambda stage, measure: stages[stage][measure][0]
    return [("after RFT: judgements that parse", of("rft", "parses"), 0.9),
            ("RL: reward at the end - at the start", (sum(rewards[-3:]) - sum(rewards[:3])) / 3, 0.03),
            ("after RL: sum of 8 - one sample", of("rl", "sum@8") - of("rl", "one sample"), 0.08),
            ("after RL: guided by the Meta RM - a random half",
             of("rl", "guided@8") - of("rl", "random@8"), 0.0)]


def main(seed="0"):
    out, missed = f"runs/milestones-seed{seed}", 0
    spct.main([*FLAGS, "--seed", seed, "--out", out])
    for what, value, least in milestones(out):
        missed += value <= least
        print(f"{'not reached' if value <= least else 'reached    '}  {what}: {value:.3f}, more than {least}")
    sys.exit(missed > 0)


if __name__ == "__main__":
    run_command(lambda argv: main(*argv))
