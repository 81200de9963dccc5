// The judge in plain JavaScript: tokenizer, GPT, sampler, reader of judgements, votes. It follows data/tokenizer.py,
// model.py, sample.py, data/judgement.py and metarm.py, in this order and with their names. It only judges: whatever
// trains is left out.
//
// Shapes: N rows (tokens that are read at the same time), C channels, V vocabulary, H query heads, D = C / H channels
// of a head. A matrix is a flat Float32Array, row after row.
"use strict";

// ---------------------------------------------------------------------------------------------------------------
// data/tokenizer.py

const SPECIAL = ["<pad>", "<end>", "<query>", "<r1>", "<r2>", "<r3>", "<r4>", "<hint>",
                 "<principles>", "<critique>", "<checks>", "<total>", "<scores>"];
const [PAD, END, QUERY, R1, R2, R3, R4, HINT, PRINCIPLES, CRITIQUE, CHECKS, TOTAL, SCORES] = SPECIAL.keys();
const RESPONSE = [R1, R2, R3, R4];

// Text is first cut into chunks, as by PATTERN in Python. (There \w, \d and \s know all of Unicode.)
const WORD = "\\p{Alphabetic}\\p{M}\\p{Pc}\\p{Join_Control}";
const PATTERN = new RegExp(` ?(?:(?!_)[${WORD}])+|\\p{Nd}| ?[^\\p{White_Space}\\p{Nd}${WORD}]+|[^]`, "gu");

class Tokenizer {
  // ranks: {bytes of a token, as a string with a character for each byte: its id}
  constructor(ranks) {
    this.ranks = new Map(ranks);
    this.bytes = new Map([...this.ranks].map(([bytes, id]) => [id, bytes]));
  }

  // Merge the pair of neighbours whose token has the lowest id, again and again.
  encodeChunk(chunk) {
    const parts = Array.from(new TextEncoder().encode(chunk), byte => String.fromCharCode(byte));
    for (;;) {
      let best = -1, lowest = Infinity;
      for (let i = 0; i + 1 < parts.length; i++) {
        const id = this.ranks.get(parts[i] + parts[i + 1]) ?? Infinity;
        if (id < lowest) [best, lowest] = [i, id];
      }
      if (best < 0) return parts.map(part => this.ranks.get(part));
      parts.splice(best, 2, parts[best] + parts[best + 1]);
    }
  }

  // A list of parts -> ids. A number is a special token; a string is text, whatever it contains.
  encode(parts) {
    return parts.flatMap(part => typeof part === "number" ? [part]
      : (part.match(PATTERN) ?? []).flatMap(chunk => this.encodeChunk(chunk)));
  }

  // The text of ids without special tokens
  text(ids) {
    const bytes = ids.filter(id => id >= SPECIAL.length).map(id => this.bytes.get(id)).join("");
    return new TextDecoder().decode(Uint8Array.from(bytes, c => c.charCodeAt(0)));
  }
}

// ---------------------------------------------------------------------------------------------------------------
// model.py

// y (N, rows of W) = x (N, columns) times W transposed
function linear(W, x, N, columns) {
  const rows = W.length / columns, y = new Float32Array(N * rows), row = r => Math.min(r, rows - 1) * columns;
  for (let r = 0; r < rows; r += 4) {
    // Four rows at once: four sums are added up side by side, and each number of x is loaded once for them.
    const w0 = row(r), w1 = row(r + 1), w2 = row(r + 2), w3 = row(r + 3);
    for (let n = 0; n < N; n++) {
      const at = n * columns;
      let a = 0, b = 0, c = 0, d = 0;
      for (let i = 0; i < columns; i++) {
        const value = x[at + i];
        a += W[w0 + i] * value;
        b += W[w1 + i] * value;
        c += W[w2 + i] * value;
        d += W[w3 + i] * value;
      }
      [a, b, c, d].forEach((sum, i) => { if (r + i < rows) y[n * rows + r + i] = sum; });
    }
  }
  return y;
}

// RMSNorm: scale each of N vectors of channels to a mean square of 1.
function norm(x, N) {
  const C = x.length / N, y = new Float32Array(x.length);
  for (let n = 0; n < N; n++) {
    let square = 0;
    for (let i = n * C; i < (n + 1) * C; i++) square += x[i] * x[i];
    const scale = 1 / Math.sqrt(square / C + 2 ** -23);
    for (let i = n * C; i < (n + 1) * C; i++) y[i] = x[i] * scale;
  }
  return y;
}

// Rotary positions: turn pairs of channels (i, i + D/2) of the head at `start`, in place.
function rotate(x, start, D, position) {
  const half = D / 2;
  for (let i = 0; i < half; i++) {
    const angle = position / 10000 ** (i / half), cos = Math.cos(angle), sin = Math.sin(angle);
    const a = x[start + i], b = x[start + half + i];
    x[start + i] = a * cos - b * sin;
    x[start + half + i] = b * cos + a * sin;
  }
}

// One query head (at `start` of q) looks at the first S keys and values; what it finds is added to `out` at `at`.
function attend(q, start, keys, values, S, D, out, at) {
  const weights = new Float32Array(S);
  let largest = -Infinity, sum = 0;
  for (let s = 0; s < S; s++) {
    let score = 0;
    for (let i = 0; i < D; i++) score += q[start + i] * keys[s * D + i];
    weights[s] = score / Math.sqrt(D);
    largest = Math.max(largest, weights[s]);
  }
  for (let s = 0; s < S; s++) sum += weights[s] = Math.exp(weights[s] - largest);
  for (let s = 0; s < S; s++) {
    const weight = weights[s] / sum;
    for (let i = 0; i < D; i++) out[at + i] += weight * values[s * D + i];
  }
}

// The keys and values of all tokens that a row has read, layer by layer
class KVCache {
  constructor(layers, size) {
    this.keys = Array.from({length: layers}, () => new Float32Array(size));
    this.values = Array.from({length: layers}, () => new Float32Array(size));
    this.length = 0;
  }

  copy() {
    const cache = new KVCache(0, 0), slice = array => array.slice();
    return Object.assign(cache, {keys: this.keys.map(slice), values: this.values.map(slice), length: this.length});
  }
}

class GPT {
  // cfg: as GPTConfig; weights: {name, as in PyTorch: Float32Array}
  constructor(cfg, weights) {
    Object.assign(this, {cfg, weights});
  }

  newCache() {
    return new KVCache(this.cfg.n_layer, this.cfg.block_size * this.cfg.n_embd / this.cfg.n_head);
  }

  // Read N tokens -> hidden states (N, C). caches: the cache of each token. Tokens that share a cache are consecutive
  // tokens of one text. (So a prompt is read with one cache, and the next tokens of several samples with one each.)
  forward(ids, caches) {
    const {n_embd: C, n_head: H, n_layer} = this.cfg, N = ids.length, D = C / H, W = this.weights;
    const positions = caches.map(cache => cache.length++);
    let x = new Float32Array(N * C);
    ids.forEach((id, n) => x.set(W["wte.weight"].subarray(id * C, (id + 1) * C), n * C));
    x = norm(x, N);
    for (let layer = 0; layer < n_layer; layer++) {
      const block = `blocks.${layer}.`, heads = new Float32Array(N * C);
      const qkv = linear(W[block + "attn.qkv.weight"], norm(x, N), N, C);          // (N, H + 2, D)
      for (let n = 0; n < N; n++) {
        const row = n * (H + 2) * D, key = row + H * D, at = positions[n] * D;
        for (let h = 0; h <= H; h++) rotate(qkv, row + h * D, D, positions[n]);    // queries and the key
        caches[n].keys[layer].set(qkv.subarray(key, key + D), at);
        caches[n].values[layer].set(qkv.subarray(key + D, key + 2 * D), at);
      }
      for (let n = 0; n < N; n++)
        for (let h = 0; h < H; h++)
          attend(qkv, (n * (H + 2) + h) * D, caches[n].keys[layer], caches[n].values[layer], positions[n] + 1, D,
                 heads, n * C + h * D);
      const attended = linear(W[block + "attn.proj.weight"], heads, N, C);         // (N, C)
      for (let i = 0; i < x.length; i++) x[i] += attended[i];
      const inner = linear(W[block + "mlp.fc.weight"], norm(x, N), N, C);          // (N, 4C)
      for (let i = 0; i < inner.length; i++) inner[i] = Math.max(0, inner[i]) ** 2;
      const outer = linear(W[block + "mlp.proj.weight"], inner, N, 4 * C);         // (N, C)
      for (let i = 0; i < x.length; i++) x[i] += outer[i];
    }
    return norm(x, N);
  }

  // Hidden states (N, C) -> (N, V)
  logits(x) {
    return linear(this.weights["wte.weight"], x, x.length / this.cfg.n_embd, this.cfg.n_embd);
  }
}

// The logit of the Meta RM for a text: a scalar head on its last token
function rate(meta, ids) {
  const cache = meta.newCache(), last = meta.forward(ids, ids.map(() => cache)).subarray(-meta.cfg.n_embd);
  return last.reduce((sum, value, i) => sum + value * meta.weights["head.weight"][i], meta.weights["head.bias"][0]);
}

// ---------------------------------------------------------------------------------------------------------------
// sample.py

// The probabilities of the next token, (V,), at a temperature above 0
function softmax(logits, temperature) {
  const largest = logits.reduce((a, b) => Math.max(a, b)), p = logits.map(x => Math.exp((x - largest) / temperature));
  const sum = p.reduce((a, b) => a + b);
  return p.map(x => x / sum);
}

// Draw a token: the first one at which the cumulative probability exceeds u. Temperature 0: the most likely one
function draw(logits, u, temperature) {
  if (temperature === 0) return logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));
  const p = softmax(logits, temperature), sum = p.reduce((a, b) => a + b);
  let cumulative = 0;
  const id = p.findIndex(x => (cumulative += x) > u * sum);
  return id < 0 ? p.length - 1 : id;
}

// Random numbers of one sample: numpy's Philox generator. Equal seeds give the same numbers as in Python.
// (SeedSequence makes a key of the seed; then 4x64-bit Philox in ten rounds; each number has 24 random bits.)
function* uniforms(seed) {
  const key = seedSequence(BigInt(seed)), mask = (1n << 64n) - 1n;
  for (let counter = 1n; ; counter++) {
    let [a, b, c, d] = [counter, 0n, 0n, 0n], [k0, k1] = key;
    for (let round = 0; round < 10; round++) {
      const [x, y] = [a * 0xD2E7470EE14C6C93n, c * 0xCA5A826395121157n];
      [a, b, c, d] = [(y >> 64n) ^ b ^ k0, y & mask, (x >> 64n) ^ d ^ k1, x & mask];
      [k0, k1] = [(k0 + 0x9E3779B97F4A7C15n) & mask, (k1 + 0xBB67AE8584CAA73Bn) & mask];
    }
    for (const word of [a, b, c, d])
      for (const half of [word & 0xFFFFFFFFn, word >> 32n]) yield Number(half >> 8n) / 2 ** 24;
  }
}

// numpy's SeedSequence: mix the 32-bit words of a seed into a pool of four, and take two 64-bit words from it.
function seedSequence(seed) {
  const hash = (start, factor) => {
    let constant = start;
    return value => {
      value ^= constant;
      constant = Math.imul(constant, factor);
      value = Math.imul(value, constant);
      return value ^ (value >>> 16);
    };
  };
  const mixIn = hash(0x43b0d7e5, 0x931e8875), takeOut = hash(0x8b51f9dd, 0x58f38ded);
  const words = [];
  for (let rest = seed; rest > 0n; rest >>= 32n) words.push(Number(rest & 0xFFFFFFFFn));
  const pool = [0, 1, 2, 3].map(i => mixIn(words[i] ?? 0));
  const mix = (x, y) => {
    const mixed = (Math.imul(x, 0xca01f9dd) - Math.imul(y, 0x4973f715)) | 0;
    return mixed ^ (mixed >>> 16);
  };
  for (let from = 0; from < 4; from++)
    for (let to = 0; to < 4; to++)
      if (from !== to) pool[to] = mix(pool[to], mixIn(pool[from]));
  const out = [0, 1, 2, 3].map(i => BigInt(takeOut(pool[i]) >>> 0));
  return [out[0] | out[1] << 32n, out[2] | out[3] << 32n];
}

// Samples, written side by side. step() reads a text, or writes the next token of each sample; false at the end.
class Sampler {
  // samples: objects with prompt (ids), seed, temperature, and ids, which may have begun. Each gets p: for each
  // token the policy's probabilities (V,), at temperature 1; and done.
  constructor(model, samples) {
    Object.assign(this, {model, samples});
    samples.forEach(sample => this.look(sample));
  }

  // Has it ended? Then what it needed for writing is given back.
  look(sample) {
    const length = sample.prompt.length + sample.ids.length;
    sample.done = sample.ids.at(-1) === END || length >= this.model.cfg.block_size;
    if (sample.done) sample.cache = sample.logits = sample.u = null;
  }

  // Read the text of a sample. Others with the same text get a copy.
  read(sample) {
    const textOf = ({prompt, ids}) => [...prompt, ...ids], text = textOf(sample), cache = this.model.newCache();
    const logits = this.model.logits(this.model.forward(text, text.map(() => cache)).slice(-this.model.cfg.n_embd));
    for (const other of this.samples) {
      if (other.cache || other.done || String(textOf(other)) !== String(text)) continue;
      Object.assign(other, {cache: cache.copy(), logits, u: uniforms(other.seed)});
      other.ids.forEach(() => other.u.next());
    }
  }

  step() {
    const active = this.samples.filter(sample => !sample.done), unread = active.find(sample => !sample.cache);
    if (unread) {
      this.read(unread);
      return true;
    }
    for (const sample of active) {
      sample.p.push(softmax(sample.logits, 1));
      sample.ids.push(draw(sample.logits, sample.u.next().value, sample.temperature));
      this.look(sample);
    }
    const going = active.filter(sample => !sample.done), V = this.model.cfg.vocab_size;
    if (going.length) {
      const x = this.model.forward(going.map(sample => sample.ids.at(-1)), going.map(sample => sample.cache));
      const logits = this.model.logits(x);
      going.forEach((sample, n) => sample.logits = logits.slice(n * V, (n + 1) * V));
    }
    return going.length > 0;
  }
}

// ---------------------------------------------------------------------------------------------------------------
// data/judgement.py and metarm.py

// The index of the largest score, or null if several are largest, or if there are none. Scores are numbers.
function pick(scores) {
  if (!scores) return null;
  const most = Math.max(...scores);
  return scores.filter(score => score === most).length === 1 ? scores.indexOf(most) : null;
}

// The sum of each response's scores; null does not vote.
function voteSum(ballots) {
  const voters = ballots.filter(scores => scores);
  return voters.length ? voters[0].map((_, i) => voters.reduce((sum, scores) => sum + scores[i], 0)) : null;
}

// Each sample has one vote, for the response that it scores highest, or shares of it. The sum only breaks ties.
// -> {votes, sums, ranking: what is compared}
function votePlurality(ballots) {
  const sums = voteSum(ballots);
  if (!sums) return null;
  const twelfths = sums.map(() => 0);            // whole numbers: thirds must add up to 1
  for (const scores of ballots.filter(scores => scores)) {
    const most = Math.max(...scores), winners = scores.filter(score => score === most).length;
    scores.forEach((score, i) => { if (score === most) twelfths[i] += 12 / winners; });
  }
  return {votes: twelfths.map(votes => votes / 12), sums, ranking: sums.map((sum, i) => twelfths[i] * 1e6 + sum)};
}

// The samples with the largest logits, best first. One that does not parse has none, and comes last. (The
// difference of two that have none is NaN: they keep their order.)
function keepBest(samples, count) {
  return [...samples].sort((a, b) => (b.meta ?? -Infinity) - (a.meta ?? -Infinity) || 0).slice(0, count);
}

function voteGuided(samples) {
  return voteSum(keepBest(samples, Math.max(1, samples.length >> 1)).map(sample => sample.scores));
}

// What the judge reads: the query, and the responses in this order
function promptParts(query, responses) {
  return [QUERY, " " + query, ...responses.flatMap((response, i) => [RESPONSE[i], " " + response]), PRINCIPLES];
}

// Read a judgement, strictly -> {principles, critiques, scores}, or {status: why it does not parse}. order: the
// response at place i of the prompt is response order[i] of the item. Structure is read from special tokens alone.
function readJudgement(tok, ids, order) {
  const n = order.length, where = ids.flatMap((id, i) => id < SPECIAL.length ? [i] : []);
  const special = where.map(i => ids[i]);
  const texts = [-1, ...where].map((start, i) => tok.text(ids.slice(start + 1, where[i] ?? ids.length)));
  if (special.at(-1) !== END || texts.at(-1)) return {status: "no end"};
  const expected = [CRITIQUE, ...RESPONSE.slice(0, n).flatMap(r => [r, CHECKS, TOTAL]), SCORES, END];
  if (String(special) !== String(expected)) return {status: "bad structure"};
  const principles = texts[0].replace(/^ /, "").split(", ").map(text => /^([a-z]+) (10|[1-9])$/.exec(text));
  if (principles.some(match => !match) || texts[1]) return {status: "bad principles"};
  const middle = texts.slice(2, 2 + 3 * n), scores = texts[2 + 3 * n].split(" ");
  const totals = middle.filter((_, i) => i % 3 === 2);
  if (scores.length !== n || ![...totals, ...scores].every(text => /^(10|[1-9])$/.test(text)))
    return {status: "bad scores"};
  const critiques = totals.map((total, i) => ({
    quote: middle[3 * i].trim(), text: middle[3 * i + 1].trim(), total: Number(total),
    checks: [...middle[3 * i + 1].matchAll(/([a-z]+): (?:([^,:]*), )?(good|bad)(?= |$)/g)]
      .map(match => [match[1], match[2] ?? null, match[3] === "good"])}));
  const places = order.map((_, i) => order.indexOf(i));                  // where response i stood in the prompt
  return {principles: principles.map(match => [match[1], Number(match[2])]),
          critiques: places.map(place => critiques[place]), scores: places.map(place => Number(scores[place]))};
}
