"""
What the studies share: the runs that they start from, judgements that are sampled once, paired intervals, tables.

A study starts from finished runs that differ only in their seed, and changes nothing in them. What it samples is
kept in the run's folder, under studies/.

    python -m experiments.votes runs/cpu-seed1 runs/cpu-seed2 runs/cpu-seed3
    python -m experiments.votes --quick          # the bundled judge on a few items: numbers without meaning
"""

import argparse
import csv
import json
import os
import platform

import numpy as np
import torch

import metarm
from data import UserError, new_file
from data.judgement import read_judgements, write_judgements
from data.tokenizer import load_tokenizer
from data.world import make_items, seed_of
from experiments.runs import by_item, by_query, markdown, read_runs
from model import load_model
from sample import BUNDLED, judge

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reference")


class Run:
    """A finished run: its folder, settings and models."""

    def __init__(self, folder, cfg, judge=None):
        self.folder, self.cfg, self.judge = folder, cfg, judge or folder
        self.tok = load_tokenizer(os.path.join(self.judge, "tokenizer.tiktoken"))

    def model(self, name):
        return load_model(os.path.join(self.judge, name + ".pt"))

    def items(self, split, count):
        return make_items(self.cfg["seed"], split, count, least=2)

    def judged(self, policy, split, count, k, temperature):
        """k judgements of each of the first `count` items of a split, rated by the Meta RM -> items, groups. They
        are sampled once. Those that the run's own evaluation has sampled are taken from there."""
        items = self.items(split, count)
        own = os.path.join(self.folder, f"judgements-{policy}-votes.jsonl")
        enough = (split == self.cfg["eval_split"] and temperature == self.cfg["temperature"]
                  and k <= self.cfg["k"] and count <= self.cfg["eval_items"])
        if enough:
            return items, [group[:k] for group in read_judgements(own)[:count]]
        path = os.path.join(self.folder, "studies", f"{policy}-{split}-{count}x{k}-T{temperature}.jsonl")
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            seed = seed_of(self.cfg["seed"], "study", split)
            groups = judge(self.model(policy), self.tok, items, k, seed, temperature)
            metarm.rate(self.model("meta"), groups)
            write_judgements(path, groups)
        return items, read_judgements(path)


def start(argv, doc):
    """Read a study's arguments -> its runs, and is it a quick one?"""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("folders", nargs="*", help="finished runs that differ in their seed")
    parser.add_argument("--quick", action="store_true", help="the bundled judge, on a few items of two seeds")
    args = parser.parse_args(argv)
    if bool(args.folders) == args.quick:
        raise UserError("Name the folders of finished runs, for instance runs/cpu-seed1, or pass --quick.")
    if args.quick:
        cfg = {"eval_split": "test", "eval_items": 0, "temperature": 0.5, "k": 0}
        return [Run(f"runs/quick-seed{seed}", {**cfg, "seed": seed}, BUNDLED) for seed in (1, 2)], True
    runs, _ = read_runs(args.folders)
    return [Run(folder, run["config"]) for folder, run in zip(args.folders, runs)], False

# ----------------------------------------------------------------------------------------
# Numbers. Values are an array for each run: a number for each of its items.

def number(values):
    """[mean, half a 95% interval over items]"""
    low, high = np.quantile(by_item(values), [0.025, 0.975])
    return [round(float(np.mean([v.mean() for v in values])), 4), round(float(high - low) / 2, 4)]


def difference(better, worse, queries):
    """[mean, low, high, low, high]: of a paired difference, with intervals over items and over queries."""
    values = [b - w for b, w in zip(better, worse)]
    found = [np.mean([v.mean() for v in values]), *np.quantile(by_item(values), [0.025, 0.975]),
             *np.quantile(by_query(values, queries), [0.025, 0.975])]
    return [round(float(x), 4) for x in found]


def in_words(x):
    """A number or a difference, as a table says it."""
    if len(x) == 2:
        return f"{x[0]:.3f} ±{x[1]:.3f}"
    return f"{x[0]:+.3f} ({min(x[1], x[3]):+.3f} to {max(x[2], x[4]):+.3f})"

# ----------------------------------------------------------------------------------------
# Results

def save(name, runs, quick, result, rows, figure):
    """Print the table; write NAME.json, NAME.csv and NAME.png beside the others, or into the run folder."""
    folder = os.path.join(runs[0].folder, "studies") if quick else OUT
    os.makedirs(folder, exist_ok=True)
    seeds = ", ".join(str(run.cfg["seed"]) for run in runs)
    result["made on"] = f"seeds {seeds}; {platform.machine()}, torch {torch.__version__}"
    with new_file(os.path.join(folder, name + ".json")) as f:
        json.dump(result, f, indent=1)
    with new_file(os.path.join(folder, name + ".csv")) as f:
        csv.writer(f, lineterminator="\n").writerows(rows)
    figure.tight_layout()
    figure.savefig(os.path.join(folder, name + ".png"), dpi=110)
    print(markdown(rows))
    print(f"\n{result['made on']}; {name}.json, .csv and .png are in {folder}")
