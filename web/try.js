// "Try the judge": type a query and responses, see the judgement being written, change a token, vote. It needs
// gpt.js, and el, put, table, truthTable and $ of page.html. Whatever is typed, or stands in a link, is text and never
// markup.

const LONGEST = 300;                             // characters of a text
const RULES = {plurality: samples => votePlurality(samples.map(s => s.scores)),
               sum: samples => voteSum(samples.map(s => s.scores)), guided: voteGuided};
const tok = new Tokenizer(data.judge.ranks.map(([bytes, id]) => [atob(bytes), id]));

// ---- Models: 16-bit numbers in base64, one weight after the other

function halfToFloat(h) {
  const exponent = h >> 10 & 31, fraction = (h & 1023) / 1024;
  return (h & 0x8000 ? -1 : 1) * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
}

function loadModel({cfg, shapes, weights}) {
  const bytes = Uint8Array.from(atob(weights), c => c.charCodeAt(0)), halves = new Uint16Array(bytes.buffer);
  const found = {};
  let start = 0;
  for (const [name, size] of shapes) found[name] = Float32Array.from(halves.subarray(start, start += size), halfToFloat);
  return new GPT(cfg, found);
}

const loaded = {};
const model = name => loaded[name] ??= loadModel(data.judge.models[name]);         // when it is first used

// ---- What the reader has set. All of it is in the link.

const say = text => put("problem", text);
const CONTROLS = {policy: "policy", k: "samples", T: "heat", rule: "rule", seed: "seed"};

function readControls() {
  const responses = [0, 1, 2, 3].map(i => $("answer" + i).value).filter(text => text.trim());
  return {query: $("ask").value, responses, policy: $("policy").value, k: Number($("samples").value),
          T: Number($("heat").value), rule: $("rule").value, seed: Number($("seed").value)};
}

function writeControls(state) {
  $("ask").value = state.query;
  for (let i = 0; i < 4; i++) $("answer" + i).value = state.responses[i] ?? "";
  for (const [key, id] of Object.entries(CONTROLS)) if (key in state) $(id).value = state[key];
}

// What is wrong with it? One line, or nothing.
function problemOf(state) {
  const text = value => typeof value === "string" && value.length <= LONGEST;
  const offered = (id, value) => ["string", "number"].includes(typeof value) &&
    [...$(id).options].some(option => option.value === String(value));
  if (!state || !text(state.query) || !Array.isArray(state.responses) || state.responses.length > 4 ||
      !state.responses.every(text))
    return `There must be a query and at most four responses, each of at most ${LONGEST} characters.`;
  if (!state.query.trim() || !state.responses.length)
    return "Write a query, and one to four responses.";
  const {policy, k, T, rule, seed} = state;
  if (!offered("policy", policy) || !offered("samples", k) || !offered("rule", rule) || !(T >= 0.1 && T <= 2) ||
      !(Number.isInteger(seed) && seed >= 0 && seed < 1e9))
    return "The settings are not valid: the temperature is 0.1 to 2, and the seed a whole number, at most 9 digits.";
  // As sample.check_length: a judgement quotes every response, and checks it.
  const room = data.judge.models.rl.cfg.block_size, n = state.responses.length;
  const texts = [...promptParts(state.query, state.responses), ...state.responses.map(text => " " + text)];
  const needed = tok.encode(texts).length + 55 * n + 25;
  if (needed > room)
    return `This may need ${needed} tokens, and the context has ${room}. Shorten or drop a response.`;
  return null;
}

// ---- A job: samples of one policy or of several, a token of each at a time

const job = {number: 0, samples: [], state: null, policies: []};

// Greedy judgements read the responses in the reader's order, others in a fresh one.
function orderOf(n, seed, greedy) {
  const order = [...Array(n).keys()], u = uniforms(seed + 2 ** 40);
  for (let place = n - 1; place > 0 && !greedy; place--) {
    const other = Math.floor(u.next().value * (place + 1));
    [order[place], order[other]] = [order[other], order[place]];
  }
  return order;
}

function judge(policies) {
  const state = readControls(), problem = problemOf(state);
  if (problem) return say(problem);
  writeControls(state);                          // without gaps between the responses
  const greedy = state.k === 0, several = policies.length > 1, count = several ? 1 : Math.max(1, state.k);
  Object.assign(job, {state, policies, samples: policies.flatMap(policy => [...Array(count).keys()].map(i => {
    const seed = state.seed * 64 + i, order = orderOf(state.responses.length, seed, greedy || several);
    const prompt = tok.encode(promptParts(state.query, order.map(place => state.responses[place])));
    return {policy, number: i + 1, order, prompt, seed, temperature: greedy ? 0 : state.T, ids: [], p: []};
  }))});
  say("");
  put("written", job.samples.map(newNode));
  showVotes();
  return write().catch(error => say(String(error)));
}

// Write what is not finished. Slices of 50 ms keep the page usable. Another job, or Stop, ends this one.
async function write() {
  const number = ++job.number, began = performance.now(), pause = () => new Promise(done => setTimeout(done));
  const length = () => job.samples.reduce((sum, sample) => sum + sample.ids.length, 0), before = length();
  put("state", "judging");
  for (const policy of new Set(job.samples.map(sample => sample.policy))) {
    const unfinished = job.samples.filter(s => s.policy === policy && !s.done && !s.stopped);
    const sampler = new Sampler(model(policy), unfinished);
    for (let slice = performance.now(), going = true; going;) {
      going = sampler.step();
      if (going && performance.now() - slice < 50) continue;
      const written = length() - before, seconds = (performance.now() - began) / 1000;
      if (written) put("speed", `${Math.round(written / seconds)} tokens a second`);
      job.samples.forEach(showNew);
      await pause();
      if (number !== job.number) return;
      slice = performance.now();
    }
  }
  for (const sample of job.samples.filter(sample => sample.scores && sample.meta === undefined)) {
    sample.meta = rate(model("meta"), [...sample.prompt, ...sample.ids]);
    showHead(sample);
    showVotes();
    await pause();
    if (number !== job.number) return;
  }
  put("state", "finished");
}

function stop() {
  job.number++;
  for (const sample of job.samples.filter(sample => !sample.done)) {
    sample.stopped = true;
    showHead(sample);
  }
  put("state", "stopped");
}

// The reader takes another token in place of the one at `at`: a new sample, which goes on from there.
function branch(origin, at, id) {
  const {policy, order, prompt, seed, temperature} = origin;
  const sample = {policy, order, prompt, seed, temperature, branch: true, p: origin.p.slice(0, at + 1),
                  ids: [...origin.ids.slice(0, at), id],
                  number: `${origin.number}, with "${spoken(id)}" as token ${at + 1} (no vote)`};
  job.samples.splice(job.samples.indexOf(origin) + 1, 0, sample);
  origin.node.after(newNode(sample));
  sample.head.focus();
  return write().catch(error => say(String(error)));
}

// ---- What it shows

const nameOf = id => id < SPECIAL.length ? SPECIAL[id] : tok.text([id]);
const spoken = id => nameOf(id).trim() || "space";
const percent = p => `${(100 * p).toFixed(p > 0.001 && p < 0.1 ? 1 : 0)}%`;

function newNode(sample) {
  sample.head = el("summary", {});
  sample.tokens = el("p", {class: "tokens"});
  sample.choices = el("p", {class: "choices", role: "group", "aria-label": "other tokens"});
  sample.node = el("details", {class: sample.policy, open: ""}, sample.head, sample.tokens, sample.choices);
  sample.shown = 0;
  showHead(sample);
  return sample.node;
}

function showHead(sample) {
  const order = sample.order.map(i => i + 1).join(" "), meta = sample.meta;
  put(sample.head, `${sample.policy}, judgement ${sample.number}, read in the order ${order}: `,
    sample.scores ? `scores ${sample.scores.join(" ")}` : sample.status ? `does not parse (${sample.status})` :
      sample.stopped ? "stopped" : "...",
    meta === undefined ? "" : `; Meta RM: ${percent(1 / (1 + Math.exp(-meta)))} likely to be correct`);
}

// Append the tokens that are new.
function showNew(sample) {
  for (; sample.shown < sample.ids.length; sample.shown++) {
    const at = sample.shown, id = sample.ids[at], p = sample.p[at][id];
    if (RESPONSE.includes(id) || id === SCORES) sample.tokens.append(el("br"));
    const token = el("button", {class: id < SPECIAL.length ? "token special" : "token",
      "aria-label": `${spoken(id)}, ${percent(p)}`, tabindex: at ? -1 : 0}, nameOf(id));
    token.style.setProperty("--p", p);           // the less likely, the darker
    token.addEventListener("click", () => {
      walkTo(token);
      showChoices(sample, at, token);
    });
    sample.tokens.append(token);
  }
  if (sample.done && !sample.scores && !sample.status) {
    Object.assign(sample, readJudgement(tok, sample.ids, sample.order));
    showHead(sample);
    showVotes();
  }
}

function showChoices(sample, at, token) {
  const best = [...sample.p[at].keys()].sort((a, b) => sample.p[at][b] - sample.p[at][a]).slice(0, 5);
  put(sample.choices, `Token ${at + 1}: go on with `, best.map(id => {
    const here = id === sample.ids[at] ? {disabled: ""} : {};              // it stands there already
    const button = el("button", here, `${nameOf(id)} ${percent(sample.p[at][id])}`);
    button.addEventListener("click", () => branch(sample, at, id));
    button.addEventListener("keydown", event => { if (event.key === "Escape") walkTo(token); });
    return [button, " "];
  }).flat());
  sample.choices.querySelector("button:enabled").focus();
}

// The arrow keys walk along the tokens of a sample. The tab key reaches the one that had the focus last.
function walkTo(token) {
  token.parentNode.querySelectorAll("[tabindex='0']").forEach(other => other.tabIndex = -1);
  token.tabIndex = 0;
  token.focus();
}

function showVotes() {
  const {rule, responses} = job.state, rated = s => rule !== "guided" || s.meta !== undefined;
  const samples = job.samples.filter(s => !s.branch && (s.status || s.scores && rated(s)));
  if (job.policies.length > 1 || !samples.length) return put("result");
  const result = RULES[rule](samples);
  if (!result) return put("result", "No judgement parses.");
  // A plurality has votes, and a ranking that breaks its ties. The other rules are plain numbers.
  const votes = result.votes ?? result, best = pick(result.ranking ?? result), most = Math.max(...votes, 1e-9);
  const rows = responses.map((text, i) => {
    const bar = el("span", {class: "bar", "width%": 60 * votes[i] / most});
    return [text, el("span", {}, bar, votes[i].toFixed(rule === "plurality" ? 2 : 0))];
  });
  put("result", table([["response", `votes (${rule} of ${samples.length})`], ...rows], "votes"),
    el("p", {}, best === null ? "A tie." : `Best: response ${best + 1}.`));
}

// ---- Controls

let dragged = null;                              // index of the response that the mouse has taken

function move(from, to) {
  const texts = [0, 1, 2, 3].map(i => $("answer" + i).value);
  texts.splice(to, 0, ...texts.splice(from, 1));
  texts.forEach((text, i) => $("answer" + i).value = text);
  notAnExample();
  if (job.state) judge(job.policies);
}

function answerNode(i) {
  const input = el("input", {id: "answer" + i, maxlength: LONGEST, "aria-label": `response ${i + 1}`});
  const button = (text, label, to) => {
    const made = el("button", {"aria-label": label, ...(to < 0 || to > 3 ? {disabled: ""} : {})}, text);
    made.addEventListener("click", () => {
      move(i, to);
      $("answers").children[to].querySelector("button:enabled").focus();     // it goes along
    });
    return made;
  };
  const handle = el("span", {draggable: "true", class: "handle", title: "drag it to another place",
    "aria-hidden": "true"}, "\u2261");
  const node = el("li", {}, handle, input, button("\u2191", `move response ${i + 1} up`, i - 1),
                  button("\u2193", `move response ${i + 1} down`, i + 1));
  handle.addEventListener("dragstart", event => {
    event.dataTransfer.setData("text/plain", input.value);
    dragged = i;
  });
  handle.addEventListener("dragend", () => dragged = null);
  node.addEventListener("dragover", event => { if (dragged !== null) event.preventDefault(); });
  node.addEventListener("drop", event => {
    if (dragged === null) return;                // a text from elsewhere: the browser puts it in
    event.preventDefault();
    if (dragged !== i) move(dragged, i);
  });
  return node;
}

function takeExample() {
  const example = data.judge.examples[$("example").value];
  if (!example) return put("told");
  writeControls({query: example.query, responses: example.responses});
  put("told", example.truth ? truthTable(example) : "", example.note);
}

// Typed text, or that of a link, has no known truth.
function notAnExample() {
  $("example").value = "";
  takeExample();
}

// A link: #try= and the state as JSON. It is judged at once.
function followTry() {
  if (!location.hash.startsWith("#try=")) return;
  let state = null;
  try { state = JSON.parse(decodeURIComponent(location.hash.slice(5))); } catch { /* problemOf(null) says it */ }
  const problem = problemOf(state);
  if (problem) say("This link is damaged. " + problem);
  else { notAnExample(); writeControls(state); judge([state.policy]); }
  $("try").scrollIntoView();
}

function startTry() {
  const choose = (id, pairs) => put(id, pairs.map(([value, text]) => el("option", {value}, text)));
  put("answers", [0, 1, 2, 3].map(answerNode));
  choose("policy", [["rl", "rl: after RL"], ["rft", "rft: after RFT"], ["base", "base: before both"]]);
  choose("samples", [[0, "greedy"], ...[1, 2, 4, 8, 16, 32].map(k => [k, String(k)])]);
  choose("rule", Object.keys(RULES).map(name => [name, name]));
  choose("example", [["", "your own"], ...data.judge.examples.map((example, i) => [i, example.title])]);
  $("example").value = 0;
  $("example").addEventListener("change", takeExample);
  for (const id of ["ask", "answers"]) $(id).addEventListener("input", notAnExample);
  $("judge").addEventListener("click", () => judge([$("policy").value]));
  $("both").addEventListener("click", () => judge(["base", "rft", "rl"]));
  $("stop").addEventListener("click", stop);
  $("share").addEventListener("click", () => {
    const state = readControls(), problem = problemOf(state);
    if (problem) return say(problem);
    history.replaceState(null, "", "#try=" + encodeURIComponent(JSON.stringify(state)));
    put("state", "The link is in the address bar.");
  });
  $("rule").addEventListener("change", () => {
    if (!job.state) return;
    job.state.rule = $("rule").value;
    showVotes();
  });
  $("written").addEventListener("keydown", event => {
    const next = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (!next || !event.target.classList.contains("token")) return;
    event.preventDefault();
    const tokens = [...event.target.parentNode.querySelectorAll(".token")];
    walkTo(tokens[tokens.indexOf(event.target) + next] ?? event.target);
  });
  addEventListener("hashchange", followTry);
  takeExample();
  followTry();
}

startTry();
