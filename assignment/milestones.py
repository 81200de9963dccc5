"""
Four things to see when P1 to P24 are there: the method at a small size, from the base model that comes along.

    python milestones.py            # two minutes on a CPU; stopped, it goes on where it was
    python milestones.py 1          # with another seed than 0
"""

import json
import os
import sys

import spct

FLAGS = ("--preset short --points 500 --rl_steps 10 --rl_points 32 --meta_items 300 --meta_old 100 "
         "--temperature 1 --eval_items 200 --k 8").split()


def milestones(folder):
    """-> (what, its value, the least that it should be) of each."""
    with open(os.path.join(folder, "results.json")) as f:
        stages = json.load(f)["stages"]
    with open(os.path.join(folder, "metrics-rl.jsonl")) as f:
        rewards = [json.loads(line)["reward"] for line in f]
    of = lambda stage, measure: stages[stage][measure][0]
    return [("after RFT: judgements that parse", of("rft", "parses"), 0.9),
            ("RL: reward at the end - at the start", (sum(rewards[-3:]) - sum(rewards[:3])) / 3, 0.03),
            ("after RL: sum of 8 - one sample", of("rl", "sum@8") - of("rl", "one sample"), 0.08),
            ("after RL: guided by the Meta RM - a random half",
             of("rl", "guided@8") - of("rl", "random@8"), 0.0)]


def main(seed="0"):
    out, missed = f"runs/milestones-seed{seed}", 0
    resume = ["--resume"] if os.path.exists(os.path.join(out, "config.json")) else []
    spct.main([*FLAGS, "--seed", seed, "--out", out, *resume])
    for what, value, least in milestones(out):
        missed += value <= least
        print(f"{'not reached' if value <= least else 'reached    '}  {what}: {value:.3f}, more than {least}")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
