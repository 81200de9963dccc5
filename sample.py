"""
Judging with a trained model: sample judgements of an item, and let them vote.

    python sample.py --query "what is 230+481?" --response "it is 711" --response "it is 611"
    python sample.py --data pairs.jsonl       # judge a whole file; accuracy by domain

Each of the k samples reads the responses in a fresh random order. Its scores are then assigned to the
responses again, and the samples vote.

Sampling is plain, without top-k or top-p: RL must be trained on the distribution that it samples from. It is
always done in float32, so that samples depend on the precision of training as little as possible.
"""

import argparse
import json
import os
import random

import numpy as np
import torch
from tqdm import tqdm

from data import UserError, pick_device, run_command
from data.judgement import Judgement, correct, pick, prompt_parts, read_judgement
from data.preferences import read_items
from data.tokenizer import END, PAD, load_tokenizer
from data.world import Item, seed_of
from model import load_model, pad_left

BUNDLED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "judge")   # the bundled checkpoint

# ----------------------------------------------------------------------------------------
# The sampler

ROWS = 768       # judgements that are written at the same time
LOOK_EVERY = 16  # steps between two looks at which of them have ended


def draw(logits, u, temperature):
    """Draw a token for each row: the first one at which the cumulative probability exceeds u.

    logits (B, V); u (B,) uniform in [0, 1); temperature 0 takes the most likely token
    -> ids (B,), and their log-probabilities (B,) under the distribution that was sampled (at temperature 0:
    under the plain softmax)

    >>> draw(torch.zeros(3, 4), torch.tensor([0.0, 0.25, 0.6]), 1.0)[0]
    tensor([0, 1, 2])
    """
    if temperature == 0:
        ids = logits.argmax(dim=-1, keepdim=True)                            # (B, 1)
        return ids[:, 0], logits.log_softmax(dim=-1).gather(1, ids)[:, 0]
    p = (logits / temperature).softmax(dim=-1)                               # (B, V)
    cumulative = p.cumsum(dim=-1)
    # The cumulative sum may end slightly below 1. We scale u by it, so that every u selects a token. (Rounding may
    # still reach the end: hence the clamp.)
    ids = torch.searchsorted(cumulative, u[:, None] * cumulative[:, -1:], right=True)        # (B, 1)
    ids = ids.clamp(max=p.size(1) - 1)
    return ids[:, 0], p.gather(1, ids)[:, 0].log()


def uniforms(seed, count):
    """The random numbers of one sample, one for each token, from its own seed: so it does not depend on the
    batch that it is sampled in. (With a larger count, the first ones are the same.)"""
    return np.random.Generator(np.random.Philox(seed)).random(count, dtype=np.float32)


@torch.inference_mode()
def complete(model, prompts, seeds, temperature):
    """Complete a batch of B prompts -> list of (ids, logp), see generate."""
    # 1. Read the prompts. Equal ones are read once, then copied: U of them are different.
    row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    ids, padding = pad_left(list(row_of), device=model.device)               # (U, T), (U,)
    cache = model.new_cache(padding, ids.size(1))
    x = model(ids, cache=cache)[:, -1]                                       # (U, C)
    rows = torch.tensor([row_of[prompt] for prompt in prompts], device=model.device)
    x, cache = x[rows], cache.select(rows, LOOK_EVERY)                       # (B, C)

    # How many tokens each row may write. The row with the most of them writes in all steps. (limit and active
    # stay on the CPU, where Python reads them.)
    limit = model.cfg.block_size - torch.tensor([len(prompt) for prompt in prompts])         # (B,)
    steps = int(limit.max())
    u = torch.from_numpy(np.stack([uniforms(seed, steps) for seed in seeds])).to(model.device)   # (B, steps)
    tokens = torch.full((len(prompts), steps), PAD, device=model.device)     # (B, steps)
    logps = torch.zeros(len(prompts), steps, device=model.device)            # (B, steps)
    done, active = [None] * len(prompts), torch.arange(len(prompts))         # active: rows that still write
    for t in range(steps):
        # 2. Write the next token of each row.
        tokens[:, t], logps[:, t] = draw(model.logits(x), u[:, t], temperature)
        # 3. Now and then, rows with an END, or at their limit, leave the batch. (What they wrote after END is
        #    dropped.) After the last step all are at their limit, so that none is left.
        if (t + 1) % LOOK_EVERY == 0 or t + 1 == steps:
            ended = (tokens == END).any(dim=1).cpu() | (t + 1 >= limit)      # (B,)
            for row in ended.nonzero()[:, 0].tolist():
                written = tokens[row, :limit[row]].tolist()
                length = written.index(END) + 1 if END in written else len(written)
                done[active[row]] = written[:length], logps[row, :length].sum().item()
            going = (~ended).nonzero()[:, 0]
            if len(going) == 0:
                return done
            active, limit = active[going], limit[going]
            going = going.to(model.device)
            tokens, logps, u, cache = tokens[going], logps[going], u[going], cache.select(going, LOOK_EVERY)
        # 4. Read it.
        x = model(tokens[:, t:t + 1], cache=cache)[:, -1]                    # (B, C)


def generate(model, prompts, seeds, temperature=1.0):
    """Complete each prompt, a tuple of ids, until END or the end of the context. seeds: one for each sample.

    -> a list of (ids, logp): the completion with its END, and its log-probability in nats. Equal (prompt,
    seed) give equal samples, whatever else is in the batch, up to rounding.
    """
    # Rows of a batch should end at about the same time: long prompts have long completions. Equal prompts become
    # neighbours, since a batch reads them once.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i]), reverse=True)
    results = [None] * len(prompts)
    one_batch = len(prompts) <= ROWS
    for start in tqdm(range(0, len(order), ROWS), desc="sampling", leave=False, disable=one_batch):
        batch = order[start:start + ROWS]
        done = complete(model, [prompts[i] for i in batch], [seeds[i] for i in batch], temperature)
        for i, result in zip(batch, done):
            results[i] = result
    return results


def judge(model, tok, items, k, seed, temperature=1.0, shuffle=True, hinted=False):
    """Sample k judgements of each item -> for each item a list of k Judgements.

    seed: of the run and the purpose; orders and random numbers follow from it, the item and the sample.
    shuffle: a fresh order of responses for each sample, else the item's own. hinted: the prompt names the best
    response.
    """
    groups = []
    for item in items:
        group = []
        for sample in range(k):
            order = list(range(item.n))            # order[place] = response
            if shuffle:
                random.Random(seed_of(seed, "order", item.id, sample)).shuffle(order)
            hint = order.index(item.best) if hinted else None
            prompt = tok.encode(prompt_parts(item.query, [item.responses[i] for i in order], hint))
            group.append(Judgement(item.id, sample, order, seed_of(seed, item.id, sample), prompt, [], 0.0))
        groups.append(group)
    judgements = [j for group in groups for j in group]
    completions = generate(model, [tuple(j.prompt) for j in judgements], [j.seed for j in judgements],
                           temperature)
    for j, (ids, logp) in zip(judgements, completions):
        j.ids, j.logp = ids, logp
        try:
            j.principles, j.critiques, j.scores = read_judgement(tok, j.ids, j.order)
        except ValueError as reason:
            j.status = str(reason)
    return groups

# ----------------------------------------------------------------------------------------
# The command line

def check_length(tok, item, block_size):
    """A judgement quotes every response and checks it. Refuse items for which there is no room."""
    quotes = sum(len(tok.encode([" " + response])) for response in item.responses)
    prompt = len(tok.encode(prompt_parts(item.query, item.responses)))
    # 55 tokens are enough for the checks of any response, and 25 for the principles and scores.
    needed = prompt + quotes + 55 * item.n + 25
    if needed > block_size:
        raise UserError(f"{item.id} is too long: it may need {needed} tokens, and the context has {block_size}. "
                        f"Shorten or drop a response.")


def decide(samples, rule):
    """The vote of an item's samples. rule: one of the functions in metarm.RULES
    -> {"best": index of the response that wins, or None on a tie or if nothing parses, "votes": what the rule
    returned, "agree": the share of samples that alone would pick the best}"""
    votes = rule(samples)
    best = pick(votes)
    agree = [best is not None and pick(j.scores) == best for j in samples]
    return {"best": best, "votes": votes, "agree": round(float(np.mean(agree)), 4)}


def show(item, samples, result, rule_name):
    """Print one judgement that agrees with the vote, if there is one, then the vote."""
    parsed = [j for j in samples if j.scores is not None]
    print(f"query       {item.query}")
    if not parsed:
        print("No judgement parses: the judge knows the toy world only, and may need training (python spct.py).")
        return
    best = result["best"]
    j = next((j for j in parsed if pick(j.scores) == best), parsed[0])
    print("principles  " + ", ".join(f"{name} {weight}" for name, weight in j.principles))
    for i, (response, critique, score) in enumerate(zip(item.responses, j.critiques, j.scores)):
        print(f"response {i + 1}  {response}\n            {critique['text']}\n            score {score}")
    print(f"\nThat was judgement {j.sample + 1} of {len(samples)}"
          + (f"; {len(samples) - len(parsed)} do not parse and do not vote" if parsed != samples else ""))
    for i, votes in enumerate(result["votes"]):
        if rule_name == "plurality":
            told = f"{votes[0] / len(parsed):4.0%} of the votes, sum of scores {votes[1]}"
        else:
            told = f"sum of scores {votes}" + (" over the better half" if rule_name == "guided" else "")
        print(f"response {i + 1}  {told}")
    if item.n > 1:
        print("best        " + ("none, it is a tie" if best is None else
                                f"response {best + 1}; {result['agree']:.0%} of the samples pick it"))


def show_file(items, groups, results, rule_name):
    """Print the accuracy of one sample and of the vote, by domain."""
    from report import cell, in_columns, interval  # it loads matplotlib, which nothing else here needs
    right = [(np.mean([correct(j.scores, item.gold) for j in group]), correct(result["votes"], item.gold))
             for item, group, result in zip(items, groups, results)]
    rows = [["domain", "items", "one sample", f"{rule_name} of {len(groups[0])}"]]
    for domain in [*sorted({item.domain for item in items}), "all"]:
        mine = [r for r, item in zip(right, items) if domain in (item.domain, "all")]
        rows.append([domain, str(len(mine)), *(cell(interval(column)) for column in zip(*mine))])
    print(in_columns(rows))


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--query")
    parser.add_argument("--response", action="append", default=[], help="give it 1 to 4 times")
    parser.add_argument("--data", help="a file of pairs or best-of-n items, in place of --query")
    parser.add_argument("--run", default=BUNDLED, help="run folder of the judge, by default the bundled one")
    parser.add_argument("--policy", choices=["base", "rft", "rl"], default="rl", help="which model judges")
    parser.add_argument("-k", type=int, default=8, help="number of samples, 8 by default")
    parser.add_argument("--vote", choices=["plurality", "sum", "guided"], default="plurality",
                        help="a vote each, the sum of scores, or the sum over the half that the Meta RM prefers")
    parser.add_argument("--temperature", type=float, default=0.5, help="0.5 by default, 0 is greedy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps; auto: cuda if there is one")
    parser.add_argument("--json", action="store_true", help="print JSON: an object, or one a line with --data")
    args = parser.parse_args(argv)
    if args.k < 1 or not (args.temperature == 0 or 0.01 <= args.temperature < float("inf")):
        raise UserError("-k must be 1 or more, and --temperature 0, or 0.01 or more.")
    if bool(args.data) == bool(args.query) or (args.data and args.response):
        raise UserError("Give either --data FILE, or --query TEXT and 1 to 4 times --response TEXT.")
    if args.query and not 1 <= len(args.response) <= 4:
        raise UserError(f"Give --response 1 to 4 times, not {len(args.response)} times.")
    try:
        "".join([args.query or "", *args.response]).encode()
    except UnicodeEncodeError:
        raise UserError("--query and --response must be UTF-8 text.") from None
    return args


def main(argv):
    import metarm  # the file to read next; the sampler does not need it

    args = parse_args(argv)
    device = pick_device(args.device)
    tok = load_tokenizer(os.path.join(args.run, "tokenizer.tiktoken"))
    model = load_model(os.path.join(args.run, args.policy + ".pt"), device)
    items = read_items(args.data) if args.data else [Item("the query", "none", args.query, args.response)]
    for item in items:
        check_length(tok, item, model.cfg.block_size)
    groups = judge(model, tok, items, args.k, args.seed, args.temperature)
    if args.vote == "guided":
        metarm.rate(load_model(os.path.join(args.run, "meta.pt"), device), groups)
    results = [decide(group, metarm.RULES[args.vote]) for group in groups]
    if args.json:
        for item, group, result in zip(items, groups, results):
            print(json.dumps({"id": item.id, "query": item.query, "responses": item.responses, **result,
                              "judgements": [vars(j) for j in group]}))
    elif args.data:
        show_file(items, groups, results, args.vote)
    else:
        show(items[0], groups[0], results[0], args.vote)


if __name__ == "__main__":
    run_command(main)
