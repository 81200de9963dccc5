import copy
import inspect
import itertools
import json
import re
from contextlib import nullcontext
from dataclasses import asdict, fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import config
import sample
import spct
from config import PRESETS, Config, check_values, parse_flags
from data import UserError, preferences
from data.annotators import corpus, pack
from data.judgement import Judgement, render_prompt
from data.tokenizer import END, HINT, PAD
from data.world import Item, make_items
from model import GPT, GPTConfig, Optimizer, token_logp, trapezoid
from run import Run
from sample import generate
from spct import advantages, contrast, forget_hint, kl_k2, kl_k3, not_too_easy, policy_loss, update


def make_config(argv):
    return config.make_config(argv, spct.__doc__)


def judgement(scores=None, prompt=(3, 4), ids=(5, 6, END)):
    return Judgement("x", 0, [0, 1], 0, tuple(prompt), list(ids), 0.0, scores=scores)

# ----------------------------------------------------------------------------------------
# Pre-training and RFT

def test_pack_loses_nothing_and_learns_end_but_not_pad(tok):
    """Guards against dropped or cut documents, END that is never learned, PAD that is."""
    rng = np.random.default_rng(0)
    documents = [(rng.integers(13, 99, rng.integers(1, 30)).tolist() + [END],) for _ in range(200)]
    documents = [(d, [i >= len(d) // 2 for i in range(len(d))]) for (d,) in documents]
    ids, mask = pack(documents, 40, 0)
    assert ids.shape == mask.shape and ids.shape[1] == 40
    assert not mask[ids == PAD].any() and mask[ids == END].all()
    found = sorted(tuple(part) for row in ids for part in split_after(row[row != PAD].tolist(), END))
    assert found == sorted(tuple(d) for d, _ in documents)
    assert mask.sum() == sum(sum(m) for _, m in documents)
    assert (ids == PAD).mean() < 0.1               # little padding waste
    ids, mask = corpus(tok, 0, 20_000, 368)
    assert (ids != PAD).sum() >= 20_000 and mask[ids == END].all() and not mask[ids == PAD].any()


def split_after(row, token):
    while row:
        i = row.index(token) + 1
        yield row[:i]
        row = row[i:]


def test_the_base_that_comes_along(tmp_path):
    """Guards against a short run that starts from random weights, or from another tokenizer's."""
    run = Run(Config(device="cpu", dtype="float32", pretrain_tokens=0), str(tmp_path))
    tok = spct.make_tokenizer(run)
    model, (there, shipped, _) = spct.pretrain(run, tok), sample.load_judge(sample.SHIPPED, "base", "cpu")
    text = [" what is 230+481?"]
    assert tok.encode(text) == shipped.encode(text)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), there.state_dict().values()))


def test_rejection_rules():
    """Guards against RFT that keeps wrong samples, or points on which every sample is right."""
    item = Item("x", "s", "q", ["a", "b"], [9, 2])
    right, wrong, tie, failed = judgement([8, 3]), judgement([3, 8]), judgement([5, 5]), judgement(None)
    assert spct.keep([right, wrong, right], item) == [right, right]
    assert spct.keep([right, right, right], item) == []
    assert spct.keep([wrong, tie, failed], item) == []
    assert spct.keep_hinted([right], item) == [right] and spct.keep_hinted([tie], item) == []
    points, samples = [item] * 3, [[right] * 3, [right, right, wrong], [wrong] * 3]
    assert len(not_too_easy(points, samples)) == 2


def test_rft_examples(tok):
    """Guards against training on the hinted prompt (at test time nobody names the best response), on prompts,
    on judgements that should have been rejected, and against a wrong share of general text."""
    hinted, plain = (tok.encode(render_prompt("q", ["a", "b"], hint)) for hint in (0, None))
    assert HINT in hinted and forget_hint(hinted) == plain == forget_hint(plain)
    item = Item("x", "s", "q", ["a", "b"], [9, 2])
    right, wrong = judgement([8, 3], plain, (15, END)), judgement([3, 8], plain, (16, END))
    told, too_easy = judgement([8, 3], hinted, (17, 18, END)), judgement([3, 8], hinted, (19, END))
    kept = spct.all_kept([item], [[right, wrong, right]], [[told], [too_easy]])
    examples = spct.rft_examples(Config(), tok, kept)
    mine = sorted([ids, mask] for ids, mask in examples if ids[:len(plain)] == plain)
    unlearned = [False] * len(plain)
    assert mine == [[plain + [15, END], unlearned + [True] * 2]] * 2 + [
        [plain + [17, 18, END], unlearned + [True] * 3]]
    assert len(examples) == 6                      # rft_general = 0.5: as many general texts


@pytest.mark.parametrize("hinted", [0, 1])
def test_rft_samples(tok, tmp_path, hinted):
    """Guards against a run without hinted samples that fails, hints on points of one response, and samples
    that are others when a run goes on than when it began."""
    cfg = Config(device="cpu", dtype="float32", n_rft=2, hinted=hinted)
    run, points = Run(cfg, str(tmp_path)), make_items(0, "train", 4) + make_items(0, "train", 2, most=1)
    base = GPT(GPTConfig(tok.vocab_size, 160, 1, 2, 1, 16))
    samples, told = spct.rft_samples(run, tok, base, points)
    assert [len(s) for s in samples] == [2] * 6 and all(HINT not in j.prompt for s in samples for j in s)
    several = [p.id for p in points if p.n > 1]
    assert [s[0].item for s in told] == several * hinted and all(HINT in j.prompt for s in told for j in s)
    again = Run(cfg, str(tmp_path))
    tokens = lambda groups: [j.tokens for s in groups for j in s]
    assert [*map(tokens, spct.rft_samples(again, tok, None, points))] == [tokens(samples), tokens(told)]


def test_temperatures(tiny, tmp_path, monkeypatch):
    """Guards against votes or a Meta RM's samples at another temperature than the one asked for, and against
    RFT or RL from a tempered distribution, which is not the one that is trained."""
    class Drawn(Exception):
        """Carries the temperature."""

    def judge(policy, tok, items, k, seed, purpose, temperature=sample.judge.__defaults__[0], **more):
        raise Drawn(temperature)

    def drawn(work, *args, **more):
        with pytest.raises(Drawn) as caught:
            work(*args, **more)
        return caught.value.args[0]

    monkeypatch.setattr(spct, "judge", judge)
    cfg = Config(temperature=0.3, device="cpu", dtype="float32", rl_points=1, points=2)
    run, points = Run(cfg, str(tmp_path)), make_items(0, "train", 2)
    wrong = [[judgement()]] * 2
    assert drawn(spct.meta_rm, run, None, "rl", tiny(), [], []) == 0.3
    assert drawn(spct.rft_samples, run, None, None, points) == 1
    assert drawn(spct.rl, run, None, tiny(), points, wrong, judge=judge) == 1
    assert {part: T for part, (_, _, T) in spct.eval_sets(cfg).items()} == {
        "greedy": 0, "votes": 0.3, "ood-greedy": 0, "ood": 0.3, "single": 0}

# ----------------------------------------------------------------------------------------
# RL

def test_advantages():
    """Guards against groups that mix (equal rows stay apart), 0/0 in silent groups, and a wrong scale."""
    rewards = torch.tensor([[1.0, 1, 1, 1], [-1, -1, -1, -1], [1, -1, -1, -1], [1, 1, -1, -1]])
    adv = advantages(rewards)
    assert torch.equal(adv[:2], torch.zeros(2, 4))
    for row, r in zip(adv[2:], rewards[2:]):
        expected = (r - np.mean(r.tolist())) / np.std(r.tolist())
        torch.testing.assert_close(row, expected)
        assert abs(float(row.sum())) < 1e-6 and abs(float(row.pow(2).mean()) - 1) < 1e-5
    changed = rewards.clone()
    changed[2] = torch.tensor([1.0, 1, 1, -1])
    assert torch.equal(advantages(changed)[3], adv[3])


def test_contrast():
    """Guards against a selection that is all right or all wrong although there are both, that takes more or
    fewer samples than asked, or one twice."""
    for rewards in itertools.product((-1.0, 1.0), repeat=8):
        for keep in (2, 4, 7, 8):
            kept = contrast(list(rewards), keep)
            if len(set(rewards)) == 1:
                assert kept == [0]
                continue
            right = sum(rewards[i] > 0 for i in kept)
            assert len(set(kept)) == len(kept) == keep and 0 < right < keep
            assert right == min(rewards.count(1.0), max(keep // 2, keep - rewards.count(-1.0)))


def test_policy_loss_clips_as_ppo_does():
    """Guards against a clip on the wrong side: gains are capped, losses are not."""
    old = torch.zeros(4)
    logp = torch.tensor([1.5, 0.5, 1.5, 0.5]).log().requires_grad_()
    loss = policy_loss(logp, old, torch.tensor([1.0, 1.0, -1.0, -1.0]), 0.2)
    torch.testing.assert_close(loss, torch.tensor([-1.2, -0.5, 1.5, 0.8]))
    loss.sum().backward()
    assert (logp.grad != 0).tolist() == [False, True, True, False]


def exact_kl(logits, ref):
    p, q = logits.log_softmax(-1), ref.log_softmax(-1)
    return (p.exp() * (p - q)).sum(), p, q


def test_kl_estimators_against_the_exact_kl():
    """Guards against a reversed log-ratio and against k1 in the loss: over a small vocabulary every
    expectation is a sum. k3's mean is the KL; k2's expected gradient is the KL's; k1's is zero, k3's
    is not it."""
    gen = torch.Generator().manual_seed(0)
    logits, ref = torch.randn(7, generator=gen).requires_grad_(), torch.randn(7, generator=gen)
    kl, p, q = exact_kl(logits, ref)
    prob = p.detach().exp()
    assert kl > 0.1
    torch.testing.assert_close((prob * kl_k3(p, q)).sum(), kl)
    assert (kl_k3(p, q) >= 0).all() and (kl_k2(p, q) >= 0).all()
    grad = lambda loss: torch.autograd.grad(loss, logits, retain_graph=True)[0]
    torch.testing.assert_close(grad((prob * kl_k2(p, q)).sum()), grad(kl))
    assert grad((prob * (p - q)).sum()).abs().max() < 1e-6
    assert not torch.allclose(grad((prob * kl_k3(p, q)).sum()), grad(kl), rtol=0.1)


def rl_run(**fields):
    return SimpleNamespace(cfg=Config(**fields), device="cpu", autocast=nullcontext)


def logp_of(model, j):
    ids = torch.tensor([list(j.prompt) + j.ids])
    return token_logp(model, ids, torch.arange(ids.size(1))[None] >= len(j.prompt)).sum().item()


def test_first_pass_has_ratio_one_and_no_kl(tiny):
    """Guards against other positions, weights or masks in rollout, policy and reference pass: what the
    sampler says of its samples is what the trainer says of them."""
    policy, reference = tiny(), tiny()
    for prompt in [(3, 4), (9, 10, 11)]:
        ids, logp = generate(policy, [prompt], [0])[0]
        assert logp == pytest.approx(logp_of(policy, judgement(prompt=prompt, ids=ids)), abs=1e-3)
    js, adv = [judgement(ids=(7, 8, END)), judgement(prompt=(9, 10, 11), ids=(12, END))], [1.0, -1.0]
    metrics = update(rl_run(), policy, reference, Optimizer(policy, 1e-3), js, adv, 1.0)
    assert metrics["kl"] == 0 and metrics["clipped"] == 0
    # ratio 1: minus the mean advantage of the tokens
    assert abs(metrics["loss"] - (-3 * 1.0 + 2 * 1.0) / 5) < 1e-6


@pytest.mark.parametrize("updates", [1, 3])
def test_update_raises_the_better_and_lowers_the_worse(tiny, updates):
    """Guards against a sign error anywhere between advantage and optimizer."""
    policy, reference = tiny(), tiny()
    better, worse, third = (judgement(ids=(7, 8, END)), judgement(ids=(21, 22, 23, END)),
                            judgement(prompt=(9,), ids=(12, END)))
    before = [logp_of(policy, j) for j in (better, worse)]
    update(rl_run(rl_updates=updates), policy, reference, Optimizer(policy, 1e-3),
           [better, worse, third], [1.0, -1.0, 0.0], 1.0)
    assert logp_of(policy, better) > before[0] and logp_of(policy, worse) < before[1]


def test_silent_groups_leave_the_policy_alone(tiny):
    """Guards against gradients from zero advantages: without KL they must be exactly 0."""
    policy, reference = tiny(), tiny()
    metrics = update(rl_run(beta=0.0), policy, reference, Optimizer(policy, 1e-3),
                     [judgement(), judgement()], [0.0, 0.0], 1.0)
    assert metrics["grad_norm"] == 0 and metrics["loss"] == 0


def test_kl_pulls_back_to_the_reference(tiny):
    """Guards against a KL penalty that pushes away: with zero advantages the policy must come closer to
    the reference."""
    reference, policy = tiny(), tiny()
    for p, q in zip(policy.parameters(), tiny(seed=1).parameters()):
        p.data = 0.9 * p.data + 0.1 * q.data
    js = [judgement(prompt=(3,), ids=list(ids) + [END]) for ids in itertools.product((5, 6, 7), repeat=2)]
    opt = Optimizer(policy, 3e-3)
    kls = [update(rl_run(beta=1.0), policy, reference, opt, js, [0.0] * 9, 1.0)["kl"] for _ in range(20)]
    assert kls[-1] < 0.5 * kls[0]


def test_micro_batches_do_not_change_the_update(tiny):
    """Guards against a loss that is averaged per micro-batch: 70 samples in two of them = one gradient
    over all."""
    policy, reference = tiny(), tiny()
    js = [judgement(prompt=(3,) * (1 + i % 5), ids=[5 + i % 30] * (1 + i % 7) + [END]) for i in range(70)]
    adv = [(-1.0) ** i for i in range(70)]
    twin = copy.deepcopy(policy)
    total = sum(len(j.ids) for j in js)
    loss = 0.0
    for j, a in zip(js, adv):                      # one by one
        ids = torch.tensor([list(j.prompt) + j.ids])
        logp = token_logp(twin, ids, torch.arange(ids.size(1))[None] >= len(j.prompt))
        loss = loss - (logp * a).sum() / total     # the gradient of ratio * advantage at ratio 1
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in twin.parameters()]).norm()
    metrics = update(rl_run(), policy, reference, Optimizer(policy, 1e-3), js, adv, 1.0)
    assert abs(metrics["grad_norm"] - float(norm)) < 1e-3 * float(norm)

# ----------------------------------------------------------------------------------------
# Config

def test_flags():
    """Guards against a flag that is silently ignored or read as the wrong type."""
    flags = lambda *argv: parse_flags(argv, "")
    assert flags("--beta", "0.5", "--seed", "3", "--resume", "--stage", "rl") == (
        {"beta": 0.5, "seed": 3}, True, "rl")
    assert flags() == ({}, False, None)
    assert all(type(flags(f"--{f.name}", "7")[0][f.name]) is f.type for f in fields(Config))
    for argv, message in [(["--betta", "1"], "did you mean --beta"), (["--seed"], "seed: expected one"),
                          (["--seed", "x"], "seed: invalid int"), (["seed", "1"], "unknown flag"),
                          (["--stage", "x"], "choose from '?pretrain"), (["--zzzz", "1"], "unknown flag")]:
        with pytest.raises(UserError, match=message):
            flags(*argv)


@pytest.mark.parametrize("program, argv, flag", [
    (lambda argv: parse_flags(argv, ""), ["--rl_step", "1"], "--rl_steps"),
    (lambda argv: parse_flags(argv, ""), ["--eval_item=1"], "--eval_items"),
    (lambda argv: parse_flags(argv, ""), ["--resum"], "--resume"),
    (sample.parse_args, ["--quer", "a", "--response", "b"], "--query"),
    (sample.parse_args, ["--query", "a", "--respons", "b"], "--response"),
    (preferences.main, ["check", "x.jsonl", "--coun", "3"], "--count")])
def test_no_abbreviations(program, argv, flag):
    """Guards against flags that argparse completes: --eval_item would be taken for --eval_items."""
    with pytest.raises(UserError, match=f"unknown flag .*({flag})"):
        program(argv)


def test_help_shows_every_flag(capsys):
    """Guards against a help text that fails to be printed ('%' in a comment), lacks a flag, its default or
    what it means."""
    with pytest.raises(SystemExit) as stop:
        make_config(["--help"])
    assert stop.value.code == 0
    squeezed = lambda text: "".join(text.split())
    out, source = squeezed(capsys.readouterr().out), inspect.getsource(Config)
    for f in fields(Config):
        comment = re.search(f"^    {f.name}: .*# (.*)$", source, re.MULTILINE)[1]
        default = "" if f.default == "" else f"({f.default})"
        assert squeezed(f"--{f.name} {comment} {default}") in out, f.name
    assert "--resume" in out and "--stage" in out and squeezed(spct.__doc__) in out


def test_presets_and_values(tmp_path):
    """Guards against presets that name unknown fields, flags that lose against the preset, and a run that
    puts its files among others."""
    for preset in PRESETS:
        cfg, _ = make_config(["--preset", preset, "--out", str(tmp_path / "new"), "--device", "cpu"])
        assert cfg.preset == preset
    cfg, _ = make_config(["--preset", "smoke", "--k", "2", "--out", str(tmp_path / "new"), "--device", "cpu"])
    assert cfg.k == 2 and cfg.points == PRESETS["smoke"]["points"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    for argv, message in [(["--preset", "x"], "expected one of"), (["--resume"], "there is no run"),
                          (["--stage", "rl"], "add --resume"),
                          (["--out", str(tmp_path / "full")], "full holds notes.txt, and no run")]:
        with pytest.raises(UserError, match=message):
            make_config(["--out", str(tmp_path / "new"), *argv])


@pytest.mark.parametrize("name, least", [
    ("hinted", 0), ("meta_old", 0), ("threads", 0), ("seed", 0), ("n_rft", 2), ("rl_keep", 2), ("k", 2),
    ("eval_items", 2), ("rl_updates", 1), ("block_size", 368)])
def test_least_values(tmp_path, name, least):
    """Guards against a useful value that is refused (--hinted 0: no hinted samples), and against one that is
    accepted and fails an hour later."""
    check_values(Config(out=str(tmp_path), **{name: least}))
    with pytest.raises(UserError, match=f"--{name} {least - 1}: expected {least} or more"):
        check_values(Config(out=str(tmp_path), **{name: least - 1}))


@pytest.mark.parametrize("values, message", [
    (dict(rl_lr=0.0), "--rl_lr 0.0: expected more than 0"), (dict(beta=-1.0), "--beta -1.0: expected 0"),
    (dict(rl_lr=float("nan")), "--rl_lr nan"), (dict(clip=float("inf")), "--clip inf"),
    (dict(rl_points=50, points=40), "--rl_points 50"), (dict(rl_keep=9), "--rl_keep 9"),
    (dict(noise=1.0), "shares"), (dict(k=12), "power of"),
    (dict(n_embd=36), "--n_embd must be"), (dict(n_kv_head=3), "--n_head of n_kv_head"),
    (dict(block_size=376), "--block_size of 16"), (dict(eval_split="train"), "--eval_split train"),
    (dict(vocab_size=500), "--vocab_size must be"), (dict(dtype="float16"), "--dtype auto, float32 or"),
    (dict(device="mps", dtype="bfloat16"), "--device mps"),
    (dict(pretrain_tokens=0, n_layer=2), "--n_layer 2: the base model that comes")])
def test_values_that_mean_nothing(tmp_path, values, message):
    """Guards against values with which a run would fail, or mean nothing, long after it has begun."""
    check_values(Config(out=str(tmp_path)))
    with pytest.raises(UserError, match=message):
        check_values(Config(**{"out": str(tmp_path), **values}))


def test_what_may_change_on_resume(tmp_path):
    """Guards against a run that goes on with other settings than it has begun with, and against a repeated
    stage whose own settings stay fixed."""
    folder = str(tmp_path)
    before = Config(device="cpu", out=folder, rl_lr=0.5, threads=3)
    (tmp_path / "config.json").write_text(json.dumps(asdict(before)))
    again = lambda *argv: make_config(["--out", folder, *argv])
    assert again("--resume")[0].rl_lr == 0.5       # the folder's own, not the default
    assert again("--resume", "--stage", "rl", "--rl_lr", "0.25")[0].rl_lr == 0.25
    assert again("--resume", "--stage", "rft", "--k", "8")[0].k == 8
    assert again("--resume", "--threads", "0")[0].threads == 3               # 0: as it was measured
    for argv, message in [([], "holds a run already"), (["--resume", "--rl_lr", "1"], "--rl_lr differs"),
                          (["--resume", "--stage", "eval", "--rl_lr", "1"], "--rl_lr differs"),
                          (["--resume", "--stage", "rl", "--rft_lr", "1"], "--rft_lr differs")]:
        with pytest.raises(UserError, match=message):
            again(*argv)
    (tmp_path / "config.json").write_text('{"preset": "cpu"}')
    with pytest.raises(UserError, match="another version"):
        again("--resume")


def test_learning_rate_schedule():
    """Guards against a schedule that starts at 0 (a lost step) or goes below it, and a warm-up that is not as
    long as asked."""
    assert [trapezoid(i, 40, decay=0.3, warmup=5) for i in (0, 3, 4, 27)] == pytest.approx([0.2, 0.8, 1, 1])
    scale = [trapezoid(i, 100) for i in range(100)]
    assert scale[0] > 0 and max(scale) == 1 and 0 < scale[-1] < 0.05 and scale[40] == 1
    assert all(0 < trapezoid(i, steps) <= 1 for steps in (1, 2, 5) for i in range(steps))
