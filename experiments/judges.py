"""
Does a judge need principles, and does it need scores? Two other kinds of generative judge, for baselines.py:

- LLM-as-a-Judge (Eq 6) reads two responses. Its judgement ends with the number of the better one, where a GRM's
  ends with scores. (The critique of each response still ends with a total.) Several samples of a pair take a
  majority vote (Eq 13). Three or four responses play a round robin: each pair is judged, and a response has a
  point for each pair that it wins.
- A GRM without principles: its prompt ends with <critique>, and the judgement begins with the critique. Criteria
  are then no longer stated first. They still show in the checks.

Both start from the run's base model, and go through RFT and RL of their own, with the default settings. They are
fine-tuned on the base model's own correct judgements, rewritten: scores become a number, or the principles are cut
off. A kind is described by a Form, below.
"""

import random
from dataclasses import dataclass, replace

import numpy as np

import spct
from data.judgement import Judgement, prompt_parts, read_judgement
from data.tokenizer import CRITIQUE, END, SCORES
from data.world import seed_of
from experiments import study
from sample import generate, judge

# ----------------------------------------------------------------------------------------
# Forms of judgement


def without_principles(prompt):
    """The prompt ends with <critique> in place of <principles>."""
    return prompt[:-1] + [CRITIQUE]


def read_without_principles(tok, ids, order):
    """Put a principle without meaning in front, so that read_judgement can read it."""
    return read_judgement(tok, tok.encode([" none 1", CRITIQUE]) + ids, order)


def cut_principles(tok, j):
    """A judgement with principles -> one without. Its checks stay, one for each principle that it had."""
    cut = j.ids.index(CRITIQUE) + 1
    return replace(j, prompt=without_principles(j.prompt), ids=j.ids[cut:])


def read_number(tok, ids, order):
    """A judgement that ends with the number of the better response, which gets the score 2. The other has 1."""
    cut = ids.index(SCORES) + 1 if SCORES in ids else len(ids)
    scores = {tuple(tok.encode(["1"])): "2 1", tuple(tok.encode(["2"])): "1 2"}.get(tuple(ids[cut:-1]))
    if ids[-1:] != [END] or scores is None:
        raise ValueError("bad number")
    return read_judgement(tok, ids[:cut] + tok.encode([scores]) + [END], order)


def scores_to_number(tok, j):
    """A correct judgement of two responses -> its scores become the number of the better one."""
    first, second = (j.scores[i] for i in j.order)
    cut = j.ids.index(SCORES) + 1
    return replace(j, ids=j.ids[:cut] + tok.encode(["1" if first > second else "2"]) + [END])


@dataclass
class Form:
    prompt: callable     # the prompt of a GRM -> the prompt of this form
    read: callable       # as read_judgement
    rewrite: callable    # tok, a correct judgement of a GRM -> the same in this form


NO_PRINCIPLES = Form(without_principles, read_without_principles, cut_principles)
NUMBER = Form(lambda prompt: prompt, read_number, scores_to_number)


def asked(tok, item, k, seed, shuffle=True, hinted=False):
    """k judgements of an item that are still to be written, with orders and random numbers as in sample.judge."""
    group = []
    for sample in range(k):
        order = list(range(item.n))
        if shuffle:
            random.Random(seed_of(seed, "order", item.id, sample)).shuffle(order)
        hint = order.index(item.best) if hinted else None
        prompt = tok.encode(prompt_parts(item.query, [item.responses[i] for i in order], hint))
        group.append(Judgement(item.id, sample, order, seed_of(seed, item.id, sample), prompt, [], 0.0))
    return group


def judge_as(form, model, tok, items, k, seed, temperature=1.0, shuffle=True):
    """sample.judge in another form: k judgements of each item."""
    groups = [asked(tok, item, k, seed, shuffle) for item in items]
    judgements = [j for group in groups for j in group]
    for j in judgements:
        j.prompt = form.prompt(j.prompt)
    completions = generate(model, [tuple(j.prompt) for j in judgements], [j.seed for j in judgements], temperature)
    for j, (ids, logp) in zip(judgements, completions):
        j.ids, j.logp = ids, logp
        try:
            j.principles, j.critiques, j.scores = form.read(tok, ids, j.order)
        except ValueError as reason:
            j.status = str(reason)
    return groups


def train(run, name, form, items, samples, hinted):
    """RFT and RL in a form -> {stage: policy}. items: training items; samples, hinted: the base model's judgements
    of them."""
    cfg = run.config()
    item_of = {item.id: item for item in items}
    kept = [j for group in samples for j in spct.keep(group, item_of[group[0].item])]
    kept += [j for group in hinted for j in spct.keep_hinted(group, item_of[group[0].item])]
    kept = [form.rewrite(run.tok, j) for j in kept]
    rft = run.model(f"{name}-rft", lambda: spct.finetune(cfg, run.tok, run.model("base"), kept))
    hard = [item_of[group[0].item] for group in samples if not spct.too_easy(group, item_of[group[0].item])]
    rollout = lambda policy, batch, seed: judge_as(form, policy, run.tok, batch, cfg.group, seed, shuffle=False)
    return {"rft": rft, "rl": run.model(f"{name}-rl", lambda: [*study.reinforce(cfg, rft, hard, rollout)][-1])}


def grm_without_principles(run):
    """-> {stage: policy}"""
    return train(run, "no-principles", NO_PRINCIPLES, run.training_items(), run.own("rft"), run.own("hinted"))

# ----------------------------------------------------------------------------------------
# Pairs


def some(item, which):
    """An item of some of the responses, in this order."""
    return replace(item, id=f"{item.id}-" + "".join(map(str, which)), responses=[item.responses[i] for i in which],
                   gold=[item.gold[i] for i in which], truth=[item.truth[i] for i in which])


def pairs(n):
    return [(i, j) for i in range(n) for j in range(i + 1, n)]


def round_robin(n, margins):
    """margins: {(i, j): above 0 if i beats j} -> each response's points: 1 for a pair that it wins, 1/2 for a tie.

    >>> round_robin(3, {(0, 1): 2.0, (0, 2): -1.0, (1, 2): 0.0})
    [1.0, 0.5, 1.5]
    """
    points = [0.0] * n
    for (i, j), margin in margins.items():
        points[i] += 0.5 + 0.5 * np.sign(margin)
        points[j] += 0.5 - 0.5 * np.sign(margin)
    return [float(p) for p in points]


def one_pair(item, seed):
    """For training: the best response and another one, in random order."""
    rng = random.Random(seed_of(seed, "pair", item.id))
    two = [item.best, rng.choice([i for i in range(item.n) if i != item.best])]
    rng.shuffle(two)
    return some(item, two)


def llm_as_a_judge(run):
    """-> {stage: policy}. The base model's judgements of pairs are sampled for it as for RFT."""
    cfg, base = run.config(), run.model("base")
    items = [one_pair(item, cfg.seed) for item in run.training_items() if item.n > 1]
    samples = run.groups("pairs-rft", lambda: judge(base, run.tok, items, cfg.n_rft, seed_of(cfg.seed, "rft")))
    hinted = run.groups("pairs-hinted", lambda: judge(
        base, run.tok, items, 1, seed_of(cfg.seed, "hinted"), hinted=True))
    return train(run, "llm-judge", NUMBER, items, samples, hinted)


def judge_pairs(policy, tok, items, k, seed, temperature):
    """LLM-as-a-Judge on items of two to four responses -> judgements of each item's pairs, and for each item the
    points of its responses."""
    duels = [some(item, pair) for item in items for pair in pairs(item.n)]
    groups = judge_as(NUMBER, policy, tok, duels, k, seed, temperature, shuffle=temperature > 0)
    left, found = iter(groups), []
    for item in items:
        margins = {}
        for pair in pairs(item.n):                 # a majority of the samples (Eq 13)
            margins[pair] = sum(j.scores[0] - j.scores[1] for j in next(left) if j.scores)
        found.append(round_robin(item.n, margins))
    return groups, found
