"""
Is a generalist judge better than the other kinds of reward model? (The paper's Table 2.)

All systems start from the same base model, and learn from the same training items:

- random, longest: what needs no reading.
- scalar RM (Eq 4, Bradley-Terry): reads one response, returns a number.
- pairwise RM (Eq 5): reads two responses, returns a number. That of the other order is subtracted, and the first
  is better if the difference is above 0. Three or four responses play a round robin.
- CLoud: the RFT policy writes a critique of one response alone, and a scalar head reads it. Several samples are
  averaged (Eq 12).
- LLM-as-a-Judge (Eq 6) and a GRM without principles: see judges.py.
- GRM: base, after RFT, after RL; the paper's sum of samples (Eq 14), a plurality, and the filter of the Meta RM.

The three scalar models are trained on all pairs of the best and another response, with -log sigmoid of the
difference of their numbers. Their learning rates and epochs were chosen on validation items of other seeds, for
version 0.6.0. The generative systems all have the settings of the default run. Items with one response teach GRMs
alone. LLM-as-a-Judge learns from one pair of each item.

A judgement with scores may tie. In training a tie is incorrect; the paper's evaluation breaks it at random. Both
are given, and systems are compared in the paper's way, since a scalar RM or a judge of pairs hardly ever ties.
MFLOPs are those of a greedy answer to an item of two to four responses. Milliseconds: all test items are judged
together, and their time is divided by their number.
"""

import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

import metarm
from data import run_command
from data.judgement import Judgement, correct, prompt_parts
from data.world import DOMAINS, VERIFIABLE, seed_of
from experiments import study
from experiments.judges import (
    NO_PRINCIPLES,
    grm_without_principles,
    judge_as,
    judge_pairs,
    llm_as_a_judge,
    pairs,
    round_robin,
    some,
)
from metarm import RULES
from model import Optimizer, learning_rate, pad_left
from report import tie_broken
from sample import judge

# The paper's overall accuracy in percent (27B): greedy, and with 8 samples
PAPER = {"scalar RM": "68.6", "pairwise RM": "69.0", "CLoud": "68.7", "LLM-as-a-Judge, RL": "67.8",
         "GRM without principles": "67.5, 68.0", "GRM, RFT": "68.8", "GRM, RL": "69.9, 70.6"}

# ----------------------------------------------------------------------------------------
# Scalar models


def preferences(items):
    """(item, best, other): what the items say about pairs."""
    return [(item, item.best, i) for item in items for i in range(item.n) if i != item.best]


def train_differences(cfg, name, start, better, worse, epochs, peak_lr):
    """Bradley-Terry: -log sigmoid(S(better) - S(worse)). better, worse: lists of ids, pair by pair."""
    model = metarm.from_policy(start)
    optimizer = Optimizer(model)
    shuffles = [np.random.default_rng(seed_of(cfg.seed, name, epoch)) for epoch in range(epochs)]
    order = np.concatenate([rng.permutation(len(better)) for rng in shuffles])
    steps = -(-len(order) // 32)
    for step in range(steps):
        batch = order[step * 32:(step + 1) * 32]
        ids, padding = pad_left([better[i] for i in batch] + [worse[i] for i in batch])      # (2B, T), (2B,)
        above, below = model(ids, padding).chunk(2)                                          # (B,), (B,)
        loss = -F.logsigmoid(above - below).mean()
        loss.backward()
        optimizer.step(learning_rate(peak_lr, step, steps))
    return model


@torch.inference_mode()
def numbers_of(model, rows):
    """The model's number for each list of ids. Similar lengths are read together."""
    order, found = sorted(range(len(rows)), key=lambda i: len(rows[i])), [0.0] * len(rows)
    for start in range(0, len(order), 128):
        chosen = order[start:start + 128]
        for i, number in zip(chosen, model(*pad_left([rows[i] for i in chosen])).tolist()):
            found[i] = number
    return found


def flops(model, groups):
    """Of judgements that a GPT writes, all of them together. A multiply and an add are two operations. Each token
    goes through the blocks, a token that is written also through the output layer, and attention looks back."""
    C, L = model.cfg.n_embd, model.cfg.n_layer
    inside = sum(p.numel() for p in model.blocks.parameters())
    lengths = [(len(j.prompt) + len(j.ids), len(j.ids)) for group in groups for j in group]
    V = model.cfg.vocab_size
    return sum(2 * inside * T + 2 * L * C * T * T + 2 * V * C * written for T, written in lengths)


def reads(model, rows):
    """FLOPs of a scalar model that reads these lists of ids."""
    return flops(model.gpt, [[Judgement("", 0, [], 0, ids, [], 0.0) for ids in rows]])


def per_item(items, values):
    """A flat list with a value for each response -> a list for each item."""
    values = iter(values)
    return [[next(values) for _ in range(item.n)] for item in items]


def scalar_rm(run, items=None, name="scalar", epochs=4):
    """items: the training items, by default those of the run; name: of the model."""
    row = lambda item, i: run.tok.encode(prompt_parts(item.query, [item.responses[i]]))

    def make():
        examples = preferences(items or run.training_items())
        better, worse = [row(p, best) for p, best, _ in examples], [row(p, other) for p, _, other in examples]
        return train_differences(run.config(), "scalar", run.model("base"), better, worse, epochs, peak_lr=3e-3)
    model = run.model(name, make)

    def answer(items, k):
        rows = [row(item, i) for item in items for i in range(item.n)]
        return {"answer": per_item(items, numbers_of(model, rows))}, reads(model, rows), []
    return answer


def pairwise_rm(run):
    row = lambda item, i, j: run.tok.encode(prompt_parts(item.query, [item.responses[i], item.responses[j]]))

    def make():
        examples = preferences(run.training_items())
        better, worse = [row(*e) for e in examples], [row(p, other, best) for p, best, other in examples]
        return train_differences(run.config(), "pair", run.model("base"), better, worse, epochs=4, peak_lr=3e-3)
    model = run.model("pairwise", make)

    def answer(items, k):
        rows = [row(item, *order) for item in items for i, j in pairs(item.n) for order in ((i, j), (j, i))]
        S = iter(numbers_of(model, rows))
        scores = [round_robin(item.n, {pair: next(S) - next(S) for pair in pairs(item.n)}) for item in items]
        return {"answer": scores}, reads(model, rows), []
    return answer


def cloud(run):
    writer = run.model("rft")
    alone = lambda items: [some(item, [i]) for item in items for i in range(item.n)]

    def make():
        several = [item for item in run.training_items() if item.n > 1]
        groups = run.groups("cloud-train", lambda: judge(
            writer, run.tok, alone(several), 2, seed_of(run.config().seed, "study", "cloud")))
        rows = {group[0].item: [j.prompt + j.ids for j in group] for group in groups}
        better = [rows[f"{p.id}-{best}"][i] for i in (0, 1) for p, best, _ in preferences(several)]
        worse = [rows[f"{p.id}-{other}"][i] for i in (0, 1) for p, _, other in preferences(several)]
        return train_differences(run.config(), "cloud", writer, better, worse, epochs=2, peak_lr=1e-3)
    model = run.model("cloud", make)

    def answer(items, k):
        groups = judge(writer, run.tok, alone(items), k, seed_of(run.config().seed, "study", "cloud"),
                       run.config().temperature if k > 1 else 0)
        rows = [j.prompt + j.ids for group in groups for j in group]
        means = np.array(numbers_of(model, rows)).reshape(-1, k).mean(axis=1)                # Eq 12
        cost = flops(writer, groups) + reads(model, rows)
        return {"answer": per_item(items, means.tolist())}, cost, groups
    return answer

# ----------------------------------------------------------------------------------------
# Systems. Each is a function of a run. It trains what is missing, and returns a function answer(items, k), where
# k = 1 is greedy. This returns three things: {rule: the scores of each item, None if there are none}, the FLOPs of
# all items, and the judgements that were written.


def voted(groups, rules):
    return {rule: [RULES[rule](group) for group in groups] for rule in rules}


def grm(run, name):
    policy = run.model(name)

    def answer(items, k):
        split = items[0].split
        if k > 1:
            _, groups = run.judged(name, split, len(items), k, run.config().temperature)
        else:
            groups = judge(policy, run.tok, items, 1, seed_of(run.config().seed, "study", split), 0, shuffle=False)
        return voted(groups, RULES if k > 1 else ["sum"]), flops(policy, groups), groups
    return answer


def no_principles(run):
    policy = grm_without_principles(run)["rl"]

    def answer(items, k):
        groups = judge_as(NO_PRINCIPLES, policy, run.tok, items, k, seed_of(run.config().seed, "study", "form"),
                          run.config().temperature if k > 1 else 0, shuffle=k > 1)
        return voted(groups, ["sum", "plurality"] if k > 1 else ["sum"]), flops(policy, groups), groups
    return answer


def llm_judge(run, stage):
    policy = llm_as_a_judge(run)[stage]

    def answer(items, k):
        groups, scores = judge_pairs(policy, run.tok, items, k, seed_of(run.config().seed, "study", "pairs"),
                                     run.config().temperature if k > 1 else 0)
        return {"answer": scores}, flops(policy, groups), groups
    return answer


def floor(score):
    return lambda run: lambda items, k: ({"answer": [score(item) for item in items]}, 0, [])


SYSTEMS = {
    "random": floor(lambda item: [random.Random(seed_of("random", r)).random() for r in item.responses]),
    "longest": floor(lambda item: [len(response) for response in item.responses]),
    "scalar RM": scalar_rm, "pairwise RM": pairwise_rm, "CLoud": cloud,
    "LLM-as-a-Judge, RFT": lambda run: llm_judge(run, "rft"),
    "LLM-as-a-Judge, RL": lambda run: llm_judge(run, "rl"),
    "GRM without principles": no_principles, "GRM, base": lambda run: grm(run, "base"),
    "GRM, RFT": lambda run: grm(run, "rft"), "GRM, RL": lambda run: grm(run, "rl")}
SEVERAL = [name for name in SYSTEMS if "GRM" in name or "Judge" in name or name == "CLoud"]   # take k samples

# ----------------------------------------------------------------------------------------
# One run


def study_run(run, sizes):
    """-> {system: {measure: a number for each item, or for some measures a single one}}"""
    test_items, counts = sizes
    sets = {"test": run.items("test", test_items), "ood": run.items("ood", test_items // 2)}
    found = {}
    for name, system in SYSTEMS.items():
        def make():
            answer, columns = system(run), {}
            for split, items in sets.items():
                for k in counts if name in SEVERAL else counts[:1]:
                    if k > 8 and (split == "ood" or name not in ("GRM, RFT", "GRM, RL")):
                        continue
                    start = time.perf_counter()
                    scores_by_rule, cost, groups = answer(items, k)
                    seconds = time.perf_counter() - start
                    for rule, scores in scores_by_rule.items():
                        key = f"{split}, greedy" if k == 1 else f"{split}, {rule}@{k}"
                        both = [(s, item.gold) for s, item in zip(scores, items)]
                        columns[key] = np.array([float(correct(*of)) for of in both])
                        columns[f"{key}, ties at random"] = np.array([tie_broken(*of) for of in both])
                    columns[f"{split}, MFLOPs@{k}"] = np.array([cost / len(items) / 1e6])
                    if k == 1:
                        columns[f"{split}, ms"] = np.array([1000 * seconds / len(items)])
                        parses = [j.scores is not None for group in groups for j in group]
                        columns[f"{split}, parses"] = np.array([np.mean(parses or [1.0])])
            return columns
        found[name] = run.numbers(f"baselines, {name}, {test_items}", make)
    return found

# ----------------------------------------------------------------------------------------
# Table and figure


def draw(numbers, few):
    figure = Figure(figsize=(8, 5))
    ax = figure.subplots()
    for i, (name, of) in enumerate(numbers.items()):
        if of["test, MFLOPs@1"][0] == 0:
            ax.axhline(of["test, greedy"][0], color=f"C{i}", ls=":", label=name)
            continue
        points = [(of["test, MFLOPs@1"][0], of["test, greedy"][0])]
        for rule in ("answer", "plurality"):
            points += [(of[f"test, MFLOPs@{key.split('@')[1]}"][0], of[key][0]) for key in of
                       if key.startswith(f"test, {rule}@") and "ties" not in key]
        ax.plot(*zip(*points), "o-", color=f"C{i}", label=name)
    ax.set_xscale("log")
    ax.set(xlabel="MFLOPs for an item: greedy, and with more samples", ylabel="accuracy")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure


def main(argv):
    runs, quick = study.start(argv, __doc__)
    test_items, counts = sizes = (8, (1, 2)) if quick else (600, (1, 8, 32))
    few = counts[1]
    items = [run.items("test", test_items) for run in runs]
    queries = [[item.query for item in mine] for mine in items]
    found = [study_run(run, sizes) for run in runs]
    values = lambda name, measure: [f[name][measure] for f in found]
    random_ties = ", ties at random"
    result = {"numbers": {}, "by domain": {}, "less the scalar RM": {}, "less a greedy GRM": {}}
    for name in SYSTEMS:
        result["numbers"][name] = {m: study.number(values(name, m)) for m in found[0][name]}
        of = result["by domain"][name] = {}
        for title, domains in (*((d, [d]) for d in DOMAINS), ("verifiable", VERIFIABLE),
                               ("others", [d for d in DOMAINS if d not in VERIFIABLE])):
            masks = [np.array([item.domain in domains for item in mine]) for mine in items]
            if all(mask.any() for mask in masks):
                mine_of = zip(values(name, "test, greedy" + random_ties), masks)
                of[title] = study.number([v[mask] for v, mask in mine_of])
        for other, title in (("scalar RM", "less the scalar RM"), ("GRM, RL", "less a greedy GRM")):
            result[title][name] = {
                m: study.difference(values(name, m), values(other, "test, greedy" + random_ties), queries)
                for m in found[0][name] if m.startswith("test") and m.endswith(random_ties)}
    rows = [["system", "paper, %", "greedy", "ties at random", f"{few} samples, ties at random",
             "greedy less the scalar RM", "verifiable", "out of distribution", "MFLOPs", "ms"]]
    for name, of in result["numbers"].items():
        votes = [of.get(f"test, {rule}@{few}{random_ties}") for rule in ("answer", "plurality")]
        less = result["less the scalar RM"][name]["test, greedy" + random_ties]
        shown = [of["test, greedy"], of["test, greedy" + random_ties], votes[0] or votes[1],
                 less if name != "scalar RM" else None, result["by domain"][name].get("verifiable"),
                 of["ood, greedy" + random_ties]]
        rows.append([name, PAPER.get(name, ""), *map(study.in_words, shown),
                     f"{of['test, MFLOPs@1'][0]:.0f}", f"{of['test, ms'][0]:.2f}"])
    study.save("baselines", runs, result, rows, draw(result["numbers"], few))


if __name__ == "__main__":
    run_command(main)
