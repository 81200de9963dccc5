"""The method on a second device, without a GPU: its tensors compute, but refuse to meet those of the CPU."""

import contextlib
import json
import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import metarm
import sample
import spct
from data.annotators import annotate
from data.judgement import Judgement, judgement_parts, prompt_parts, read_judgement
from data.world import make_items

DEVICE = "meta"   # beside "cpu", the one name that every build of torch can use


class Away(torch.Tensor):
    """A tensor of the second device: it keeps its numbers in one of the CPU, `inner`."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.size(), inner.stride(), inner.storage_offset(),
                                                   dtype=inner.dtype, device=DEVICE)

    def __init__(self, inner):
        self.inner = inner

    def tolist(self):
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return compute(op, args, kwargs or {})


class SecondDevice(TorchDispatchMode):
    """Sees every operation: what is created on DEVICE, or moved to it, is Away."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return compute(op, args, kwargs or {})


def compute(op, args, kwargs):
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    target = str(kwargs.get("device"))
    if target != DEVICE and not any(isinstance(x, Away) for x in tensors):
        return op(*args, **kwargs)
    # as on a GPU: nothing of the CPU takes part but single numbers, and copies go from one to the other
    copies = op.overloadpacket in (torch.ops.aten.to, torch.ops.aten._to_copy, torch.ops.aten.copy_)
    if not copies and any(not isinstance(x, Away) and x.dim() > 0 for x in tensors):
        raise RuntimeError(f"{op}: a tensor of the CPU meets one of the second device")
    inside = lambda x: x.inner if isinstance(x, Away) else "cpu" if str(x) == DEVICE else x
    outside = lambda x: Away(x) if isinstance(x, torch.Tensor) and target != "cpu" else x
    with torch.inference_mode(False), torch.no_grad():   # tensors with and without it must not mix either
        found = op(*tree_map(inside, args), **tree_map(inside, kwargs))
        return args[0] if op._schema.is_mutable else tree_map(outside, found)


@pytest.fixture
def second_device(monkeypatch):
    # torch.tensor spares itself the work where the device has this name
    monkeypatch.setattr(torch, "tensor", lambda *args, device="cpu", real=torch.tensor, **more:
                        real(*args, **more).to(device))
    with SecondDevice():
        yield


def method(tok, device, folder, monkeypatch):
    """All that computes, once and as small as can be: pre-training, RFT, sampling, RL, a Meta RM and its guided
    votes -> what came out."""
    cfg = spct.Config(device=device, dtype="float32", n_layer=1, n_head=2, n_embd=16, block_size=224,
                      pretrain_tokens=3000, pretrain_rows=2, rft_rows=1, rft_epochs=1, rl_steps=2, rl_items=2,
                      group=2, rl_lr=1e-2, out=str(folder))
    items = make_items(0, "train", 6, least=2, most=2)
    experts = []
    for i, item in enumerate(items):
        prompt = tok.encode(prompt_parts(item.query, item.responses))
        ids = tok.encode(judgement_parts(*annotate(random.Random(i), item, "expert")))
        j = Judgement(item.id, 0, [0, 1], 0, prompt, ids, 0.0)
        j.principles, j.critiques, j.scores = read_judgement(tok, ids, [0, 1])
        experts.append(j)

    def judge(model, tok, batch, *more, **kwargs):
        """As sampled, but for the first sample, which is an expert's: else there would be nothing to reward."""
        groups = sample.judge(model, tok, batch, *more, **kwargs)
        return [[next(j for j in experts if j.item == group[0].item), *group[1:]] for group in groups]

    monkeypatch.setattr(spct, "autocast", lambda cfg: contextlib.nullcontext())      # it knows no such device
    monkeypatch.setattr(spct, "judge", judge)
    base = spct.pretrain(cfg, tok)
    rft = spct.finetune(cfg, tok, base, experts)
    policy = spct.reinforce(cfg, tok, rft, items)
    groups = [[j, Judgement(j.item, 1, [0, 1], 0, j.prompt, j.ids[:5], 0.0)] for j in experts]
    meta = spct.train_meta_rm(cfg, policy, groups, items)
    metarm.rate(meta, [experts])
    [[greedy]] = sample.judge(policy, tok, items[:1], 1, 0, temperature=0)
    losses = [json.loads(line)["grad_norm"] for name in ("base", "rft", "rl", "meta")
              for line in open(folder / f"metrics-{name}.jsonl")]
    return {"losses": losses, "meta": [j.meta for j in experts], "greedy": greedy.ids,
            "vote": metarm.vote_guided(experts)}, policy, meta


def test_method_on_a_second_device(tok, tmp_path, monkeypatch, second_device):
    """Guards against a tensor that stays on the CPU when the run's device is another one: on a GPU the method
    would stop."""
    (tmp_path / "away").mkdir()
    here, *_ = method(tok, "cpu", tmp_path, monkeypatch)
    away, *models = method(tok, DEVICE, tmp_path / "away", monkeypatch)
    assert all(isinstance(p, Away) for model in models for p in [*model.parameters(), *model.buffers()])
    assert len(here["losses"]) > 8 and len(set(here["meta"])) > 1
    assert away["losses"] == pytest.approx(here["losses"], abs=2e-3)
    assert away["meta"] == pytest.approx(here["meta"], abs=2e-3)
    assert away["vote"] == here["vote"] and away["greedy"] == here["greedy"]
