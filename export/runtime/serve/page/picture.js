"use strict";
const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), pen = canvas.getContext("2d");
const COLOURS = { image: "#8a9ba8", vision: "#5f7fa6", features: "#a58bb8", router: "#c9861a", connector: "#d2a679",
                  prefill: "#0d6e66", decode: "#58b09c" };
const MOST_SIDE = 1600, WAIT_MS = 250;
// `pictures` are all of the conversation in their order: { url, image, turn, scale }; `turn` is null until one is asked
// about, and `scale` says how it was shown last. `at` is the one on the stage.
const state = { bundle: null, pictures: [], at: -1, turns: [], choice: null, shown: null, answers: {}, busy: false, stream: null };
const onStage = () => state.pictures[state.at] || null;

// The slider's places: nothing, then a thousandth to ten by equal ratios.
const PRICES = Array.from({ length: 101 }, (_, i) => (i === 0 ? 0 : Number((10 ** (-3 + (4 * (i - 1)) / 99)).toPrecision(3))));

function headers() {
  const token = sessionStorage.getItem("token");
  return { "Content-Type": "application/json", ...(token ? { Authorization: "Bearer " + token } : {}) };
}

async function call(path, body, signal) {
  const asked = { headers: headers(), signal };
  const response = await fetch(path, body ? { ...asked, method: "POST", body: JSON.stringify(body) } : asked);
  if (response.status === 401) $("locked").hidden = false;
  if (!response.ok) {
    const said = await response.json().catch(() => null);
    throw new Error(said && said.error ? said.error.message : "the server answered " + response.status);
  }
  return response;
}

async function start() {
  try {
    state.bundle = await (await call("v1/mvlm/bundle")).json();
  } catch (error) { return fail(error); }
  const b = state.bundle;
  $("about").textContent = b.family === "pool" ? `one model, ${b.scales.length} grids of the same picture`
    : `one model, its first ${b.scales.join(", ")} ${b.family === "nested_pool" ? "tokens, coarse to fine" : "queries"}`;
  $("priced").hidden = !b.router;
  if (b.router) {
    const near = PRICES.map((p) => Math.abs(Math.log(p + 1e-9) - Math.log(b.default_price + 1e-9)));
    $("price").value = near.indexOf(Math.min(...near));
  }
  $("ladder").replaceChildren(...b.scales.map(rung));
  showPrice();
}

function rung(m) {
  const li = document.createElement("li");
  li.dataset.scale = m;
  li.innerHTML = `${glyph(m)}<div class="number"></div><div class="bar"><i></i><span></span></div><div class="time"></div>`;
  li.querySelector(".number").innerHTML = `${m}<small>${m === 1 ? "token" : "tokens"}</small>`;
  li.addEventListener("pointerenter", () => draw(m));
  li.addEventListener("pointerleave", () => draw(state.shown));
  return li;
}

// The same square that lies over the picture: a grid where tokens are cells, a filled share where they are the first of many.
function glyph(m) {
  const side = Math.round(Math.sqrt(m)), stroke = `stroke="currentColor" stroke-opacity=".55" fill="none"`;
  if (state.bundle.family !== "pool") {
    const most = Math.max(...state.bundle.scales), height = Math.max(1.5, 30 * Math.log(1 + m) / Math.log(1 + most));
    return `<svg class="glyph" viewBox="0 0 34 34" aria-hidden="true"><rect x="2" y="2" width="30" height="30" rx="3" ${stroke}/>
      <rect x="2" y="${32 - height}" width="30" height="${height}" rx="2" fill="currentColor" fill-opacity=".45"/></svg>`;
  }
  let lines = "";
  for (let i = 1; i < side; i++) {
    const at = 2 + (30 * i) / side;
    lines += `M${at} 2V32M2 ${at}H32`;
  }
  return `<svg class="glyph" viewBox="0 0 34 34" aria-hidden="true"><rect x="2" y="2" width="30" height="30" rx="3" ${stroke}/>
    <path d="${lines}" ${stroke} stroke-width="${side > 8 ? 0.5 : 1}"/></svg>`;
}

// The picture

async function take(blob) {
  stopCamera();
  let image;
  try { image = await createImageBitmap(blob); } catch { return fail(new Error("this file is no picture that a browser reads")); }
  const { width, height } = image, longest = Math.max(width, height);
  if (longest > MOST_SIDE || blob.size > 4e6 || !/^image\/(png|jpeg|webp)$/.test(blob.type)) {
    const shrink = Math.min(1, MOST_SIDE / longest), small = document.createElement("canvas");
    small.width = Math.max(1, Math.round(width * shrink));
    small.height = Math.max(1, Math.round(height * shrink));
    small.getContext("2d").drawImage(image, 0, 0, small.width, small.height);
    blob = await new Promise((done) => small.toBlob(done, "image/jpeg", 0.95));
  }
  const url = await new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.readAsDataURL(blob);
  });
  if (!state.bundle.conversations) Object.assign(state, { pictures: [], turns: [] });
  state.pictures.push({ url, image, turn: null, scale: null });
  show(state.pictures.length - 1);
}

// Put a picture of the conversation on the stage.
function show(at) {
  state.at = at;
  $("drop").hidden = true;
  canvas.hidden = false;
  forget();
  draw(onStage().scale);
  strip();
  choose();
}

// A small square for each picture, with the grid that it was shown in.
function strip() {
  $("another").hidden = !state.pictures.length;
  $("fresh").hidden = !state.pictures.length && !state.turns.length;
  $("strip").replaceChildren(...(state.pictures.length < 2 ? [] : state.pictures.map((picture, at) => {
    const button = document.createElement("button"), small = document.createElement("canvas");
    button.type = "button";
    button.setAttribute("aria-pressed", at === state.at);
    small.width = small.height = 144;
    drawOn(small, picture.image, picture.scale, 0);
    const told = picture.scale ? `${picture.scale} ${picture.scale === 1 ? "token" : "tokens"}` : "not asked yet";
    button.append(small, told);
    button.addEventListener("click", () => { if (!state.busy) show(at); });
    return button;
  })));
}

// Drawn as the model gets it: stretched, cropped or padded to a square, in as many pixels as it is given; over it the
// grid of a scale, where tokens are cells.
function drawOn(target, image, m, patches) {
  const side = target.width, brush = target.getContext("2d");
  brush.clearRect(0, 0, side, side);
  const { fit, size_px: px, mean } = state.bundle, { width, height } = image;
  const seen = document.createElement("canvas");
  seen.width = seen.height = px;
  const small = seen.getContext("2d");
  const short = Math.min(width, height), long = Math.max(width, height);
  if (fit === "crop") small.drawImage(image, (width - short) / 2, (height - short) / 2, short, short, 0, 0, px, px);
  else if (fit === "pad") {
    small.fillStyle = `rgb(${mean.map((part) => Math.floor(255 * part)).join(" ")})`;
    small.fillRect(0, 0, px, px);
    const w = (px * width) / long, h = (px * height) / long;
    small.drawImage(image, (px - w) / 2, (px - h) / 2, w, h);
  } else small.drawImage(image, 0, 0, px, px);
  brush.imageSmoothingEnabled = px >= side / 3;
  brush.drawImage(seen, 0, 0, side, side);
  if (!m) return;
  grid(brush, side, patches, "rgba(255,255,255,.2)", 1);
  if (state.bundle.family !== "pool") return;
  const cells = Math.round(Math.sqrt(m)), thick = side / 480;
  grid(brush, side, cells, "rgba(0,0,0,.45)", 2.5 * thick);
  grid(brush, side, cells, "rgba(255,255,255,.9)", thick);
}

function draw(m) {
  const picture = onStage();
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (!picture || !state.bundle) return;
  const patches = state.choice ? Math.round(Math.sqrt(state.choice.patches)) : 0, { family, size_px: px } = state.bundle;
  drawOn(canvas, picture.image, m, patches);
  if (m && family === "pool") {
    const cells = Math.round(Math.sqrt(m));
    $("caption").textContent = `${cells} × ${cells} cells, a token each, averaged from ${tower(patches)}`;
  } else if (m) {
    $("caption").textContent = family === "nested_pool"
      ? `the first ${m} tokens of ${tower(patches)}: the mean, then what each finer grid adds`
      : `${m} of the model's queries, each looking at ${tower(patches)}`;
  } else $("caption").textContent = `the picture as the model gets it: ${px} × ${px} pixels`;
}

// How many patches there are is known once the router has looked; a bundle without one never says.
const tower = (patches) => (patches ? `${patches} × ${patches} patches` : "all patches");

function grid(brush, side, cells, colour, width) {
  if (!cells) return;
  brush.strokeStyle = colour;
  brush.lineWidth = width;
  brush.beginPath();
  for (let i = 0; i <= cells; i++) {
    const at = (side * i) / cells;
    brush.moveTo(at, 0); brush.lineTo(at, side);
    brush.moveTo(0, at); brush.lineTo(side, at);
  }
  brush.stroke();
}

async function startCamera() {
  try {
    state.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch { return fail(new Error("the camera cannot be used: allow it, over https or on this machine")); }
  $("video").srcObject = state.stream;
  await $("video").play();
  $("video").hidden = $("shoot").hidden = false;
  $("drop").hidden = canvas.hidden = true;
}

function stopCamera() {
  if (state.stream) for (const track of state.stream.getTracks()) track.stop();
  state.stream = null;
  $("video").hidden = $("shoot").hidden = true;
}

async function shoot() {
  const video = $("video"), frame = document.createElement("canvas");
  frame.width = video.videoWidth;
  frame.height = video.videoHeight;
  frame.getContext("2d").drawImage(video, 0, 0);
  take(await new Promise((done) => frame.toBlob(done, "image/jpeg", 0.95)));
}

