"""
nanoGRM: a small GPT learns to be a judge, from nothing (SPCT, arXiv 2504.02495).

    python spct.py                      # everything, on a CPU or a GPU
    python spct.py --preset short       # from the base model that comes along: all the rest in four minutes
    python spct.py --preset smoke       # the same code in a minute: it learns the grammar, and little else

    1 pretrain   general text and judgements by annotators of mixed skill        -> base.pt
    2 rft        rejective fine-tuning: keep the base model's right judgements   -> rft.pt
    3 rl         rule-based RL: reward +1 or -1, KL to the RFT model             -> rl.pt
    4 metarm     a Meta RM for the RFT and the RL policy: what is right?         -> meta-rft.pt, meta-rl.pt
    5 eval       votes of every stage, guided ones too, on the test split        -> results.json, figures

Simplifications against the paper, and why: all models are of one size and from scratch (a laptop has to do);
GRPO takes one update a rollout by default (then the ratio is 1 and the clip never acts). What the paper
leaves open (KL estimator, loss normalisation, zero variance) is chosen and explained where it stands.
"""

import copy
import os
import random

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import metarm
import page
import report
from config import make_config
from data import UserError, command
from data.annotators import annotate, corpus, corpus_texts, encode_document, general_text, pack
from data.judgement import correct, read_judgements, write_judgements
from data.tokenizer import HINT, PAD, Tokenizer, train_bpe
from data.world import make_items, seed_of
from model import GPT, GPTConfig, Optimizer, pad_rows, token_logits, token_logp, trapezoid
from parallel import rank, share, start_processes, stop_processes
from run import open_run
from sample import SHIPPED, judge, load_judge

# ----------------------------------------------------------------------------------------
# 1. Pre-training
#
# `run` (run.py) is the run folder. run.done(unit, model): is this unit of work done? Then its weights are
# loaded (a unit that has no model is done if its `file` is there). run.steps(...) counts the steps behind a
# progress bar, run.log(...) writes a line of metrics, run.finish(unit, model) keeps the weights;
# run.autocast() and run.sampling() set the precision.

def train_lm(run, unit, model, ids, mask, lr, batch, epochs=1):
    """Next-token training on packed rows, for pre-training and RFT. ids, mask: (rows, T)."""
    opt = Optimizer(model, lr, run.dtype)
    shuffle = lambda epoch: np.random.default_rng(seed_of(run.cfg.seed, unit, epoch)).permutation(len(ids))
    order = np.concatenate([shuffle(epoch) for epoch in range(epochs)])
    steps = len(order) // batch
    if steps == 0:                                 # a run as short as the smoke preset may find nothing right
        print(f"{unit}: {len(ids)} rows are too few for one step of {batch}, the model stays as it is")
    for step in run.steps(unit, steps):
        rows = order[step * batch:(step + 1) * batch]
        tokens = int(mask[rows, 1:].sum())         # that are learned: no padding, nothing that is given
        rows = share(rows)                         # all of them, but if there are several processes
        x = torch.from_numpy(ids[rows].astype(np.int64)).to(run.device)              # (B, T)
        m = torch.from_numpy(mask[rows]).to(run.device)                              # (B, T)
        with run.autocast():
            loss = -token_logp(model, x, m).sum() / tokens
        loss.backward()
        metrics = opt.step(trapezoid(step, steps), loss=loss)
        run.log(unit, step=step, **metrics, tokens=tokens)
    run.finish(unit, model)


def pretrain(run, tok, annotate=annotate):
    """The base model, trained on the corpus, or the one that comes along (data/judge). annotate: studies have
    annotators of their own."""
    cfg, model = run.cfg, new_model(run, tok)
    if run.done("base", model):
        return model
    if cfg.pretrain_tokens == 0:
        there, _, _ = load_judge(SHIPPED, "base", run.device)
        model.load_state_dict(there.state_dict())
        run.finish("base", model)
        return model
    ids, mask = corpus(tok, cfg.seed, cfg.pretrain_tokens, cfg.block_size, annotate)
    train_lm(run, "base", model, ids, mask, cfg.pretrain_lr, cfg.pretrain_rows)
    return model

# ----------------------------------------------------------------------------------------
# 2. Rejective fine-tuning (RFT)

def right(judgement, item):
    return correct(judgement.scores, item.gold)


def too_easy(samples, item):
    return all(right(j, item) for j in samples)


def keep(samples, item):
    """RFT's rules for a point's non-hinted samples: keep the right ones; none if all are right (too easy).

    >>> from types import SimpleNamespace as Simple
    >>> item, good, bad = Simple(gold=[2, 8]), Simple(scores=[1, 9]), Simple(scores=[9, 1])
    >>> keep([bad, good], item) == [good], keep([good, good], item), keep([bad, bad], item)
    (True, [], [])
    """
    return [] if too_easy(samples, item) else [j for j in samples if right(j, item)]


def keep_hinted(samples, item):
    """Hinted samples are rejected only when they are wrong."""
    return [j for j in samples if right(j, item)]


def all_kept(points, samples, hinted):
    """The judgements that survive the rules, in one list. samples: a list of judgements for each point;
    hinted: the same for points with n >= 2."""
    by_id = {p.id: p for p in points}
    kept = [j for s in samples for j in keep(s, by_id[s[0].item])]
    return kept + [j for s in hinted for j in keep_hinted(s, by_id[s[0].item])]


def forget_hint(prompt):
    """The same prompt without the hint, as a list: what the policy will see when it has to judge by itself.

    >>> forget_hint([2, 20, 3, 21, HINT, 8])
    [2, 20, 3, 21, 8]
    """
    return [token for token in prompt if token != HINT]


def rft_samples(run, tok, base, points):
    """The base model's judgements -> (samples, hinted): n_rft for each point, without a hint; cfg.hinted for
    each with n >= 2, with the best response named (of a single response that says nothing)."""
    cfg, several = run.cfg, [p for p in points if p.n > 1]
    files = [run.path(f"judgements-{name}.jsonl") for name in ("rft", "hinted")]
    if run.done("rft-samples", file="judgements-hinted.jsonl"):
        return [read_judgements(path) for path in files]
    samples = judge(base, tok, points, cfg.n_rft, cfg.seed, "rft", autocast=run.sampling(),
                    desc="rft: sampling")
    hinted = []
    if cfg.hinted:
        hinted = judge(base, tok, several, cfg.hinted, cfg.seed, "hinted", hinted=True,
                       autocast=run.sampling(), desc="rft: hinted")
    run.log("rft-samples", points=len(points),
            too_easy=float(np.mean([too_easy(s, p) for s, p in zip(samples, points)])),
            hinted_right=float(np.mean([right(j, p) for s, p in zip(hinted, several) for j in s] or [0.0])),
            **report.judgement_stats(samples, points))
    for path, judgements in zip(files, (samples, hinted)):
        write_judgements(path, sum(judgements, []))
    run.finish("rft-samples")
    return samples, hinted


def rft_examples(cfg, tok, kept):
    """Judgements, mixed with general text -> (ids, mask) pairs, mask True on the tokens to be learned: the
    judgement with its END, not the prompt."""
    examples = []
    for j in kept:
        prompt = forget_hint(j.prompt)
        examples.append((prompt + j.ids, [False] * len(prompt) + [True] * len(j.ids)))
    for i in range(int(len(kept) * cfg.rft_general / (1 - cfg.rft_general))):
        text = general_text(random.Random(seed_of(cfg.seed, "rft-general", i)))
        examples.append(encode_document(tok, text))
    random.Random(seed_of(cfg.seed, "rft-mix")).shuffle(examples)
    return examples


def rft(run, base, examples):
    """Fine-tune the base model on examples, (ids, mask) pairs."""
    cfg, model = run.cfg, copy.deepcopy(base)
    if not run.done("rft", model):
        ids, mask = pack(examples, cfg.block_size, seed_of(cfg.seed, "rft-pack"))
        train_lm(run, "rft", model, ids, mask, cfg.rft_lr, cfg.rft_rows, cfg.rft_epochs)
    return model

# ----------------------------------------------------------------------------------------
# 3. Rule-based RL

def reward(judgement, item):
    """Eq 11: +1 if the judgement is right (Eq 10), else -1, also if it does not parse: no format reward."""
    return 1.0 if right(judgement, item) else -1.0


def advantages(rewards):
    """GRPO: (reward - mean of its group) / std of its group. rewards (P, G) -> (P, G): G samples of P points
    (in rl: those of one point that are learned from).

    A group that is all right or all wrong says nothing about which sample is better: its advantages are
    0 (and not 0 / 0). Groups are rows, so they never mix. The std is that of the group itself (divided by G);
    it is clamped from below, at 1e-6 (up to 1e-5 will do), so that nothing is divided by 0.

    >>> advantages(torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, 1.0, 1.0]])).round(decimals=3)
    tensor([[ 1., -1.,  1., -1.],
            [ 0.,  0.,  0.,  0.]])
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    std = rewards.std(dim=1, keepdim=True, unbiased=False)
    return torch.where(std > 0, centred / std.clamp(min=1e-6), 0.0)


def contrast(rewards, keep):
    """Which samples of a group to learn from: `keep` of them, half right and half wrong (keep // 2 right ones
    if it is odd); if there are too few of one kind, more of the other; the earlier ones first. If all are
    right, or all wrong, sample 0 alone: it can only pull back to the reference.
    rewards: G numbers, above 0 if right -> indices, those of the right ones, then the others.

    To learn from a sample takes longer than to write it (experiments/SPEED.md), so many are written, and some
    with the largest contrast are learned from (PODS, arXiv 2504.13818). Entropy and KL are measured on these.

    >>> contrast([1.0, 1.0, -1.0, 1.0, -1.0], keep=4), contrast([-1.0, -1.0, 1.0, -1.0], keep=4)
    ([0, 1, 2, 4], [2, 0, 1, 3])
    >>> contrast([-1.0, -1.0, -1.0], keep=2)
    [0]
    """
    right, wrong = ([i for i, r in enumerate(rewards) if (r > 0) == good] for good in (True, False))
    if not right or not wrong:
        return [0]
    count = min(len(right), max(keep // 2, keep - len(wrong)))
    return right[:count] + wrong[:keep - count]


def policy_loss(logp, logp_old, adv, clip):
    """PPO's clipped objective per token, as a loss, all (N,). On the first update of a rollout the ratio is 1
    and this is REINFORCE; the clip acts only from the second update on.

    >>> policy_loss(torch.tensor([0.5]).log(), torch.tensor([0.25]).log(), torch.tensor([1.0]), clip=0.2)
    tensor([-1.2000])
    """
    ratio = (logp - logp_old).exp()
    return -torch.min(ratio * adv, ratio.clamp(1 - clip, 1 + clip) * adv)


def kl_k2(logp, logp_ref):
    """KL(policy || reference) per token as a loss, (N,): k2 = (log ratio)^2 / 2.

    For samples of the policy its gradient is that of the reverse KL. k1 (the log ratio itself) has the
    right mean but a zero expected gradient, and k3's gradient is that of the forward KL. (The names are
    from J. Schulman's note "Approximating KL divergence".)

    >>> kl_k2(torch.tensor([-1.0, -1.0]), torch.tensor([-3.0, -1.0]))
    tensor([2., 0.])
    """
    return 0.5 * (logp - logp_ref) ** 2


def kl_k3(logp, logp_ref):
    """KL(policy || reference) per token as a measurement, (N,): k3 = r - 1 - log r, r the reference's
    probability over the policy's. Unbiased for samples of the policy, never negative, low variance.

    >>> kl_k3(torch.tensor([-1.0, -1.0]), torch.tensor([-2.0, -1.0]))
    tensor([0.3679, 0.0000])
    """
    log_ratio = logp_ref - logp
    return log_ratio.exp() - log_ratio - 1


def not_too_easy(points, samples):
    """RL's points: those that a weaker model (the base) does not get right every time."""
    return [p for p, s in zip(points, samples) if not too_easy(s, p)]


def rl(run, tok, reference, points, samples, judge=judge):
    """GRPO from the RFT model, the reference, with a KL penalty to it. samples: RFT's judgements without a
    hint, a list for each point: they say what is too easy. judge: studies have formats of their own."""
    cfg, policy = run.cfg, copy.deepcopy(reference)
    if run.done("rl", policy):
        return policy
    pool, opt = not_too_easy(points, samples), Optimizer(policy, cfg.rl_lr, run.dtype)
    if len(pool) < cfg.rl_points:
        raise UserError(f"only {len(pool)} points are left for RL: raise --points, or lower --rl_points")
    for step in run.steps("rl", cfg.rl_steps):
        # rollout: G samples of each of P points. All see the item's own order, in which the best response has
        # no favourite place, so that they share a prompt, which is read once.
        batch = [pool[i % len(pool)] for i in range(step * cfg.rl_points, (step + 1) * cfg.rl_points)]
        groups = judge(policy, tok, batch, cfg.group, cfg.seed, f"rl-{step}", shuffle=False,
                       autocast=run.sampling())
        rewards = [[reward(j, p) for j in g] for g, p in zip(groups, batch)]     # P lists of G
        # of 2 right and 2 wrong ones that are learned from, each has the advantage 1 or -1
        learned, adv = [], []
        for group, r in zip(groups, rewards):
            which = contrast(r, cfg.rl_keep)
            learned += [group[i] for i in which]
            adv += advantages(torch.tensor([[r[i] for i in which]]))[0].tolist()
        metrics = update(run, policy, reference, opt, learned, adv,
                         trapezoid(step, cfg.rl_steps, decay=0.3, warmup=5))
        silent = np.mean([min(r) == max(r) for r in rewards])
        run.log("rl", step=step, **metrics, reward=float(np.mean(rewards)), silent_groups=float(silent),
                **report.judgement_stats(groups, batch))
        if step % 10 == 0:                         # something to read while it trains
            tqdm.write(f"\n[step {step}] reward {rewards[0][0]:+.0f}, gold {batch[0].gold}")
            tqdm.write(tok.readable(groups[0][0].tokens))
    run.finish("rl", policy)
    return policy


def update(run, policy, reference, opt, judgements, adv, scale):
    """One rollout's updates. judgements: those of all processes, adv: one number each; scale: of the learning
    rate -> metrics of the last update."""
    cfg = run.cfg
    tokens = sum(len(j.ids) for j in judgements)
    # micro-batches of judgements of like length, so that there is little padding
    order = share(sorted(range(len(judgements)), key=lambda i: len(judgements[i].tokens)))
    micro = [order[i:i + 64] for i in range(0, len(order), 64)]
    old, ref = [None] * len(micro), [None] * len(micro)
    for u in range(cfg.rl_updates):
        sums = {"loss": 0.0, "kl": 0.0, "entropy": 0.0, "clipped": 0.0}
        for m, rows in enumerate(micro):
            js = [judgements[i] for i in rows]
            # the very ids that were sampled, never decoded and encoded again
            ids, _ = pad_rows([j.tokens for j in js], PAD, run.device)           # (B, T), B <= 64
            mask, _ = pad_rows([[0] * len(j.prompt) + [1] * len(j.ids) for j in js], 0, run.device)  # (B, T)
            a = torch.tensor([adv[i] for i in rows for _ in judgements[i].ids], device=run.device)   # (N,)
            with run.autocast():
                logits, targets = token_logits(policy, ids, mask.bool())                       # (N, V), (N,)
                logp = -F.cross_entropy(logits, targets, reduction="none")                     # (N,)
                with torch.no_grad():
                    entropy = torch.distributions.Categorical(logits=logits).entropy()         # (N,)
                    # Not the sampler's logp, which was rounded otherwise (other shapes, float32 on a CPU):
                    # taken from this very pass, the ratio is exactly 1.
                    if u == 0:
                        old[m], ref[m] = logp.detach(), token_logp(reference, ids, mask.bool())
            each = {"loss": policy_loss(logp, old[m], a, cfg.clip) + cfg.beta * kl_k2(logp, ref[m]),
                    "kl": kl_k3(logp.detach(), ref[m]), "entropy": entropy,
                    "clipped": ((logp.detach() - old[m]).exp() - 1).abs() > cfg.clip}          # all (N,)
            # Each token of the batch weighs the same: the sum over all tokens by their number. A mean per
            # sample would make the tokens of long judgements weigh less, and so reward length when wrong.
            (each["loss"].sum() / tokens).backward()
            for name, values in each.items():
                sums[name] += values.detach().sum().item() / tokens
        metrics = opt.step(scale, **sums)
    return metrics

# ----------------------------------------------------------------------------------------
# 4. Meta RM

def meta_rm(run, tok, name, policy, samples, points, start=None):
    """The Meta RM of a policy, "rft" or "rl", from RFT's non-hinted samples and fresh ones of the policy.
    start: a Meta RM to go on from, by default the policy itself."""
    cfg, unit = run.cfg, f"meta-{name}"
    model = metarm.from_policy(policy) if start is None else copy.deepcopy(start)
    if run.done(unit, model):
        return model
    fresh = make_items(cfg.seed, "train", cfg.meta_items, start=cfg.points, noise=cfg.noise)
    more = judge(policy, tok, fresh, cfg.meta_samples, cfg.seed, unit, cfg.temperature,
                 autocast=run.sampling(), desc=f"{unit} data")
    old = samples[:cfg.meta_old]
    examples = [(j.tokens, right(j, p)) for s, p in zip(old + more, points[:len(old)] + fresh) for j in s]
    metarm.train(run, unit, model, examples)
    return model

# ----------------------------------------------------------------------------------------
# 5. Evaluation

def eval_sets(cfg):
    """What is judged: {name: (items, samples of each, temperature)}."""
    items = make_items(cfg.seed, cfg.eval_split, cfg.eval_items, least=2)
    ood = make_items(cfg.seed, "ood", cfg.eval_items // 2, least=2)
    return {"greedy": (items, 1, 0.0), "votes": (items, cfg.k, cfg.temperature),
            "ood-greedy": (ood, 1, 0.0), "ood": (ood, min(8, cfg.k), cfg.temperature),
            "single": (make_items(cfg.seed, cfg.eval_split, cfg.eval_items // 2, most=1), 1, 0.0)}


def judge_sets(run, tok, name, policy, meta=None):
    """Judge all sets with one policy, and score what its Meta RM guides -> {set: (items, judgements)}.
    Everything is kept in judgements-<name of the policy>-<set>.jsonl."""
    cfg, sets = run.cfg, eval_sets(run.cfg)
    files = {which: f"judgements-{name}-{which}.jsonl" for which in sets}
    if not run.done(f"eval-{name}", file=list(files.values())[-1]):
        for which, (items, k, temperature) in sets.items():
            # no policy in the seeds: all policies see the same orders and draw with the same random numbers
            judged = judge(policy, tok, items, k, cfg.seed, f"eval-{which}", temperature,
                           shuffle=temperature > 0, autocast=run.sampling(), desc=f"{name}: {which}")
            if meta is not None and which == "votes":
                metarm.score(meta, sum(judged, []), run.autocast())
            write_judgements(run.path(files[which]), sum(judged, []))
        run.finish(f"eval-{name}")
    return {which: (items, read_judgements(run.path(files[which]))) for which, (items, _, _) in sets.items()}

# ----------------------------------------------------------------------------------------
# The main job

def new_model(run, tok):
    cfg = run.cfg
    shape = GPTConfig(tok.vocab_size, cfg.block_size, cfg.n_layer, cfg.n_head, cfg.n_kv_head, cfg.n_embd)
    return GPT(shape, seed_of(cfg.seed, "init")).to(run.device)


def make_tokenizer(run):
    """The one that the run folder holds already; else, with --pretrain_tokens 0, that of the base model that
    comes along; else BPE trained on the first documents of the corpus."""
    path = run.path("tokenizer.tiktoken")
    if os.path.exists(path):
        return Tokenizer.load(path)
    if run.cfg.pretrain_tokens == 0:
        _, tok, _ = load_judge(SHIPPED, "base", run.device)
    else:
        tok = Tokenizer(train_bpe(corpus_texts(run.cfg.seed, 8000), run.cfg.vocab_size))
    tok.save(path)
    return tok


def train_policies(run, tok, points, annotate=annotate):
    """Pre-training, RFT and RL -> the policies by name (base, rft, rl), RFT's samples without a hint."""
    base = pretrain(run, tok, annotate)
    samples, hinted = rft_samples(run, tok, base, points)
    tuned = rft(run, base, rft_examples(run.cfg, tok, all_kept(points, samples, hinted)))
    return {"base": base, "rft": tuned, "rl": rl(run, tok, tuned, points, samples)}, samples


def train_guides(run, tok, policies, samples, points):
    """The Meta RMs of the policies -> {name of the policy: Meta RM}. That of RL goes on from that of RFT:
    what they read is much alike, and so it gets further."""
    rft = meta_rm(run, tok, "rft", policies["rft"], samples, points)
    return {"rft": rft, "rl": meta_rm(run, tok, "rl", policies["rl"], samples, points, start=rft)}


def train_and_evaluate(run):
    """The method, from nothing to the table."""
    cfg, tok = run.cfg, make_tokenizer(run)
    points = make_items(cfg.seed, "train", cfg.points, noise=cfg.noise)
    with run.whole:                                # the bar of all units
        policies, samples = train_policies(run, tok, points)
        guides = train_guides(run, tok, policies, samples, points)
        judged = {name: judge_sets(run, tok, name, model, guides.get(name))
                  for name, model in policies.items()}
    if rank() == 0:
        results = report.results(run, judged)
        report.figures(run.folder, results)
        page.of_run(run.folder)
        print(report.table(results))


def main(argv):
    start_processes()
    run = open_run(*make_config(argv, __doc__))
    try:
        train_and_evaluate(run)
    except KeyboardInterrupt:
        where = f" in {run.unit}, which begins anew" if run.unit else ""
        again = "go on by the same command (spct.py: with --resume)"
        raise KeyboardInterrupt(f"stopped{where}: {again}") from None
    print(f"\nLook at it: {run.path('report.html')}")
    print(f'Judge with it: python sample.py --run {run.folder} --query "capital of peru?" '
          '--response "it is lima" --response "it is cairo"')
    stop_processes()


if __name__ == "__main__":
    command(main)
