"""
nanoGRM: a small GPT learns to be a judge by Self-Principled Critique Tuning (SPCT, arXiv 2504.02495).

    python spct.py                      # everything, on a GPU if there is one, else on the CPU
    python spct.py --preset short       # from the bundled base model: the rest in a few minutes
    python spct.py --preset smoke       # the same code in half a minute; it learns little

1. Pre-training  on general text and on judgements by mostly careless annotators         -> base.pt
2. RFT           fine-tuning on the base model's own correct judgements                  -> rft.pt
3. RL            reward +1 for a correct judgement, else -1; KL penalty to the RFT model -> rl.pt
4. Meta RM       learns which judgements are correct                                     -> meta.pt
5. Evaluation    greedy judgements and votes of each policy, on the test split           -> results.json

What is simplified: all models have one size, and the base model starts from nothing, so that a laptop can
train them. Each rollout is used for one update, which makes GRPO, the paper's algorithm, much shorter: see
reinforce.
"""

import argparse
import copy
import dataclasses
import glob
import json
import math
import os
import random
import time
from fnmatch import fnmatch

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import metarm
import report
from data import UserError, new_file, pick_device, pick_dtype, run_command
from data.annotators import encode_document, general_text, make_corpus, make_document, pack
from data.judgement import correct, read_judgements, write_judgements
from data.tokenizer import HINT, PAD, Tokenizer, load_tokenizer, save_tokenizer, train_bpe
from data.world import make_items, seed_of
from model import (
    GPT,
    GPTConfig,
    Optimizer,
    learning_rate,
    load_model,
    pad_left,
    save_model,
    token_logits,
    token_logp,
)
from sample import BUNDLED, judge

# ----------------------------------------------------------------------------------------
# Settings: each field is a flag, for instance --beta 0.05. They stand in the order of the stages, which STAGES,
# below, relies on.


@dataclasses.dataclass
class Config:
    preset: str = "auto"            # smoke, short, cpu or gpu; auto: gpu if there is one, else cpu
    seed: int = 0                   # of everything: items, weights, samples
    out: str = ""                   # run folder, by default runs/<preset>-seed<seed>
    device: str = "auto"            # cuda if there is one, else cpu; mps if you ask for it
    dtype: str = "auto"             # of training: bfloat16 where it is faster, else float32
    threads: int = 0                # of the CPU; 0: torch's default
    # model and pre-training
    n_layer: int = 4                # blocks
    n_head: int = 4                 # query heads
    n_embd: int = 128               # channels
    block_size: int = 368           # context in tokens: the longest document has to fit
    vocab_size: int = 704           # special tokens, bytes and merges
    pretrain_tokens: int = 6_500_000  # length of the corpus; 0: take the bundled base model
    pretrain_rows: int = 7          # rows of block_size tokens a step
    pretrain_lr: float = 4e-3       # peak learning rate
    # rejective fine-tuning
    items: int = 3000               # training items, for RFT and RL
    n_rft: int = 3                  # samples of each item, beside a hinted one
    rft_general: float = 0.5        # share of general text among the documents
    rft_rows: int = 8               # rows of block_size tokens a step
    rft_epochs: int = 2             # how often each document is seen
    rft_lr: float = 1e-3            # peak learning rate
    # RL
    rl_steps: int = 24              # rollouts, each with one update
    rl_items: int = 64              # P: items a step
    group: int = 4                  # G: samples of each item
    beta: float = 0.15              # weight of the KL penalty
    rl_lr: float = 1e-3             # peak learning rate
    # Meta RM
    meta_lr: float = 1e-3           # peak learning rate
    meta_batch: int = 32            # judgements a step
    # evaluation
    eval_split: str = "test"        # val while you tune settings
    eval_items: int = 500           # items of this split with at least two responses
    temperature: float = 0.5        # of votes; RFT and RL sample at 1
    k: int = 32                     # votes, a power of two


PRESETS = {
    "smoke": dict(n_layer=2, n_embd=64, pretrain_tokens=800_000, pretrain_rows=4, items=40, rft_general=0.8,
                  rft_rows=2, rl_steps=3, rl_items=4, eval_items=16, k=4),
    "short": dict(pretrain_tokens=0, items=1500, rl_steps=20, rl_items=48, k=8),
    "cpu": {},
    "gpu": dict(n_layer=7, n_head=6, n_embd=192, pretrain_tokens=40_000_000, pretrain_rows=52, items=8000,
                rl_steps=150, eval_items=2000),
}

# ----------------------------------------------------------------------------------------
# 1. Pre-training

def autocast(cfg):
    """A context in which matrix products have the precision of training."""
    return torch.autocast(cfg.device, torch.bfloat16, enabled=cfg.dtype == "bfloat16")


def log(file, **metrics):
    """Write a line of metrics. Six digits are enough."""
    short = {name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in metrics.items()}
    file.write(json.dumps(short) + "\n")
    file.flush()


def train_lm(cfg, name, model, ids, learned, peak_lr, batch, epochs=1):
    """Next-token training, for pre-training and RFT -> the same model, trained. ids and learned (rows, T), as
    from pack: documents, and which of their tokens are learned. batch: rows a step."""
    optimizer = Optimizer(model, getattr(torch, cfg.dtype))
    shuffles = [np.random.default_rng(seed_of(cfg.seed, name, epoch)) for epoch in range(epochs)]
    order = np.concatenate([rng.permutation(len(ids)) for rng in shuffles])
    steps = len(order) // batch
    if steps == 0:
        raise UserError(f"{name}: the documents fill {len(order)} rows, but a step takes {batch}. Use more "
                        f"--items or --pretrain_tokens.")
    with open(os.path.join(cfg.out, f"metrics-{name}.jsonl"), "w") as file:
        for step in tqdm(range(steps), desc=name, mininterval=2.0):
            rows = order[step * batch:(step + 1) * batch]
            x = torch.from_numpy(ids[rows].astype(np.int64)).to(cfg.device)          # (B, T)
            x_learned = torch.from_numpy(learned[rows]).to(cfg.device)               # (B, T)
            with autocast(cfg):
                loss = -token_logp(model, x, x_learned).mean()
            loss.backward()
            lr = learning_rate(peak_lr, step, steps)
            grad_norm = optimizer.step(lr)
            log(file, step=step, loss=loss.item(), lr=lr, grad_norm=grad_norm)
    return model


def make_tokenizer(cfg):
    """BPE trained on the first 8,000 documents of the corpus. (The bundled base model has a tokenizer already.)"""
    if cfg.pretrain_tokens == 0:
        return load_tokenizer(os.path.join(BUNDLED, "tokenizer.tiktoken"))
    texts = [part for i in range(8000) for parts, _ in make_document(cfg.seed, i) for part in parts
             if isinstance(part, str)]
    return Tokenizer(train_bpe(texts, cfg.vocab_size))


def pretrain(cfg, tok):
    """The base model."""
    if cfg.pretrain_tokens == 0:
        return load_model(os.path.join(BUNDLED, "base.pt"), cfg.device)
    shape = GPTConfig(tok.vocab_size, cfg.block_size, cfg.n_layer, cfg.n_head, cfg.n_embd)
    model = GPT(shape, seed_of(cfg.seed, "init")).to(cfg.device)
    ids, learned = make_corpus(tok, cfg.seed, cfg.pretrain_tokens, cfg.block_size)
    return train_lm(cfg, "base", model, ids, learned, cfg.pretrain_lr, cfg.pretrain_rows)

# ----------------------------------------------------------------------------------------
# 2. Rejective fine-tuning (RFT)

def is_correct(judgement, item):
    return correct(judgement.scores, item.gold)


def too_easy(samples, item):
    """All samples of an item are correct."""
    return all(is_correct(j, item) for j in samples)


def keep(samples, item):
    """Which samples of an item to train on: the correct ones, but none of an item that is too easy.

    >>> from types import SimpleNamespace as Simple
    >>> item, good, bad = Simple(gold=[2, 8]), Simple(scores=[1, 9]), Simple(scores=[9, 1])
    >>> keep([bad, good], item) == [good], keep([good, good], item), keep([bad, bad], item)
    (True, [], [])
    """
    return [] if too_easy(samples, item) else [j for j in samples if is_correct(j, item)]


def keep_hinted(samples, item):
    """Hinted samples are rejected only if they are incorrect. (There is one for each item: `keep` would call each
    correct one too easy.)"""
    return [j for j in samples if is_correct(j, item)]


def forget_hint(prompt):
    """The same prompt without the hint: the policy will have to judge without it.

    >>> forget_hint([2, 20, 3, 21, HINT, 8])
    [2, 20, 3, 21, 8]
    """
    return [token for token in prompt if token != HINT]


def finetune(cfg, tok, base, kept):
    """RFT: train the base model on the judgements that were kept, mixed with general text."""
    examples = []
    for j in kept:
        prompt = forget_hint(j.prompt)
        examples.append((prompt + j.ids, [False] * len(prompt) + [True] * len(j.ids)))
    for i in range(int(len(kept) * cfg.rft_general / (1 - cfg.rft_general))):
        rng = random.Random(seed_of(cfg.seed, "rft-general", i))
        examples.append(encode_document(tok, general_text(rng)))
    random.Random(seed_of(cfg.seed, "rft-mix")).shuffle(examples)
    ids, learned = pack(examples, cfg.block_size, seed_of(cfg.seed, "rft-pack"))
    return train_lm(cfg, "rft", copy.deepcopy(base), ids, learned, cfg.rft_lr, cfg.rft_rows, cfg.rft_epochs)

# ----------------------------------------------------------------------------------------
# 3. Rule-based RL

def reward(judgement, item):
    """Eq 11: +1 for a correct judgement (Eq 10), else -1, also if it does not parse. (It is not the gold reward,
    which a response has.) There is no other reward for the format: the KL penalty keeps it."""
    return 1.0 if is_correct(judgement, item) else -1.0


def group_advantages(rewards):
    """(reward - mean of its group) / standard deviation of its group. rewards (P, G) -> (P, G)

    A group whose rewards are all equal has zero advantage (and not 0 / 0). Only the KL term acts on it. The
    standard deviation is that of the group itself: it is divided by G and not by G - 1.

    >>> group_advantages(torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, 1.0, 1.0]])).round(decimals=3)
    tensor([[ 1., -1.,  1., -1.],
            [ 0.,  0.,  0.,  0.]])
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)                    # (P, G)
    std = rewards.std(dim=1, keepdim=True, unbiased=False)                   # (P, 1)
    # (std > 0 would not do: the mean of equal rewards is rounded, unless they are 1 or -1.)
    equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)       # (P, 1)
    return torch.where(equal, 0.0, centred / std.clamp(min=1e-6))


def kl_k2(logp, logp_ref):
    """The KL penalty of each token, (N,): half the square of the log ratio.

    Its gradient is the log ratio times the gradient of logp: REINFORCE with the log ratio as a cost. Over
    samples of the policy its mean is the gradient of KL(policy || reference), for the next token. The log ratio
    itself (k1) would have a mean gradient of zero, and kl_k3 that of KL(reference || policy). (The names k1, k2
    and k3 are from J. Schulman's note "Approximating KL divergence".)

    >>> kl_k2(torch.tensor([-1.0, -1.0]), torch.tensor([-3.0, -1.0]))
    tensor([2., 0.])
    """
    return 0.5 * (logp - logp_ref) ** 2


def kl_k3(logp, logp_ref):
    """KL(policy || reference) as a measurement, for each token, (N,): r - 1 - log r, where r is the token's
    probability under the reference over that under the policy. It has the right mean and is never negative.

    >>> kl_k3(torch.tensor([-1.0, -1.0]), torch.tensor([-2.0, -1.0]))
    tensor([0.3679, 0.0000])
    """
    log_ratio = logp_ref - logp
    return torch.expm1(log_ratio) - log_ratio      # expm1(x) is exp(x) - 1, accurate also near 0


def rl_loss(logp, logp_ref, advantages, beta, tokens):
    """The loss of RL: policy gradient and KL penalty, as a mean over all tokens of a rollout.

    logp, logp_ref and advantages (N,): of the learned tokens of one batch; tokens: how many the whole rollout has
    -> the batch's part of the mean. (With a mean for each judgement first, a token of a long judgement would count
    less.)

    >>> logp, logp_ref = torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -1.0])
    >>> rl_loss(logp, logp_ref, torch.tensor([1.0, -1.0]), beta=0.5, tokens=4)
    tensor(-0.1875)
    """
    return (-advantages * logp + beta * kl_k2(logp, logp_ref)).sum() / tokens


def micro_batches(judgements, advantages, size, device):
    """A rollout in batches of judgements of similar length -> ids (B, T), learned (B, T), padding (B,), and
    the advantage of each learned token, (N,). advantages: one for each judgement. size: judgements in a batch,
    which changes the memory that is used, and not the result."""
    order = sorted(range(len(judgements)), key=lambda i: len(judgements[i].prompt + judgements[i].ids))
    for start in range(0, len(order), size):
        chosen = order[start:start + size]
        batch = [judgements[i] for i in chosen]
        ids, padding = pad_left([j.prompt + j.ids for j in batch], PAD, device)
        learned, _ = pad_left([[0] * len(j.prompt) + [1] * len(j.ids) for j in batch], 0, device)
        lengths = torch.tensor([len(j.ids) for j in batch])
        yield ids, learned.bool(), padding, advantages[chosen].repeat_interleave(lengths).to(device)


def reinforce(cfg, tok, reference, items):
    """RL from the RFT model, the reference -> the policy. Its rollouts are kept in judgements-rl.jsonl.

    This is REINFORCE with advantages normalised within a group. GRPO differs in three things. It uses a rollout
    for several updates: PPO's ratio then corrects for samples of an older policy, and its clip keeps the new one
    close to it. (With one update the ratio is 1, and the clip never acts.) Its KL penalty is k3 (see kl_k2). Its
    loss takes a mean for each sample first (see rl_loss).
    """
    if len(items) < cfg.rl_items:
        raise UserError(f"Only {len(items)} items are left for RL. Use more --items, or fewer --rl_items.")
    policy, rollouts = copy.deepcopy(reference), []
    optimizer = Optimizer(policy, getattr(torch, cfg.dtype))
    with open(os.path.join(cfg.out, "metrics-rl.jsonl"), "w") as file:
        for step in tqdm(range(cfg.rl_steps), desc="rl"):
            # 1. Rollout: G judgements of each of P items. All of them read the item's own order of responses:
            #    the prompt, which they share, is then read once.
            batch = [items[i % len(items)] for i in range(step * cfg.rl_items, (step + 1) * cfg.rl_items)]
            groups = judge(policy, tok, batch, cfg.group, seed_of(cfg.seed, "rl", step), shuffle=False)
            rollouts += groups

            # 2. Reward (Eq 11), and 3. advantage: relative to the other samples of the same item.
            rewards = [[reward(j, item) for j in group] for group, item in zip(groups, batch)]
            advantages = group_advantages(torch.tensor(rewards))             # (P, G)

            # 4. Loss: policy gradient and KL penalty.
            judgements = [j for group in groups for j in group]              # P * G of them
            tokens, kl, entropy = sum(len(j.ids) for j in judgements), 0.0, 0.0
            for ids, learned, padding, adv in micro_batches(judgements, advantages.flatten(), 64, cfg.device):
                with autocast(cfg):
                    logits, targets = token_logits(policy, ids, learned, padding)    # (N, V), (N,)
                    logp = -F.cross_entropy(logits, targets, reduction="none")       # (N,)
                    with torch.no_grad():
                        logp_ref = token_logp(reference, ids, learned, padding)      # (N,)
                loss = rl_loss(logp, logp_ref, adv, cfg.beta, tokens)
                loss.backward()
                kl += kl_k3(logp.detach(), logp_ref).sum().item() / tokens
                entropy += torch.distributions.Categorical(logits=logits.detach()).entropy().sum().item() / tokens

            # 5. Update. So few steps leave no time for the longer warm-up of the other stages.
            grad_norm = optimizer.step(learning_rate(cfg.rl_lr, step, cfg.rl_steps, warmup=5, decay=0.3))
            log(file, step=step, reward=float(np.mean(rewards)), kl=kl, entropy=entropy, grad_norm=grad_norm,
                zero_variance=(advantages == 0).all(dim=1).float().mean().item(),
                **report.describe(groups, batch))
            if step % 10 == 0:                     # something to read while it trains
                tqdm.write(f"\n[step {step}] reward {rewards[0][0]:+.0f}, gold {batch[0].gold}\n"
                           f"{tok.readable(groups[0][0].prompt + groups[0][0].ids)}")
    write_judgements(os.path.join(cfg.out, "judgements-rl.jsonl"), rollouts)
    return policy

# ----------------------------------------------------------------------------------------
# 4. Meta RM

def train_meta_rm(cfg, policy, groups, items):
    """Train on judgements of training items, with binary cross-entropy -> the Meta RM. The label: is a judgement
    correct (Eq 10)? Groups that are all correct are left out: RL has sampled so many of them that hardly any label
    would be 0."""
    item_of = {item.id: item for item in items}
    groups = [group for group in groups if not too_easy(group, item_of[group[0].item])]
    if not groups:
        raise UserError("The Meta RM has nothing to learn: all judgements are correct. Use more --items.")
    judgements = sorted((j for group in groups for j in group), key=lambda j: len(j.prompt) + len(j.ids))
    batches = [judgements[i:i + cfg.meta_batch] for i in range(0, len(judgements), cfg.meta_batch)]
    random.Random(seed_of(cfg.seed, "meta")).shuffle(batches)
    model = metarm.from_policy(policy)
    optimizer = Optimizer(model, getattr(torch, cfg.dtype))
    with open(os.path.join(cfg.out, "metrics-meta.jsonl"), "w") as file:
        for step, batch in enumerate(tqdm(batches, desc="meta", mininterval=2.0)):
            ids, padding = pad_left([j.prompt + j.ids for j in batch], device=cfg.device)    # (B, T), (B,)
            label = torch.tensor([float(is_correct(j, item_of[j.item])) for j in batch], device=cfg.device)
            with autocast(cfg):
                logits = model(ids, padding)                                         # (B,)
            loss = metarm.meta_loss(logits, label)
            loss.backward()
            grad_norm = optimizer.step(learning_rate(cfg.meta_lr, step, len(batches)))
            log(file, step=step, loss=loss.item(), grad_norm=grad_norm)
    return model

# ----------------------------------------------------------------------------------------
# 5. Evaluation

def evaluation_sets(cfg, policy):
    """What a policy, named base, rft or rl, judges -> {name: (items, samples of each, temperature)}."""
    items = make_items(cfg.seed, cfg.eval_split, cfg.eval_items, least=2)
    ood = make_items(cfg.seed, "ood", cfg.eval_items // 2, least=2)
    single = make_items(cfg.seed, cfg.eval_split, cfg.eval_items // 2, most=1)
    few = min(8, cfg.k)                            # enough for the base model, and out of distribution
    return {"greedy": (items, 1, 0), "votes": (items, few if policy == "base" else cfg.k, cfg.temperature),
            "ood-greedy": (ood, 1, 0), "ood": (ood, few, cfg.temperature), "single": (single, 1, 0)}


def judge_set(cfg, tok, model, meta, name, items, k, temperature):
    """k judgements of each item, votes rated by the Meta RM. Greedy ones read the item's own order."""
    # The seed does not name the policy: all policies see the same orders and random numbers.
    seed = seed_of(cfg.seed, "eval", name)
    groups = judge(model, tok, items, k, seed, temperature, shuffle=temperature > 0)
    if name == "votes":                            # elsewhere nothing is filtered
        with autocast(cfg):
            metarm.rate(meta, groups)
    return groups


def evaluate(cfg, tok, policies, meta):
    """policies: {name: model} -> the contents of results.json, and {policy/measure: a number for each item}."""
    stages, columns = {}, {}
    for policy, model in policies.items():
        sets = {}
        for name, (items, k, temperature) in evaluation_sets(cfg, policy).items():
            groups = stored_judgements(cfg, f"{policy}-{name}", lambda: judge_set(
                cfg, tok, model, meta, name, items, k, temperature))
            sets[name] = items, groups
        stages[policy], numbers = report.measure(sets, cfg.seed)
        columns |= {f"{policy}/{measure}": values for measure, values in numbers.items()}
    return {"items": cfg.eval_items, "config": vars(cfg), "stages": stages}, columns

# ----------------------------------------------------------------------------------------
# The run folder: what has a file there is loaded, else it is made

# Stage -> the first of its fields in Config, and its files. RL, for instance, owns the fields from rl_steps up to
# meta_lr: with another value of one of them, its files and those of all later stages must be made anew.
STAGES = {"pre-training": ("n_layer", ["tokenizer.tiktoken", "base.pt"]),
          "RFT": ("items", ["judgements-rft.jsonl", "judgements-hinted.jsonl", "rft.pt"]),
          "RL": ("rl_steps", ["judgements-rl.jsonl", "rl.pt"]),
          "Meta RM": ("meta_lr", ["meta.pt"]),
          "evaluation": ("eval_split", ["judgements-*-*.jsonl"])}            # a policy and a set


def stored(cfg, file, make, write, read):
    """Make a result and write it to a file of the run folder, if there is no such file. Then read it: a run that
    is interrupted uses the same values as one that is not."""
    path = os.path.join(cfg.out, file)
    if not os.path.exists(path):
        start = time.monotonic()
        write(path, make())
        with open(os.path.join(cfg.out, "seconds.jsonl"), "a") as f:
            f.write(json.dumps([file, round(time.monotonic() - start, 1)]) + "\n")
    return read(path)


def stored_model(cfg, name, make):
    return stored(cfg, f"{name}.pt", make, save_model, lambda path: load_model(path, cfg.device))


def stored_judgements(cfg, name, make):
    return stored(cfg, f"judgements-{name}.jsonl", make, write_judgements, read_judgements)


def seconds_by_stage(cfg):
    """{stage: seconds}, from seconds.jsonl. A file that was made twice counts once, the last time."""
    with open(os.path.join(cfg.out, "seconds.jsonl"), "a+") as f:            # a+: it may not be there
        f.seek(0)
        seconds_of = dict(map(json.loads, f))
    return {stage: round(sum(s for file, s in seconds_of.items() if any(fnmatch(file, p) for p in files)), 1)
            for stage, (_, files) in STAGES.items()}


def files_that_depend_on(field):
    """The files of the stage that a field of Config belongs to, and of all later stages."""
    names = [f.name for f in dataclasses.fields(Config)]
    begun = [first for first, _ in STAGES.values() if names.index(first) <= names.index(field)]
    stage = max(0, len(begun) - 1)                 # the fields before n_layer belong to the first stage
    return [file for _, files in list(STAGES.values())[stage:] for file in files]


def open_folder(cfg):
    """Make the run folder, or go on in it. Threads and precision that were not given are decided here.
    UserError if a setting differs from the run in the folder, and a file there depends on it."""
    path, before = os.path.join(cfg.out, "config.json"), {}
    if os.path.exists(path):
        try:
            with open(path, encoding="utf-8") as f:
                before = dict(json.load(f))
        except (ValueError, TypeError):
            raise UserError(f"{path} is damaged. Pass another folder with --out.") from None
    cfg.threads = cfg.threads or before.get("threads") or torch.get_num_threads()
    if cfg.dtype == "auto":
        cfg.dtype = before.get("dtype") or pick_dtype(cfg.device)
    for name, value in vars(cfg).items():
        if name in ("preset", "out") or value == before.get(name):
            continue
        there = [file for file in files_that_depend_on(name) if glob.glob(file, root_dir=cfg.out)]
        if there:
            was = f"a run with --{name} {before[name]}" if name in before else f"no --{name} in its config.json"
            raise UserError(f"{cfg.out} has {was}. Pass another folder with --out, or delete there what depends "
                            f"on it: {' '.join(there)}")
    os.makedirs(cfg.out, exist_ok=True)
    with new_file(path) as f:
        json.dump(vars(cfg), f, indent=1)


def parse_args(argv):
    """-> a Config. Flags override the preset, which overrides the defaults."""
    parser = argparse.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Config):
        parser.add_argument(f"--{field.name}", type=field.type, help=f"{field.default!r} by default")
    given = vars(parser.parse_args(argv))
    device = pick_device(given.get("device", "auto"))
    preset = given.get("preset", "auto")
    if preset == "auto":
        preset = "gpu" if device == "cuda" else "cpu"
    if preset not in PRESETS:
        raise UserError(f"--preset {preset} is unknown. Use one of {', '.join(PRESETS)}.")
    cfg = Config(**{**PRESETS[preset], **given, "preset": preset, "device": device})
    cfg.out = cfg.out or os.path.join("runs", f"{preset}-seed{cfg.seed}")
    check(cfg)
    return cfg


LEAST = {"seed": 0, "threads": 0, "pretrain_tokens": 0, "beta": 0, "rft_general": 0, "n_rft": 2, "group": 2,
         "rl_items": 2, "k": 2, "eval_items": 4, "block_size": 368, "vocab_size": 600, "temperature": 0.01}


def check(cfg):
    """Refuse settings with which a run would fail late, or mean nothing."""
    for name, value in vars(cfg).items():
        least = LEAST.get(name, 1 if isinstance(value, int) else 1e-9)       # else above 0
        if not isinstance(value, str) and not least <= value < math.inf:
            raise UserError(f"--{name} {value} is not possible. The least is {least}.")
    for wrong, message in (
            (cfg.rft_general >= 1, "--rft_general is a share. Use less than 1."),
            (cfg.k & (cfg.k - 1), "--k must be a power of two."),
            (cfg.rl_items > cfg.items, "--rl_items must not be more than --items."),
            (cfg.n_embd % (2 * cfg.n_head), "--n_embd must be a multiple of twice --n_head."),
            (cfg.eval_split not in ("test", "val"), "--eval_split must be test or val."),
            (cfg.dtype not in ("auto", "float32", "bfloat16"), "--dtype must be float32 or bfloat16.")):
        if wrong:
            raise UserError(message)
    if cfg.pretrain_tokens == 0:                   # the bundled base model has a shape of its own
        for name, value in vars(load_model(os.path.join(BUNDLED, "base.pt")).cfg).items():
            if name != "vocab_size" and getattr(cfg, name) != value:
                raise UserError(f"--{name} must be {value} with the bundled base model (--pretrain_tokens 0).")

# ----------------------------------------------------------------------------------------
# The method

def main(argv):
    cfg = parse_args(argv)
    open_folder(cfg)
    torch.set_num_threads(cfg.threads)
    print("\n".join(f"{name:16s} {value}" for name, value in vars(cfg).items()))
    tok = stored(cfg, "tokenizer.tiktoken", lambda: make_tokenizer(cfg), save_tokenizer, load_tokenizer)
    items = make_items(cfg.seed, "train", cfg.items)
    several = [item for item in items if item.n > 1]                         # a hint needs two responses

    # 1. Pre-training
    base = stored_model(cfg, "base", lambda: pretrain(cfg, tok))

    # 2. RFT: sample with and without a hint, keep what is correct, fine-tune
    samples = stored_judgements(cfg, "rft", lambda: judge(
        base, tok, items, cfg.n_rft, seed_of(cfg.seed, "rft")))
    hinted = stored_judgements(cfg, "hinted", lambda: judge(
        base, tok, several, 1, seed_of(cfg.seed, "hinted"), hinted=True))
    kept = [j for group, item in zip(samples, items) for j in keep(group, item)]
    kept += [j for group, item in zip(hinted, several) for j in keep_hinted(group, item)]
    rft = stored_model(cfg, "rft", lambda: finetune(cfg, tok, base, kept))

    # 3. RL, on the items that are not too easy for the base model
    hard = [item for group, item in zip(samples, items) if not too_easy(group, item)]
    rl = stored_model(cfg, "rl", lambda: reinforce(cfg, tok, rft, hard))

    # 4. Meta RM, on the judgements that RFT and RL have sampled (reinforce has written its own)
    rollouts = read_judgements(os.path.join(cfg.out, "judgements-rl.jsonl"))
    meta = stored_model(cfg, "meta", lambda: train_meta_rm(cfg, rl, samples + rollouts, items))

    # 5. Evaluation
    results, columns = evaluate(cfg, tok, {"base": base, "rft": rft, "rl": rl}, meta)
    results["seconds"] = seconds_by_stage(cfg)
    report.write_report(cfg.out, results, columns)
    print(report.table(results))
    print(f"\nJudgements beside the truth, as a page: python -m web.page {cfg.out}\n"
          f'Judge with it: python sample.py --run {cfg.out} --query "capital of peru?" --response "it is lima" '
          '--response "it is cairo"')


if __name__ == "__main__":
    run_command(main)
