import math

import pytest
import torch
import torch.nn.functional as F

import model as gpt
from data import UserError
from model import GPT, GPTConfig, Optimizer, RewardModel, attend, orthogonal, pad_rows, token_logp


def naive_logits(model, ids):
    """An independent forward pass in plain loops: one sequence, one head and one position at a time."""
    cfg, D = model.cfg, model.cfg.n_embd // model.cfg.n_head
    unit = lambda v: v / (v.pow(2).mean(-1, keepdim=True) + torch.finfo(v.dtype).eps).sqrt()

    def turn(v, pos):                              # rotate pairs of neighbours
        out = []
        for i in range(D // 2):
            a, b, angle = v[2 * i], v[2 * i + 1], pos / 10000 ** (i / (D // 2))
            out += [a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)]
        return torch.stack(out)

    x = [unit(model.wte.weight[i]) for i in ids]
    for block in model.blocks:
        W = block.attn.qkv.weight
        heads = [(W @ unit(v)).split(D) for v in x]        # per position: H queries, K keys, K values
        out = []
        for t in range(len(x)):
            parts = []
            for h in range(cfg.n_head):
                g = h // (cfg.n_head // cfg.n_kv_head)
                q = turn(heads[t][h], t)
                w = torch.stack([q @ turn(heads[s][cfg.n_head + g], s) / math.sqrt(D)
                                 for s in range(t + 1)]).softmax(0)
                parts.append(sum(w[s] * heads[s][cfg.n_head + cfg.n_kv_head + g] for s in range(t + 1)))
            out.append(block.attn.proj.weight @ torch.cat(parts))
        x = [a + b for a, b in zip(x, out)]
        x = [v + block.mlp.proj.weight @ (block.mlp.fc.weight @ unit(v)).relu() ** 2 for v in x]
    return torch.stack([model.wte.weight @ unit(v) for v in x])


@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
def test_forward_equals_plain_loops(tiny, n_kv_head):
    """Guards against a wrong rotary angle, scale, head grouping or mask in the fast forward pass."""
    model = tiny(n_kv_head=n_kv_head)
    ids = torch.randint(0, 40, (9,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model.logits(model(ids[None]))[0], naive_logits(model, ids.tolist()),
                                   rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
def test_rotary_is_complex_multiplication(tiny, monkeypatch, n_kv_head):
    """Guards against pairs of channels that are turned the wrong way, by another pair's angle or by another
    position's: the same model, with its rotation as a product of complex numbers."""
    def turned(x, _):                              # x: one dimension is T, the last one D
        D, shape = x.size(-1), [T if size == T else 1 for size in x.shape[:-1]]
        angle = torch.arange(T)[:, None] / 10000 ** (torch.arange(D // 2) / (D // 2))              # (T, D/2)
        turn = torch.polar(torch.ones_like(angle), angle).view(*shape, D // 2)
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)

    model, T = tiny(n_kv_head=n_kv_head), 61
    model.wte.weight.data *= 0.4                   # logits of size 1
    ids = torch.randint(0, 40, (3, T), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = model.logits(model(ids))
        monkeypatch.setattr(gpt, "rotate", turned)
        torch.testing.assert_close(ours, model.logits(model(ids)), rtol=0, atol=1e-5)
        monkeypatch.setattr(gpt, "rotate", lambda x, turn: x)                # it matters
        assert (ours - model.logits(model(ids))).abs().max() > 0.1


@pytest.mark.parametrize("n_kv_head", [1, 2])
def test_cached_equals_uncached(tiny, n_kv_head):
    """Guards against wrong positions or masks in the cache: a ragged batch, prefilled, copied to some of its
    rows (one of them twice), continued token by token, some rows dropped on the way, against each sequence
    alone without a cache."""
    model, gen = tiny(n_kv_head=n_kv_head), torch.Generator().manual_seed(2)
    prompts = [torch.randint(0, 40, (n,), generator=gen).tolist() for n in (3, 11, 7)]
    more = torch.randint(0, 40, (6, 6), generator=gen)
    rows = [2, 0, 0, 1]
    with torch.no_grad():
        cache = model.prefill(*pad_rows(prompts)).select(torch.tensor(rows), 3)
        texts = [list(prompts[row]) for row in rows]
        for t in range(6):
            if t == 3:                             # the third row has ended
                cache, texts = cache.select(torch.tensor([0, 1, 3]), 3), [texts[0], texts[1], texts[3]]
            x = model.step(more[:len(texts), t], cache)
            for b, text in enumerate(texts):
                text.append(int(more[b, t]))
                torch.testing.assert_close(x[b], model(torch.tensor([text]))[0, -1], rtol=1e-4, atol=1e-5)


def test_no_look_ahead(tiny):
    """Guards against a mask that lets a token see what follows it."""
    model = tiny()
    a, b = torch.arange(10)[None], torch.arange(10)[None].clone()
    b[0, 6:] = 33
    with torch.no_grad():
        assert torch.equal(model(a)[0, :6], model(b)[0, :6])
        assert not torch.allclose(model(a)[0, 6], model(b)[0, 6])


def test_forward_at_some_tokens_is_a_part_of_the_whole(tiny):
    """Guards against tokens that are dropped before another token of a later layer has seen them."""
    model = tiny()
    ids = torch.randint(0, 40, (3, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.rand(3, 20, generator=torch.Generator().manual_seed(2)) < 0.3
    with torch.no_grad():
        torch.testing.assert_close(model(ids, mask.flatten().nonzero()[:, 0]), model(ids)[mask])
        assert model(ids, torch.arange(0)).shape == (0, 32)


def test_token_logp_equals_loop(tiny):
    """Guards against an off-by-one between tokens and predictions, and against padding in the result."""
    model = tiny()
    rows, masks = [[5, 6, 7, 8, 9], [11, 12, 13]], [[0, 0, 1, 1, 1], [0, 1, 1]]
    ids, _ = pad_rows(rows)
    mask, _ = pad_rows(masks)
    with torch.no_grad():
        logp = token_logp(model, ids, mask.bool())
    expected = []
    for row, m in zip(rows, masks):
        for t in range(len(row)):
            if m[t]:
                p = model.logits(model(torch.tensor([row[:t]])))[0, -1].detach().softmax(0)
                expected.append(math.log(p[row[t]].item()))
    torch.testing.assert_close(logp, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_reward_model_ignores_padding():
    """Guards against a reward that is read off a PAD position, or that padding changes."""
    model = RewardModel(GPTConfig(40, 64, 2, 4, 1, 32))
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) * 0.3
    rows = [[4, 5, 6, 7, 8, 9], [20, 21, 22]]
    together = model(*pad_rows(rows))
    for row, reward in zip(rows, together):
        torch.testing.assert_close(model(*pad_rows([row]))[0], reward, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(*pad_rows([row], value=5))[0], reward, rtol=1e-4, atol=1e-5)


def test_starts_uniform_and_reproducible():
    """Guards against weights drawn from the global generator, and against a first loss far from log V."""
    torch.manual_seed(1)
    cfg = GPTConfig(704, 368, 4, 4, 1, 128)
    a = GPT(cfg, seed=5)
    torch.manual_seed(2)
    b = GPT(cfg, seed=5)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert any(not torch.equal(p, q) for p, q in zip(a.parameters(), GPT(cfg, seed=6).parameters()))
    ids = torch.arange(13, 53)[None]
    logp = token_logp(a, ids, ids > 0)
    assert abs(-logp.mean() - math.log(704)) < 0.1


def test_optimizer_covers_every_parameter_and_fails_loudly():
    """Guards against a parameter that no optimizer owns, and against training on through a NaN."""
    model = RewardModel(GPTConfig(40, 64, 2, 4, 1, 32))
    opt = Optimizer(model, 1e-2)
    assert {id(p) for p in opt.params} == {id(p) for p in model.parameters()}
    before = [p.clone() for p in model.parameters()]
    for _ in range(4):              # head and projections start at zero: what lies before them moves later
        model(*pad_rows([[1, 2, 3], [4, 5]])).sum().backward()
        opt.step()
    changed = [not torch.equal(p, q) for p, q in zip(before, model.parameters())]
    assert all(changed)
    (model(*pad_rows([[1, 2, 3]])).sum() * float("nan")).backward()
    with pytest.raises(UserError, match="not finite"):
        opt.step()


@pytest.mark.parametrize("dtype, apart", [(torch.float32, 1e-6), (torch.bfloat16, 1e-4)])
def test_muon_in_stacks_is_torch_muon(monkeypatch, dtype, apart):
    """Guards against matrices of one shape that are mixed up, a wrong side for tall ones, a wrong momentum or
    rate: three steps against torch.optim.Muon, which takes the matrices one by one, always in bfloat16."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x.to(dtype))
    ours, theirs = GPT(GPTConfig(40, 64, 2, 4, 1, 32), seed=1), GPT(GPTConfig(40, 64, 2, 4, 1, 32), seed=1)
    opt = Optimizer(ours, 1e-2, dtype)
    muon = torch.optim.Muon(theirs.blocks.parameters(), lr=1e-2, weight_decay=0.0,
                            adjust_lr_fn="match_rms_adamw")
    gen = torch.Generator().manual_seed(1)
    for step in range(3):
        for p, q in zip(ours.parameters(), theirs.parameters()):
            p.grad = torch.randn(p.shape, generator=gen) * 1e-3                # below the clip
            q.grad = p.grad.clone()
        opt.step()
        muon.step()
    for (name, p), q in zip(ours.blocks.named_parameters(), theirs.blocks.parameters()):
        assert (p - q).abs().max() < apart, name   # an update is 2e-3


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 64)])
def test_orthogonal_keeps_directions(shape):
    """Guards against Newton-Schulz steps that turn the singular vectors, or leave singular values far from
    1."""
    g = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    left = u.mT @ orthogonal(g) @ v.mT             # diagonal, if both have the same singular vectors
    values = left.diagonal(dim1=1, dim2=2)
    assert (left - torch.diag_embed(values)).abs().max() < 1e-3
    assert (values[s > 0.1 * s.max()] - 1).abs().max() < 0.35 and (values > 0).all()


def test_step_returns_what_it_was_told(tiny):
    """Guards against metrics that lose a sum, show the rate without its schedule, or the norm after
    clipping."""
    model = tiny()
    opt = Optimizer(model, 1e-3)
    loss = token_logp(model, torch.arange(8)[None], torch.ones(1, 8, dtype=torch.bool)).sum() * -100
    loss.backward()
    norm = float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())
    metrics = opt.step(0.5, loss=loss, kl=0.25)
    assert metrics == {"loss": loss.item(), "kl": 0.25, "lr": 5e-4, "grad_norm": pytest.approx(norm)}
    assert norm > 10 and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype, apart", [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("K", [1, 2, 4])
def test_attention_is_that_of_the_fused_kernel(K, dtype, apart):
    """Guards against written-out attention that mixes up heads or chunks (184 queries at a time), sees the
    future, or forgets the scale: values and gradients against PyTorch's own, up to rounding."""
    gen = torch.Generator().manual_seed(K)
    full = [torch.randn(3, heads, 190, 16, generator=gen).requires_grad_() for heads in (4, K, K)]
    mine = [x.detach().to(dtype).requires_grad_() for x in full]
    wide = lambda x: x.repeat_interleave(4 // K, dim=1)
    truth = F.scaled_dot_product_attention(full[0], wide(full[1]), wide(full[2]), is_causal=True)
    ours = attend(*mine)
    weight = torch.randn(truth.shape, generator=gen)
    (truth * weight).sum().backward()
    (ours * weight).sum().backward()
    assert ours.dtype == dtype and torch.allclose(ours.float(), truth, atol=2 * apart)
    for a, b in zip(mine, full):
        assert (a.grad.float() - b.grad).norm() < apart * b.grad.norm()
