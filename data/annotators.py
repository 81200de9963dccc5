"""
The pre-training corpus: general text, and judgements by simulated annotators of mixed skill.

The from-scratch model must have seen judging before it can be improved at judging, just as the
paper's base model has. What it sees is mostly poor: 'sloppy' annotators go by an impression that follows
manners (polite and playful words) more than merit, 'average' ones check without evidence and often err, and
the few 'experts' quote the response and give evidence for every check. The sloppy way is the most frequent
one, so it is the base model's greedy answer; the good ways are in it too, and RFT and RL have to bring them
out.

Two properties matter for the method:
- most errors come from the transcript's own random draws, not from the item, so votes can cancel them
  (the taste for manners is a bias: votes cannot cancel it, but a Meta RM can filter it out);
- those who write principles mostly overlook the cue, so the common principles err for all queries with a cue:
  that raters do mind it has to be learned from preferences.

A judgement, as it is written after the prompt (marks in angle brackets):
    correct 4, polite 5, serious 1 <critique>
    <r1> it is 711 kindly <checks> correct: 230+481=711 got 7 7 1 1 1 1, good polite: kindly, good
      serious: none, good <total>10
    <r2> it is 611 <checks> correct: 230+481=711 got 7 6, bad polite: none, bad
      serious: none, good <total>1
    <scores>10 1<end>
Quoting first is what makes a tiny model able to check at all.
"""

import random

import numpy as np

from data import UserError
from data.tokenizer import CHECKS, CRITIQUE, END, PAD, PRINCIPLES, RESPONSE, SCORES, TOTAL, render_prompt
from data.world import (CONTENT_CRITERIA, DOMAINS, RATERS, STYLE_CRITERIA, in_distribution,
                        make_item, make_query, make_response, seed_of, split_of)

GENERAL = 0.45                                     # share of documents that are general text
GENERAL_KINDS = {"quoting": 0.2, "adding": 0.2, "checking": 0.6}  # of general text
HINTED = 0.15                                      # share of annotations that carry a hint
SKILLS = {"sloppy": 0.66, "average": 0.26, "expert": 0.08}
WRONG_CHECK = {"average": 0.20, "expert": 0.03, "perfect": 0.0}   # chance that a verdict is wrong
IMPRESSION_NOISE = 2.5                             # standard deviation of a sloppy score, in points
OVERLOOKED = 0.6                                   # chance that principles are as if there were no cue

# ----------------------------------------------------------------------------------------
# Principles

def rebalance(rng, weights, moves=0):
    """Make the weights sum to 10, each at least 1, then move `moves` single points at random."""
    weights = dict(weights)
    names = list(weights)
    while sum(weights.values()) != 10:
        name = rng.choice(names)
        weights[name] = max(1, weights[name] + (1 if sum(weights.values()) < 10 else -1))
    for _ in range(moves):
        a, b = rng.choice(names), rng.choice(names)
        if weights[a] > 1:
            weights[a] -= 1
            weights[b] += 1
    return weights


def listed(weights):
    return " " + ", ".join(f"{name} {w}" for name, w in weights.items())


def principles(rng, item, skill):
    """An annotator's criteria and weights for the item's query: {name: weight}, sum 10."""
    if skill == "sloppy":
        return {"overall": 10}
    weights = dict(RATERS[item.subset]["none" if rng.random() < OVERLOOKED else item.cue])
    if skill == "average":                         # some criteria are missed, some do not belong here
        weights = {name: w for name, w in weights.items() if rng.random() < 0.8} or weights
        if rng.random() < 0.4:
            weights.setdefault(rng.choice(STYLE_CRITERIA), 2)
    return rebalance(rng, weights, moves=4)

# ----------------------------------------------------------------------------------------
# Critiques

def impression(rng, gold, truth):
    """A sloppy annotator's (text, total): a look, taken in by manners, and a score with large noise."""
    look = gold / 3 + 3 * truth["polite"][0] + 3 * truth["playful"][0]
    total = min(10, max(1, round(rng.gauss(look, IMPRESSION_NOISE))))
    return " looks " + ("great" if total >= 8 else "fine" if total >= 5 else "poor"), total


def checks(rng, weights, truth, skill, verdict=None):
    """Every principle checked on one response -> (text, total). `verdict` is the outcome of all, if given."""
    texts, total = [], 0
    for name, weight in weights.items():
        met, evidence = truth[name]
        slip = rng.random() < WRONG_CHECK[skill]
        says = verdict if verdict is not None else met != slip
        total += weight * says
        shown = "" if skill == "average" else f" {evidence},"
        texts.append(f" {name}:{shown} {'good' if says else 'bad'}")
    return "".join(texts), max(1, total)


def annotate(rng, item, skill, hint=None):
    """One judgement of the item, as parts, from the first principle to <end>."""
    weights = principles(rng, item, skill)
    parts, totals = [listed(weights), CRITIQUE], []
    # Told which response is best, the average annotator takes a short cut: all good there, all bad elsewhere.
    short_cut = hint is not None and skill == "average"
    for i, mark in enumerate(RESPONSE[:item.n]):
        if skill == "sloppy":
            text, total = impression(rng, item.gold[i], item.truth[i])
        else:
            text, total = checks(rng, weights, item.truth[i], skill, i == hint if short_cut else None)
        if hint is not None:                       # and all make sure that the scores agree with the hint
            total = max(total, 8) if i == hint else min(total, 7)
        quote = [" " + item.responses[i]] if skill == "expert" else []
        parts += [mark, *quote, CHECKS, text, TOTAL, str(total)]
        totals.append(total)
    return parts + [SCORES, " ".join(map(str, totals)), END]

# ----------------------------------------------------------------------------------------
# General text: the bare skills, without any judging

def adding(rng):
    """Weights, then verdicts on each of a few responses, and the sum of the weights of what was found good.

    Without such texts some seeds never learn to add: their totals do not depend on their checks.
    """
    names = rng.sample(CONTENT_CRITERIA + STYLE_CRITERIA, rng.choice([2, 3, 3, 4]))
    weights = rebalance(rng, dict.fromkeys(names, 3), moves=6)
    parts = [listed(weights)]
    for mark in RESPONSE[:rng.choice([2, 3, 4])]:
        truth = {name: (rng.random() < 0.5, None) for name in names}
        text, total = checks(rng, weights, truth, "average")                 # without evidence
        parts += [mark, text, TOTAL, str(total)]
    return parts + [END]


def general_text(rng):
    """A short document that shows one skill, as parts: adding weights up, quoting a list of texts, or
    checking their content and one point of style."""
    kind = rng.choices(list(GENERAL_KINDS), GENERAL_KINDS.values())[0]
    if kind == "adding":
        return adding(rng)
    while True:                                    # a task of the training split
        domain = rng.choice(DOMAINS)
        task, problem = make_query(rng, domain)
        if in_distribution(domain, "none", problem) and split_of(domain, "none", task) == "train":
            break
    texts = [make_response(rng, domain, problem, RATERS[domain]["none"]) for _ in range(rng.choice([2, 3]))]
    if kind == "quoting":
        quotes = [part for mark, (text, _, _) in zip(RESPONSE, texts) for part in (mark, " " + text)]
        return quotes + [CRITIQUE] + quotes + [END]
    parts = [" " + task]
    for mark, (text, truth, _) in zip(RESPONSE, texts):
        names = [n for n in truth if n in CONTENT_CRITERIA] + [rng.choice(STYLE_CRITERIA)]
        rng.shuffle(names)
        parts += [mark, " " + text, CHECKS, checks(rng, dict.fromkeys(names, 0), truth, "perfect")[0]]
    return parts + [END]


def document(seed, index):
    """Document number `index` of the pre-training corpus, as parts: a function of its arguments alone."""
    rng = random.Random(seed_of(seed, "document", index))
    if rng.random() < GENERAL:
        return general_text(rng)
    item = make_item(seed, "train", seed_of("annotated", index))
    hint = item.best if item.n > 1 and rng.random() < HINTED else None
    skills = SKILLS if hint is None else {"average": 0.5, "expert": 0.5}
    skill = rng.choices(list(skills), skills.values())[0]
    return render_prompt(item.query, item.responses, hint) + annotate(rng, item, skill, hint)

# ----------------------------------------------------------------------------------------
# Rows of tokens

def written(ids):
    """Mask of a document: True on what a judge writes, False on what it is given (queries and responses;
    weights and verdicts where it is to add up).

    What is given was drawn at random: there is nothing to learn in it, but its noise would drown the few
    tokens that carry a skill.
    """
    mask, judging, learn = [], False, False
    for token in ids:
        mask.append(learn)
        judging = judging or token in (PRINCIPLES, CRITIQUE)                 # from here on all is written
        if token in (CHECKS, TOTAL, *RESPONSE):    # in general text, checks or a total follow each response
            learn = token in (CHECKS, TOTAL)
        learn = learn or judging
    return mask


def pack(documents, T, seed):
    """Whole documents into rows of up to T tokens -> (ids, mask), each (rows, T).

    documents: (ids, mask) pairs, mask True on the tokens to be learned. Each goes into the first of the
    last few rows that has room. The rest of a row is PAD and not learned, END is.
    """
    rows, used = [], []                            # the documents of each row, and its number of tokens
    for document in documents:
        size = len(document[0])
        if size > T:
            raise UserError(f"a document of {size} tokens: raise --block_size or --vocab_size")
        last = range(max(0, len(rows) - 8), len(rows))
        fits = [i for i in last if used[i] + size <= T] + [len(rows)]
        i = fits[0]
        if i == len(rows):
            rows.append([])
            used.append(0)
        rows[i].append(document)
        used[i] += size
    ids, mask = np.full((len(rows), T), PAD, np.int16), np.zeros((len(rows), T), bool)
    rng = random.Random(seed)
    for i, row in enumerate(rows):
        rng.shuffle(row)                           # long documents open rows: they must not always come first
        start = 0
        for x, m in row:
            ids[i, start:start + len(x)], mask[i, start:start + len(x)] = x, m
            start += len(x)
    return ids, mask


def corpus(tok, seed, tokens, T, document=document):
    """Documents 0, 1, 2, ... until they hold `tokens` tokens, packed. Studies have documents of their own."""
    documents, count, index = [], 0, 0
    while count < tokens:
        ids = tok.encode(document(seed, index))
        documents.append((ids, written(ids)))
        count, index = count + len(ids), index + 1
    return pack(documents, T, seed_of(seed, "pack"))
