"""The rules of RFT and RL, the losses and the settings, against hand counts and exact sums."""

import copy
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import metarm
import report
import spct
from data import UserError
from data.judgement import Judgement, prompt_parts
from data.tokenizer import END, HINT, PAD
from data.world import Item, make_items
from model import GPT, GPTConfig, token_logp
from sample import judge
from spct import Config, group_advantages, kl_k2, kl_k3, micro_batches


def judgement(scores=None, prompt=(3, 4), ids=(5, 6, END), item="x"):
    return Judgement(item, 0, [0, 1], 0, list(prompt), list(ids), 0.0, scores=scores)


ITEM = Item("x", "sums", "q", ["a", "b"], [9, 2])
GOOD, BAD, TIE, FAILED = judgement([8, 3]), judgement([3, 8]), judgement([5, 5]), judgement(None)

# ----------------------------------------------------------------------------------------
# RFT

def test_rejection():
    """Guards against RFT that keeps incorrect samples, or items on which every sample is correct."""
    assert spct.keep([GOOD, BAD, GOOD], ITEM) == [GOOD, GOOD]
    assert spct.keep([GOOD, GOOD, GOOD], ITEM) == [] == spct.keep([BAD, TIE, FAILED], ITEM)
    assert spct.keep_hinted([GOOD, BAD, FAILED], ITEM) == [GOOD]
    assert spct.too_easy([GOOD], ITEM) and not spct.too_easy([GOOD, TIE], ITEM)
    assert [spct.reward(j, ITEM) for j in (GOOD, BAD, TIE, FAILED)] == [1.0, -1.0, -1.0, -1.0]


def test_finetune_learns_judgements_without_hint_and_general_text(tok, monkeypatch):
    """Guards against training on the hint, on prompts, and against a wrong share of general text."""
    seen = {}
    monkeypatch.setattr(spct, "train_lm", lambda cfg, name, model, ids, learned, *more: seen.update(
        ids=ids, learned=learned, more=more, model=model))
    prompt, hinted = (tok.encode(prompt_parts("q", ["a", "b"], hint)) for hint in (None, 0))
    assert HINT in hinted and spct.forget_hint(hinted) == prompt == spct.forget_hint(prompt)
    kept = [judgement([8, 3], hinted, (15, 16, END)), judgement([8, 3], prompt, (17, END))]
    base = torch.nn.Linear(1, 1)
    spct.finetune(Config(rft_general=0.75), tok, base, kept)
    flat, learned = seen["ids"].flatten().tolist(), seen["learned"].flatten()
    assert HINT not in flat and seen["model"] is not base
    assert flat.count(END) == 2 + 6                # three general texts for each judgement
    for tail in ((15, 16, END), (17, END)):
        document = prompt + list(tail)
        start = next(i for i in range(len(flat)) if flat[i:i + len(document)] == document)
        assert not learned[start:start + len(prompt)].any()
        assert learned[start + len(prompt):start + len(document)].all()
    assert seen["more"] == (Config().rft_lr, Config().rft_rows, Config().rft_epochs)


def test_train_lm_is_plain_next_token_training(tmp_path):
    """Guards against rows that are seen twice or not at all, a loss over padding, and metrics without steps."""
    cfg = Config(out=str(tmp_path), device="cpu", dtype="float32")
    ids = np.random.default_rng(0).integers(13, 40, (6, 16)).astype(np.int16)
    learned = np.random.default_rng(1).random((6, 16)) < 0.5
    model = GPT(GPTConfig(40, 16, 1, 2, 16), seed=1)
    before = copy.deepcopy(model)
    spct.train_lm(cfg, "rft", model, ids, learned, 1e-3, 2, epochs=2)
    lines = [json.loads(line) for line in open(tmp_path / "metrics-rft.jsonl")]
    assert [line["step"] for line in lines] == list(range(6))
    assert {"loss", "lr", "grad_norm"} <= set(lines[0])
    losses = []                                    # of the first step: one of the pairs of rows, before training
    for rows in itertools.permutations(range(6), 2):
        x, m = torch.tensor(ids[list(rows)].astype(int)), torch.tensor(learned[list(rows)])
        losses.append(-token_logp(before, x, m).mean().item())
    assert min(abs(loss - lines[0]["loss"]) for loss in losses) < 1e-4
    with pytest.raises(UserError, match="rft: the documents fill 1 rows, but a step takes 2"):
        spct.train_lm(cfg, "rft", model, ids[:1], learned[:1], 1e-3, 2)

# ----------------------------------------------------------------------------------------
# RL: the formulas

def test_advantages():
    """Guards against groups that mix, 0/0 where all rewards are equal, and a wrong scale."""
    rewards = torch.tensor([[1.0, 1, 1, 1], [-1, -1, -1, -1], [1, -1, -1, -1], [1, 1, -1, -1]])
    advantages = group_advantages(rewards)
    assert torch.equal(advantages[:2], torch.zeros(2, 4))
    for row, r in zip(advantages[2:], rewards[2:]):
        torch.testing.assert_close(row, (r - np.mean(r.tolist())) / np.std(r.tolist()))
    changed = torch.cat([rewards[:2], -rewards[2:3], rewards[3:]])
    assert torch.equal(group_advantages(changed)[3], advantages[3])
    assert not group_advantages(torch.full((1, 6), 0.9)).any()               # their mean is rounded


def test_kl_estimators_against_the_exact_kl():
    """Guards against a reversed log ratio, and against k1 in the loss: over a small vocabulary every
    expectation is a sum. k3's mean is the KL. k2's expected gradient is the KL's; k1's is 0, k3's is another."""
    gen = torch.Generator().manual_seed(0)
    logits, ref = torch.randn(7, generator=gen).requires_grad_(), torch.randn(7, generator=gen)
    p, q = logits.log_softmax(-1), ref.log_softmax(-1)
    kl, prob = (p.exp() * (p - q)).sum(), p.detach().exp()
    torch.testing.assert_close((prob * kl_k3(p, q)).sum(), kl)
    assert kl > 0.1 and (kl_k3(p, q) >= 0).all() and (kl_k2(p, q) >= 0).all()
    grad = lambda loss: torch.autograd.grad(loss, logits, retain_graph=True)[0]
    torch.testing.assert_close(grad((prob * kl_k2(p, q)).sum()), grad(kl))
    assert grad((prob * (p - q)).sum()).abs().max() < 1e-6
    assert not torch.allclose(grad((prob * kl_k3(p, q)).sum()), grad(kl), rtol=0.1)


def test_k3_is_accurate_near_zero():
    """Guards against exp(x) - 1 in float32: for log ratios of 1e-5 it is negative or far off."""
    log_ratio = 1e-5 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    exact = torch.expm1(log_ratio.double()) - log_ratio.double()
    measured = kl_k3(torch.zeros(1000), log_ratio)
    assert abs(measured.mean() / exact.mean() - 1) < 0.5 and measured.min() > -1e-11


def test_micro_batches():
    """Guards against lost judgements, learned tokens in prompts or padding, and advantages of other tokens."""
    js = [judgement(prompt=[3] * (1 + i % 5), ids=[5 + i] * (1 + i % 7) + [END]) for i in range(10)]
    seen = []
    for ids, learned, padding, advantage in micro_batches(js, torch.arange(10.0), 4, "cpu"):
        assert len(ids) <= 4
        assert ((ids == PAD) == (torch.arange(ids.size(1)) < padding[:, None])).all()
        start = 0
        for row, m in zip(ids, learned):
            count = int(m.sum())
            i = int(row[m][0]) - 5
            assert row[m].tolist() == js[i].ids and row[~m & (row != PAD)].tolist() == js[i].prompt
            assert (advantage[start:start + count] == i).all()
            start += count
            seen.append(i)
        assert start == len(advantage)
    assert sorted(seen) == list(range(10))

# ----------------------------------------------------------------------------------------
# RL: the loop, with judgements that are given instead of sampled

@pytest.fixture
def rl(tiny, tmp_path, monkeypatch):
    """rl(judgements, ...) -> the reference, the policy after one step, and the line of metrics."""
    def run(groups, items, start=None, **fields):
        cfg = Config(out=str(tmp_path), device="cpu", dtype="float32", rl_steps=1, rl_items=len(items),
                     group=len(groups[0]), **{"rl_lr": 5e-3, **fields})
        monkeypatch.setattr(spct, "judge", lambda *args, **more: groups)
        monkeypatch.setattr(report, "describe", lambda *args: {})
        reference = tiny()
        if start is not None:                      # the policy starts elsewhere than the reference
            monkeypatch.setattr(copy, "deepcopy", lambda model: start)
        policy = spct.reinforce(cfg, SimpleNamespace(readable=str), reference, items)
        monkeypatch.undo()
        return reference, policy, json.loads(open(tmp_path / "metrics-rl.jsonl").readline())
    return run


def logp_of(model, j):
    ids = torch.tensor([j.prompt + j.ids])
    return token_logp(model, ids, torch.arange(ids.size(1))[None] >= len(j.prompt)).sum()


def test_a_step_raises_the_correct_and_lowers_the_incorrect(rl):
    """Guards against a sign error anywhere between reward and optimizer."""
    better, worse = judgement([8, 3], ids=(7, 8, END)), judgement([3, 8], ids=(21, 22, 23, END))
    reference, policy, metrics = rl([[better, worse]], [ITEM])
    assert logp_of(policy, better) > logp_of(reference, better)
    assert logp_of(policy, worse) < logp_of(reference, worse)
    assert abs(metrics["kl"]) < 1e-6 and metrics["reward"] == 0 and metrics["zero_variance"] == 0


def test_the_gradient_is_that_of_one_batch(rl):
    """Guards against a loss that is averaged for each micro-batch or judgement: 70 judgements give the gradient
    of a mean over all their tokens. The entropy is a mean over the same tokens."""
    items = [Item(f"i{i}", "sums", "q", ["a", "b"], [9, 2]) for i in range(35)]
    groups = [[judgement(scores, [3] * (1 + i % 5), [5 + i % 30] * (1 + (i + n) % 7) + [END])
               for n, scores in enumerate(([8, 3], [3, 8]))] for i in range(35)]
    reference, _, metrics = rl(groups, items, beta=0.5)
    tokens = sum(len(j.ids) for group in groups for j in group)
    loss = sum(-logp_of(reference, j) * sign for group in groups for j, sign in zip(group, (1, -1))) / tokens
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in reference.parameters()]).norm()
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-3)
    entropy = 0.0
    for j in (j for group in groups for j in group):
        ids = torch.tensor([j.prompt + j.ids])
        logp = reference.logits(reference(ids))[0, len(j.prompt) - 1:-1].log_softmax(-1)
        entropy -= (logp.exp() * logp).sum().item() / tokens
    assert metrics["entropy"] == pytest.approx(entropy, rel=1e-3)


def test_the_kl_term_pulls_back_to_the_reference(rl, tiny):
    """Guards against a KL penalty that pushes away from the reference, or that has no weight."""
    def elsewhere():
        model = tiny()
        for p, q in zip(model.parameters(), tiny(seed=1).parameters()):
            p.data = 0.9 * p.data + 0.1 * q.data
        return model
    js = [judgement([8, 3], (3,), [*ids, END]) for ids in itertools.product((5, 6, 7), repeat=2)]
    before, distance = elsewhere(), lambda a, b: sum((logp_of(a, j) - logp_of(b, j)).item() ** 2 for j in js)
    reference, policy, metrics = rl([js], [ITEM], start=elsewhere(), beta=1.0)
    assert 0 < distance(policy, reference) < distance(before, reference) and metrics["kl"] > 0
    loss = sum((0.5 * (token_logp(before, *x) - token_logp(reference, *x).detach()) ** 2).sum() for x in [
        (torch.tensor([j.prompt + j.ids]), torch.tensor([[False] + [True] * 3])) for j in js]) / 27
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in before.parameters()]).norm()
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-3)


def test_rl_samples_the_policy_at_temperature_1_in_the_item_order(tok, tmp_path, monkeypatch):
    """Guards against RL on a tempered distribution, on other samples in each step than the seed says, on the same
    items in every step, and against rollouts that are not kept."""
    calls = []
    def spy(model, tok, items, k, seed, temperature=1.0, shuffle=True):
        calls.append(([item.id for item in items], k, seed, temperature, shuffle))
        return judge(model, tok, items, k, seed, temperature, shuffle)
    monkeypatch.setattr(spct, "judge", spy)
    items = make_items(0, "train", 3)
    cfg = Config(out=str(tmp_path), device="cpu", dtype="float32", rl_steps=2, rl_items=2, group=2)
    spct.reinforce(cfg, tok, GPT(GPTConfig(tok.vocab_size, 160, 1, 2, 16)), items)
    assert [call[0] for call in calls] == [[items[0].id, items[1].id], [items[2].id, items[0].id]]
    assert {call[1] for call in calls} == {2} and len({call[2] for call in calls}) == 2
    assert all(call[3:] == (1.0, False) for call in calls)
    assert [group[0].item for group in spct.read_judgements(tmp_path / "judgements-rl.jsonl")] == [
        id for call in calls for id in call[0]]
    with pytest.raises(UserError, match="2 items are left for RL"):
        spct.reinforce(Config(rl_items=3), tok, None, items[:2])

# ----------------------------------------------------------------------------------------
# Meta RM

def test_meta_rm_learns_to_tell(tiny, tmp_path):
    """Guards against exchanged labels, a model that is not trained, and items that are all correct: they are
    left out."""
    items = [Item(f"i{i}", "sums", "q", ["a", "b"], [9, 2]) for i in range(40)]
    groups = [[judgement([8, 3], (3, 4), (7, 8, END), item.id), judgement([3, 8], (3, 4), (21, END), item.id)]
              for item in items]
    easy = Item("easy", "sums", "q", ["a", "b"], [9, 2])
    groups.append([judgement([8, 3], (3,), (30, END), "easy")] * 8)
    cfg = Config(out=str(tmp_path), device="cpu", dtype="float32", meta_batch=8, meta_lr=1e-2)
    model = spct.train_meta_rm(cfg, tiny(), groups, [*items, easy])
    metarm.rate(model, groups)
    assert groups[0][0].meta > 0.2 and groups[0][1].meta < -0.2
    assert len(open(tmp_path / "metrics-meta.jsonl").readlines()) == 10      # 80 judgements
    with pytest.raises(UserError, match="nothing to learn"):
        spct.train_meta_rm(cfg, tiny(), groups[-1:], [easy])

# ----------------------------------------------------------------------------------------
# Settings

def test_flags_and_presets(tmp_path):
    """Guards against flags that lose against the preset, are read as another type, or are completed."""
    for preset, fields in spct.PRESETS.items():
        if preset != "short":                      # it needs the bundled base model
            cfg = spct.parse_args(["--preset", preset, "--device", "cpu", "--rl_lr", "0.5"])
            assert all(getattr(cfg, name) == value for name, value in {**fields, "rl_lr": 0.5}.items())
    assert spct.parse_args(["--preset", "auto", "--device", "cpu"]).preset == "cpu"
    assert spct.parse_args(["--preset", "smoke", "--seed", "3"]).out.replace("\\", "/") == "runs/smoke-seed3"
    for argv in (["--rl_step", "3"], ["--seed", "x"], ["smoke"]):
        with pytest.raises(SystemExit):
            spct.parse_args(argv)
    with pytest.raises(UserError, match="smoke, short, cpu, gpu"):
        spct.parse_args(["--preset", "huge"])


@pytest.mark.parametrize("values, message", [
    (dict(rl_lr=0.0), "--rl_lr 0.0"), (dict(beta=-1.0), "--beta -1.0"), (dict(rl_lr=math.nan), "--rl_lr nan"),
    (dict(beta=math.inf), "--beta inf"), (dict(group=1), "--group 1"), (dict(items=0), "--items 0"),
    (dict(rl_items=50, items=40), "--rl_items must"), (dict(rft_general=1.0), "--rft_general"),
    (dict(k=12), "power of two"), (dict(n_embd=36), "--n_embd must"), (dict(block_size=367), "--block_size 367"),
    (dict(eval_split="train"), "--eval_split must"), (dict(dtype="float16"), "--dtype must"),
    (dict(rl_items=1), "--rl_items 1"), (dict(vocab_size=599), "--vocab_size 599"),
    (dict(eval_items=3), "--eval_items 3"), (dict(temperature=1e-38), "--temperature 1e-38"),
    (dict(pretrain_tokens=0, n_layer=2), "--n_layer must be 4 with the bundled")])
def test_settings_that_mean_nothing(values, message):
    """Guards against settings with which a run would fail, or mean nothing, long after it has begun; and against
    a bound that refuses what is useful."""
    spct.check(Config(beta=0.0, seed=0, group=2, rft_general=0.0, k=2, eval_items=4))
    with pytest.raises(UserError, match=message):
        spct.check(Config(**values))


def test_what_may_change_in_a_folder(tmp_path):
    """Guards against a run that goes on with other settings than it has begun with, and against settings of
    later stages that cannot be changed before these have begun."""
    cfg = lambda **fields: Config(**{"out": str(tmp_path), "device": "cpu", "dtype": "float32", "threads": 1,
                                     **fields})
    assert "base.pt" in spct.files_that_depend_on("pretrain_lr")
    assert "base.pt" not in spct.files_that_depend_on("items")               # the next stage's first field
    spct.open_folder(cfg())
    spct.open_folder(cfg(seed=1))                  # nothing depends on it yet
    (tmp_path / "base.pt").touch()
    with pytest.raises(UserError, match="--seed 1.*base.pt"):
        spct.open_folder(cfg())
    with pytest.raises(UserError, match="--n_layer 4"):
        spct.open_folder(cfg(seed=1, n_layer=3))
    spct.open_folder(cfg(seed=1, n_rft=4, beta=0.5, preset="mine"))
    (tmp_path / "rl.pt").touch()
    (tmp_path / "judgements-base-ood.jsonl").touch()
    with pytest.raises(UserError, match=r"--beta 0.5.*rl.pt judgements-\*-\*.jsonl"):
        spct.open_folder(cfg(seed=1, n_rft=4))
    again = cfg(seed=1, n_rft=4, beta=0.5, dtype="auto", threads=0)
    spct.open_folder(again)
    assert (again.dtype, again.threads) == ("float32", 1)                    # as the run was begun
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        spct.open_folder(cfg())
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="no --seed in its config.json"):
        spct.open_folder(cfg())


def test_seconds_by_stage(tmp_path):
    """Guards against a stage that counts twice because it was repeated, and seconds of another stage."""
    cfg = Config(out=str(tmp_path))
    assert spct.seconds_by_stage(cfg) == dict.fromkeys(spct.STAGES, 0)       # all files were copied
    lines = [["base.pt", 5], ["rl.pt", 3], ["rl.pt", 1.25], ["judgements-rl-ood.jsonl", 9]]
    (tmp_path / "seconds.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert list(spct.seconds_by_stage(cfg).values()) == [5, 0, 1.2, 0, 9]


def test_evaluation_sets():
    """Guards against votes at another temperature, greedy judgements that are sampled, accuracies of single
    responses, and evaluation on items of training."""
    sets = spct.evaluation_sets(Config(temperature=0.3, eval_items=10, eval_split="val"), "rl")
    assert {name: (len(items), k, T) for name, (items, k, T) in sets.items()} == {
        "greedy": (10, 1, 0), "votes": (10, 32, 0.3), "ood-greedy": (5, 1, 0), "ood": (5, 8, 0.3),
        "single": (5, 1, 0)}
    assert all(item.n >= 2 and item.split == "val" for item in sets["votes"][0])
    assert all(item.n >= 2 and item.split == "ood" for item in sets["ood"][0])
    assert all(item.n == 1 and item.split == "val" for item in sets["single"][0])
    assert spct.evaluation_sets(Config(eval_items=4), "base")["votes"][1] == 8
