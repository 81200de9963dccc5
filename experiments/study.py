"""
What the studies share: the runs that they start from, judgements that are sampled once, paired intervals, tables.

A study starts from finished runs that differ only in their seed. What it trains and samples is kept in the run's
folder, under studies/: a study that is interrupted goes on by the same command. (The names of these files do not
hold all settings. After a change of code, delete studies/.) A study trains on the CPU.

    python -m experiments.votes runs/cpu-seed1 runs/cpu-seed2 runs/cpu-seed3
    python -m experiments.votes --quick          # a tiny run and a few items: numbers without meaning
"""

import argparse
import copy
import csv
import json
import os
import platform
import random

import numpy as np
import torch

import metarm
import spct
from data import UserError, new_file
from data.annotators import encode_document, general_text, pack
from data.judgement import read_judgements, write_judgements
from data.tokenizer import load_tokenizer
from data.world import make_items, seed_of
from experiments.runs import by_item, by_query, markdown, read_runs
from model import Optimizer, learning_rate, load_model, save_model, token_logp
from report import read_results
from sample import judge

# A run from the bundled base model, in a few seconds
QUICK = """--preset short --device cpu --dtype float32 --items 30 --rft_rows 2 --rft_epochs 1 --rl_steps 2
    --rl_items 2 --group 2 --eval_items 8 --k 4 --out""".split() + [os.path.join("runs", "quick")]


class Run:
    """A finished run. What a study adds to it (models, judgements, numbers) is made once, and kept in studies/."""

    def __init__(self, folder):
        self.folder, self.config_of_run = folder, read_results(folder)["config"]
        self.tok = load_tokenizer(os.path.join(folder, "tokenizer.tiktoken"))
        os.makedirs(self.path(""), exist_ok=True)

    def path(self, file):
        return os.path.join(self.folder, "studies", file)

    def config(self, **changes):
        """The run's settings, with changes. Metrics of a training go to studies/; the next one overwrites them."""
        return spct.Config(**{**self.config_of_run, "out": self.path(""), "device": "cpu", **changes})

    def model(self, name, make=None):
        """A model of the run, or of a study. make() makes it, if it is not there yet."""
        own = os.path.join(self.folder, name + ".pt")
        path = own if os.path.exists(own) else self.path(name + ".pt")
        if make and not os.path.exists(path):
            save_model(path, make())
        return load_model(path)

    def items(self, split, count):
        return make_items(self.config().seed, split, count, least=2)

    def training_items(self):
        return make_items(self.config().seed, "train", self.config().items)

    def hard_items(self):
        """The training items that the base model does not always judge correctly: those of RL."""
        return [item for group, item in zip(self.own("rft"), self.training_items())
                if not spct.too_easy(group, item)]

    def own(self, name):
        """Judgements that the run itself has sampled, for instance "rft" or "rl": those of its training."""
        return read_judgements(os.path.join(self.folder, f"judgements-{name}.jsonl"))

    def groups(self, name, make):
        """Judgements that a study samples: make() does it, if they are not there yet."""
        path = self.path(name + ".jsonl")
        if not os.path.exists(path):
            write_judgements(path, make())
        return read_judgements(path)

    def judged(self, policy, split, count, k, temperature):
        """k judgements of each of the first `count` items of a split -> items, groups. Those that the run's own
        evaluation has sampled are taken from there. All are rated by the run's Meta RM."""
        items, cfg = self.items(split, count), self.config()
        if (policy in ("rft", "rl") and split == cfg.eval_split and temperature == cfg.temperature
                and k <= cfg.k and count <= cfg.eval_items):
            return items, [group[:k] for group in self.own(f"{policy}-votes")[:count]]

        def make():
            # On the test split the seed of the run's own votes: all policies see the same orders.
            seed = seed_of(cfg.seed, *(("eval", "votes") if split == cfg.eval_split else ("study", split)))
            groups = judge(self.model(policy), self.tok, items, k, seed, temperature)
            metarm.rate(self.model("meta"), groups)
            return groups
        return items, self.groups(f"{policy}-{split}-{count}x{k}-T{temperature}", make)

    def numbers(self, name, make):
        """make() -> {measure: a number for each item}. It is called once; then its numbers are read."""
        path = self.path(name + ".npz")
        if not os.path.exists(path):
            found = make()
            with new_file(path, "wb") as f:
                np.savez_compressed(f, **found)
        return dict(np.load(path))


def reinforce(cfg, reference, items, rollout, reward=spct.reward):
    """The loop of spct.reinforce, without metrics. It yields the policy after each step, always the same object.
    rollout(policy, batch, seed) -> cfg.group judgements of each item of the batch"""
    policy = copy.deepcopy(reference)
    optimizer = Optimizer(policy, getattr(torch, cfg.dtype))
    for step in range(cfg.rl_steps):
        batch = [items[i % len(items)] for i in range(step * cfg.rl_items, (step + 1) * cfg.rl_items)]
        groups = rollout(policy, batch, seed_of(cfg.seed, "rl", step))
        rewards = [[reward(j, item) for j in group] for group, item in zip(groups, batch)]
        advantages = spct.group_advantages(torch.tensor(rewards))            # (P, G)
        judgements = [j for group in groups for j in group]
        tokens = sum(len(j.ids) for j in judgements)
        for ids, learned, padding, adv in spct.micro_batches(judgements, advantages.flatten(), 64, cfg.device):
            with spct.autocast(cfg):
                logp = token_logp(policy, ids, learned, padding)             # (N,)
                with torch.no_grad():
                    logp_ref = token_logp(reference, ids, learned, padding)  # (N,)
            loss = spct.rl_loss(logp, logp_ref, adv, cfg.beta, tokens)
            loss.backward()
        optimizer.step(learning_rate(cfg.rl_lr, step, cfg.rl_steps, warmup=5, decay=0.3))
        yield policy


def reread(run, document, tokens, base=None, peak_lr=None):
    """The base model, after so many tokens more. document: a function of an index -> a document, as make_document.
    What is longer than the context is left out. peak_lr: by default that of RFT"""
    cfg, examples, count, number = run.config(), [], 0, 0
    while count < tokens:
        ids, learned = encode_document(run.tok, document(seed_of("reread", number)))     # none of the corpus
        if len(ids) <= cfg.block_size:
            examples.append((ids, learned))
            count += len(ids)
        number += 1
    ids, learned = pack(examples, cfg.block_size, seed_of(cfg.seed, "reread"))
    return spct.train_lm(cfg, "base", base or run.model("base"), ids, learned, peak_lr or cfg.rft_lr,
                         cfg.pretrain_rows)


def rft(run, name, base, items, general=general_text, judge=judge, chosen=lambda ids: [True] * len(ids)):
    """RFT of another base model, as in spct.main -> the policy, the items that are left for RL, what was kept.
    general(rng): a document of general text; chosen(ids): which tokens of a judgement are learned."""
    cfg, several = run.config(), [item for item in items if item.n > 1]
    samples = run.groups(f"{name}, rft", lambda: judge(base, run.tok, items, cfg.n_rft, seed_of(cfg.seed, "rft")))
    hinted = run.groups(f"{name}, hinted", lambda: judge(
        base, run.tok, several, 1, seed_of(cfg.seed, "hinted"), hinted=True))
    kept = [j for group, item in zip(samples, items) for j in spct.keep(group, item)]
    kept += [j for group, item in zip(hinted, several) for j in spct.keep_hinted(group, item)]

    def make():
        prompts = [spct.forget_hint(j.prompt) for j in kept]
        examples = [(prompt + j.ids, [False] * len(prompt) + chosen(j.ids)) for prompt, j in zip(prompts, kept)]
        for i in range(int(len(kept) * cfg.rft_general / (1 - cfg.rft_general))):
            rng = random.Random(seed_of(cfg.seed, "rft-general", i))
            examples.append(encode_document(run.tok, general(rng)))
        random.Random(seed_of(cfg.seed, "rft-mix")).shuffle(examples)
        ids, learned = pack(examples, cfg.block_size, seed_of(cfg.seed, "rft-pack"))
        return spct.train_lm(cfg, "rft", copy.deepcopy(base), ids, learned, cfg.rft_lr, cfg.rft_rows,
                             cfg.rft_epochs)
    policy = run.model(f"{name}, rft", make)
    return policy, [item for group, item in zip(samples, items) if not spct.too_easy(group, item)], kept


def start(argv, doc, alike=True):
    """Read a study's arguments -> its runs, and is it a quick one? alike: refuse runs of different settings."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", help="finished runs that differ in their seed")
    parser.add_argument("--quick", action="store_true", help="a tiny run and a few items: numbers without meaning")
    args = parser.parse_args(argv)
    if bool(args.folders) == args.quick:
        raise UserError("Name the folders of finished runs, for instance runs/cpu-seed1, or pass --quick.")
    if args.quick:
        if not os.path.exists(os.path.join(QUICK[-1], "results.json")):
            spct.main(QUICK)
        args.folders = [QUICK[-1]]
    elif alike:
        read_runs(args.folders)                    # it refuses others
    runs = [Run(folder) for folder in args.folders]
    torch.set_num_threads(runs[0].config().threads)
    return runs, args.quick

# ----------------------------------------------------------------------------------------
# Numbers. Values are an array for each run: a number for each of its items.

def number(values):
    """[mean, half a 95% interval over items]. Items without a number (nan) are left out; None if all are."""
    values = [v[~np.isnan(v)] for v in values]
    if not all(len(v) for v in values):
        return None
    low, high = np.quantile(by_item(values), [0.025, 0.975])
    return [round(float(np.mean([v.mean() for v in values])), 4), round(float(high - low) / 2, 4)]


def difference(better, worse, queries):
    """[mean, low, high, low, high, and each run's mean]: of a paired difference, with intervals over items and
    over queries. They cover the choice of test items, and not that another seed trains another model: hence the
    last. Items without a number (nan) are left out."""
    there = [~np.isnan(b - w) for b, w in zip(better, worse)]
    values = [(b - w)[t] for b, w, t in zip(better, worse, there)]
    if not all(len(v) for v in values):
        return None
    queries = [[query for query, t in zip(mine, of) if t] for mine, of in zip(queries, there)]
    found = [np.mean([v.mean() for v in values]), *np.quantile(by_item(values), [0.025, 0.975]),
             *np.quantile(by_query(values, queries), [0.025, 0.975]), *(v.mean() for v in values)]
    return [round(float(x), 4) for x in found]


def in_words(x):
    """A number or a difference, as a table says it. The interval of a difference goes from the lower of its two
    low ends (items, queries) to the higher of its two high ends."""
    if x is None:
        return ""
    if len(x) == 2:
        return f"{x[0]:.3f} ±{x[1]:.3f}"
    return f"{x[0]:+.3f} ({min(x[1], x[3]):+.3f} to {max(x[2], x[4]):+.3f})"

# ----------------------------------------------------------------------------------------
# Results

def save(name, runs, result, rows, figure):
    """Print the table; write NAME.json, NAME.csv and NAME.png to the first run's studies/."""
    folder = runs[0].path("")
    seeds = ", ".join(str(run.config().seed) for run in runs)
    result["made on"] = f"seeds {seeds}; {platform.machine()}, torch {torch.__version__}"
    with new_file(os.path.join(folder, name + ".json")) as f:
        json.dump(result, f, indent=1)
    with new_file(os.path.join(folder, name + ".csv")) as f:
        csv.writer(f, lineterminator="\n").writerows(rows)
    figure.tight_layout()
    figure.savefig(os.path.join(folder, name + ".png"), dpi=110)
    print(markdown(rows))
    print(f"\n{result['made on']}; {name}.json, .csv and .png are in {folder}")
