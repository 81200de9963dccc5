import math

import pytest
import torch

import metarm
import model as core
from data import UserError
from data.tokenizer import PAD
from model import GPT, GPTConfig, Optimizer, load_model, orthogonal, pad_left, save_model, token_logp

SMALL = GPTConfig(40, 64, 2, 4, 32)
PROMPTS = [[5, 6, 7], [8] * 2 + [9] * 18, [30, 31, 32, 33, 34], [12]]


def naive_logits(model, ids):
    """An independent forward pass in plain loops: one sequence, one head and one position at a time."""
    H, D = model.cfg.n_head, model.cfg.n_embd // model.cfg.n_head
    unit = lambda v: v / (v.pow(2).mean() + torch.finfo(v.dtype).eps).sqrt()

    def turn(v, position):                         # pairs of channels as complex numbers
        angle = position / 10000 ** (torch.arange(D // 2) / (D // 2))
        z = torch.complex(v[:D // 2], v[D // 2:]) * torch.polar(torch.ones(D // 2), angle)
        return torch.cat([z.real, z.imag])

    x = [unit(model.wte.weight[i]) for i in ids]
    for block in model.blocks:
        heads = [(block.attn.qkv.weight @ unit(v)).split(D) for v in x]      # H queries, a key, a value
        out = []
        for t in range(len(x)):
            parts = []
            for h in range(H):
                q = turn(heads[t][h], t)
                w = torch.stack([q @ turn(heads[s][H], s) / math.sqrt(D) for s in range(t + 1)]).softmax(0)
                parts.append(sum(w[s] * heads[s][H + 1] for s in range(t + 1)))
            out.append(block.attn.proj.weight @ torch.cat(parts))
        x = [a + b for a, b in zip(x, out)]
        x = [v + block.mlp.proj.weight @ (block.mlp.fc.weight @ unit(v)).relu() ** 2 for v in x]
    return torch.stack([model.wte.weight @ unit(v) for v in x])


@torch.no_grad()
def test_forward_equals_plain_loops(tiny):
    """Guards against a wrong rotary angle, scale, order of heads or mask. The rows of a padded batch must
    have the logits of each row alone, whatever stands in the padding."""
    model = tiny()
    for value in (PAD, 17):
        ids, padding = pad_left(PROMPTS, value)
        logits = model.logits(model(ids, padding))
        for row, pad, prompt in zip(logits, padding, PROMPTS):
            torch.testing.assert_close(row[pad:], naive_logits(model, prompt), rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(model.logits(model(ids[:, -4:]))[2], naive_logits(model, PROMPTS[2][-4:]),
                               rtol=1e-4, atol=2e-4)
    x = model.bfloat16()(ids, padding)             # which its float32 angles and mask must not change
    assert x.dtype == torch.bfloat16 and model.logits(x).dtype == torch.float32


@torch.no_grad()
def test_cache_equals_no_cache(tiny):
    """Guards against wrong positions or masks in the cache: a ragged batch, copied to some of its rows (one
    of them twice), continued by one and by several tokens, a row dropped on the way."""
    model, gen = tiny(), torch.Generator().manual_seed(2)
    ids, padding = pad_left(PROMPTS)
    cache = model.new_cache(padding, ids.size(1))
    model(ids, cache=cache)
    rows = [2, 0, 0, 1]
    texts, cache = [list(PROMPTS[row]) for row in rows], cache.select(torch.tensor(rows), 5)
    for t, size in enumerate((1, 3, 1, 2)):
        if t == 2:                                 # the third row has ended
            cache, texts = cache.select(torch.tensor([0, 1, 3]), 3), [texts[0], texts[1], texts[3]]
        more = torch.randint(0, 40, (len(texts), size), generator=gen)
        x = model(more, cache=cache)
        for b, text in enumerate(texts):
            text += more[b].tolist()
            torch.testing.assert_close(x[b], model(torch.tensor([text]))[0, -size:], rtol=1e-4, atol=1e-4)
    assert cache.length == ids.size(1) + 7


@torch.no_grad()
def test_token_logp_equals_loop(tiny):
    """Guards against an off-by-one between tokens and predictions, and against padding in the result."""
    model = tiny()
    masks = [[0, 1, 1], [1] + [0, 1] * 9 + [1], [0, 0, 1, 0, 0], [1]]
    ids, padding = pad_left(PROMPTS)
    mask = pad_left(masks, False)[0].bool()
    expected, tokens = [], []
    for row, learned in zip(PROMPTS, masks):
        for t in range(1, len(row)):
            if learned[t]:
                expected.append(model.logits(model(torch.tensor([row[:t]])))[0, -1])
                tokens.append(row[t])
    mask[torch.arange(4), padding] = False         # nothing precedes the first token of a row
    logits, targets = core.token_logits(model, ids, mask, padding)
    torch.testing.assert_close(logits, torch.stack(expected), rtol=1e-4, atol=2e-4)
    logp = torch.stack([row.softmax(0)[token].log() for row, token in zip(expected, tokens)])
    torch.testing.assert_close(token_logp(model, ids, mask, padding), logp, rtol=1e-4, atol=2e-4)
    assert targets.tolist() == tokens
    assert len(token_logp(model, ids[:, -3:], torch.ones(4, 3, dtype=torch.bool))) == 8   # of 12


def test_pad_left():
    """Guards against padding on the right, of the wrong length, or to a shape of its own for each batch."""
    assert pad_left([[1, 2, 3], (4,)], 9)[0].tolist() == [[9] * 13 + [1, 2, 3], [9] * 15 + [4]]
    assert [pad_left([[1] * n])[0].size(1) for n in (1, 16, 17, 33)] == [16, 16, 32, 48]
    assert pad_left([[7]])[0][0, 0] == PAD


def test_learning_rate():
    """Guards against a schedule that starts at the peak, never reaches it, or does not end near zero."""
    assert [core.learning_rate(2.0, step, 10, warmup=5, decay=0.3) for step in range(10)] == pytest.approx(
        [0.4, 0.8, 1.2, 1.6, 2, 2, 2, 2, 4 / 3, 2 / 3])
    assert [core.learning_rate(1.0, step, 4) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 0.5])


def give_gradients(gen, scale, *models):
    for params in zip(*(model.parameters() for model in models)):
        grad = torch.randn(params[0].shape, generator=gen) * scale
        for p in params:
            p.grad = grad.clone()


@pytest.mark.parametrize("dtype, apart", [(torch.float32, 1e-6), (torch.bfloat16, 1e-3)])
def test_optimizer_is_muon_and_adamw(monkeypatch, dtype, apart):
    """Guards against matrices that are mixed up, a wrong side for tall ones, a wrong momentum or rate, a
    parameter that nobody updates, gradients that are kept, and a clip at another norm. The oracle is
    torch's own Muon, which takes the matrices one by one, and Adam in plain loops."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x.to(dtype))     # torch's Muon always uses it
    dtypes = set()
    monkeypatch.setattr("model.orthogonal", lambda g: dtypes.add(g.dtype) or orthogonal(g))
    ours, theirs = metarm.from_policy(GPT(SMALL, 1)), metarm.from_policy(GPT(SMALL, 1))
    opt, gen = Optimizer(ours, dtype), torch.Generator().manual_seed(1)
    inside = list(theirs.gpt.blocks.parameters())
    outside = [theirs.gpt.wte.weight, theirs.head.weight, theirs.head.bias]
    muon = torch.optim.Muon(inside, lr=0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    m, v = ([torch.zeros_like(p) for p in outside] for _ in range(2))
    for step, (scale, lr) in enumerate([(1e-3, 1e-2), (0.1, 1e-2), (1e-3, 3e-3), (1e-3, 1e-2)]):
        give_gradients(gen, scale, ours, theirs)
        norm = math.sqrt(sum(p.grad.pow(2).sum().item() for p in theirs.parameters()))
        assert opt.step(lr) == pytest.approx(norm, rel=1e-4) and (norm > 1) == (step == 1)
        assert all(p.grad is None for p in ours.parameters())
        for p in theirs.parameters():
            p.grad /= max(1.0, norm)
        muon.param_groups[0]["lr"] = lr
        muon.step()
        with torch.no_grad():
            for i, p in enumerate(outside):
                m[i], v[i] = 0.9 * m[i] + 0.1 * p.grad, 0.95 * v[i] + 0.05 * p.grad ** 2
                p -= lr * m[i] / (1 - 0.9 ** (step + 1)) / ((v[i] / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8)
    assert dtypes == {dtype} and (orthogonal(torch.zeros(1, 2, 3)) == 0).all()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters()):
        assert (p - q).abs().max() < (apart if "blocks" in name else 1e-5), name


def test_optimizer_refuses_what_is_not_finite():
    """Guards against training on through a NaN."""
    model = GPT(SMALL)
    for bad in (float("nan"), float("inf")):
        give_gradients(torch.Generator(), 1.0, model)
        model.wte.weight.grad[3, 3] = bad
        with pytest.raises(UserError, match="not finite. Start again with a lower learning rate"):
            Optimizer(model).step(1e-2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), GPT(SMALL).parameters()))


@torch.no_grad()
def test_a_new_model():
    """Guards against weights of the global generator, and blocks that do not start as the identity."""
    cfg = GPTConfig(704, 368, 4, 4, 128)
    a, b, c = (GPT(cfg, seed) for seed in (5, 5, 6))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.wte.weight, c.wte.weight)
    for p, std in ((a.wte.weight, 0.02), (a.blocks[3].attn.qkv.weight, 0.5 / 128 ** 0.5),
                   (a.blocks[0].mlp.fc.weight, 0.5 / 128 ** 0.5)):
        assert abs(p.std() / std - 1) < 0.02 and p.mean().abs() < 0.1 * std
    assert all((p == 0).all() == ("proj" in name) for name, p in a.named_parameters())


@torch.no_grad()
def test_reward_model_reads_the_last_token(tiny):
    """Guards against a reward that is read off another token, that padding changes, that is not undecided at
    first, or that is rounded so that different judgements tie."""
    model = metarm.from_policy(tiny())
    assert model(*pad_left(PROMPTS)).tolist() == [0.0] * 4
    model.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    model.head.bias.data.fill_(0.7)
    for row, reward in zip(PROMPTS, model(*pad_left(PROMPTS))):
        last = model.gpt(torch.tensor([row]))[0, -1]
        torch.testing.assert_close(reward, (last @ model.head.weight[0]) + 0.7, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(*pad_left(PROMPTS))
    assert rounded.dtype == torch.float32 and (rounded != rounded.bfloat16()).any()


def test_model_files(tiny, tmp_path):
    """Guards against weights that change when they are kept, and a traceback for a file that is damaged,
    missing, or of another kind."""
    path = str(tmp_path / "m.pt")
    for model in (tiny(seed=1), metarm.from_policy(tiny(seed=2))):
        save_model(path, model)
        again = load_model(path)
        assert type(again) is type(model) and again.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters()))
    assert load_model(path).gpt.cfg == SMALL and isinstance(again, core.RewardModel)
    with pytest.raises(UserError, match="none.pt not found. Train it with `python spct.py`"):
        load_model(str(tmp_path / "none.pt"))
    whole, saved = (tmp_path / "m.pt").read_bytes(), torch.load(path, weights_only=True)
    config = lambda **change: {**saved, "config": {**saved["config"], **change}}
    for other in (b"", b"hello", whole[:100], whole[:-1], [1], {}, config(n_embd=16), config(n_kv_head=1),
                  {**saved, "weights": {}}, {"weights": saved["weights"]}):
        if isinstance(other, bytes):
            (tmp_path / "m.pt").write_bytes(other)
        else:
            torch.save(other, path)
        with pytest.raises(UserError, match="m.pt cannot be read .* Delete it, and train it again"):
            load_model(path)
