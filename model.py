"""
A modern small GPT, written out: RMSNorm without weights, rotary positions, multi-query attention,
squared ReLU, tied embeddings, a KV cache for sampling, and a scalar head for reward models.

Shapes: B batch, T tokens, C channels, V vocabulary, H query heads, K key/value heads, D head size, L layers,
N tokens that were picked out of B * T.

Simplifications: no dropout (KL to a reference must be 0 at step 0), no biases (but the scalar head's);
documents packed in one row of pre-training or RFT see those before them, which is noise: they have nothing to
do with each other.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from data import UserError
from parallel import add_up, add_up_numbers


@dataclass
class GPTConfig:
    vocab_size: int
    block_size: int            # longest prompt + judgement, in tokens
    n_layer: int
    n_head: int                # query heads
    n_kv_head: int             # key/value heads: 1 is multi-query attention, n_head is the usual kind
    n_embd: int


def norm(x):
    return F.rms_norm(x, (x.size(-1),))


def rotate(x, turn):
    """Rotary embedding: turn each pair of neighbouring channels by an angle that grows with the position.

    (a, b) becomes (a cos - b sin, b cos + a sin), so that scores depend on distances alone. x (..., T, D) or
    (B, heads, D); turn: cos and sin, (T, D) or (B, 1, D), of the tokens' positions, and `swap` (D, D), which
    makes (-b, a) of (a, b): a product with a constant matrix is faster than to take the channels apart.

    >>> swap = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    >>> rotate(torch.tensor([[3.0, 4.0]]), (torch.zeros(1, 2), torch.ones(1, 2), swap))     # a quarter turn
    tensor([[-4.,  3.]])
    """
    cos, sin, swap = turn
    return (x.float() * cos + (x @ swap).float() * sin).to(x.dtype)


def attend(q, k, v):
    """Causal attention: q (B, H, T, D), k and v (B, K, T, D) -> (B, H, T, D).

    PyTorch's fused kernel, but on a CPU, where its backward pass is slow, two plain matrix products. 184
    queries at a time need only the keys up to the last of them: for a row of 368 that saves a quarter.

    >>> alike, v = torch.zeros(1, 1, 2, 1), torch.tensor([3.0, 5.0]).view(1, 1, 2, 1)
    >>> attend(alike, alike, v).flatten()          # keys that are all alike: the mean of the values so far
    tensor([3., 4.])
    """
    (B, H, T, D), K = q.shape, k.size(1)
    if q.device.type != "cpu":
        wide = lambda x: x if K == H else x.repeat_interleave(H // K, dim=1)     # (B, H, T, D)
        return F.scaled_dot_product_attention(q, wide(k), wide(v), is_causal=True)
    future, out, end = torch.full((T, T), -math.inf, dtype=q.dtype, device=q.device).triu(1), [], 0
    for rows in (q * D ** -0.5).split(184, dim=2):                           # (B, H, up to 184, D)
        start, end = end, end + rows.size(2)
        # the H/K query heads of a group stand below each other: they share one key/value head
        att = rows.reshape(B, K, -1, D) @ k[:, :, :end].mT                   # (B, K, H/K * 184, end)
        att = att.view(B, K, H // K, end - start, end) + future[start:end, :end]
        y = att.softmax(dim=-1).view(B, K, -1, end) @ v[:, :, :end]          # (B, K, H/K * 184, D)
        out.append(y.view(B, H, end - start, D))
    return torch.cat(out, dim=2)


def attend_cached(q, keys, values, bias):
    """One new token a row looks at what its row holds: attention with a cache.

    q (B, H, D), keys and values (B, K, T, D); bias (B, K, 1, T) is added to the scores: -inf hides padding,
    0 elsewhere, and some column is never hidden -> (B, H, D).

    >>> q, keys, values = torch.zeros(1, 1, 1), torch.zeros(1, 1, 3, 1), torch.tensor([3.0, 9.0, 5.0])
    >>> bias = torch.tensor([[[[0.0, -math.inf, 0.0]]]])
    >>> attend_cached(q, keys, values.view(1, 1, 3, 1), bias)
    tensor([[[4.]]])
    """
    (B, H, D), K = q.shape, keys.size(1)
    keys, values, bias = keys.flatten(0, 1), values.flatten(0, 1), bias.flatten(0, 1)        # (B * K, ...)
    # The H/K query heads of a group form one small matrix product with their shared keys.
    att = torch.baddbmm(bias, q.reshape(B * K, H // K, D), keys.mT, alpha=D ** -0.5)         # (B * K, H/K, T)
    return (att.softmax(dim=-1) @ values).view(B, H, D)


class KVCache:
    """Keys and values of what B rows have read, for the sampler. In each step all rows write into the same
    next column, `end`.

    The rows' prompts have different lengths: what pads them on the right is hidden by a `bias` of -inf (0
    elsewhere). So columns are not positions; a row's next position is its `length`.
    """

    def __init__(self, kv, bias, length, end):
        """kv (L, 2, B, K, columns, D), bias (B, K, 1, columns), length (B,) without padding, end an int."""
        self.kv, self.bias, self.length, self.end = kv, bias, length, end

    def select(self, rows, more):
        """The cache of some rows (any number of times each), with columns for `more` tokens."""
        kv, bias = self.kv[:, :, rows, :, :self.end], self.bias[rows, ..., :self.end]
        return KVCache(F.pad(kv, (0, 0, 0, more)), F.pad(bias, (0, more)), self.length[rows], self.end)

    def attend(self, layer, q, k, v):
        """One more token a row: keep its k and v (B, K, D), let its q (B, H, D) see its row -> (B, H, D)."""
        self.kv[layer, 0, :, :, self.end], self.kv[layer, 1, :, :, self.end] = k, v
        return attend_cached(q, *self.kv[layer, ..., :self.end + 1, :], self.bias[..., :self.end + 1])


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.H, self.K, self.D = cfg.n_head, cfg.n_kv_head, cfg.n_embd // cfg.n_head
        self.qkv = nn.Linear(cfg.n_embd, (self.H + 2 * self.K) * self.D, bias=False)
        self.proj = nn.Linear(cfg.n_embd, cfg.n_embd, bias=False)

    def forward(self, x, turn):
        """Whole sequences, each token sees itself and those before. Also returns keys and values."""
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, self.H + 2 * self.K, self.D)
        qk, v = qkv.split([self.H + self.K, self.K], dim=2)                  # (B, T, H + K, D), (B, T, K, D)
        qk, v = qk.transpose(1, 2).contiguous(), v.transpose(1, 2)           # (B, H + K, T, D), (B, K, T, D)
        q, k = rotate(qk, turn).split([self.H, self.K], dim=1)               # (B, H, T, D), (B, K, T, D)
        y = attend(q, k, v)                                                  # (B, H, T, D)
        return self.proj(y.transpose(1, 2).reshape(B, T, C)), k, v

    def step(self, x, turn, cache, layer):
        """One new token a row, x (B, C)."""
        B, C = x.shape
        qkv = self.qkv(x).view(B, -1, self.D)                                # (B, H + 2K, D)
        qk, v = qkv.split([self.H + self.K, self.K], dim=1)                  # (B, H + K, D), (B, K, D)
        q, k = rotate(qk, turn).split([self.H, self.K], dim=1)               # (B, H, D), (B, K, D)
        return self.proj(cache.attend(layer, q, k, v).view(B, C))


class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.fc = nn.Linear(cfg.n_embd, 4 * cfg.n_embd, bias=False)
        self.proj = nn.Linear(4 * cfg.n_embd, cfg.n_embd, bias=False)

    def forward(self, x):
        return self.proj(F.relu(self.fc(x)).square())


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.attn, self.mlp = Attention(cfg), MLP(cfg)


class GPT(nn.Module):
    """ids -> hidden states; `logits` turns those that are needed into scores over the vocabulary."""

    def __init__(self, cfg, seed=0):
        super().__init__()
        assert cfg.block_size % 16 == 0, "block_size must be a multiple of 16, as the length of batches is"
        self.cfg = cfg
        self.wte = nn.Embedding(cfg.vocab_size, cfg.n_embd)                  # also the output layer
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layer))
        # Rotary angles, one for each pair of channels, for twice the context: the sampler may overshoot a
        # little before it looks.
        D = cfg.n_embd // cfg.n_head
        angle = torch.arange(2 * cfg.block_size)[:, None] / 10000 ** (torch.arange(D // 2) / (D // 2))
        angle = angle.repeat_interleave(2, dim=1)                            # (2 * block_size, D)
        swap = torch.block_diag(*[torch.tensor([[0.0, 1.0], [-1.0, 0.0]])] * (D // 2))       # (D, D)
        for name, constant in (("cos", angle.cos()), ("sin", angle.sin()), ("swap", swap)):
            self.register_buffer(name, constant, persistent=False)
        # Output projections start at zero: each block starts as the identity. Input projections start with
        # outputs of size about 1/2, embeddings small: the first predictions are nearly uniform.
        gen = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            std = 0.02 if name == "wte.weight" else 0.5 * cfg.n_embd ** -0.5
            nn.init.normal_(p, 0, 0.0 if name.endswith("proj.weight") else std, generator=gen)

    def turn(self, positions):
        """What `rotate` needs for tokens at these positions (a slice or indices)."""
        return self.cos[positions], self.sin[positions], self.swap

    def forward(self, ids, at=None, keep_kv=False):
        """ids (B, T) -> hidden states (B, T, C), or those of N tokens alone, (N, C).

        at (N,): which tokens, as indices into B * T. keep_kv: also the keys and values, (L, 2, B, K, T, D).
        """
        B, T = ids.shape
        assert T <= self.cfg.block_size, f"{T} tokens do not fit in a context of {self.cfg.block_size}"
        x, kv, turn = norm(self.wte(ids)), [], self.turn(slice(T))           # (B, T, C)
        for block in self.blocks:
            y, k, v = block.attn(norm(x), turn)
            x = x + y
            if at is not None and block is self.blocks[-1]:
                x = x.flatten(0, 1)[at]            # nobody will ask for the others: spare them the last MLP
            x = x + block.mlp(norm(x))
            if keep_kv:
                kv.append(torch.stack([k, v]))
        return (norm(x), torch.stack(kv)) if keep_kv else norm(x)

    def prefill(self, ids, length):
        """Read right-padded prompts, ids (B, T), length (B,) -> a cache."""
        _, kv = self(ids, at=length[:0], keep_kv=True)                       # no hidden states are needed
        unseen = torch.arange(ids.size(1), device=ids.device) >= length[:, None]                 # (B, T)
        bias = kv.new_zeros(len(ids), kv.size(3), 1, ids.size(1))            # (B, K, 1, T)
        return KVCache(kv, bias.masked_fill(unseen[:, None, None], -math.inf), length, ids.size(1))

    def step(self, ids, cache):
        """Read one more token a row, ids (B,), and extend the cache -> hidden states (B, C)."""
        x, turn = norm(self.wte(ids)), self.turn(cache.length[:, None])      # (B, C)
        for layer, block in enumerate(self.blocks):
            x = x + block.attn.step(norm(x), turn, cache, layer)
            x = x + block.mlp(norm(x))
        cache.length, cache.end = cache.length + 1, cache.end + 1
        return norm(x)

    def logits(self, x):
        """Hidden states (..., C) -> (..., V), returned as float32."""
        return F.linear(x, self.wte.weight).float()


class RewardModel(nn.Module):
    """A GPT that reads a text to its end and gives one number (a logit): the scalar head of reward models."""

    def __init__(self, cfg):
        super().__init__()
        self.gpt = GPT(cfg)
        self.head = nn.Linear(cfg.n_embd, 1)
        nn.init.zeros_(self.head.weight)           # starts undecided: logit 0 for everything
        nn.init.zeros_(self.head.bias)

    def forward(self, ids, length):
        """ids (B, T) right-padded, length (B,) -> (B,), read off the last real token: it has seen all."""
        B, T = ids.shape
        at = torch.arange(B, device=ids.device) * T + length - 1             # (B,)
        last = self.gpt(ids, at).float()                                     # (B, C)
        # a product and a sum, which autocast leaves in float32: rounded logits would tie
        return (last * self.head.weight[0]).sum(dim=-1) + self.head.bias

# ----------------------------------------------------------------------------------------
# What every training loop needs

def trapezoid(step, steps, decay=0.5, warmup=20):
    """Learning rate scale: up over some steps, flat, then linearly down over a share `decay` of the steps."""
    return min(1.0, (step + 1) / min(warmup, steps), (steps - step) / (decay * steps))


def pad_rows(rows, value=0, device="cpu"):
    """Lists of different lengths -> (B, T) padded on the right, and their lengths (B,).

    T is a multiple of 16: bfloat16 kernels are compiled anew for each shape, so few shapes are fast.
    """
    length = torch.tensor([len(r) for r in rows])
    ids = torch.full((len(rows), -(-int(length.max()) // 16) * 16), value)
    for i, row in enumerate(rows):
        ids[i, :len(row)] = torch.as_tensor(row)
    return ids.to(device), length.to(device)


def token_logits(model, ids, mask):
    """Logits at every token under the mask, given all tokens before it, and the token itself.

    ids (B, T); mask (B, T) bool, True on the tokens to be predicted -> logits (N, V), targets (N,) in row
    order, N = number of masked tokens but for the first column, which nothing precedes.

    >>> ids, mask = torch.tensor([[3, 5, 7, 0]]), torch.tensor([[True, False, True, False]])
    >>> logits, targets = token_logits(GPT(GPTConfig(20, 16, 1, 1, 1, 8)), ids, mask)
    >>> logits.shape, targets
    (torch.Size([1, 20]), tensor([7]))
    """
    before = F.pad(mask[:, 1:], (0, 1)).flatten().nonzero()[:, 0]            # (N,) the token before each
    x = model(ids, F.pad(before, (0, -len(before) % 128)))                   # few shapes: see pad_rows
    return model.logits(x)[:len(before)], ids.flatten()[before + 1]


def token_logp(model, ids, mask):
    """Log-probabilities of the tokens under the mask, (N,), in nats: see token_logits."""
    return -F.cross_entropy(*token_logits(model, ids, mask), reduction="none")


def orthogonal(g):
    """M matrices g (M, rows, cols), rows <= cols -> the same with all singular values near 1.

    Five Newton-Schulz steps with the coefficients of K. Jordan's Muon: a polynomial in g that pushes each
    singular value towards 1. Many matrices at once are twice as fast as one after the other.
    """
    x = g / g.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        a = x @ x.mT                                                         # (M, rows, rows)
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return x


class Optimizer:
    """Muon for the matrices inside the blocks, AdamW for embeddings and heads, as one optimizer.

    Muon orthogonalises each update. At this size it needs about half of AdamW's tokens until checks
    begin to depend on what they check (before that, the loss stands still for a while).
    """

    def __init__(self, model, lr, dtype=torch.float32):
        """dtype: that of the training. Without bfloat16 instructions a CPU needs forty times as long for
        Muon in bfloat16."""
        inner = [p for name, p in model.named_parameters() if "blocks" in name]
        outer = [p for name, p in model.named_parameters() if "blocks" not in name]
        self.adamw = torch.optim.AdamW(outer, lr=lr, weight_decay=0.0, betas=(0.9, 0.95))
        self.params, self.lr, self.dtype = inner + outer, lr, dtype
        # matrices of one shape (tall ones lie on their side) are stacked: (M, rows, cols)
        self.stacks = {}
        for p in inner:
            self.stacks.setdefault(tuple(sorted(p.shape)), []).append(p)
        self.momentum = {shape: torch.zeros(len(stack), *shape, device=stack[0].device)
                         for shape, stack in self.stacks.items()}

    @torch.no_grad()
    def muon(self, lr):
        """Nesterov momentum of .95, orthogonalised, at the size of an update of AdamW (.2 per entry)."""
        for shape, stack in self.stacks.items():
            flat = lambda x: x.T if x.size(0) > x.size(1) else x
            grad, momentum = torch.stack([flat(p.grad) for p in stack]), self.momentum[shape]
            momentum.lerp_(grad, 0.05)
            update = orthogonal(grad.lerp(momentum, 0.95).to(self.dtype))
            for p, u in zip(stack, update):
                flat(p).sub_(u, alpha=lr * 0.2 * math.sqrt(shape[1]))

    def step(self, scale=1.0, **sums):
        """One update at lr * scale, gradients clipped to norm 1, then cleared -> a dict for the metrics:
        `sums` as numbers, lr, and the gradient's norm before clipping.

        Of several processes, each has the gradient and the sums of its share of the batch: they are added up.
        """
        add_up([p.grad for p in self.params])
        grad_norm = float(nn.utils.clip_grad_norm_(self.params, 1.0))
        if not math.isfinite(grad_norm):
            raise UserError("the gradient is not finite: start again with a lower learning rate")
        self.muon(self.lr * scale)
        self.adamw.param_groups[0]["lr"] = self.lr * scale
        self.adamw.step()
        for p in self.params:
            p.grad = None
        return {**add_up_numbers(sums), "lr": self.lr * scale, "grad_norm": grad_norm}
