"""
What the studies share: base runs, arms, trajectories, answers, measures, tables.

A study compares systems that differ in one thing. All systems of a seed go on from the same base run, made
here if it is missing, unless they differ in what comes before, and are measured on the same items, so that
differences are paired by item. The base run is the default run in float32, but for its votes and its Meta
RM's samples, drawn at T = 1, where samples differ most (votes.py compares temperatures). What a study has to
train or to sample lies in arms: run folders under runs/arms/ that are named by their config. Studies that ask
for the same arm share its work, and a study that was killed goes on where it was.

    python -m experiments.baselines --seeds 1  # one seed's share, for instance beside another process
    python -m experiments.baselines                   # what is still missing, then tables and figure
"""

import hashlib
import itertools
import json
import os
import re
import subprocess
import time
from dataclasses import asdict, replace

import numpy as np
import torch

import metarm
import spct
from config import PRESETS, Config
from data import Parser, UserError
from data.judgement import correct, pick, read_judgements, write_judgements
from data.tokenizer import Tokenizer
from data.world import DOMAINS, make_items
from experiments.bench import forward_flops, sampling_flops
from experiments.runs import in_words, markdown
from metarm import RULES
from report import bootstrap
from run import Run, machine, read_json, write_json
from sample import judge

# ----------------------------------------------------------------------------------------
# Base runs and arms

SEEDS = [1, 2, 3]
USUAL = dict(dtype="float32", temperature=1.0)
QUICK = dict(preset="smoke", pretrain_tokens=500_000, points=16, meta_items=8, rl_steps=2)


class Base:
    """The base run of one seed: its models, training points, their judgements; the items to measure on."""

    def __init__(self, seed, quick=False):
        folder = f"runs/{'quick' if quick else 'study'}-seed{seed}"
        flags = {**USUAL, **(QUICK if quick else {"preset": "cpu"}), "seed": seed, "out": folder}
        if not os.path.exists(os.path.join(folder, "results.json")):
            resume = ["--resume"] if os.path.exists(os.path.join(folder, "config.json")) else []
            spct.main([text for name, value in flags.items() for text in (f"--{name}", str(value))] + resume)
        self.seed, self.quick, self.arms = seed, quick, {}
        self.cfg = default_config(folder, flags)
        torch.set_num_threads(self.cfg.threads)
        self.run = Run(self.cfg, folder)
        self.tok = Tokenizer.load(self.run.path("tokenizer.tiktoken"))
        self.points = make_items(seed, "train", self.cfg.points)
        self.samples, self.hinted = (read_judgements(self.run.path(f"judgements-{name}.jsonl"))
                                     for name in ("rft", "hinted"))
        self.votes, self.most, count = ((2, 4), 8, 16) if quick else ((8, 32), 64, 500)
        test = make_items(seed, "test", count, least=2)
        self.parts = {"test": test, "swapped": [swap(item) for item in test if item.n == 2],
                      "ood": make_items(seed, "ood", count // 2, least=2),
                      "single": make_items(seed, "test", count // 2, most=1)}

    def policy(self, name):
        """The policy base, rft or rl of this run."""
        model = spct.new_model(self.run, self.tok)
        assert self.run.done(name, model), f"{self.run.folder} has no {name}"
        return model

    def guide(self, name):
        """The Meta RM of a policy."""
        model = metarm.from_policy(self.policy(name))
        assert self.run.done(f"meta-{name}", model), f"{self.run.folder} has no meta-{name}"
        return model

    def arm(self, name, **changes):
        """The run folder of an arm: this run's config with changes. Same name and config, same folder.

        So the name has to tell apart what the config does not: another corpus, a dose, other data.
        """
        cfg = replace(self.cfg, **changes, eval_items=len(self.parts["test"]), out="")
        key = hashlib.blake2b(json.dumps(asdict(cfg), sort_keys=True).encode(), digest_size=4).hexdigest()
        name = re.sub("[^a-z0-9]+", "-", name.lower())
        cfg.out = f"runs/arms/{name}-seed{self.seed}-{key}"
        if cfg.out not in self.arms:
            os.makedirs(cfg.out, exist_ok=True)
            write_json(os.path.join(cfg.out, "config.json"), asdict(cfg))
            self.arms[cfg.out] = Run(cfg, cfg.out)
        return self.arms[cfg.out]


def default_config(folder, flags):
    """The config of a base run, which must have these settings, but for how it was computed."""
    saved = read_json(os.path.join(folder, "config.json"))
    usual = {**asdict(Config()), **PRESETS[flags["preset"]], **flags}
    free = ("out", "device", "dtype", "threads", "eval_items")
    if set(saved) != set(usual):
        raise UserError(f"{folder} is of another version: move it away, and the study makes one")
    for name, value in usual.items():
        if name not in free and saved.get(name, "nothing") != value:
            raise UserError(f"{folder} is no base run: --{name} is {saved.get(name)}, expected {value}; "
                            f"move it away, and the study makes one")
    return Config(**saved)


def swap(item):
    """The same pair in the other order."""
    return replace(item, responses=item.responses[::-1], gold=item.gold[::-1], truth=item.truth[::-1])

# ----------------------------------------------------------------------------------------
# Answers: what a system says about each item
#
# answers[part][mode] = {"scores": [n scores or None, one list an item], "flops": .., "ms": ..}, the cost of
# one item's judgement (ms: a share of the time of many, on a machine that may have had other work, too).
# Parts: test, swapped (greedy only), ood, single. Modes: greedy, sum@8, guided@32, ...

def mode(items, scores, flops, seconds):
    return {"scores": list(scores), "flops": flops / len(items), "ms": 1e3 * seconds / len(items)}


def kept_answers(run, parts, answer):
    """answer(part, items) -> {mode: ...} of each part, asked once: then the arm's folder has it."""
    path = run.path("answers.json")
    if not os.path.exists(path):
        write_json(path, {part: answer(part, items) for part, items in parts.items()})
    return read_json(path)


def trajectories(base, run, policy, part, k, greedy=False, judge=judge, meta=None, temperature=None):
    """k judgements of each item of a part, made once -> lists per item, seconds to sample, to score them.

    meta: the Meta RM that scores them; without one nothing is scored. temperature: by default that of the
    run's votes. What was made is read, and needs no policy.
    """
    unit = f"{part}-greedy" if greedy else f"{part}-{k}" + (f"-T{temperature}" if temperature else "")
    path, scored = run.path(f"judgements-{unit}.jsonl"), run.path(f"judgements-{unit}-scored.jsonl")
    if not run.done(unit, file=os.path.basename(path)):
        purpose, temperature = (
            ("eval-greedy", 0.0) if greedy else ("eval-votes", temperature or run.cfg.temperature))
        groups = judge(policy, base.tok, base.parts[part], k, base.seed, purpose, temperature,
                       shuffle=not greedy, autocast=run.sampling(),
                       desc=f"{os.path.basename(run.folder)}: {unit}")
        write_judgements(path, sum(groups, []))
        run.finish(unit)
    groups = read_judgements(path)
    if meta is not None and not run.done(f"{unit}-scored", file=os.path.basename(scored)):
        metarm.score(meta, sum(groups, []), run.autocast())
        write_judgements(scored, sum(groups, []))
        run.finish(f"{unit}-scored")
    if os.path.exists(scored):
        groups = read_judgements(scored)
    took = [run.seconds_of.get(u, 0.0) for u in (unit, f"{unit}-scored")]
    return groups, *took


def judged(base, run, policy, parts=("test", "swapped", "ood", "single"), votes=None, most=None, judge=judge,
           guide=None, temperature=None):
    """The answers of a policy that writes judgements: greedy, the paper's votes and the default's. guide: a
    Meta RM for guided votes, too. temperature: of the votes."""
    answers, votes = {}, base.votes if votes is None else votes
    rules = ("sum", "weighted") if guide is None else ("sum", "weighted", "guided")
    for part in parts:
        items = base.parts[part]
        groups, seconds, _ = trajectories(base, run, policy, part, 1, greedy=True, judge=judge)
        scores = [g[0].scores for g in groups]
        answers[part] = {"greedy": mode(items, scores, sampled(policy, groups), seconds)}
        if part == "swapped" or not votes:
            continue
        k = most if most and part == "test" else max(votes)
        groups, seconds, more_seconds = trajectories(base, run, policy, part, k, judge=judge, meta=guide,
                                                     temperature=temperature)
        for m, rule in itertools.product(votes, rules):
            first = [g[:m] for g in groups]        # at their share of the time
            flops, took = sampled(policy, first), seconds * m / k
            if rule == "guided":                   # the Meta RM reads all of them
                flops += read_through(policy, [j.tokens for g in first for j in g])
                took += more_seconds * m / k
            answers[part][f"{rule}@{m}"] = mode(items, map(RULES[rule], first), flops, took)
    return answers


def sampled(policy, groups):
    """FLOPs of groups of judgements, one group an item: in a group, equal prompts are read once."""
    return sum(sampling_flops(policy.cfg, [tuple(j.prompt) for j in g], [len(j.ids) for j in g])
               for g in groups)


def read_through(policy, rows):
    """FLOPs of a model of this size that reads rows of ids and gives a number for each."""
    return sum(forward_flops(policy.cfg, 0, len(row), 0) for row in rows)

# ----------------------------------------------------------------------------------------
# Measures. Everywhere: one array (items,) a seed, so that differences can be paired by item

def right(bases, answers, mode, where=None, part="test", rule=correct):
    """How often each item is right, in 0..1. answers: those of each seed; where: a condition on items."""
    return [np.array([rule(scores, item.gold) for scores, item in zip(a[part][mode]["scores"], b.parts[part])
                      if where is None or where(item)], float) for b, a in zip(bases, answers)]


def overall(bases, answers, mode, rule=correct):
    """The same, each item by 1 / (subsets x its subset's share), so that the mean over the items is the plain
    mean over the subsets. (Drawn items have other shares, so that intervals are a little too wide.)"""
    weighted = []
    for base, values in zip(bases, right(bases, answers, mode, rule=rule)):
        subsets = [item.subset for item in base.parts["test"]]
        share = {name: subsets.count(name) / len(subsets) for name in set(subsets)}
        weighted.append(values / np.array([share[name] * len(share) for name in subsets]))
    return weighted


def in_subset(*names):
    return lambda item: item.subset in names


def worst_subset(bases, answers, mode):
    """'sort 0.513': the subset with the lowest accuracy."""
    there = {item.subset for base in bases for item in base.parts["test"]}
    means = {name: mean(right(bases, answers, mode, in_subset(name))) for name in DOMAINS if name in there}
    worst = min(means, key=means.get)
    return f"{worst} {means[worst]:.3f}"


def both_orders(base, answers):
    """JudgeBench's rule on pairs: each order gives +1 if right, -1 if wrong, 0 for a tie; right if the sum is
    above 0 -> right (pairs,); flipped (those with a pick in both orders,): are the picks different?"""
    agreed, flipped = [], []
    pairs = [(item, scores) for item, scores in zip(base.parts["test"], answers["test"]["greedy"]["scores"])
             if item.n == 2]
    for (item, one), two in zip(pairs, answers["swapped"]["greedy"]["scores"]):
        picked = [pick(one), pick(two[::-1] if two else None)]               # as indices of the first order
        agreed.append(sum(0 if p is None else 1 if p == item.best else -1 for p in picked) > 0)
        flipped += [] if None in picked else [picked[0] != picked[1]]
    return np.array(agreed, float), np.array(flipped, float)


def single_auc(base, answers, mode):
    """n = 1: the chance that a good response (gold reward of 6 or more) is scored above another one."""
    pairs = [(item.gold[0] >= 6, scores[0] if scores else 0.0)              # 0: below all that parse
             for scores, item in zip(answers["single"][mode]["scores"], base.parts["single"])]
    return metarm.auc(*zip(*pairs))

# ----------------------------------------------------------------------------------------
# Cells of tables

def mean(arrays):
    """The mean over seeds of the mean over items, nan if there are none."""
    return float(np.mean([values.mean() if len(values) else np.nan for values in arrays]))


def accuracy(arrays):
    """'0.712 ±0.021', mean over seeds and half its 95% interval (bootstrap over items); '' of nothing."""
    return in_words(arrays, bootstrap(arrays)) if all(map(len, arrays)) else ""


def difference(arrays, others):
    """'+0.021 (+0.010 to +0.032)', paired by item; it says so where the difference may be noise.

    The interval is that of these runs on other items. Other seeds make other runs: hence the second doubt.
    """
    d = [a - b for a, b in zip(arrays, others)]
    low, high = np.quantile(bootstrap(d), [0.025, 0.975])
    seeds = [values.mean() for values in d]
    doubt = ", noise" if low <= 0 <= high else ", seeds disagree" if min(seeds) < 0 < max(seeds) else ""
    return f"{mean(d):+.3f} ({low:+.3f} to {high:+.3f}{doubt})"


def number(values, form=".3f"):
    """The mean over seeds of numbers, some of which may be missing."""
    values = [v for v in values if v is not None]
    return format(np.mean(values), form) if values else ""

# ----------------------------------------------------------------------------------------
# The program around a study

def git_commit():
    found = subprocess.run("git describe --always --dirty", shell=True, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def main(study, argv):
    """Run a study, a module with NAME, its docstring and run(bases) -> (tables, numbers, figure).

    tables: {title: rows}; numbers: what the figure shows, for results.json; figure(path) draws it.
    """
    parser = Parser(study.__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--quick", action="store_true", help="in a minute: the numbers mean nothing")
    args = parser.parse_args(argv)
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        raise UserError("--seeds: expected different whole numbers, 0 or more")
    seeds = sorted(args.seeds)
    bases = [Base(seed, args.quick) for seed in (seeds[:1] if args.quick else seeds)]
    tables, numbers, figure = study.run(bases)
    some = "" if seeds == SEEDS else "-seeds-" + "-".join(map(str, seeds))
    folder = f"runs/{study.NAME}" + ("-quick" if args.quick else some)
    os.makedirs(folder, exist_ok=True)
    text = "\n\n".join(f"### {title}\n\n{markdown(rows)}" for title, rows in tables.items())
    print(text)
    figure(os.path.join(folder, f"{study.NAME}.png"))
    write_json(os.path.join(folder, "results.json"), {
        "commit": git_commit(), "date": time.strftime("%Y-%m-%d"), "seeds": [base.seed for base in bases],
        "machine": machine(),
        "seconds": round(sum(seconds for base in bases for run in [base.run, *base.arms.values()]
                             for seconds in run.seconds_of.values())),
        "text": text, **numbers})
