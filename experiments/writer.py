"""
A second GPT, which writes responses, for studies in which a judge is the reward: rlhf.py, offline.py.

It starts from the run's base model and is fine-tuned on random responses of the world, good and bad ones alike.
Its responses may be any text. So the gold reward is computed here from the text alone. It counts only what
the world's own responses could contain: "it is is 711" is not correct, nor is "kindly kindly it is 711". A phrase
of style that the raters dislike counts wherever it stands.
"""

import random
from collections import namedtuple
from dataclasses import replace

import numpy as np
import torch

import spct
from data.annotators import pack
from data.judgement import Judgement
from data.tokenizer import END, QUERY, RESPONSE
from data.world import (
    CAPITALS,
    CUES,
    HELP,
    KINDS,
    RATERS,
    REFUSALS,
    STYLES,
    draw_query,
    gold_reward,
    make_response,
    seed_of,
)
from model import GPT, pad_left, token_logp
from sample import generate

CONTEXT = 56                                       # of the writer: a query and a response, in tokens
Query = namedtuple("Query", "id domain cue text problem")

# ----------------------------------------------------------------------------------------
# The gold reward of any text


def queries_of(seed, split, count):
    """The first `count` queries of a split. (make_items would keep those alone that have a best response.)"""
    found = []
    for i in range(count):
        domain, cue, task, problem = draw_query(random.Random(seed_of(seed, "writer", split, i)), split)
        found.append(Query(f"{split}-{i}", domain, cue, CUES[cue] + task, problem))
    return found


def without_style(text):
    """-> the text without phrases of style at its two ends, one of each style, and which styles there were"""
    styles = set()
    while True:
        found = [(style, phrase) for style, phrases in STYLES.items() if style not in styles for phrase in phrases
                 if text.startswith(phrase + " ") or text.endswith(" " + phrase)]
        if not found:
            return text, styles
        style, phrase = found[0]
        first = text.startswith(phrase + " ")
        text = text.removeprefix(phrase + " ") if first else text.removesuffix(" " + phrase)
        styles.add(style)


def truth_of(text, query):
    """{criterion: (is it met?, "")} of any response. Content must be exactly what the world's responses say."""
    content, styles = without_style(text)
    problem, words = query.problem, content.split(" ")
    right = {"sums": lambda: f"it is {sum(problem)}", "sort": lambda: " ".join(sorted(problem)),
             "reverse": lambda: " ".join(problem[::-1]), "facts": lambda: f"it is {CAPITALS[problem]}"}
    anywhere = {style for style, phrases in STYLES.items() for phrase in phrases if f" {phrase} " in f" {text} "}
    met = {"polite": "polite" in styles, "plain": "polite" not in anywhere, "playful": "playful" in styles,
           "formal": "playful" not in anywhere, "concise": "filler" not in anywhere}
    if query.domain in right:
        met["correct"] = content == right[query.domain]()
    elif query.domain == "lists":
        kind, count = problem
        things = [thing for named in KINDS.values() for thing in named]
        once = len(words) == len(set(words))
        met["count"] = once and len(words) == count and set(words) <= set(things)
        met["kind"] = once and set(words) <= set(KINDS[kind])
    else:
        met["refuse"] = content in REFUSALS
        met["help"] = content in [phrase.format(problem[1]) for phrase in HELP]
    return {name: (is_met, "") for name, is_met in met.items()}


def gold_of(text, query):
    """The gold reward of a text, 1 to 10."""
    return gold_reward(RATERS[query.domain][query.cue], truth_of(text, query))

# ----------------------------------------------------------------------------------------
# The writer


def prompt_of(tok, query):
    """The ids that the writer completes."""
    return tok.encode([QUERY, " " + query.text, RESPONSE[0]])


def first_writer(run, tokens):
    """The run's base model, fine-tuned on random responses."""
    cfg, tok, examples, count = run.config(), run.tok, [], 0
    while count < tokens:
        rng = random.Random(seed_of(cfg.seed, "writes", len(examples)))
        domain, cue, task, problem = draw_query(rng, "train")
        text, _ = make_response(rng, domain, problem, RATERS[domain][cue])
        prompt = prompt_of(tok, Query("", domain, cue, CUES[cue] + task, problem))
        response = tok.encode([" " + text, END])
        examples.append((prompt + response, [False] * len(prompt) + [True] * len(response)))
        count += len(prompt + response)
    base = run.model("base")
    writer = GPT(replace(base.cfg, block_size=CONTEXT))
    writer.load_state_dict(base.state_dict())
    ids, learned = pack(examples, CONTEXT, seed_of(cfg.seed, "writes"))
    return spct.train_lm(cfg, "writer", writer, ids, learned, cfg.rft_lr, batch=48)


def write(writer, tok, queries, n, seed):
    """n responses to each query -> for each query a list of Judgement, used as a record of prompt and ids."""
    found = [[Judgement(q.id, i, [0], seed_of(seed, q.id, i), prompt_of(tok, q), [], 0.0) for i in range(n)]
             for q in queries]
    flat = [r for group in found for r in group]
    done = generate(writer, [tuple(r.prompt) for r in flat], [r.seed for r in flat], 1.0)
    for r, (ids, logp) in zip(flat, done):
        r.ids, r.logp = ids, logp
    return found


def texts_of(tok, groups):
    """The responses as texts, without special tokens."""
    return [[tok.text(r.ids).strip(" ") for r in group] for group in groups]


@torch.inference_mode()
def divergence(start, groups):
    """For each query: the mean log ratio of its responses, between the policy that wrote them and `start`. Over
    many responses this is KL(policy || start), in nats."""
    flat = [r for group in groups for r in group]
    ids, padding = pad_left([r.prompt + r.ids for r in flat])                                # (B, T), (B,)
    learned, _ = pad_left([[0] * len(r.prompt) + [1] * len(r.ids) for r in flat], 0)         # (B, T)
    logp = token_logp(start, ids, learned.bool(), padding).split([len(r.ids) for r in flat])
    ratios = [r.logp - mine.sum().item() for r, mine in zip(flat, logp)]
    return np.reshape(ratios, (len(groups), -1)).mean(axis=1)
