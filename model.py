"""
A small modern GPT, written out: token embeddings, blocks of attention and MLP, a KV cache for sampling,
a scalar head for reward models, and the optimizer.

It differs from GPT-2 mainly in five places: RMSNorm without weights in place of LayerNorm, rotary positions in
place of learned ones, multi-query attention (all query heads share one key/value head, which makes sampling
several times faster), squared ReLU in place of GELU, and no biases.

Shapes: B batch, T tokens, S tokens that may be seen (T, and with a KV cache those before), C channels,
V vocabulary, H query heads, D = C / H channels of a head, L layers, N tokens that were picked out of a batch.

What is simplified:
1. No dropout: the KL divergence to a reference model must be 0 at the first step of RL.
2. Several documents share a row in pre-training and RFT, and see those before them. They have nothing to do
   with each other, so this is a little noise and saves a mask.
"""

import io
import math
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from data import UserError, new_file
from data.tokenizer import PAD


@dataclass
class GPTConfig:
    vocab_size: int
    block_size: int      # the context: longest prompt + judgement, in tokens
    n_layer: int         # blocks
    n_head: int          # query heads
    n_embd: int          # channels

# ----------------------------------------------------------------------------------------
# The model

def norm(x):
    """RMSNorm: scale each vector of channels to a mean square of 1."""
    return F.rms_norm(x, (x.size(-1),))


def rotate(x, cos, sin):
    """Rotary positions: turn pairs of channels (i, i + D/2) by an angle proportional to the token's position.

    The product of a rotated query and a rotated key then depends on the distance of their tokens alone.
    x (B, T, H, D), of any number of heads H; cos and sin (T, 1, D/2), of each token's angles -> (B, T, H, D)

    >>> quarter = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)            # cos and sin of 90 degrees
    >>> rotate(torch.tensor([3.0, 1.0, 4.0, 2.0]).view(1, 1, 1, 4), *quarter).flatten()
    tensor([-4., -2.,  3.,  1.])
    """
    a, b = x.chunk(2, dim=-1)                                                # (B, T, H, D/2) each
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def attend(q, k, v, mask):
    """Multi-query attention: all heads look at the same keys and values.

    q (B, T, H, D); k and v (B, S, D); mask (1 or B, T, 1, S) is added to the scores: 0 where a query may see
    a key, -1e9 where it may not -> (B, T, H, D)

    >>> q, k, v = torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1), torch.tensor([[[3.0], [5.0]]])
    >>> causal = torch.tensor([[0.0, -1e9], [0.0, 0.0]]).view(1, 2, 1, 2)
    >>> attend(q, k, v, causal).flatten()          # equal scores: the mean of the values seen so far
    tensor([3., 4.])
    """
    B, T, H, D = q.shape
    # The heads share their keys, so that the queries of all heads form one matrix.
    scores = (q * D ** -0.5).reshape(B, T * H, D) @ k.mT                     # (B, T * H, S)
    weights = (scores.view(B, T, H, -1) + mask.to(scores.dtype)).softmax(dim=-1)             # (B, T, H, S)
    return (weights.view(B, T * H, -1) @ v).view(B, T, H, D)


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.n_head, self.head_size = cfg.n_head, cfg.n_embd // cfg.n_head
        self.qkv = nn.Linear(cfg.n_embd, (cfg.n_head + 2) * self.head_size, bias=False)
        self.proj = nn.Linear(cfg.n_embd, cfg.n_embd, bias=False)

    def forward(self, x, cos, sin, mask, cache, layer):
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, self.n_head + 2, self.head_size)        # H queries, a key, a value
        qk, v = rotate(qkv[:, :, :-1], cos, sin), qkv[:, :, -1]              # (B, T, H + 1, D), (B, T, D)
        q, k = qk[:, :, :-1], qk[:, :, -1]                                   # (B, T, H, D), (B, T, D)
        if cache is not None:
            k, v = cache.add(layer, k, v)                                    # (B, S, D) each
        return self.proj(attend(q, k, v, mask).reshape(B, T, C))


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

    def forward(self, x, cos, sin, mask, cache, layer):
        x = x + self.attn(norm(x), cos, sin, mask, cache, layer)
        return x + self.mlp(norm(x))


class KVCache:
    """The keys and values of all tokens that B rows have read, for sampling.

    All rows write to the same next column. Prompts of different lengths are therefore padded on the left:
    their last tokens share a column.
    """

    def __init__(self, kv, padding, length=0):
        """kv (2, L, B, room, D): for the keys and values of so many tokens; padding (B,): how many columns on the
        left are padding; length: how many columns are in use."""
        self.kv, self.padding, self.length = kv, padding, length

    def add(self, layer, k, v):
        """Store the keys and values of T new tokens, (B, T, D) each -> those of all tokens so far. GPT.forward
        moves `length` on, when all layers have stored theirs."""
        end = self.length + k.size(1)
        self.kv[0, layer, :, self.length:end], self.kv[1, layer, :, self.length:end] = k, v
        return self.kv[0, layer, :, :end], self.kv[1, layer, :, :end]

    def select(self, rows, room):
        """The cache of some rows (indices, any number of times each), with room for so many more tokens."""
        kv = F.pad(self.kv[:, :, rows, :self.length], (0, 0, 0, room))
        return KVCache(kv, self.padding[rows], self.length)


class GPT(nn.Module):
    def __init__(self, cfg, seed=0):
        super().__init__()
        self.cfg = cfg
        self.wte = nn.Embedding(cfg.vocab_size, cfg.n_embd)                  # also the output layer
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layer))
        # Angles of rotary positions: fast and slow ones, one for each pair of channels. Columns are as many as the
        # longest prompt, padded to a multiple of 16, and the longest completion can take.
        half = cfg.n_embd // cfg.n_head // 2
        angle = torch.arange(2 * cfg.block_size + 16)[:, None] / 10000 ** (torch.arange(half) / half)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        # Output projections start at zero, so that each block starts as the identity.
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            std = 0.5 * cfg.n_embd ** -0.5         # outputs about half as large as inputs
            if name == "wte.weight":
                std = 0.02
            if name.endswith("proj.weight"):
                std = 0.0
            nn.init.normal_(p, 0, std, generator=generator)

    @property
    def device(self):
        return self.wte.weight.device

    def forward(self, ids, padding=None, cache=None):
        """ids (B, T) -> hidden states (B, T, C); `logits` turns them into scores over the vocabulary.

        padding (B,): how many tokens on the left of each row are padding, by default none. cache: the tokens
        that were read before; it knows their padding, and these tokens are added to it.
        """
        T, past = ids.size(1), 0
        if cache is not None:
            padding, past = cache.padding, cache.length
        if padding is None:
            padding = torch.zeros(1, dtype=torch.long, device=ids.device)
        column = torch.arange(past + T, device=ids.device)                   # (S,)
        # Columns serve as positions. That a row begins with padding does not matter: attention depends on the
        # distance of two tokens alone.
        cos, sin = self.cos[past:past + T, None], self.sin[past:past + T, None]        # (T, 1, D/2)
        # A token sees itself and those before it, but no padding. (-1e9 and not -inf: the softmax of a token
        # of padding, which sees nothing, would be nan.)
        blocked = (column > column[past:, None]) | (column < padding[:, None, None])   # (1 or B, T, S)
        mask = torch.zeros(blocked.shape, device=ids.device).masked_fill(blocked, -1e9)
        mask = mask[:, :, None]                                              # (1 or B, T, 1, S)
        x = norm(self.wte(ids))                                              # (B, T, C)
        for layer, block in enumerate(self.blocks):
            x = block(x, cos, sin, mask, cache, layer)
        if cache is not None:
            cache.length += T
        return norm(x)

    def logits(self, x):
        """Hidden states (..., C) -> (..., V), as float32."""
        return F.linear(x, self.wte.weight).float()

    def new_cache(self, padding, room):
        """An empty cache for B rows with this padding (B,), with room for so many tokens a row."""
        cfg = self.cfg
        kv = torch.zeros(2, cfg.n_layer, len(padding), room, cfg.n_embd // cfg.n_head, device=self.device)
        return KVCache(kv, padding)


class RewardModel(nn.Module):
    """A GPT that reads a text and returns one number, a logit. The Meta RM is one."""

    def __init__(self, cfg):
        super().__init__()
        self.gpt = GPT(cfg)
        self.head = nn.Linear(cfg.n_embd, 1)
        nn.init.zeros_(self.head.weight)           # starts undecided: logit 0 for every text
        nn.init.zeros_(self.head.bias)

    def forward(self, ids, padding):
        """ids (B, T) padded on the left, padding (B,) -> (B,), read off the last token, which has seen all."""
        last = self.gpt(ids, padding)[:, -1].float()                         # (B, C)
        # Not self.head(last): under autocast that would round to bfloat16, and different logits would tie.
        return (last * self.head.weight[0]).sum(dim=-1) + self.head.bias     # (B,)


def save_model(path, model):
    """Write a GPT or a RewardModel to a file."""
    cfg = model.cfg if isinstance(model, GPT) else model.gpt.cfg
    buffer = io.BytesIO()                          # torch.save does not say when a disk is full; f.write does
    torch.save({"config": asdict(cfg), "weights": model.state_dict()}, buffer)
    with new_file(path, "wb") as f:
        f.write(buffer.getvalue())


def load_model(path, device="cpu"):
    """Read what save_model wrote. UserError if there is no such file, or if it holds no such model."""
    try:
        saved = torch.load(path, weights_only=True, map_location=device)
        kind = RewardModel if "head.weight" in saved["weights"] else GPT
        model = kind(GPTConfig(**saved["config"])).to(device)
        model.load_state_dict(saved["weights"])
        return model
    except FileNotFoundError:
        raise UserError(f"{path} not found. Train it with `python spct.py`, or name another folder.") from None
    except Exception as error:                     # torch.load raises nearly anything on a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}). Delete it, and train it again.") from None

# ----------------------------------------------------------------------------------------
# Batches and losses

def pad_left(rows, value=PAD, device="cpu"):
    """Lists of different lengths -> a tensor (B, T), padded on the left, and the padding of each row, (B,), both
    of int64 on `device`.

    T is the least multiple of 16 that holds the longest row: in bfloat16 a CPU compiles its kernels anew for
    each shape, so few shapes are fast.

    >>> pad_left([[5, 6, 7], [8]])[1]
    tensor([13, 15])
    """
    longest = max(len(row) for row in rows)
    T = longest + -longest % 16
    padding = [T - len(row) for row in rows]
    ids = torch.tensor([[value] * pad + list(row) for pad, row in zip(padding, rows)], device=device)
    return ids, torch.tensor(padding, device=device)


def token_logits(model, ids, learned, padding=None):
    """The logits from which the learned tokens are predicted, and these tokens.

    ids (B, T); learned (B, T) bool, True on the tokens to be learned; padding (B,), see GPT.forward
    -> logits (N, V), targets (N,) in row order. N counts the learned tokens. Nothing precedes the first
    column, so it is left out, learned or not.

    >>> ids, learned = torch.tensor([[3, 5, 7, 0]]), torch.tensor([[True, False, True, False]])
    >>> logits, targets = token_logits(GPT(GPTConfig(20, 16, 1, 1, 8)), ids, learned)
    >>> logits.shape, targets
    (torch.Size([1, 20]), tensor([7]))
    """
    predicted = learned[:, 1:]                                               # (B, T - 1)
    x = model(ids, padding)[:, :-1]                # a token is predicted from the hidden state before it
    return model.logits(x[predicted]), ids[:, 1:][predicted]


def token_logp(model, ids, learned, padding=None):
    """Log-probabilities, in nats, of the learned tokens, (N,): see token_logits."""
    logits, targets = token_logits(model, ids, learned, padding)
    return -F.cross_entropy(logits, targets, reduction="none")

# ----------------------------------------------------------------------------------------
# The optimizer

def learning_rate(peak, step, steps, warmup=20, decay=0.5):
    """Linearly up over the first `warmup` steps (at most all of them): the first has peak / warmup. Then flat.
    Then linearly towards 0 over the last share `decay` of the steps. warmup and decay are above 0.

    >>> [round(learning_rate(1.0, step, 100), 2) for step in (0, 19, 50, 75, 99)]
    [0.05, 1.0, 1.0, 0.5, 0.02]
    """
    return peak * min(1.0, (step + 1) / min(warmup, steps), (steps - step) / (decay * steps))


def orthogonal(g):
    """Matrices g (M, rows, columns), rows <= columns -> the same with all singular values near 1.

    Five Newton-Schulz steps with the coefficients of K. Jordan's Muon: an odd polynomial that pushes each
    singular value towards 1.
    """
    x = g / g.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        a = x @ x.mT                                                         # (M, rows, rows)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


class Optimizer:
    """Muon for the matrices inside the blocks, AdamW for embeddings and heads.

    Muon makes the update of each matrix orthogonal. With it, the judge's checks begin to depend on the responses
    after about half as many tokens as with AdamW.
    """

    def __init__(self, model, dtype=torch.float32):
        """dtype: of Muon's matrix products. Use bfloat16 only where the machine is fast at it."""
        blocks = (model if isinstance(model, GPT) else model.gpt).blocks
        inside = {id(p) for p in blocks.parameters()}
        outside = [p for p in model.parameters() if id(p) not in inside]
        self.adamw = torch.optim.AdamW(outside, weight_decay=0.0, betas=(0.9, 0.95))
        # The corresponding matrices of all blocks are updated together: groups[i] holds the i-th of each block.
        self.groups = list(zip(*(block.parameters() for block in blocks)))
        self.momentum = [torch.zeros(len(group), *group[0].shape, device=group[0].device)
                         for group in self.groups]
        self.params, self.dtype = list(model.parameters()), dtype

    @torch.no_grad()
    def step(self, lr):
        """One update from the gradients, which are clipped to norm 1, and then cleared -> their norm."""
        grad_norm = nn.utils.clip_grad_norm_(self.params, 1.0).item()
        if not math.isfinite(grad_norm):
            raise UserError("The gradient is not finite. Start again with a lower learning rate.")
        for group, momentum in zip(self.groups, self.momentum):
            grad = torch.stack([p.grad for p in group])                      # (L, rows, columns)
            momentum.lerp_(grad, 0.05)
            update = grad.lerp(momentum, 0.95)                               # Nesterov's momentum
            tall = update.size(1) > update.size(2)
            update = orthogonal((update.mT if tall else update).to(self.dtype))
            update = update.mT if tall else update
            # An entry of an orthogonal matrix has a root mean square of 1 / sqrt(longer side). This makes it
            # 0.2, which is about that of AdamW's updates.
            size = 0.2 * max(update.shape[1:]) ** 0.5
            for p, u in zip(group, update):
                p.sub_(u, alpha=lr * size)
        self.adamw.param_groups[0]["lr"] = lr
        self.adamw.step()
        for p in self.params:
            p.grad = None
        return grad_norm
