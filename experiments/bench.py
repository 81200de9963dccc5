"""
How fast are the sampler and the trainer, against this machine's own limit and against other programs?

    python -m experiments.bench                       # seven to eleven minutes
    python -m experiments.bench --quick               # under a minute: the same table, smaller and noisier

Everything is measured in one run, contenders in turn, medians of three rounds or more (but one round of the
slow loop without a cache): compare the ratios, the rates differ from machine to machine and hour to hour.

- The limit is what a large float32 matrix product reaches here. A share of it counts useful work only: a
  token once through the matrices and its attention to the tokens before it, a shared prompt once, no padding.
  (bfloat16 has a limit of its own; a share of the float32 limit can then be above 1.)
- Sampling needs no trained judge. Prompts are those of the toy world, and each sample is made to end where a
  simulated expert's judgement of such an item ends: real prompts, real lengths, the same for all contenders.
- Hugging Face's generate joins in if `transformers` is installed (pip install transformers), on a Llama
  with as many layers, channels, heads and parameters, in float32 as our sampler. TRL joins in if it is
  installed (pip install trl==1.16.0), with one GRPO step of that Llama.
"""

import contextlib
import io
import itertools
import random
import statistics
import tempfile
import time
from unittest import mock

import numpy as np
import torch

import sample
import spct
from config import Config
from data import Parser, UserError, check_new, command
from data.annotators import annotate, corpus, corpus_texts
from data.judgement import Judgement, judgement_parts, render_prompt
from data.tokenizer import END, PAD, Tokenizer, train_bpe
from data.world import make_items
from model import GPT, GPTConfig, Optimizer, pad_rows, token_logp, trapezoid
from run import Run, machine, pick_dtype, write_json
from sample import draw, generate

# Parameters without embeddings: 0.7M and 2.7M.
SIZES = {"S": dict(n_layer=4, n_head=4, n_embd=128), "M": dict(n_layer=7, n_head=6, n_embd=192)}

# ----------------------------------------------------------------------------------------
# Clocks and counts

def seconds(contenders, rounds):
    """{name: function} -> {name: median of its seconds}; the functions are called in turn, `rounds` times."""
    times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, function in contenders.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def show(text, *numbers_and_units):
    """One line of the table: a name, then numbers, each with its unit."""
    pairs = zip(numbers_and_units[::2], numbers_and_units[1::2])
    cells = [f"{x:10,.0f} {unit}" if x >= 100 else f"{x:10.3f} {unit}" for x, unit in pairs]
    print(f"{text:52s}{'  '.join(cells)}".rstrip(), flush=True)


def limit():
    """What this machine can do: GFLOP/s of a matrix product in both precisions."""
    rates = {}
    for name, dtype in (("fp32_gflops", torch.float32), ("bf16_gflops", torch.bfloat16)):
        for size in (256, 2048):                   # the large one only where the small one is no emulation
            a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
            rates[name] = 2 * size ** 3 / seconds({name: lambda: a @ b}, 9)[name] / 1e9
            if rates[name] < 10:
                break
    return rates


def forward_flops(cfg, start, end, predicted):
    """Floating point operations to read tokens number start..end-1 of a text and predict `predicted` of them.

    2 for each weight of a matrix, and 4 C a layer for each token that one attends to (2 for the score, 2 for
    the sum, over all heads). The last MLP and the output layer are needed for predictions only.
    """
    C, tokens = cfg.n_embd, end - start
    qkv_and_proj, mlp = C * (2 * C + 2 * cfg.n_kv_head * C // cfg.n_head), 8 * C * C
    seen = (end * (end + 1) - start * (start + 1)) / 2
    return 2 * (cfg.n_layer * (qkv_and_proj + mlp) - mlp) * tokens + 4 * C * cfg.n_layer * seen + \
        2 * (mlp + C * cfg.vocab_size) * predicted


def sampling_flops(cfg, prompts, lengths):
    """Of judgements of `lengths` tokens on these prompts, equal prompts read once."""
    # the last token of a prompt is read by each of its samples, END is not read
    return sum(forward_flops(cfg, 0, len(p) - 1, 0) for p in set(prompts)) + \
        sum(forward_flops(cfg, len(p) - 1, len(p) - 1 + n, n) for p, n in zip(prompts, lengths))

# ----------------------------------------------------------------------------------------
# Work to do: real prompts, real lengths

def make_work(tok, count, k=1, n=None):
    """`count` samples, k of each prompt -> prompts, lengths: where an expert's judgement would end."""
    least, most = (n, n) if n else (2, 4)
    items = make_items(0, "test", -(-count // k), least=least, most=most)
    prompts, lengths = [], []
    for i in range(count):
        item = items[i // k]
        prompts.append(tuple(tok.encode(render_prompt(item.query, item.responses))))
        lengths.append(len(tok.encode(judgement_parts(*annotate(random.Random(i), item, "expert")))))
    return prompts, lengths


def random_prompt(seed, T):
    return tuple(np.random.default_rng(seed).integers(20, 700, T).tolist())


def scripted(lengths):
    """Let the sampler's rows end on cue: the sample with seed s writes lengths[s % N] tokens.

    A random number of 2 is the cue: there the token is END, and nowhere else.
    """
    def uniforms(seed, count):
        u = np.random.default_rng(seed).random(count, dtype=np.float32)
        u[lengths[seed % len(lengths)] - 1:] = 2.0
        return u

    def draw_on_cue(logits, u, temperature):
        ids, logp = draw(logits, u.clamp(max=0.999), temperature)
        return torch.where(u > 1, END, torch.where(ids == END, PAD, ids)), logp

    return mock.patch.multiple(sample, uniforms=uniforms, draw=draw_on_cue)


class Unshared(tuple):
    """A prompt that equals itself alone, so that the sampler reads it for each of its samples."""
    __hash__ = object.__hash__
    __eq__ = object.__eq__


def ours(model, prompts, lengths, rows=256, block=16, shared=True):
    """Our sampler, or without some of what makes it fast."""
    prompts = prompts if shared else [Unshared(p) for p in prompts]
    with scripted(lengths), mock.patch.multiple(sample, ROWS=rows, BLOCK=block):
        done = generate(model, prompts, range(len(prompts)))
    assert [len(ids) for ids, _ in done] == lengths

# ----------------------------------------------------------------------------------------
# Contenders

@torch.inference_mode()
def no_cache(model, prompts, lengths):
    """nanoGPT's `generate`: the whole text through the model for each new token, until all rows end."""
    ids, length = pad_rows(prompts)
    B, target = len(prompts), length + torch.tensor(lengths)
    text = torch.full((B, int(target.max())), PAD)
    text[:, :ids.size(1)] = ids[:, :text.size(1)]
    rows = torch.arange(B)
    while (length < target).any():
        x = model(text[:, :int(length.max())])[rows, length - 1]             # (B, C)
        token, _ = draw(model.logits(x), torch.rand(B), 1.0)
        going = length < target                    # rows that have ended stay as they are
        text[rows[going], length[going]] = token[going]
        length = length + going.long()


def llama(cfg):
    """The Llama that is like our model."""
    from transformers import LlamaConfig, LlamaForCausalLM
    # a gated MLP has three matrices: as many parameters as our two, 8 C^2
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=cfg.vocab_size, hidden_size=cfg.n_embd, intermediate_size=round(8 * cfg.n_embd / 3),
        num_hidden_layers=cfg.n_layer, num_attention_heads=cfg.n_head, num_key_value_heads=cfg.n_kv_head,
        max_position_embeddings=2 * cfg.block_size, tie_word_embeddings=True, pad_token_id=PAD,
        bos_token_id=None, eos_token_id=None))


def hugging_face(cfg):
    """-> function(prompts, lengths) that samples with transformers, or None if it is not installed."""
    try:
        from transformers import StoppingCriteria, StoppingCriteriaList
    except ImportError:
        return None
    model = llama(cfg).eval()

    class Cue(StoppingCriteria):
        def __init__(self, prompt, lengths):
            self.end = prompt + torch.tensor(lengths)

        def __call__(self, ids, scores, **_):
            return ids.size(1) >= self.end         # (B,) which rows have ended

    @torch.inference_mode()
    def run(prompts, lengths, batch=256):
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), batch):
            chunk = order[start:start + batch]
            T = max(len(prompts[i]) for i in chunk)                          # padded on the left
            ids = torch.tensor([[PAD] * (T - len(prompts[i])) + list(prompts[i]) for i in chunk])
            model.generate(input_ids=ids, attention_mask=(ids != PAD).long(), do_sample=True, top_k=0,
                           top_p=1.0, max_new_tokens=max(lengths[i] for i in chunk),
                           stopping_criteria=StoppingCriteriaList([Cue(T, [lengths[i] for i in chunk])]))
    return run


def trl_step(cfg, prompts, group, length, steps):
    """Seconds of a GRPO step of TRL, `group` samples of `length` tokens of each prompt, without a reference
    model: median of some steps, without the first. None if it is not installed."""
    try:
        from datasets import Dataset
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast, TrainerCallback
        from trl import GRPOConfig, GRPOTrainer
    except ImportError:
        return None
    # each of our tokens is a word, so that it reads the very same prompts
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(cfg.vocab_size)}, unk_token=f"t{PAD}"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=f"t{PAD}", eos_token=f"t{END}",
                                   padding_side="left")

    ends = []                                      # times

    class Clock(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            ends.append(time.perf_counter())

    rows = Dataset.from_dict({"prompt": [" ".join(f"t{i}" for i in p) for p in prompts] * (steps + 1)})
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = GRPOConfig(folder, use_cpu=True, bf16=False, max_steps=steps + 1, num_generations=group,
                            per_device_train_batch_size=len(prompts) * group, max_completion_length=length,
                            generation_kwargs={"min_new_tokens": length}, beta=0.0, save_strategy="no",
                            activation_checkpointing=False, report_to="none", disable_tqdm=True)
        reward = lambda completions, **rest: [float(i % 2) for i in range(len(completions))]
        GRPOTrainer(llama(cfg), reward, config, rows, processing_class=fast, callbacks=[Clock()]).train()
    return statistics.median(np.diff(ends))

# ----------------------------------------------------------------------------------------
# What is measured

def config(size="S", **changes):
    usual = {"vocab_size": 704, "block_size": Config.block_size, "n_kv_head": 1}
    return GPTConfig(**{**usual, **SIZES[size], **changes})


def bench_rows(model, rates, prompts, lengths, quick):
    """Tokens a second and share of the limit, by the number of rows -> the best one's, and its rows."""
    show(f"sampling, {len(prompts)} different prompts of {np.mean([len(p) for p in prompts]):.0f} tokens, "
         f"{np.mean(lengths):.0f} written for each (up to {max(lengths)})")
    few = {1: 4} if quick else {1: 16, 32: 256}    # rows: samples
    sizes = [32, 64] if quick else [256, 512, 768, 1024]
    first = lambda count: (prompts[:count], lengths[:count])
    work = {n: first(few.get(n, len(prompts))) for n in [*few, *sizes]}
    times = seconds({n: lambda n=n: ours(model, *work[n], rows=n) for n in work}, 1 if quick else 3)
    tok_s = {n: sum(work[n][1]) / s for n, s in times.items()}
    most = rates["fp32_gflops"] * 1e9
    share = {n: sampling_flops(model.cfg, *work[n]) / s / most for n, s in times.items()}
    for n, s in times.items():
        show(f"  {n} rows", tok_s[n], "tokens/s", len(work[n][0]) / s, "samples/s",
             share[n], "of the fp32 limit")
    best = max(share, key=share.get)
    return {"tok_s": tok_s[best], "limit_share": share[best]}, best


def bench_ablation(model, tok, count, k, batch, rounds):
    """Our sampler without each of its means, on k samples of each prompt."""
    prompts, lengths = make_work(tok, count, k)
    wide = GPT(config(n_kv_head=4))
    without = {"all of it": {}, "looks at every step": dict(block=1), "looks every 64 steps": dict(block=64),
               "prompts not shared": dict(shared=False)}
    runs = {name: lambda how=how: ours(model, prompts, lengths, rows=batch, **how)
            for name, how in without.items()}
    runs["4 key/value heads"] = lambda: ours(wide, prompts, lengths, rows=batch)
    times = seconds(runs, rounds)
    show(f"sampling, {k} samples of each prompt, {batch} rows")
    for name, s in times.items():
        show(f"  {name}", sum(lengths) / s, "tokens/s", times["all of it"] / s, "of all")


def bench_votes(model, tok, k, rounds):
    """k votes on one item at once against k single judgements, one after the other -> how many times cheaper.
    Most of that is the larger batch."""
    work = make_work(tok, k, k)
    times = seconds({"votes": lambda: ours(model, *work),
                     "single": lambda: [ours(model, [p], [n]) for p, n in zip(*work)]}, rounds)
    ratio = times["single"] / times["votes"]
    show(f"{k} votes on one item, against {k} single judgements", ratio, "times cheaper")
    return ratio


def bench_others(model, prompts, lengths, batch, best, quick):
    """Against a loop without a cache and Hugging Face -> ratios.

    The loop has the same batch as ours. Hugging Face has two batches to choose from, ours has `best` rows:
    each stands at its best.
    """
    some, tokens, ratios = (prompts[:batch], lengths[:batch]), sum(lengths), {}
    slow = seconds({"ours": lambda: ours(model, *some, rows=batch),
                    "loop": lambda: no_cache(model, *some)}, 1)
    ratios["nocache_ratio"] = slow["loop"] / slow["ours"]
    show(f"other samplers, batch {batch}")
    show("  loop without a cache", sum(some[1]) / slow["loop"], "tokens/s",
         ratios["nocache_ratio"], "times slower than ours")
    hf = hugging_face(model.cfg)
    if hf is None:
        show("  Hugging Face: transformers is not installed")
        return {**ratios, "hf_ratio": None, "hf_fixed_ratio": None}
    steps = 32 if quick else 96
    fixed = [random_prompt(i, 33) for i in range(batch)], [steps] * batch
    hf(fixed[0][:32], fixed[1][:32], 32)           # warm up
    mine = {n: lambda n=n: ours(model, prompts, lengths, rows=n) for n in (batch, best)}
    theirs = {f"batch {n}": lambda n=n: hf(prompts, lengths, n) for n in (batch, 2 * batch)}
    times = seconds({**mine, **theirs, "ours fixed": lambda: ours(model, *fixed, rows=batch),
                     "hf fixed": lambda: hf(*fixed, batch)}, 1 if quick else 3)
    least = min(times[n] for n in mine)
    for name in theirs:
        show(f"  Hugging Face, real prompts and ends, {name}", tokens / times[name], "tokens/s",
             times[name] / times[batch], f"times slower than ours with {batch} rows",
             times[name] / least, "than ours at its best")
    ratios["hf_ratio"] = min(times[name] for name in theirs) / least
    ratios["hf_fixed_ratio"] = times["hf fixed"] / times["ours fixed"]
    show(f"  Hugging Face, 33 + {steps} tokens each", batch * steps / times["hf fixed"], "tokens/s",
         ratios["hf_fixed_ratio"], "times slower than ours")
    return ratios


def bench_training(tok, rates, quick):
    """Whole pre-training steps on real rows, optimizer included -> {size: numbers}."""
    rows, dtype, result = Config.pretrain_rows, getattr(torch, pick_dtype("cpu")), {}
    ids, mask = corpus(tok, 0, 40_000, Config.block_size)
    x, m = torch.from_numpy(ids[:rows].astype(np.int64)), torch.from_numpy(mask[:rows])
    show(f"training, {rows} rows of {ids.shape[1]} tokens a step, {str(dtype).removeprefix('torch.')}")
    for size in SIZES:
        cfg = config(size)
        model = GPT(cfg)
        opt = Optimizer(model, 1e-3, dtype)

        def step():
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = -token_logp(model, x, m).mean()
            loss.backward()
            opt.step(trapezoid(5, 100))

        seconds({size: step}, 2)                   # warm up
        s = seconds({size: step}, 2 if quick else 15)[size]
        flops = 3 * sum(forward_flops(cfg, 0, int((row != PAD).sum()), int(learn.sum()))
                        for row, learn in zip(x, m[:, 1:]))
        tokens = int((x != PAD).sum())
        result[size] = {"tok_s": tokens / s, "limit_share": flops / s / 1e9 / rates["fp32_gflops"]}
        show(f"  size {size}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters", tokens / s,
             "tokens/s", result[size]["limit_share"], "of the fp32 limit")
    return result


def bench_rl_step(tok, lengths, steps, **changes):
    """One step of spct.rl, in the default setting but for changes: seconds in sampling, in model passes, in
    all the rest. lengths: those of the samples."""
    clock = {"sampling": 0.0, "passes": 0.0}

    def timed(function, part):
        def wrapped(*args, **kwargs):
            start = time.perf_counter()
            result = function(*args, **kwargs)
            clock[part] += time.perf_counter() - start
            return result
        return wrapped

    with tempfile.TemporaryDirectory() as folder:
        usual = dict(device="cpu", dtype=pick_dtype("cpu"), out=folder, rl_steps=steps)
        cfg = Config(**{**usual, **changes})
        points = make_items(0, "train", 80)
        never_right = [[Judgement(p.id, 0, [], 0, (), [], 0.0)] for p in points]
        policy = GPT(config(vocab_size=tok.vocab_size))
        patches = [(sample, "generate", "sampling"), (spct, "token_logits", "passes"),
                   (spct, "token_logp", "passes"), (torch.Tensor, "backward", "passes")]
        with contextlib.ExitStack() as stack:
            for where, name, part in patches:
                stack.enter_context(mock.patch.object(where, name, timed(getattr(where, name), part)))
            for quiet in (contextlib.redirect_stdout, contextlib.redirect_stderr):
                stack.enter_context(quiet(io.StringIO()))
            stack.enter_context(scripted(lengths))
            # an untrained policy is never right: every other sample is called so, or there is little to learn
            rewards = itertools.cycle([1.0, -1.0])
            stack.enter_context(mock.patch.object(spct, "reward", lambda j, item: next(rewards)))
            start = time.perf_counter()
            spct.rl(Run(cfg, folder), tok, policy, points, never_right)
            total = (time.perf_counter() - start) / cfg.rl_steps
    parts = {name: s / cfg.rl_steps for name, s in clock.items()}
    parts["other"] = total - sum(parts.values())
    show(f"one RL step, {cfg.rl_points} points x {cfg.group}, {np.mean(lengths):.0f} tokens a sample, "
         f"{cfg.rl_keep} of {cfg.group} learned from, {cfg.dtype}")
    for name, s in parts.items():
        show(f"  {name}", s, "s", s / total, "of the step")
    return parts


def bench_trl(tok, quick):
    """A step of TRL's GRPO beside ours: as many samples of one length, all learned from, in float32. Theirs
    without the first one, ours a mean of all, with what begins and ends the training."""
    points, group, length, steps = (4, 4, 32, 1) if quick else (32, 8, 112, 3)
    prompts, _ = make_work(tok, points)
    theirs = trl_step(config(vocab_size=tok.vocab_size), prompts, group, length, steps)
    if theirs is None:
        show("  TRL is not installed")
        return None
    mine = bench_rl_step(tok, [length], steps, rl_points=points, group=group, rl_keep=group, dtype="float32")
    ratio = theirs / sum(mine.values())
    show("  TRL, without a reference model (ours has one)", theirs, "s", ratio, "times as long as ours")
    return ratio


def main(argv):
    parser = Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute, smaller and noisier")
    parser.add_argument("--json", help="write the main numbers here, too")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    if args.threads < 1:
        raise UserError(f"--threads {args.threads}: expected 1 or more")
    if args.json:
        check_new(args.json)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tok = Tokenizer(train_bpe(corpus_texts(0, 2000), 704))
    rates = limit()
    show(f"limit of this machine: {machine()}")
    show("  matrix product, float32", rates["fp32_gflops"], "GFLOP/s")
    show("  matrix product, bfloat16", rates["bf16_gflops"], "GFLOP/s")
    model, quick, rounds = GPT(config()), args.quick, 1 if args.quick else 3
    count, batch, k = (64, 16, 8) if quick else (2048, 256, 32)
    work = make_work(tok, count)
    ours(model, work[0][:32], work[1][:32])        # warm up
    sampling, best = bench_rows(model, rates, *work, quick)
    bench_ablation(model, tok, count, k, batch, rounds)
    sampling["votes_ratio"] = bench_votes(model, tok, k, rounds)
    sampling.update(bench_others(model, *work, batch, best, quick))
    training = bench_training(tok, rates, quick)
    small = {"rl_points": 4} if quick else {}
    rl_step = bench_rl_step(tok, make_work(tok, 64)[1], 1 if quick else 4, **small)
    trl_ratio = bench_trl(tok, quick)
    if args.json:
        limits = {name: rates[name] for name in ("fp32_gflops", "bf16_gflops")}
        write_json(args.json, {"machine": machine(), "limit": limits, "sampling": sampling,
                               "training": training, "rl_step": rl_step, "trl_ratio": trl_ratio})


if __name__ == "__main__":
    command(main)
