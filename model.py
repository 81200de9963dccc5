"""
A modern small GPT, written out: RMSNorm without weights, rotary positions, multi-query attention,
squared ReLU, tied embeddings, a KV cache for sampling, and a scalar head for reward models.

Shapes: B batch, T tokens, C channels, V vocabulary, H query heads, K key/value heads, D head size.

Simplifications: no dropout (KL to a reference must be 0 at step 0), no biases, documents packed in
one row of pre-training see each other (positions are relative, so this is mild noise).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from data import UserError


@dataclass
class GPTConfig:
    vocab_size: int = 704
    block_size: int = 320      # longest prompt + judgement, in tokens
    n_layer: int = 4
    n_head: int = 4            # query heads
    n_kv_head: int = 1         # key/value heads: 1 is multi-query attention, n_head is the usual kind
    n_embd: int = 128

# Parameters without embeddings: 0.7M, 2.7M, 8.5M.
SIZES = {"S": dict(n_layer=4, n_head=4, n_embd=128),
         "M": dict(n_layer=7, n_head=6, n_embd=192),
         "L": dict(n_layer=10, n_head=8, n_embd=288)}


def norm(x):
    return F.rms_norm(x, (x.size(-1),))


def rotate(x, cos, sin):
    """Rotary embedding: turn each pair of channels by an angle that grows with the position.

    Scores then depend on distances alone. x: (B, T, heads, D); cos, sin: (T, 1, D/2), or (B, 1, 1, D/2) where
    each row has a position of its own.
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def attend(q, k, v):
    """Causal attention: q (B, H, T, D), k and v (B, K, T, D) -> (B, H, T, D).

    PyTorch's fused kernel, except in bfloat16 on a CPU: there its backward pass is slow, and two plain
    matrix products take half the time. 8 rows at a time, so that the (T, T) matrices stay in the cache.
    """
    (B, H, T, D), K = q.shape, k.size(1)
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        wide = lambda x: x if K == H else x.repeat_interleave(H // K, dim=1)     # (B, H, T, D)
        return F.scaled_dot_product_attention(q, wide(k), wide(v), is_causal=True)
    future = torch.full((T, T), -math.inf, dtype=q.dtype).triu(1)
    out = []
    for q8, k8, v8 in zip(q.split(8), k.split(8), v.split(8)):
        # the H/K query heads of a group stand below each other: they share one key/value head
        q8 = (q8 * D ** -0.5).reshape(-1, K, H // K * T, D)
        att = (q8 @ k8.transpose(2, 3)).view(-1, K, H // K, T, T) + future
        y = att.softmax(dim=-1).view(-1, K, H // K * T, T) @ v8              # (8, K, H/K * T, D)
        out.append(y.view(-1, H, T, D))
    return torch.cat(out)


class KVCache:
    """Keys and values of what was read so far, for B rows that may have different lengths.

    Row b has `length[b]` tokens, at positions 0..length[b]-1. What lies behind them is hidden by
    `bias` (0 where there is a token, -inf elsewhere), so rows are padded on the right and positions
    need no correction.
    """

    def __init__(self, keys, values, length):
        self.keys, self.values = keys, values      # per layer (B, K, room, D)
        self.length = length                       # (B,)
        room = keys[0].size(2)
        seen = torch.arange(room, device=length.device) < length[:, None]
        self.bias = torch.zeros(seen.shape, device=length.device).masked_fill(~seen, -math.inf)  # (B, room)

    def select(self, rows, room):
        """The cache of some rows (any number of times each), with room for `room` more tokens."""
        length = self.length[rows]
        used = int(length.max())
        pad = lambda x: F.pad(x[:, :, :used][rows], (0, 0, 0, room))
        return KVCache([pad(k) for k in self.keys], [pad(v) for v in self.values], length)

    def begin_step(self):
        """One more token in every row: make it visible, return its position (B,)."""
        pos = self.length
        self.bias[torch.arange(len(pos), device=pos.device), pos] = 0.0
        self.length = pos + 1
        return pos


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.H, self.K, self.D = cfg.n_head, cfg.n_kv_head, cfg.n_embd // cfg.n_head
        self.qkv = nn.Linear(cfg.n_embd, (self.H + 2 * self.K) * self.D, bias=False)
        self.proj = nn.Linear(cfg.n_embd, cfg.n_embd, bias=False)

    def forward(self, x, cos, sin):
        """Whole sequences, each token sees itself and those before. Also returns keys and values."""
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, self.H + 2 * self.K, self.D)
        qk, v = qkv.split([self.H + self.K, self.K], dim=2)
        q, k = rotate(qk, cos, sin).to(v.dtype).split([self.H, self.K], dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)    # (B, H or K, T, D)
        y = attend(q, k, v)                                                  # (B, H, T, D)
        return self.proj(y.transpose(1, 2).reshape(B, T, C)), k, v

    def step(self, x, cos, sin, keys, values, pos, bias):
        """One new token a row, x: (B, C). Writes its key and value at `pos`, attends to all up to there."""
        B, C = x.shape
        qkv = self.qkv(x).view(B, 1, self.H + 2 * self.K, self.D)
        qk, v = qkv.split([self.H + self.K, self.K], dim=2)
        q, k = rotate(qk, cos, sin).split([self.H, self.K], dim=2)
        rows = torch.arange(B, device=x.device)
        keys[rows, :, pos], values[rows, :, pos] = k[:, 0], v[:, 0]
        # The H/K query heads of a group form one small matrix product with their shared keys.
        q = q.reshape(B, self.K, self.H // self.K, self.D)
        att = (q @ keys.transpose(2, 3)) * self.D ** -0.5                    # (B, K, H/K, room)
        y = (att + bias[:, None, None]).softmax(dim=-1) @ values             # (B, K, H/K, D)
        return self.proj(y.view(B, C))


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
        assert cfg.block_size % 32 == 0, "block_size must be a multiple of 32, as the length of batches is"
        self.cfg = cfg
        self.wte = nn.Embedding(cfg.vocab_size, cfg.n_embd)                  # also the output layer
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layer))
        # Rotary angles, for twice the context: the sampler may overshoot a little before it looks.
        D = cfg.n_embd // cfg.n_head
        angle = torch.arange(2 * cfg.block_size)[:, None] / 10000 ** (torch.arange(D // 2) / (D // 2))
        self.register_buffer("cos", angle.cos()[:, None], persistent=False)  # (2 * block_size, 1, D/2)
        self.register_buffer("sin", angle.sin()[:, None], persistent=False)
        # Output projections start at zero: each block starts as the identity. Input projections start with
        # outputs of size about 1/2, embeddings small: the first predictions are nearly uniform.
        gen = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            std = 0.02 if name == "wte.weight" else 0.5 * cfg.n_embd ** -0.5
            nn.init.normal_(p, 0, 0.0 if name.endswith("proj.weight") else std, generator=gen)

    def forward(self, ids, keep_kv=False):
        """ids (B, T) -> hidden states (B, T, C); with keep_kv also keys and values per layer (B, K, T, D)."""
        B, T = ids.shape
        assert T <= self.cfg.block_size, f"{T} tokens do not fit in a context of {self.cfg.block_size}"
        x, keys, values = norm(self.wte(ids)), [], []                        # (B, T, C)
        for block in self.blocks:
            y, k, v = block.attn(norm(x), self.cos[:T], self.sin[:T])
            x = x + y
            x = x + block.mlp(norm(x))
            if keep_kv:
                keys.append(k)
                values.append(v)
        return (norm(x), keys, values) if keep_kv else norm(x)

    def prefill(self, ids, length):
        """Read right-padded prompts, ids (B, T), length (B,) -> (last hidden states (B, C), cache)."""
        x, keys, values = self(ids, keep_kv=True)
        return x[torch.arange(len(ids), device=ids.device), length - 1], KVCache(keys, values, length)

    def step(self, ids, cache):
        """Read one more token a row, ids (B,), and extend the cache -> hidden states (B, C)."""
        pos = cache.begin_step()
        cos, sin = self.cos[pos][:, None], self.sin[pos][:, None]            # (B, 1, 1, D/2)
        x = norm(self.wte(ids))
        for block, keys, values in zip(self.blocks, cache.keys, cache.values):
            x = x + block.attn.step(norm(x), cos, sin, keys, values, pos, cache.bias)
            x = x + block.mlp(norm(x))
        return norm(x)

    def logits(self, x):
        """Hidden states (..., C) -> (..., V), returned as float32."""
        return F.linear(x, self.wte.weight).float()


class RewardModel(nn.Module):
    """A GPT that reads a text to its end and gives one number (a logit): the scalar head of reward models."""

    def __init__(self, cfg, seed=0):
        super().__init__()
        self.gpt = GPT(cfg, seed)
        self.head = nn.Linear(cfg.n_embd, 1)
        nn.init.zeros_(self.head.weight)           # starts undecided: logit 0 for everything
        nn.init.zeros_(self.head.bias)

    def forward(self, ids, length):
        """ids (B, T) right-padded, length (B,) -> (B,), read off the last real token: it has seen all."""
        x = self.gpt(ids)                                                    # (B, T, C)
        last = x[torch.arange(len(ids), device=ids.device), length - 1].float()   # (B, C)
        # a product and a sum, which autocast leaves in float32: rounded logits would tie
        return (last * self.head.weight[0]).sum(dim=-1) + self.head.bias

# ----------------------------------------------------------------------------------------
# What every training loop needs

def trapezoid(step, steps, warmup=20, decay=0.5):
    """Learning rate scale: up over `warmup` steps, flat, then linearly down over the last part of the run."""
    return min(1.0, (step + 1) / min(warmup, steps), (steps - step) / (decay * steps))


def pad_rows(rows, value=0, device="cpu"):
    """Lists of different lengths -> (B, T) padded on the right, and their lengths (B,).

    T is a multiple of 32: bfloat16 kernels are compiled anew for each shape, so few shapes are fast.
    """
    length = torch.tensor([len(r) for r in rows])
    ids = torch.full((len(rows), -(-int(length.max()) // 32) * 32), value)
    for i, row in enumerate(rows):
        ids[i, :len(row)] = torch.as_tensor(row)
    return ids.to(device), length.to(device)


def token_logits(model, ids, mask):
    """Logits at every token under the mask, given all tokens before it, and the token itself.

    ids (B, T); mask (B, T) bool, True on the tokens to be predicted -> logits (N, V), targets (N,) in row
    order, N = number of masked tokens but for the first column, which nothing precedes.
    """
    x = model(ids[:, :-1])[mask[:, 1:]]                                      # (N, C)
    return model.logits(x), ids[:, 1:][mask[:, 1:]]


def token_logp(model, ids, mask):
    """Log-probabilities of the tokens under the mask, (N,), in nats: see token_logits."""
    return -F.cross_entropy(*token_logits(model, ids, mask), reduction="none")


class Optimizer:
    """Muon for the matrices inside the blocks, AdamW for embeddings and heads, as one optimizer.

    Muon orthogonalises each update. At this size it needs about half of AdamW's tokens until checks
    begin to depend on what they check (before that, the loss stands still for a while).
    """

    def __init__(self, model, lr):
        inner = [p for name, p in model.named_parameters() if "blocks" in name]
        outer = [p for name, p in model.named_parameters() if "blocks" not in name]
        self.parts = [torch.optim.Muon(inner, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
                      torch.optim.AdamW(outer, lr=lr, weight_decay=0.0, betas=(0.9, 0.95))]
        self.params, self.lr = inner + outer, lr

    def step(self, scale=1.0):
        """One update at lr * scale, gradients clipped to norm 1, then cleared -> gradient norm (unclipped)."""
        grad_norm = float(torch.nn.utils.clip_grad_norm_(self.params, 1.0))
        if not math.isfinite(grad_norm):
            raise UserError("the gradient is not finite: start again with a lower learning rate")
        for part in self.parts:
            part.param_groups[0]["lr"] = self.lr * scale
            part.step()
            part.zero_grad(set_to_none=True)
        return grad_norm

    def state_dict(self):
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states):
        for part, state in zip(self.parts, states):
            part.load_state_dict(state)
