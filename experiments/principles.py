"""
Can principles be written before any response is seen?

The paper names this as future work: principles that are written once for each query, stored, and shared by all
judgements of its responses. Here they come from the judge's prompt without responses,

    <query> for my boss: what is 230+481? <principles>

which the judge completes with principles and <end>, an exercise of pre-training. Those of m samples can be
averaged. A judgement then begins with the stored principles, in place of its own, and goes on with <critique>.

Compared, for each judge: its own principles, written with the responses in view; its stored ones; those that
another judge has stored; and the raters' own weights, which are the bound. What travels from judge to judge?
"""

from collections import Counter

import numpy as np
from matplotlib.figure import Figure

from data import run_command
from data.judgement import (
    PRINCIPLE,
    correct,
    principles_text,
    prompt_parts,
    read_judgement,
    vote_plurality,
)
from data.tokenizer import CRITIQUE, END, SPECIAL
from data.world import seed_of
from experiments import study
from experiments.judges import asked
from sample import generate

K = 8                                              # samples of a vote
# For each judge: where its principles come from. "stored, m": the mean of m samples by the judge itself.
SOURCES = {"base": ("own", "stored, 32", "RL policy's", "raters'"),
           "rft": ("own", "stored, 32", "RL policy's", "raters'"),
           "rl": ("own", "stored, 1", "stored, 8", "stored, 32", "another seed's", "raters'")}

# ----------------------------------------------------------------------------------------
# Principles from the query alone


def read_principles(tok, ids):
    """{criterion: weight} of a completion, or None if it is not exactly principles and <end>."""
    matches = [PRINCIPLE.fullmatch(text) for text in tok.text(ids[:-1]).removeprefix(" ").split(", ")]
    if ids[-1:] != [END] or min(ids[:-1], default=0) < len(SPECIAL) or not all(matches):
        return None
    return {m[1]: int(m[2]) for m in matches}


def mean_principles(samples):
    """The mean of principles, in whole numbers with the sum 10 (largest remainders). None if no sample parses.

    >>> mean_principles([{"correct": 6, "polite": 4}, {"correct": 4, "polite": 5, "plain": 1}, None])
    {'correct': 5, 'polite': 5}
    >>> mean_principles([{"help": 20}])
    {'help': 10}
    """
    total = Counter()
    for weights in samples:
        total.update(weights or {})
    exact = {name: 10 * weight / sum(total.values()) for name, weight in total.items()}
    whole = {name: int(weight) for name, weight in exact.items()}
    rest = sorted(exact, key=lambda name: whole[name] - exact[name])         # the largest remainder first
    for name in rest[:10 - sum(whole.values())]:
        whole[name] += 1
    return {name: weight for name, weight in whole.items() if weight} or None


def written(run, policy, queries, m, seed):
    """{query: m principles or None, written from the query alone}"""
    prompts = [tuple(run.tok.encode(prompt_parts(query, []))) for query in queries for _ in range(m)]
    seeds = [seed_of(seed, "principles", query, i) for query in queries for i in range(m)]
    done = [read_principles(run.tok, ids) for ids, _ in generate(policy, prompts, seeds, 1.0)]
    return {query: done[i * m:(i + 1) * m] for i, query in enumerate(queries)}

# ----------------------------------------------------------------------------------------
# Judging by given principles


def judge_by(run, policy, items, weights, k, seed, temperature):
    """As sample.judge, but a judgement begins with given principles. weights: {criterion: weight} for each item;
    None leaves them to the judge."""
    groups = [asked(run.tok, item, k, seed, temperature > 0) for item in items]
    flat = [(j, run.tok.encode([principles_text(w), CRITIQUE]) if w else [])
            for group, w in zip(groups, weights) for j in group]
    done = generate(policy, [tuple(j.prompt + given) for j, given in flat], [j.seed for j, _ in flat], temperature)
    for (j, given), (ids, logp) in zip(flat, done):
        j.ids, j.logp = given + ids, logp
        try:
            j.principles, j.critiques, j.scores = read_judgement(run.tok, j.ids, j.order)
        except ValueError as reason:
            j.status = str(reason)
    return groups

# ----------------------------------------------------------------------------------------
# One run


def stored(run, name, items):
    """{query: 32 principles or None} by a policy of a run"""
    policy, seed = run.model(name), run.config().seed
    return written(run, policy, sorted({item.query for item in items}), 32, seed_of(seed, "study", name))


def weights_from(source, name, run, other, items):
    """The principles of each item, for the judge `name` of a run. other: the run of another seed."""
    if source == "own":
        return [None] * len(items)
    if source == "raters'":
        return [item.weights for item in items]
    whose, writer = {"RL policy's": (run, "rl"), "another seed's": (other, "rl")}.get(source, (run, name))
    m = int(source.removeprefix("stored, ")) if source.startswith("stored") else 32
    found = stored(whose, writer, items)
    return [mean_principles(found[item.query][:m]) for item in items]


def agreement(weights, item):
    """The share of the raters' weights that principles {criterion: weight} have: 1 if they are equal."""
    return sum(min(weight, (weights or {}).get(name, 0)) for name, weight in item.weights.items()) / 10


def measure(run, other, name, source, count):
    """-> {measure: a number for each item} of a judge with principles from a source"""
    cfg, policy, found = run.config(), run.model(name), {}
    for split, n in (("test", count), ("ood", count // 2)):
        items = run.items(split, n)
        weights = weights_from(source, name, run, other, items)
        seed = seed_of(cfg.seed, "study", split)
        one = [group[0] for group in judge_by(run, policy, items, weights, 1, seed, 0)]
        found[f"{split}, greedy"] = np.array([float(correct(j.scores, item.gold)) for j, item in zip(one, items)])
        found[f"{split}, agreement"] = np.array([agreement(dict(j.principles or {}), item)
                                                 for j, item in zip(one, items)])
        if split == "test":
            groups = judge_by(run, policy, items, weights, K, seed, cfg.temperature)
            found["plurality"] = np.array([float(correct(vote_plurality([j.scores for j in group]), item.gold))
                                           for group, item in zip(groups, items)])
            begun = [len(run.tok.encode([principles_text(w), CRITIQUE])) if w else 0 for w in weights]
            found["tokens"] = np.array([len(j.ids) - given for j, given in zip(one, begun)], float)
    return found


def study_run(run, other, count):
    return {f"{name}, {source}": run.numbers(f"principles, {name}, {source}, {count}", lambda: measure(
        run, other, name, source, count)) for name, sources in SOURCES.items() for source in sources}

# ----------------------------------------------------------------------------------------
# Table and figure

MEASURES = ("test, greedy", "plurality", "ood, greedy", "test, agreement", "ood, agreement", "tokens")


def draw(numbers):
    figure = Figure(figsize=(8, 4))
    ax = figure.subplots()
    for i, (measure, label) in enumerate((("test, greedy", "greedy"), ("plurality", f"plurality of {K}"),
                                          ("ood, greedy", "greedy, out of distribution"))):
        values = [of[measure] for of in numbers.values()]
        ax.barh(np.arange(len(values)) + 0.27 * i, [v[0] for v in values], 0.25, xerr=[v[1] for v in values],
                label=label)
    ax.set_yticks(np.arange(len(numbers)) + 0.27, list(numbers))
    ax.set_xlabel("accuracy")
    ax.invert_yaxis()
    ax.legend(fontsize=8)
    return figure


def main(argv):
    runs, quick = study.start(argv, __doc__)
    count = 8 if quick else 600
    queries = [[item.query for item in run.items("test", count)] for run in runs]
    found = [study_run(run, runs[(i + 1) % len(runs)], count) for i, run in enumerate(runs)]
    column = lambda title, m: [f[title][m] for f in found]
    result = {"numbers": {title: {m: study.number(column(title, m)) for m in MEASURES} for title in found[0]},
              "less own": {}}
    rows = [["judge, principles", "greedy", "less own", f"plurality of {K}", "less own", "out of distribution",
             "agreement with the raters", "tokens"]]
    for title, of in result["numbers"].items():
        own = title.split(", ")[0] + ", own"
        less = result["less own"][title] = {} if title == own else {
            m: study.difference(column(title, m), column(own, m), queries) for m in ("test, greedy", "plurality")}
        rows.append([title, study.in_words(of["test, greedy"]), study.in_words(less.get("test, greedy")),
                     study.in_words(of["plurality"]), study.in_words(less.get("plurality")),
                     study.in_words(of["ood, greedy"]), study.in_words(of["test, agreement"]),
                     f"{of['tokens'][0]:.0f}"])
    study.save("principles", runs, result, rows, draw(result["numbers"]))


if __name__ == "__main__":
    run_command(main)
