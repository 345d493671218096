// The choice

let asking = 0, timer = 0;
async function choose() {
  ready();
  const question = $("question").value.trim();
  if (!onStage() || !question || !state.bundle || !state.bundle.router) return;
  const turn = ++asking;
  try {
    const picture = onStage();
    const choice = await (await call("v1/mvlm/choose", { picture: picture.url, question, prices: PRICES })).json();
    if (turn !== asking) return;
    state.choice = choice;
    choice.scales.forEach((m, i) => { picture.seen[m] = { tokens: choice.tokens[i], tiles: choice.tiles[i] }; });
    relabel();
    showChoice();
  } catch (error) { if (turn === asking) fail(error); }
}

function showChoice() {
  if (!state.choice) return;
  const at = Number($("price").value), { scales, probabilities, costs, cost_unit: unit, choices, reasons } = state.choice;
  scales.forEach((m, i) => {
    const li = find(m);
    li.classList.toggle("chosen", m === choices[at]);
    li.querySelector(".bar i").style.width = 100 * probabilities[i] + "%";
    if (!state.answers[m]) {
      li.querySelector(".bar span").textContent = `${(100 * probabilities[i]).toFixed(0)} % right`;
      li.querySelector(".time").innerHTML = unit === "ms" ? `${costs[i].toFixed(1)}<small>ms, measured</small>` : "";
    }
  });
  $("reason").textContent = reasons[at];
  state.shown = choices[at];
  draw(state.shown);
}

function showPrice() {
  $("shown").textContent = PRICES[Number($("price").value)];
  showChoice();
}

const find = (m) => $("ladder").querySelector(`[data-scale="${m}"]`);

// The answer

const said = (text, pictures) => ({
  role: "user",
  content: [...pictures.map(({ url }) => ({ type: "image_url", image_url: { url } })), { type: "text", text }],
});

// The conversation with a question at its end: what was said before, and the pictures that are new.
function conversation(question) {
  const messages = [], system = $("system").value.trim();
  if (system) messages.push({ role: "system", content: system });
  if (state.bundle.conversations) {
    state.turns.forEach((turn, number) => {
      messages.push(said(turn.question, state.pictures.filter((picture) => picture.turn === number)));
      messages.push({ role: "assistant", content: turn.answer });
    });
  }
  messages.push(said(question, state.pictures.filter((picture) => picture.turn === null || !state.bundle.conversations)));
  return messages;
}

async function ask(model, terms, messages) {
  const body = { model, stream: true, max_tokens: 128, messages, mvlm: terms };
  const reader = (await call("v1/chat/completions", body)).body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", rest = "", facts = null;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") continue;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      text += chunk.choices[0]?.delta.content || "";
      facts = chunk.mvlm || facts;
      $("answer").textContent = text;
    }
  }
  return { text, facts };
}

function keep({ text, facts }, m) {
  const li = find(m);
  if (!li) return; // no picture was shown
  const spent = ["image_tiles_ms", "vision_tiles_ms", "connector_ms", "prefill_ms", "decode_ms"].reduce((sum, stage) => sum + (facts.timings[stage] || 0), 0);
  state.answers[m] = text;
  li.classList.add("answered");
  li.querySelector(".time").innerHTML = `${spent.toFixed(1)}<small>ms here</small>`;
  const p = (state.pictures.length < 2 ? facts.probabilities[m] : null) ?? (state.choice ? state.choice.probabilities[state.choice.scales.indexOf(m)] : null);
  const right = p === null || p === undefined ? "" : `${(100 * p).toFixed(0)} % right · `;
  li.querySelector(".bar span").textContent = right + text;
}

function showStages(timings) {
  const known = Object.entries(timings).map(([stage, ms]) => [stage.replace("_ms", ""), ms]);
  const total = known.reduce((sum, [, ms]) => sum + ms, 0);
  $("stages").hidden = false;
  $("stages").replaceChildren(...known.map(([stage, ms]) => {
    const part = document.createElement("i");
    part.style.cssText = `width:${(100 * ms) / total}%;background:${COLOURS[stage] || "#999"}`;
    return part;
  }));
  $("legend").replaceChildren(...known.map(([stage, ms]) => {
    const entry = document.createElement("span"), dot = document.createElement("i");
    dot.style.background = COLOURS[stage] || "#999";
    entry.append(dot, `${stage} ${ms.toFixed(1)} ms`);
    return entry;
  }));
}

async function work(task) {
  if (state.busy || $("ask").disabled) return;
  if (timer) settle();
  state.busy = true;
  ready();
  $("answer").className = "waiting";
  $("answer").textContent = "";
  try { await task(); } catch (error) { fail(error); }
  state.busy = false;
  $("answer").classList.remove("waiting");
  ready();
}

// Into how many tiles a picture was cut, as its answer says it.
function saw(picture, m, facts, at) {
  const tokens = facts.tiles.length === 1 ? facts.num_visual_tokens : picture.seen[m] ? picture.seen[m].tokens : null;
  picture.seen[m] = { tokens, tiles: facts.tiles[at] };
  relabel();
}

// What was said moves up, and each picture keeps the scale at which it was shown. Turns that did not fit were left out,
// and their pictures with them.
function remember(question, { text, facts }) {
  const asked = state.pictures.filter((picture) => picture.turn === null);
  for (const picture of asked) picture.turn = state.turns.length;
  state.turns.push({ question, answer: text });
  const scales = facts.scales.length ? facts.scales : facts.scale === null ? [] : [facts.scale];
  const shown = scales.length ? state.pictures.slice(-scales.length) : [];
  shown.forEach((picture, at) => {
    picture.scale = scales[at];
    saw(picture, scales[at], facts, at);
  });
  showTalk(state.turns.slice(0, -1)); // the last one stands below
}

function showTalk(turns) {
  $("talk").replaceChildren(...turns.map((turn, number) => {
    const li = document.createElement("li"), asks = document.createElement("div"), says = document.createElement("div");
    const pictures = state.pictures.filter((picture) => picture.turn === number).length;
    asks.className = "asked";
    asks.textContent = turn.question + (pictures ? ` (${pictures} ${pictures === 1 ? "picture" : "pictures"})` : "");
    says.className = "said";
    says.textContent = turn.answer;
    li.append(asks, says);
    return li;
  }));
}

const askOnce = () => work(async () => {
  const { router, models, conversations } = state.bundle, question = $("question").value.trim();
  const named = models[models.length - 1], terms = conversations ? { truncate: "oldest" } : {};
  const price = PRICES[Number($("price").value)];
  const got = await ask(router ? "mvlm-auto" : named, router ? { ...terms, price } : terms, conversation(question));
  remember(question, got);
  const picture = onStage();
  if (picture) {
    keep(got, picture.scale);
    state.shown = picture.scale;
    draw(state.shown);
  }
  showStages(got.facts.timings);
  const left = got.facts.dropped_turns ? `; ${got.facts.dropped_turns} messages did not fit and were left out` : "";
  if (got.facts.reason) $("reason").textContent = got.facts.reason + left;
  strip();
});

// One question about the picture on the stage, beside the conversation.
const askEvery = () => work(async () => {
  const question = $("question").value.trim();
  let got;
  for (const m of state.bundle.scales) {
    got = await ask("mvlm-" + m, {}, [said(question, [onStage()])]);
    saw(onStage(), m, got.facts, 0);
    keep(got, m);
    draw(m);
  }
  showStages(got.facts.timings);
  showChoice();
  if (state.choice) $("answer").textContent = state.answers[state.shown];
});

function ready() {
  const can = Boolean(state.bundle) && Boolean($("question").value.trim()) && !state.busy;
  $("ask").disabled = !can || (!onStage() && !state.bundle.conversations);
  $("every").disabled = !can || !onStage();
}

function forget() {
  state.choice = state.shown = null;
  state.answers = {};
  showTalk(state.turns);
  for (const li of $("ladder").children) {
    li.className = "";
    li.querySelector(".bar i").style.width = "0";
    li.querySelector(".bar span").textContent = li.querySelector(".time").textContent = "";
  }
  $("answer").textContent = $("reason").textContent = $("legend").textContent = "";
  $("answer").className = "";
  $("stages").hidden = true;
}

// The question stands: what was shown of the one before goes. Not while it is answered, or the answer would go too.
function settle() {
  clearTimeout(timer);
  timer = 0;
  forget();
  draw(onStage() && onStage().scale);
  choose();
}

function fail(error) {
  $("answer").className = "error";
  $("answer").textContent = error.message;
}

const takeAll = async (files) => { for (const file of files) await take(file); };
$("file").addEventListener("change", (event) => takeAll([...event.target.files]));
$("camera").addEventListener("click", startCamera);
$("shoot").addEventListener("click", shoot);
$("another").addEventListener("click", () => {
  stopCamera();
  $("drop").hidden = false;
  $("file").value = "";
});
$("fresh").addEventListener("click", () => {
  stopCamera();
  Object.assign(state, { pictures: [], at: -1, turns: [] });
  $("drop").hidden = false;
  $("file").value = "";
  $("caption").textContent = "";
  forget();
  draw(null);
  strip();
  ready();
});
$("form").addEventListener("submit", (event) => { event.preventDefault(); askOnce(); });
$("every").addEventListener("click", askEvery);
$("price").addEventListener("input", showPrice);
$("question").addEventListener("input", () => {
  ready();
  clearTimeout(timer);
  timer = setTimeout(settle, WAIT_MS);
});
$("token").addEventListener("change", () => {
  sessionStorage.setItem("token", $("token").value);
  $("locked").hidden = true;
  $("answer").textContent = "";
  start();
});
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); $("stage").classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); $("stage").classList.remove("over"); });
}
document.addEventListener("drop", (event) => takeAll([...event.dataTransfer.files]));
document.addEventListener("paste", (event) => takeAll([...event.clipboardData.files]));
start();
