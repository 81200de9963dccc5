"""
Can principles be written before any response is seen?

The paper names this as future work: principles that are written once for each query, stored, and shared by all
judgements of its responses. Here they come from the judge's prompt without responses,

    <query> for my boss: what is 230+481? <principles>

which the judge completes with principles. A judgement then begins with stored principles, in place of its own, and
goes on with <critique>. Pre-training and RFT's general text practise this prompt, with lists that mostly overlook
the cue. RL does not. So a writer of principles is trained as well: the RL policy, fine-tuned to write for the
query alone what it writes with responses in view. Principles come from:

- own: the judgement's own, written with the responses in view; and the mean of the principles of 8 judgements;
- greedy: the most likely ones for the query alone, by the judge itself;
- mean of 1, 8 or 32 samples for the query alone, or the most frequent of 32. "One for each sample" is for votes;
- the RL policy's, the trained writer's: the mean of 32 by them. Also those of the next seed's run;
- the raters' own weights: the bound of what principles can win.

A query for which no list can be read gets none, and the judgement writes its own (given: the share of items that
got a stored list). Out of distribution: unseen pairs of domain and cue. Ties are broken at random. True checks are
those of judgements that parse.
"""

import functools
from collections import Counter

import numpy as np
from matplotlib.figure import Figure

import spct
from data import run_command
from data.annotators import encode_document, pack
from data.judgement import PRINCIPLE, principles_text, prompt_parts, read_judgement, vote_plurality
from data.tokenizer import CRITIQUE, END, SPECIAL
from data.world import OOD_PAIRS, seed_of
from experiments import study
from experiments.judges import asked
from report import faithfulness, tie_broken
from sample import generate, judge

K = 8                                              # samples of a vote
M = 32                                             # lists that are stored for a query

# ----------------------------------------------------------------------------------------
# Principles from the query alone


def read_principles(tok, ids):
    """{criterion: weight} of what stands before the first special token, or None if that is no list."""
    cut = next((i for i, token in enumerate(ids) if token < len(SPECIAL)), len(ids))
    matches = [PRINCIPLE.fullmatch(text) for text in tok.text(ids[:cut]).removeprefix(" ").split(", ")]
    return {m[1]: int(m[2]) for m in matches} if cut < len(ids) and all(matches) else None


def mean_principles(samples):
    """The mean of principles, in whole numbers with the sum 10 (largest remainders). [] if there is no sample.

    >>> mean_principles([{"correct": 6, "polite": 4}, {"correct": 4, "polite": 5, "plain": 1}])
    [{'correct': 5, 'polite': 5}]
    >>> mean_principles([{"help": 20}]), mean_principles([])
    ([{'help': 10}], [])
    """
    total = Counter()
    for weights in samples:
        total.update({name: weight / sum(weights.values()) for name, weight in weights.items()})
    exact = {name: 10 * share / len(samples) for name, share in total.items()}
    whole = {name: int(weight) for name, weight in exact.items()}
    rest = sorted(exact, key=lambda name: whole[name] - exact[name])         # the largest remainder first
    for name in rest[:10 - sum(whole.values())]:
        whole[name] += 1
    return [{name: weight for name, weight in whole.items() if weight}] if samples else []


def most_frequent(samples):
    """
    >>> most_frequent([{"help": 10}, {"help": 9, "plain": 1}, {"help": 10}]), most_frequent([])
    ([{'help': 10}], [])
    """
    counts = Counter(tuple(weights.items()) for weights in samples)
    return [dict(weights) for weights, _ in counts.most_common(1)]


def trained_writer(run):
    """The RL policy, fine-tuned to write for the query alone what it writes with responses in view"""
    def make():
        cfg, items, policy, examples = run.config(), run.training_items()[:1500], run.model("rl"), []
        groups = run.groups("principles, training", lambda: judge(
            policy, run.tok, items, 1, seed_of(cfg.seed, "principles")))
        for item, [j] in zip(items, groups):
            if j.scores:
                examples.append(encode_document(run.tok, [
                    (prompt_parts(item.query, []), False), ([principles_text(dict(j.principles)), END], True)]))
        ids, learned = pack(examples, cfg.block_size, seed_of(cfg.seed, "principles"))
        return spct.train_lm(cfg, "rft", policy, ids, learned, cfg.rft_lr, cfg.rft_rows, epochs=4)
    return run.model("principles", make)


@functools.cache
def stored(writer, name, queries, m):
    """Lists for each query, m of them, or the greedy one if m is 0. A policy of the run `writer` writes them
    -> {query: its lists, None for one that cannot be read}, and the mean number of tokens of a list"""
    policy = trained_writer(writer) if name == "principles" else writer.model(name)
    seed, many = seed_of(writer.config().seed, "study", name), max(1, m)
    prompts = [tuple(writer.tok.encode(prompt_parts(query, []))) for query in queries for _ in range(many)]
    seeds = [seed_of(seed, "principles", query, i) for query in queries for i in range(many)]
    done = [ids for ids, _ in generate(policy, prompts, seeds, float(m > 0))]
    read = [read_principles(writer.tok, ids) for ids in done]
    lists = {query: read[i * many:(i + 1) * many] for i, query in enumerate(queries)}
    ends = [next((i + 1 for i, token in enumerate(ids) if token < len(SPECIAL)), len(ids)) for ids in done]
    return lists, float(np.mean(ends))

# ----------------------------------------------------------------------------------------
# Judging by given principles


def judge_by(run, policy, items, stores, k, seed, temperature):
    """As sample.judge, but judgements begin with given principles. stores: for each item a list of {criterion:
    weight}, of which the samples take one each, in turn. If it is empty, they write their own."""
    groups = [asked(run.tok, item, k, seed, temperature > 0) for item in items]
    given = [run.tok.encode([principles_text(store[j.sample % len(store)]), CRITIQUE]) if store else []
             for group, store in zip(groups, stores) for j in group]
    flat = [j for group in groups for j in group]
    done = generate(policy, [tuple(j.prompt + begin) for j, begin in zip(flat, given)], [j.seed for j in flat],
                    temperature)
    for j, begin, (ids, logp) in zip(flat, given, done):
        j.ids, j.logp = begin + ids, logp
        try:
            j.principles, j.critiques, j.scores = read_judgement(run.tok, j.ids, j.order)
        except ValueError as reason:
            j.status = str(reason)
    return groups

# ----------------------------------------------------------------------------------------
# One run

# source: (whose lists, of which policy, how many, what is made of them). No policy: the judge itself writes them.
SOURCES = {
    "greedy": ("mine", None, 0, list),
    "mean of 1": ("mine", None, 1, mean_principles),
    "mean of 8": ("mine", None, 8, mean_principles),
    "mean of 32": ("mine", None, M, mean_principles),
    "most frequent": ("mine", None, M, most_frequent),
    "one for each sample": ("mine", None, K, list),
    "the RL policy's": ("mine", "rl", M, mean_principles),
    "the trained writer's": ("mine", "principles", M, mean_principles),
    "the trained writer's, greedy": ("mine", "principles", 0, list),
    "the next seed's": ("other", "rl", M, mean_principles),
    "the next seed's trained writer's": ("other", "principles", M, mean_principles)}
FEW = ("own", "mean of 32", "the RL policy's", "the trained writer's", "the raters'")
JUDGES = {"base": FEW, "rft": FEW, "rl": (
    "own", "own, mean of 8", *(source for source in SOURCES if source != "the RL policy's"), "the raters'")}
VOTING = ("own", "mean of 32", "one for each sample", "the trained writer's")         # of the RL policy


def items_of(run, split, count):
    return [item for item in run.items(split, count) if split != "ood" or (item.domain, item.cue) in OOD_PAIRS]


def stores_from(source, name, runs, items):
    """-> for each item the principles that the judge `name` is given (see judge_by), and the mean number of tokens
    that were written for a query. runs: {"mine", "other"}"""
    run = runs["mine"]
    if source in ("own", "the raters'"):
        return [[item.weights] if source == "the raters'" else [] for item in items], 0.0
    if source == "own, mean of 8":
        groups = judge_by(run, run.model(name), items, [[]] * len(items), K, run.config().seed, 1.0)
        return [mean_principles([dict(j.principles) for j in group if j.scores]) for group in groups], 0.0
    whose, policy, m, choose = SOURCES[source]
    queries = tuple(sorted({item.query for item in items}))
    lists, tokens = stored(runs[whose], policy or name, queries, M if m else 0)
    many = max(1, m)
    return [choose([found for found in lists[item.query][:many] if found]) for item in items], many * tokens


def agreement(weights, item):
    """The share of the raters' weights that principles {criterion: weight} have: 1 if they are equal."""
    return sum(min(weight, weights.get(name, 0)) for name, weight in item.weights.items()) / 10


def measure(runs, name, source, count):
    """-> {measure: a number for each item} of a judge with principles from a source. tokens: of a judgement,
    without the principles that it is given; stored tokens: written once for its query"""
    run, found = runs["mine"], {}
    cfg, policy = run.config(), run.model(name)
    for split in ("test", "ood"):
        items, seed = items_of(run, split, count), seed_of(cfg.seed, "study", split)
        stores, tokens = stores_from(source, name, runs, items)
        one = [group[0] for group in judge_by(run, policy, items, stores, 1, seed, 0)]
        begun = [len(run.tok.encode([principles_text(store[0]), CRITIQUE])) if store else 0 for store in stores]
        for item, store, j, length in zip(items, stores, one, begun):
            row = {"greedy": tie_broken(j.scores, item.gold), "given": bool(store), "parses": bool(j.scores),
                   "agreement": agreement(dict(j.principles), item) if j.scores else np.nan,
                   "true checks": faithfulness(j, item)[1] if j.scores else np.nan,
                   "tokens": len(j.ids) - length, "stored tokens": tokens}
            for m, value in row.items():
                found.setdefault(f"{split}, {m}", []).append(value)
        if name == "rl" and source in VOTING and split == "test":
            groups = judge_by(run, policy, items, stores, K, seed, cfg.temperature)
            found["test, plurality"] = [tie_broken(vote_plurality([j.scores for j in group]), item.gold)
                                        for group, item in zip(groups, items)]
    return {m: np.array(values, float) for m, values in found.items()}


def study_run(run, other, count):
    found, runs = {}, {"mine": run, "other": other}
    for name, sources in JUDGES.items():
        for source in sources:
            title = f"principles, {name}, {source}, {other.config().seed}, {count}"
            found[f"{name}, {source}"] = run.numbers(title, lambda: measure(runs, name, source, count))
    return found

# ----------------------------------------------------------------------------------------
# Table and figure


def draw(numbers):
    figure = Figure(figsize=(9, 6))
    ax = figure.subplots()
    for i, measure in enumerate(("test, greedy", "ood, greedy", "test, agreement")):
        values = [of[measure] or [0, 0] for of in numbers.values()]
        ax.barh(np.arange(len(values)) + 0.25 * i, [v[0] for v in values], 0.23, xerr=[v[1] for v in values],
                label=measure.replace("test, agreement", "agreement of principles with the raters"))
    ax.set_yticks(np.arange(len(numbers)) + 0.25, list(numbers))
    ax.set_xlabel("accuracy")
    ax.invert_yaxis()
    ax.legend(fontsize=8)
    return figure


def main(argv):
    runs, quick = study.start(argv, __doc__)
    count = 8 if quick else 600
    items = {split: [items_of(run, split, count) for run in runs] for split in ("test", "ood")}
    found = [study_run(run, runs[(i + 1) % len(runs)], count) for i, run in enumerate(runs)]
    column = lambda title, m: [f[title][m] for f in found]
    numbers = {title: {m: study.number(column(title, m)) for m in of} for title, of in found[0].items()}
    less = lambda title, other: {m: study.difference(
        column(title, m), column(other, m), [[item.query for item in mine] for mine in items[m.split(",")[0]]])
        for m in found[0][title] if m in found[0][other]}
    result = {"numbers": numbers, "less own": {}, "less mean of 32": {}, "judgements that pay for it": {}}
    rows = [["judge, principles", "greedy", "less own", f"plurality of {K}", "out of distribution", "less own",
             "agreement with the raters", "true checks", "given", "tokens"]]
    for title, of in numbers.items():
        name = title.split(", ")[0]
        own = result["less own"][title] = less(title, f"{name}, own")
        result["less mean of 32"][title] = less(title, f"{name}, mean of 32")
        # Of one query: what its lists cost, by what a judgement saves
        saved = numbers[f"{name}, own"]["test, tokens"][0] - of["test, tokens"][0]
        if saved > 0 and of["test, stored tokens"][0]:
            result["judgements that pay for it"][title] = round(of["test, stored tokens"][0] / saved, 2)
        differs = lambda m: None if title == f"{name}, own" else own[m]
        shown = (of["test, greedy"], differs("test, greedy"), of.get("test, plurality"), of["ood, greedy"],
                 differs("ood, greedy"), of["test, agreement"], of["test, true checks"])
        rows.append([title, *map(study.in_words, shown), f"{of['test, given'][0]:.2f}",
                     f"{of['test, tokens'][0]:.0f}"])
    study.save("principles", runs, result, rows, draw(numbers))


if __name__ == "__main__":
    run_command(main)
