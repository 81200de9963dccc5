"""
Judging with a trained model: sample judgements, parse them, vote.

    python sample.py --query "what is 230+481?" --response "it is 711" --response "it is 611" -k 8
    python sample.py --data pairs.jsonl -k 8          # a whole file of pairs or best-of-n items

A judgement is one completion: principles with weights, a critique and a sub-total per response, the
list of scores (the paper's Eq 7 and 9). Sampled k times, each time with the responses in a fresh random
order, the scores are mapped back and summed (Eq 14).

Simplification: sampling is plain (T = 1 unless said, no top-k or top-p), since RL must train on the
very distribution that it samples from.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import re
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from data import UserError, check_new, command
from data.preferences import load_or_fail
from data.tokenizer import (CHECKS, CRITIQUE, END, MARKS, PAD, RESPONSE, SCORES, TOTAL, Tokenizer,
                            render_prompt)
from data.world import Item, seed_of
from model import GPT, GPTConfig, pad_rows
from parallel import first_only, in_threads, join, rank, share
from run import load_tensors

# ----------------------------------------------------------------------------------------
# The sampler

SLOTS = 768  # rows that are written side by side: many rows make large matrix products
LOOP = 64    # rows from which a thread gets a loop of its own: with fewer it is better to share operations
BLOCK = 16   # steps between two looks at what has ended: no copies and no synchronisation in between


def draw(logits, u, temperature):
    """One token a row by inverse CDF: the first token at which the cumulative probability exceeds u.

    logits (B, V); u (B,) uniform in [0, 1) -> ids (B,), their log-probabilities (B,) under the
    distribution that was sampled. temperature 0 is greedy (log-probabilities at T = 1).
    """
    if temperature == 0:
        ids = logits.argmax(dim=-1)
        return ids, logits.log_softmax(dim=-1).gather(1, ids[:, None])[:, 0]
    p = (logits / temperature).softmax(dim=-1)                               # (B, V)
    cdf = p.cumsum(dim=-1)
    ids = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True).clamp(max=p.size(1) - 1)
    return ids[:, 0], p.gather(1, ids)[:, 0].log()


def uniforms(seed, count):
    """The random numbers of one sample, one for each step: a function of its seed alone, so that a
    sample does not depend on the batch that it is drawn in. (More of them begin with the same ones.)"""
    return np.random.Generator(np.random.Philox(seed)).random(count, dtype=np.float32)


class Cohort:
    """Rows that started together, and so are of one age: those of them that still write.

    index[b] says which prompt row b completes; ids and logp (B, t) are what it wrote so far.
    """

    def __init__(self, model, index, prompts, seeds):
        # All but the last token of each prompt is read at once; the last one starts the row. Equal prompts
        # are read once, and each of their samples takes a copy of the keys and values.
        device = model.wte.weight.device
        unique = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        ids, length = pad_rows([prompt[:-1] for prompt in unique], PAD, device)
        rows = torch.tensor([unique[prompt] for prompt in prompts], device=device)           # (B,)
        ids = ids[:, :int(length.max())]           # each column of padding would cost time in every step
        self.cache = model.prefill(ids, length).select(rows, BLOCK)
        self.token = torch.tensor([prompt[-1] for prompt in prompts], device=device)   # the next to read
        self.index = np.array(index)
        self.room = model.cfg.block_size - np.array([len(prompt) for prompt in prompts])     # tokens to write
        assert self.room.min() > 0, "a prompt fills the context, no room is left to write"
        steps = -(-self.room.max() // BLOCK) * BLOCK                         # whole blocks
        u = np.stack([uniforms(seed, steps) for seed in seeds])
        self.u = torch.from_numpy(u).to(device)                              # (B, steps)
        self.ids = np.empty((len(rows), 0), int)
        self.logp = np.empty((len(rows), 0), np.float32)

    def next_uniforms(self):
        """The random numbers of the next block, (B, BLOCK)."""
        t = self.ids.shape[1]
        return self.u[:, t:t + BLOCK]

    def add(self, ids, logp):
        """Append a block, ids and logp (B, BLOCK), and drop the rows that are done: they have an END, or fill
        the context -> their (index, (ids, logp)), a list."""
        self.token = torch.from_numpy(ids[:, -1]).to(self.token.device)
        self.ids, self.logp = np.hstack([self.ids, ids]), np.hstack([self.logp, logp])       # (B, t)
        done = (ids == END).any(axis=1) | (self.ids.shape[1] >= self.room)
        results = []
        for b in np.flatnonzero(done):
            row = self.ids[b, :self.room[b]].tolist()
            stop = row.index(END) + 1 if END in row else len(row)
            results.append((self.index[b], (row[:stop], float(self.logp[b, :stop].sum()))))
        keep = np.flatnonzero(~done)
        self.index, self.room = self.index[keep], self.room[keep]
        self.ids, self.logp = self.ids[keep], self.logp[keep]
        # The cache is copied, which drops the rows that are done and makes room for the next block. To grow
        # it block by block keeps it small: decoding is bound by memory.
        rows = torch.from_numpy(keep).to(self.token.device)
        self.token, self.u, self.cache = self.token[rows], self.u[rows], self.cache.select(rows, BLOCK)
        return results


@torch.inference_mode()
def complete(model, prompts, seeds, temperature, queue, slots, bar):
    """The sampler's loop: complete the prompts whose indices are in the queue -> {index: (ids, logp)}."""
    done, cohorts, busy = {}, [], 0
    while queue or cohorts:
        # 1. When a quarter of the slots is free, a new cohort takes them.
        if queue and busy <= slots * 3 // 4:
            new = queue[:slots - busy]
            del queue[:slots - busy]
            cohorts.append(Cohort(model, new, [prompts[i] for i in new], [seeds[i] for i in new]))
        # 2. All rows write a block of tokens. Nobody looks at them meanwhile.
        token, u = torch.cat([c.token for c in cohorts]), torch.cat([c.next_uniforms() for c in cohorts])
        ids, logp = torch.empty_like(u, dtype=torch.long), torch.empty_like(u)               # (B, BLOCK)
        for t in range(BLOCK):
            logits = model.logits(model.step(token, [c.cache for c in cohorts]))             # (B, V)
            token, logp[:, t] = draw(logits, u[:, t], temperature)
            ids[:, t] = token
        # 3. Collect the rows that have ended.
        ids, logp, start = ids.cpu().numpy(), logp.cpu().numpy(), 0
        for c in cohorts:
            rows = slice(start, start + len(c.index))
            start = rows.stop
            results = c.add(ids[rows], logp[rows])
            done.update(results)
            bar.update(len(results))
        cohorts = [c for c in cohorts if len(c.index)]
        busy = sum(len(c.index) for c in cohorts)
    return done


def generate(model, prompts, seeds, temperature=1.0, desc=None):
    """Complete each prompt (a tuple of ids) up to END or the end of the context, one seed a sample.

    -> list of (ids, logp): the completion with its END, and the sum of its log-probabilities in nats.
    Samples with the same (prompt, seed) are equal whatever else is in the batch, up to rounding
    differences between batch shapes. `desc` names the progress bar, None shows none.
    """
    model.eval()
    # Long prompts first: their judgements are long, too. Equal prompts side by side: they are read once.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i]), reverse=True)
    mine = share(order)                            # of several processes, each takes its part
    loops = max(1, min(SLOTS, len(mine)) // LOOP)
    threads = min(torch.get_num_threads(), loops) if model.wte.weight.device.type == "cpu" else 1
    with tqdm(total=len(mine), desc=desc, disable=desc is None or rank() > 0, mininterval=2.0) as bar:
        run = lambda queue: complete(model, prompts, seeds, temperature, queue, SLOTS // threads, bar)
        parts = in_threads(run, mine, threads)
    done = {i: result for part in parts for i, result in part.items()}
    results = dict(zip(order, join([done[i] for i in mine])))                # those of all processes
    return [results[i] for i in range(len(prompts))]

# ----------------------------------------------------------------------------------------
# Judgements and their grammar

@dataclass
class Judgement:
    """One sampled judgement of one item, as it is stored: a line of judgements.jsonl."""
    item: str
    sample: int
    order: list               # order[slot] = index of the response in that slot, a place of the prompt
    seed: int
    prompt: tuple             # ids
    ids: list                 # ids of the completion, END included
    logp: float               # nats, under the sampler's distribution (RL computes its own: spct.update)
    status: str = "ok"        # or the reason why it does not parse
    principles: list = None   # [name, weight] pairs
    critiques: list = None    # per slot {"quote", "checks", "total"}
    scores: list = None       # per response, in the item's own order; None if it does not parse
    meta: float = None        # logit of the Meta RM

    @property
    def tokens(self):
        """Prompt and completion: what the trainers read."""
        return list(self.prompt) + self.ids

PRINCIPLE = re.compile(r"([a-z][a-z ]*) (10|[1-9])")
SCORE = re.compile(r"10|[1-9]")
CHECK = re.compile(r"([a-z]+): (?:([^,:]*), )?(good|bad)(?= |$)")


def parse(tok, ids, n):
    """Strict grammar: ids -> (status, principles, critiques, scores of the n slots).

    Structure is read from marks, numbers are read in full; whatever deviates gives a status other
    than "ok" and scores None, never an exception and never a guess. A judgement that was cut off by the end
    of the context has the status "no end". What a judgement says is not checked (weights that sum to 10,
    totals that add up): to get that right is what RL has to teach.
    """
    cut = [i for i, token in enumerate(ids) if token < len(MARKS)]           # where the marks are
    marks = [ids[i] for i in cut]
    # what stands between them: texts[0] before the first mark, texts[j + 1] after marks[j]
    texts = [tok.text(ids[a + 1:b]) for a, b in zip([-1] + cut, cut + [len(ids)])]
    if not marks or marks[-1] != END or texts[-1]:
        return "no end", None, None, None
    pairs = [PRINCIPLE.fullmatch(p) for p in texts[0].removeprefix(" ").split(", ")]
    if not all(pairs):
        return "bad principles", None, None, None
    principles = [[m[1], int(m[2])] for m in pairs]
    if marks[0] != CRITIQUE or texts[1]:
        return "no critique", principles, None, None
    critiques, j = [], 1
    for mark in RESPONSE[:n]:                      # <r_i> quote <checks> text <total> number
        if marks[j:j + 3] != [mark, CHECKS, TOTAL] or not SCORE.fullmatch(texts[j + 3]):
            return "bad critique", principles, None, None
        critiques.append({"quote": texts[j + 1].strip(), "checks": texts[j + 2].strip(),
                          "total": int(texts[j + 3])})
        j += 3
    if marks[j:] != [SCORES, END]:
        return "bad scores", principles, critiques, None
    numbers = texts[j + 1].split(" ")
    if len(numbers) != n or not all(SCORE.fullmatch(x) for x in numbers):
        return "bad scores", principles, critiques, None
    return "ok", principles, critiques, [int(x) for x in numbers]


# ----------------------------------------------------------------------------------------
# The rules: when is a judgement right, how do many vote

def correct(scores, gold):
    """Eq 10. n >= 2: the best response's score is strictly the largest, a tie is wrong. n = 1: the score is
    the gold reward."""
    if scores is None:
        return False
    if len(gold) == 1:
        return scores[0] == gold[0]
    best = gold.index(max(gold))
    return all(scores[best] > s for i, s in enumerate(scores) if i != best)


def vote(ballots):
    """Eq 14: sum each response's scores over the samples. ballots: one list of n scores a sample, None if it
    did not parse: None never votes. All None -> None."""
    votes = [b for b in ballots if b is not None]
    return [sum(column) for column in zip(*votes)] if votes else None


def bootstrap(runs, seed=0, draws=1000):
    """Draw the items of each run anew: (draws,) means over runs of the mean over items.

    runs: one array (items,) a run. They speak for these runs alone, not for other seeds.
    """
    rng = np.random.default_rng(seed)
    resampled = lambda values: values[rng.integers(0, len(values), len(values))].mean()
    return np.array([np.mean([resampled(values) for values in runs]) for _ in range(draws)])


def interval(values):
    """95% interval of a mean over items: [low, high]."""
    draws = bootstrap([np.asarray(values, float)])
    return [round(float(q), 4) for q in np.quantile(draws, [0.025, 0.975])]

# ----------------------------------------------------------------------------------------
# Judging items

def shuffled(seed, item, sample):
    """The order in which sample number `sample` sees the responses: order[slot] = response."""
    order = list(range(item.n))
    random.Random(seed_of(seed, "order", item.id, sample)).shuffle(order)
    return order


def judge(model, tok, items, k, seed, purpose, temperature=1.0, shuffle=True, hint=False, desc=None,
          render=render_prompt, read=parse):
    """k judgements of every item -> list (items) of lists (k) of Judgement.

    shuffle: a fresh order for each sample, else the item's own. hint: the prompt names the best response.
    render, read: the prompt and the grammar; studies compare others (experiments/baselines.py).
    """
    blank = []
    for item in items:
        for sample in range(k):
            order = shuffled(seed_of(seed, purpose), item, sample) if shuffle else list(range(item.n))
            responses = [item.responses[i] for i in order]
            best = order.index(item.best) if hint else None                  # its slot
            prompt = tuple(tok.encode(render(item.query, responses, best)))
            own_seed = seed_of(seed, purpose, item.id, sample)
            blank.append(Judgement(item.id, sample, order, own_seed, prompt, [], 0.0))
    # bfloat16 on a GPU; on a CPU float32 is as fast, and its rounding tips hardly any sample over
    gpu = model.wte.weight.device.type == "cuda"
    with torch.autocast("cuda", torch.bfloat16) if gpu else contextlib.nullcontext():
        done = generate(model, [j.prompt for j in blank], [j.seed for j in blank], temperature, desc=desc)
    for j, (ids, logp) in zip(blank, done):
        j.ids, j.logp = ids, logp
        j.status, j.principles, j.critiques, slots = read(tok, j.ids, len(j.order))
        if slots is not None:                      # scores[response] = score of the slot it stood in
            j.scores = [slots[j.order.index(i)] for i in range(len(slots))]
    return [blank[i:i + k] for i in range(0, len(blank), k)]


@first_only
def write_judgements(path, judgements):
    """One JSON object a line, written beside and renamed."""
    with open(path + ".tmp", "w") as f:
        f.writelines(json.dumps(vars(j)) + "\n" for j in judgements)
    os.replace(path + ".tmp", path)


def read_judgements(path):
    """-> the same judgements, as one list per item (neighbours with the same item)."""
    with open(path) as f:
        judgements = [Judgement(**json.loads(line)) for line in f]
    return [list(group) for _, group in itertools.groupby(judgements, key=lambda j: j.item)]

# ----------------------------------------------------------------------------------------
# The command line judge

def load_judge(folder, name):
    """A policy of a run folder ("base", "rft" or "rl") and its tokenizer."""
    path = os.path.join(folder, name + ".pt")
    if not os.path.exists(path):
        raise UserError(f"there is no {path}: train one with `python spct.py`, or name its folder with --run")
    saved = load_tensors(path, "cpu")
    try:
        model = GPT(GPTConfig(**saved["config"]))
        model.load_state_dict(saved["weights"])
        return model, Tokenizer.load(os.path.join(folder, "tokenizer.tiktoken"))
    except (RuntimeError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} holds no judge of this version ({error!r}): train it again") from None


def check_length(tok, item, block_size):
    """A judgement quotes every response and checks it: refuse items for which there is no room."""
    sizes = [len(tok.encode([" " + r])) for r in item.responses]
    prompt = len(tok.encode(render_prompt(item.query, item.responses)))
    judgement = sum(sizes) + 45 * item.n + 25      # 45: a response's checks and marks; 25: principles, scores
    if prompt + judgement > block_size:
        raise UserError(f"{item.id}: too long. The prompt has {prompt} tokens, a judgement may take "
                        f"{judgement}, the context holds {block_size}: shorten or drop a response")


def agrees(scores, best, n):
    """Would this sample alone have picked the response `best`? (A single response: always.)"""
    return n == 1 or best is not None and correct(scores, [int(i == best) for i in range(n)])


def verdict(samples, n):
    """The vote over one item's judgements -> {"scores", "best", "sure", "parsed"}.

    best: index from 0, None on a tie or without any vote. sure: share of the parsed samples that alone
    would have picked the same response (1.0 for a single response: there is nothing to pick).
    """
    parsed = [j.scores for j in samples if j.scores is not None]
    total = vote(parsed)
    if total is None:
        return {"scores": None, "best": None, "sure": 0.0, "parsed": 0}
    best = total.index(max(total)) if total.count(max(total)) == 1 else None
    sure = float(np.mean([agrees(scores, best, n) for scores in parsed]))
    return {"scores": total, "best": best, "sure": round(sure, 4), "parsed": len(parsed)}


def show(item, samples, result):
    """One judgement in full, the first that agrees with the vote if there is one, then the vote."""
    parsed, best = [j for j in samples if j.scores is not None], result["best"]
    print(f"query       {item.query}")
    if parsed:
        j = next((j for j in parsed if agrees(j.scores, best, item.n)), parsed[0])
        print(f"\njudgement {j.sample + 1} of {len(samples)}, which read the responses in the order "
              + " ".join(str(i + 1) for i in j.order))
        print("principles  " + ", ".join(f"{name} {weight}" for name, weight in j.principles))
        for i, response in enumerate(item.responses):
            critique = j.critiques[j.order.index(i)]
            print(f"response {i + 1}  {response}")
            print(f"            {critique['checks']}")
            print(f"            score {j.scores[i]}")
    print(f"\nvote of {len(samples)}")
    failed = sorted({j.status for j in samples if j.scores is None})
    if failed:
        print(f"{len(samples) - len(parsed)} did not parse and do not vote: {', '.join(failed)}")
    if not parsed:
        print("no vote: the judge knows the toy world only, and may need training (python spct.py)")
        return
    for i, (response, score) in enumerate(zip(item.responses, result["scores"])):
        print(f"response {i + 1}  {score:4d} points, {score / len(parsed):.1f} a sample:  {response}")
    if item.n > 1 and best is None:
        print("best        none: a tie")
    elif item.n > 1:
        print(f"best        response {best + 1}, picked by {result['sure']:.0%} of the samples alone")


def judge_file(model, tok, args):
    """Judge a JSONL file, write judgements.jsonl, print accuracy by subset."""
    items = load_or_fail(args.data)
    for item in items:
        check_length(tok, item, model.cfg.block_size)
    judged = judge(model, tok, items, args.k, args.seed, "file", args.temperature, desc="judging")
    write_judgements(args.out, sum(judged, []))
    rows = []                                      # subset, accuracy of one sample, of the vote
    for item, samples in zip(items, judged):
        scores = [j.scores for j in samples]
        single = np.mean([correct(s, item.gold) for s in scores])
        rows.append((item.subset, single, correct(vote(scores), item.gold)))
    print(f"{'subset':16s} items  one sample         vote of {args.k}")
    cell = lambda values: f"{np.mean(values):.3f} {interval(values)}"
    by_subset = {name: [row for row in rows if row[0] == name] for name in sorted({row[0] for row in rows})}
    for name, mine in [*by_subset.items(), ("all", rows)]:
        print(f"{name:16s} {len(mine):5d}  {cell([r[1] for r in mine])}  {cell([r[2] for r in mine])}")
    print(f"judgements written to {args.out}")


def main(argv):
    parser = argparse.ArgumentParser(description="Judge responses with a trained model.")
    parser.add_argument("--query")
    parser.add_argument("--response", action="append", default=[], help="give it 1 to 4 times")
    parser.add_argument("--data", help="a JSONL file of pairs or best-of-n items, in place of --query")
    parser.add_argument("--out", help="where the judgements of --data go, by default judgements.jsonl")
    parser.add_argument("--run", default="runs/cpu-seed0", help="run folder of the judge")
    parser.add_argument("--stage", choices=["base", "rft", "rl"], default="rl", help="the policy that judges")
    parser.add_argument("-k", type=int, default=8, help="number of samples that vote")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    if args.k < 1 or not 0 <= args.temperature < math.inf:
        raise UserError("-k needs 1 or more, --temperature 0 or more")
    if bool(args.data) == bool(args.query) or args.data and (args.response or args.json):
        raise UserError("give --data FILE without --query, --response or --json, or --query TEXT with 1 to 4 "
                        "times --response TEXT")
    if args.out and not args.data:
        raise UserError("--out is where the judgements of --data go: give it with --data FILE")
    if any("\ud800" <= char <= "\udfff" for text in [args.query or "", *args.response] for char in text):
        raise UserError("--query and --response must be UTF-8")
    if args.query and not 1 <= len(args.response) <= 4:
        raise UserError(f"{len(args.response)} responses: give --response 1 to 4 times")
    if args.data:
        args.out = args.out or "judgements.jsonl"
        check_new(args.out)
    model, tok = load_judge(args.run, args.stage)
    if args.data:
        judge_file(model, tok, args)
        return
    item = Item("query", "query", args.query, args.response)
    check_length(tok, item, model.cfg.block_size)
    samples = judge(model, tok, [item], args.k, args.seed, "query", args.temperature)[0]
    result = verdict(samples, item.n)
    if args.json:
        keep = ("sample", "order", "status", "principles", "critiques", "scores", "logp")
        print(json.dumps({"query": item.query, "responses": item.responses, **result,
                          "judgements": [{key: getattr(j, key) for key in keep} for j in samples]}))
    else:
        show(item, samples, result)


if __name__ == "__main__":
    command(main)
