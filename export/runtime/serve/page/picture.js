"use strict";
const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), pen = canvas.getContext("2d");
const COLOURS = { image: "#8a9ba8", vision: "#5f7fa6", vision_overview: "#5f7fa6", image_tiles: "#b3bfc7", vision_tiles: "#8fa9c9",
                  features: "#a58bb8", router: "#c9861a", connector: "#d2a679",
                  prefill: "#0d6e66", decode: "#58b09c" };
const MOST_SIDE = 1600, WAIT_MS = 250;
// `pictures` are all of the conversation in their order: { url, image, turn, scale, seen }; `turn` is null until one is asked
// about, and `scale` says how it was shown last. `seen` holds by scale what the server said of it there: { tokens, tiles },
// rows and columns of tiles. `at` is the one on the stage.
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
  $("about").textContent = b.tiles_fit ? `one model, ${b.scales.length} scales, from ${b.scales[0]} to ${b.scales[b.scales.length - 1]}`
    : b.family === "pool" ? `one model, ${b.scales.length} grids of the same picture`
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
  li.innerHTML = `<div></div><div class="number"></div><div class="bar"><i></i><span></span></div><div class="time"></div>`;
  label(li, m);
  li.addEventListener("pointerenter", () => draw(m));
  li.addEventListener("pointerleave", () => draw(state.shown));
  return li;
}

// What the picture on the stage is at a scale: tokens of one view, of all (null while the server has not said), and tiles.
function shape(m, picture = onStage()) {
  const view = state.bundle.view_tokens[state.bundle.scales.indexOf(m)], said = picture && picture.seen[m];
  const [rows, cols] = said ? said.tiles : [0, 0];
  return { view, rows, cols, tokens: said ? said.tokens : typeof m === "number" ? view : null };
}

const plural = (tokens) => (tokens === 1 ? "token" : "tokens");

function label(li, m) {
  const { tokens } = shape(m), small = typeof m === "number" ? plural(m) : tokens ? `${tokens} ${plural(tokens)}` : "with tiles";
  li.firstElementChild.innerHTML = glyph(m);
  li.querySelector(".number").innerHTML = `${m}<small>${small}</small>`;
}

const relabel = () => { for (const m of state.bundle.scales) label(find(m), m); };

// The same square that lies over the picture: tiles, or a grid where tokens are cells, or a filled share where they are the
// first of many.
function glyph(m) {
  const { view, tokens, rows, cols } = shape(m), stroke = `stroke="currentColor" stroke-opacity=".55" fill="none"`;
  const frame = `<svg class="glyph" viewBox="0 0 34 34" aria-hidden="true"><rect x="2" y="2" width="30" height="30" rx="3" ${stroke}/>`;
  if (state.bundle.tiles_fit || state.bundle.family !== "pool") {
    const all = state.bundle.scales.map((one) => shape(one)).map((one) => one.tokens ?? one.view);
    const height = Math.max(1.5, 30 * Math.log(1 + (tokens ?? view)) / Math.log(1 + Math.max(...all)));
    return `${frame}<rect x="2" y="${32 - height}" width="30" height="${height}" rx="2" fill="currentColor" fill-opacity=".45"/>
      <path d="${cuts(rows, cols)}" ${stroke}/></svg>`;
  }
  const side = Math.round(Math.sqrt(m));
  return `${frame}<path d="${cuts(side, side)}" ${stroke} stroke-width="${side > 8 ? 0.5 : 1}"/></svg>`;
}

function cuts(rows, cols) {
  let lines = "";
  for (let i = 1; i < cols; i++) lines += `M${2 + (30 * i) / cols} 2V32`;
  for (let i = 1; i < rows; i++) lines += `M2 ${2 + (30 * i) / rows}H32`;
  return lines;
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
  state.pictures.push({ url, image, turn: null, scale: null, seen: {} });
  show(state.pictures.length - 1);
}

// Put a picture of the conversation on the stage.
function show(at) {
  state.at = at;
  $("drop").hidden = true;
  canvas.hidden = false;
  forget();
  relabel();
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
    drawOn(small, picture, picture.scale, 0);
    const told = !picture.scale ? "not asked yet"
      : typeof picture.scale === "number" ? `${picture.scale} ${plural(picture.scale)}` : picture.scale;
    button.append(small, told);
    button.addEventListener("click", () => { if (!state.busy) show(at); });
    return button;
  })));
}

// Drawn as the model gets it: stretched, cropped or padded to a square, in as many pixels as it is given; over it the
// grid of a scale, where tokens are cells. A scale with tiles shows these.
function drawOn(target, picture, m, patches) {
  const side = target.width, brush = target.getContext("2d"), { image } = picture;
  brush.clearRect(0, 0, side, side);
  if (m && shape(m, picture).rows) return drawTiles(brush, side, picture, shape(m, picture));
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
  const whole = [0, 0, side, side];
  grid(brush, whole, patches, patches, "rgba(255,255,255,.2)", 1);
  if (state.bundle.family === "pool") cells(brush, whole, Math.round(Math.sqrt(shape(m, picture).view)), side / 480);
}

// The tiles that are looked at besides the overview, each in as many pixels as it is given. The picture fills them, or stands
// in the middle of black.
function drawTiles(brush, side, { image }, { rows, cols, view }) {
  const tile = side / Math.max(rows, cols), w = tile * cols, h = tile * rows, x = (side - w) / 2, y = (side - h) / 2;
  const { tiles_fit: fit, size_px: px, family } = state.bundle, seen = document.createElement("canvas");
  const each = Math.min(px, Math.ceil(tile)), small = seen.getContext("2d");
  seen.width = each * cols;
  seen.height = each * rows;
  let [wide, high] = [seen.width, seen.height];
  if (fit === "pad") {
    const shrink = Math.min(wide / image.width, high / image.height);
    small.fillRect(0, 0, wide, high);
    [wide, high] = [image.width * shrink, image.height * shrink];
  }
  small.drawImage(image, (seen.width - wide) / 2, (seen.height - high) / 2, wide, high);
  brush.imageSmoothingEnabled = px >= tile / 3;
  brush.drawImage(seen, x, y, w, h);
  if (family === "pool") {
    const cut = Math.round(Math.sqrt(view));
    grid(brush, [x, y, w, h], rows * cut, cols * cut, "rgba(255,255,255,.45)", side / 480);
  }
  cells(brush, [x, y, w, h], rows, side / 240, cols);
}

function cells(brush, box, rows, thick, cols = rows) {
  grid(brush, box, rows, cols, "rgba(0,0,0,.45)", 2.5 * thick);
  grid(brush, box, rows, cols, "rgba(255,255,255,.9)", thick);
}

function draw(m) {
  const picture = onStage();
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (!picture || !state.bundle) return;
  const patches = state.choice ? Math.round(Math.sqrt(state.choice.patches)) : 0, { family, size_px: px } = state.bundle;
  drawOn(canvas, picture, m, patches);
  const { view, rows, cols } = m ? shape(m) : {}, cut = Math.round(Math.sqrt(view));
  if (m && typeof m !== "number") {
    $("caption").textContent = rows ? `the overview and ${rows} × ${cols} tiles of it, ${view} ${plural(view)} each`
      : picture.seen[m] ? `the overview alone, ${view} ${plural(view)}: this picture has no tiles here`
      : `the overview and tiles, ${view} ${plural(view)} each: into how many, the answer says`;
  } else if (m && family === "pool") {
    $("caption").textContent = `${cut} × ${cut} cells, a token each, averaged from ${tower(patches)}`;
  } else if (m) {
    $("caption").textContent = family === "nested_pool"
      ? `the first ${m} tokens of ${tower(patches)}: the mean, then what each finer grid adds`
      : `${m} of the model's queries, each looking at ${tower(patches)}`;
  } else $("caption").textContent = `the picture as the model gets it: ${px} × ${px} pixels`;
}

// How many patches there are is known once the router has looked; a bundle without one never says.
const tower = (patches) => (patches ? `${patches} × ${patches} patches` : "all patches");

function grid(brush, [x, y, w, h], rows, cols, colour, width) {
  if (!rows) return;
  brush.strokeStyle = colour;
  brush.lineWidth = width;
  brush.beginPath();
  for (let i = 0; i <= cols; i++) { brush.moveTo(x + (w * i) / cols, y); brush.lineTo(x + (w * i) / cols, y + h); }
  for (let i = 0; i <= rows; i++) { brush.moveTo(x, y + (h * i) / rows); brush.lineTo(x + w, y + (h * i) / rows); }
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

