"""
Judging with a trained model: sample judgements, let them vote.

    python sample.py --query "what is 230+481?" --response "it is 711" --response "it is 611"
    python sample.py --data pairs.jsonl       # a whole file of pairs or best-of-n items

An item is judged k times, each time with the responses in a fresh random order; the scores are mapped back to
the responses, and the k judgements vote: four rules (RULES in metarm.py), of which the paper has two.

Sampling is plain, without top-k or top-p: RFT and RL draw at T = 1, since RL must train on the very
distribution that it samples from, votes at the paper's 0.5. The sampler and `judge` are all that training
needs; the command line judge below them uses metarm.py, report.py, run.py and data/preferences.py.
"""

import contextlib
import json
import math
import os
import random

import numpy as np
import torch
from tqdm import tqdm

import metarm
import page
from data import Parser, UserError, check_new, command
from data.judgement import (
    Judgement,
    correct,
    pick,
    read_judgement,
    render_prompt,
    vote,
    write_judgements,
)
from data.preferences import load_or_fail
from data.tokenizer import END, PAD, Tokenizer
from data.world import Item, seed_of
from metarm import RULES
from model import GPT, GPTConfig, RewardModel, pad_rows
from parallel import join, rank, share
from report import interval
from run import load_tensors, pick_device

# ----------------------------------------------------------------------------------------
# The sampler

ROWS = 768   # rows that are written side by side, on a GPU four times as many: large matrix products
BLOCK = 16   # steps between two looks at what has ended: no copies and no synchronisation in between


def draw(logits, u, temperature):
    """One token a row by inverse CDF: the first token at which the cumulative probability exceeds u.

    logits (B, V); u (B,) uniform in [0, 1) -> ids (B,), their log-probabilities (B,) under the
    distribution that was sampled. temperature 0 is greedy (log-probabilities at T = 1). Rounding, which
    leaves the last sum near 1, must not leave a u without a token, nor draw a token of probability 0.

    >>> draw(torch.zeros(3, 4), torch.tensor([0.0, 0.25, 0.6]), 1.0)[0]
    tensor([0, 1, 2])
    """
    if temperature == 0:
        ids = logits.argmax(dim=-1)
        return ids, logits.log_softmax(dim=-1).gather(1, ids[:, None])[:, 0]
    p = (logits / temperature).softmax(dim=-1)                               # (B, V)
    cdf = p.cumsum(dim=-1)
    # rounding leaves the last entry near 1, not at 1: u is scaled to it, so that no u lies above them all
    ids = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True).clamp(max=p.size(1) - 1)
    return ids[:, 0], p.gather(1, ids)[:, 0].log()


def uniforms(seed, count):
    """The random numbers of one sample, one for each step: a function of its seed alone, so that a
    sample does not depend on the batch that it is drawn in. (A larger count begins with the same numbers.)"""
    return np.random.Generator(np.random.Philox(seed)).random(count, dtype=np.float32)


@torch.inference_mode()
def complete(model, prompts, seeds, temperature):
    """Complete a batch of B prompts, tuples of ids -> list of (ids, logp): see generate."""
    device = model.wte.weight.device
    # All but the last token of each prompt is read at once; the last one starts the row. Equal prompts are
    # read once, and each of their samples takes a copy of the keys and values. U: different prompts.
    unique = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    read, length = pad_rows([prompt[:-1] for prompt in unique], PAD, device)                 # (U, T), (U,)
    read = read[:, :int(length.max())]             # each column of padding would cost time in every step
    rows = torch.tensor([unique[prompt] for prompt in prompts], device=device)               # (B,)
    cache = model.prefill(read, length).select(rows, BLOCK)
    token = torch.tensor([prompt[-1] for prompt in prompts], device=device)                  # (B,)
    room = model.cfg.block_size - np.array([len(prompt) for prompt in prompts])      # tokens to write, (B,)
    assert room.min() > 0, "a prompt fills the context, no room is left to write"
    steps = -(-room.max() // BLOCK) * BLOCK                                  # whole blocks
    u = torch.from_numpy(np.stack([uniforms(seed, steps) for seed in seeds])).to(device)     # (B, steps)

    done, alive = [None] * len(prompts), np.arange(len(prompts))             # alive: rows that still write
    ids, logp = np.empty((len(alive), 0), int), np.empty((len(alive), 0), np.float32)        # what they wrote
    for start in range(0, steps, BLOCK):
        # 1. All rows write a block of tokens. Nobody looks at them meanwhile.
        # B' = len(alive): at first B, then fewer.
        block = torch.empty(len(alive), BLOCK, dtype=torch.long, device=device)              # (B', BLOCK)
        block_logp = torch.empty(len(alive), BLOCK, device=device)                           # (B', BLOCK)
        for t in range(BLOCK):
            logits = model.logits(model.step(token, cache))                  # (B', V)
            token, block_logp[:, t] = draw(logits, u[:, start + t], temperature)
            block[:, t] = token
        ids, logp = np.hstack([ids, block.cpu().numpy()]), np.hstack([logp, block_logp.cpu().numpy()])
        # 2. Rows that have an END, or fill the context, are done.
        ended = (ids == END).any(axis=1) | (ids.shape[1] >= room)
        for b in np.flatnonzero(ended):
            row = ids[b, :room[b]].tolist()
            stop = row.index(END) + 1 if END in row else len(row)
            done[alive[b]] = row[:stop], float(logp[b, :stop].sum())
        # 3. They leave the batch: the cache is copied without them, with room for the next block. To grow it
        # block by block keeps it small: decoding is bound by memory.
        left = np.flatnonzero(~ended)
        if len(left) == 0:
            break
        alive, room, ids, logp = alive[left], room[left], ids[left], logp[left]
        rows = torch.from_numpy(left).to(device)
        token, u, cache = token[rows], u[rows], cache.select(rows, BLOCK)
    return done


def generate(model, prompts, seeds, temperature=1.0, desc=None):
    """Complete each prompt (a tuple of ids) up to END or the end of the context, one seed a sample.

    -> list of (ids, logp): the completion with its END, and the sum of its log-probabilities in nats.
    Samples with the same (prompt, seed) are equal whatever else is in the batch, up to rounding
    differences between batch shapes. `desc` names the progress bar, None shows none.
    """
    # Long prompts first: their judgements are long, too, and rows of like length end together. Equal prompts
    # side by side: they are read once.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i]), reverse=True)
    size = ROWS if model.wte.weight.device.type == "cpu" else 4 * ROWS
    mine, done = share(order), []                  # of several processes, each takes its part
    with tqdm(total=len(mine), desc=desc, disable=desc is None or rank() > 0, mininterval=2.0) as bar:
        for start in range(0, len(mine), size):
            batch = mine[start:start + size]
            done += complete(model, [prompts[i] for i in batch], [seeds[i] for i in batch], temperature)
            bar.update(len(batch))
    results = dict(zip(order, join(done)))         # those of all processes
    return [results[i] for i in range(len(prompts))]

# ----------------------------------------------------------------------------------------
# Judging items

def shuffled(seed, item, sample):
    """The order in which sample number `sample` sees the responses: order[slot] = response."""
    order = list(range(item.n))
    random.Random(seed_of(seed, "order", item.id, sample)).shuffle(order)
    return order


def judge(model, tok, items, k, seed, purpose, temperature=1.0, shuffle=True, hinted=False,
          autocast=contextlib.nullcontext(), desc=None, render=render_prompt, read=read_judgement):
    """k judgements of every item -> list (items) of lists (k) of Judgement. Orders and random numbers are a
    function of seed, purpose (a word), item and sample.

    shuffle: a fresh order for each sample, else the item's own. hinted: the prompt names the best response.
    autocast: a context that sets the precision, by default float32. render, read: the prompt and the grammar;
    studies compare others (experiments/baselines.py).
    """
    judgements = []
    for item in items:
        for sample in range(k):
            order = shuffled(seed_of(seed, purpose), item, sample) if shuffle else list(range(item.n))
            slot = order.index(item.best) if hinted else None
            prompt = tuple(tok.encode(render(item.query, [item.responses[i] for i in order], slot)))
            own_seed = seed_of(seed, purpose, item.id, sample)
            judgements.append(Judgement(item.id, sample, order, own_seed, prompt, [], 0.0))
    with autocast:
        prompts, seeds = [j.prompt for j in judgements], [j.seed for j in judgements]
        done = generate(model, prompts, seeds, temperature, desc)
    for j, (ids, logp) in zip(judgements, done):
        j.ids, j.logp = ids, logp
        j.status, j.principles, j.critiques, j.scores = read(tok, ids, j.order)
    return [judgements[i:i + k] for i in range(0, len(judgements), k)]

# ----------------------------------------------------------------------------------------
# The command line judge

SHIPPED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "judge")


def load_judge(folder, stage, device, guided=False):
    """A policy of a run folder ("base", "rft", "rl"), its tokenizer, and its Meta RM if votes are guided."""
    def load(name, make):
        path = os.path.join(folder, name + ".pt")
        if not os.path.exists(path):
            raise UserError(f"there is no {path}: name the --run of a finished `python spct.py`, or another "
                            f"--stage")
        saved = load_tensors(path, device)
        model = make(GPTConfig(**saved["config"])).to(device)
        model.load_state_dict(saved["weights"])
        return model
    try:
        model, meta = load(stage, GPT), load(f"meta-{stage}", RewardModel) if guided else None
        return model, Tokenizer.load(os.path.join(folder, "tokenizer.tiktoken")), meta
    except (RuntimeError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} holds no judge of this version ({error!r}): train it again") from None


def check_length(tok, item, block_size):
    """A judgement quotes every response and checks it: refuse items for which there is no room."""
    sizes = [len(tok.encode([" " + r])) for r in item.responses]
    prompt = len(tok.encode(render_prompt(item.query, item.responses)))
    judgement = sum(sizes) + 55 * item.n + 25      # 55: a response's checks and marks; 25: principles, scores
    if prompt + judgement > block_size:
        raise UserError(f"{item.id}: too long. The prompt has {prompt} tokens, a judgement may take "
                        f"{judgement}, the context holds {block_size}: shorten or drop a response")


def agrees(scores, best, n):
    """Would this sample alone have picked the response `best`? (A single response: always.)"""
    return n == 1 or best is not None and pick(scores) == best


def voters_of(samples, rule):
    """The judgements that vote: all samples, or the half that the Meta RM likes best (the paper's k_meta)."""
    if rule != "guided":
        return samples
    return metarm.keep_best(samples, [j.meta for j in samples], metarm.half(samples))


def verdict(samples, rule, n):
    """The vote of one item's samples by one of the RULES -> {"scores", "votes", "best", "sure", "voters"}.

    scores: their sums. votes: what decides. best: index from 0, None on a tie or without any vote. sure:
    share of the voters that alone would have picked the same response (1.0 for a single response: there is
    nothing to pick).
    """
    voters = [j for j in voters_of(samples, rule) if j.scores is not None]
    if not voters:
        return {"scores": None, "votes": None, "best": None, "sure": 0.0, "voters": 0}
    votes = RULES[rule](samples)
    best = pick(votes)
    sure = float(np.mean([agrees(j.scores, best, n) for j in voters]))
    return {"scores": vote([j.scores for j in voters]), "votes": votes, "best": best,
            "sure": round(sure, 4), "voters": len(voters)}


def show(item, samples, rule, result):
    """One judgement in full, the first voter that agrees with the vote if there is one, then the vote."""
    parsed, best = [j for j in voters_of(samples, rule) if j.scores is not None], result["best"]
    print(f"query       {item.query}")
    if parsed:
        j = next((j for j in parsed if agrees(j.scores, best, item.n)), parsed[0])
        print(f"\njudgement {j.sample + 1} of {len(samples)}, which read the responses in the order "
              + " ".join(str(i + 1) for i in j.order))
        print("principles  " + ", ".join(f"{name} {weight}" for name, weight in j.principles))
        for i, (response, critique, score) in enumerate(zip(item.responses, j.critiques, j.scores)):
            print(f"response {i + 1}  {response}\n            {critique['text']}\n            score {score}")
    failed = sorted({j.status for j in samples if j.scores is None})
    if failed:
        count = sum(j.scores is None for j in samples)
        print(f"\n{count} did not parse and do not vote: {', '.join(failed)}")
    print(f"\nvote of {result['voters']}")
    if not parsed:
        print("no vote: the judge knows the toy world only, and may need training (python spct.py)")
        return
    for i, (response, votes, score) in enumerate(zip(item.responses, result["votes"], result["scores"])):
        of_all = votes / sum(result["votes"])
        of_all = f"{of_all:4.0%} of the votes, " if rule in ("plurality", "weighted") else ""
        mean = score / result["voters"]
        print(f"response {i + 1}  {of_all}{score:4d} points, {mean:.1f} a sample:  {response}")
    if item.n > 1 and best is None:
        print("best        none: a tie")
    elif item.n > 1:
        print(f"best        response {best + 1}, which {result['sure']:.0%} of the voters alone would pick")


def judge_file(items, judge_all, args):
    """Judge the items of a file, write judgements.jsonl, print accuracy by subset."""
    judged = judge_all(items, "file")
    write_judgements(args.out, sum(judged, []))
    rows = []                                      # subset, accuracy of one sample, of the vote
    for item, samples in zip(items, judged):
        single = np.mean([correct(j.scores, item.gold) for j in samples])
        result = verdict(samples, args.vote, item.n)
        rows.append((item.subset, single, correct(result["votes"], item.gold)))
    print(f"{'subset':16s} items  one sample         vote of {args.k}")
    cell = lambda values: f"{np.mean(values):.3f} {interval(values)}"
    by_subset = {name: [row for row in rows if row[0] == name] for name in sorted({row[0] for row in rows})}
    for name, mine in [*by_subset.items(), ("all", rows)]:
        print(f"{name:16s} {len(mine):5d}  {cell([r[1] for r in mine])}  {cell([r[2] for r in mine])}")
    print(f"judgements written to {args.out}")


def parse_args(argv):
    parser = Parser(__doc__)
    parser.add_argument("--query")
    parser.add_argument("--response", action="append", default=[], help="give it 1 to 4 times")
    parser.add_argument("--data", help="a JSONL file of pairs or best-of-n items, in place of --query")
    parser.add_argument("--out", help="where the judgements of --data go, by default judgements.jsonl")
    parser.add_argument("--run", help="run folder of the judge, by default the weights that come along")
    parser.add_argument("--stage", choices=["base", "rft", "rl"], default="rl",
                        help="the policy that judges; rft needs a --run")
    parser.add_argument("-k", type=int, default=8, help="number of samples (8)")
    parser.add_argument("--vote", choices=list(RULES), default="weighted", help="sum: of the scores (paper); "
                        "guided: of the half that the Meta RM likes best (paper); plurality: one vote each, "
                        "for the response with the largest score; weighted: votes with the policy's own "
                        "confidence as weight (default)")
    parser.add_argument("--temperature", type=float, default=0.5, help="0.5 by default, 0 is greedy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps; auto: cuda if there is one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--html", metavar="FILE", help="write a page with all samples of --query, too")
    args = parser.parse_args(argv)
    if args.k < 1 or not 0 <= args.temperature < math.inf:
        raise UserError("-k needs 1 or more, --temperature 0 or more")
    if args.vote == "guided" and args.stage == "base":
        raise UserError("the base policy has no Meta RM: --vote guided needs --stage rft or rl")
    if bool(args.data) == bool(args.query) or args.data and (args.response or args.json):
        raise UserError("give --data FILE without --query, --response or --json, or --query TEXT with 1 to 4 "
                        "times --response TEXT")
    if args.out and not args.data:
        raise UserError("--out is where the judgements of --data go: give it with --data FILE")
    if any("\ud800" <= char <= "\udfff" for text in [args.query or "", *args.response] for char in text):
        raise UserError("--query and --response must be UTF-8")
    if args.html and args.data:
        raise UserError("--html is for --query: leave it out with --data")
    if args.query and not 1 <= len(args.response) <= 4:
        raise UserError(f"{len(args.response)} responses: give --response 1 to 4 times")
    if args.data:
        args.out = args.out or "judgements.jsonl"
    for path in (args.out, args.html):
        if path:
            check_new(path)
    return args


def main(argv):
    args = parse_args(argv)
    device, guided = pick_device(args.device), args.vote == "guided"
    model, tok, meta = load_judge(args.run or SHIPPED, args.stage, device, guided)
    items = load_or_fail(args.data) if args.data else [Item("query", "query", args.query, args.response)]
    for item in items:
        check_length(tok, item, model.cfg.block_size)

    def judge_all(items, purpose):
        desc = "judging" if args.data else None
        judged = judge(model, tok, items, args.k, args.seed, purpose, args.temperature, desc=desc)
        if guided:
            metarm.score(meta, sum(judged, []))
        return judged

    if not args.json:
        print(f"judge       the {args.stage} policy " + (f"of {args.run}" if args.run else
                                                         "that came with the code; --run takes your own"))
    if args.data:
        judge_file(items, judge_all, args)
        return
    item, [samples] = items[0], judge_all(items, "query")
    result = verdict(samples, args.vote, item.n)
    if args.html:
        page.of_query(args.html, item, args.stage, samples, tok, args.vote)
    if args.json:
        keep = ("sample", "order", "status", "principles", "critiques", "scores", "logp", "meta")
        print(json.dumps({"query": item.query, "responses": item.responses, **result,
                          "judgements": [{key: getattr(j, key) for key in keep} for j in samples]}))
        return
    show(item, samples, args.vote, result)
    if args.html:
        print(f"all samples {args.html}")


if __name__ == "__main__":
    command(main)
