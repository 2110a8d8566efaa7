// The page: the form, one running request at a time, this session's gallery, the state of the groups and of their queues.

import { ApiError, getJson, getKey, request, setKey, streamEvents } from "./api.js";
import { seconds, showPlan } from "./plan.js";
import { asCurl, asPython } from "./snippets.js";

const HEALTH_PERIOD_MS = 5000;
const POLL_MS = 1000;
const NUM_PREVIEWS = 3;
const SMALL_SIDE = 256; // smaller pictures are enlarged without smoothing
const at = (id) => document.getElementById(id);
const form = at("form");
let running = null; // the AbortController of the request that runs
const withoutPreviews = new Set(); // models

// The form

const kind = () => form.elements.kind.value;
const number = (id) => (at(id).value === "" ? undefined : Number(at(id).value));

function readForm() {
  const [width, height] = [number("width"), number("height")];
  const body = {
    prompt: at("prompt").value,
    model: at("model").value || undefined,
    size: width && height ? `${width}x${height}` : undefined,
    num_inference_steps: number("steps"),
    guidance_scale: number("guidance"),
    seed: number("seed"),
    num_frames: kind() === "video" ? number("frames") : undefined,
  };
  return JSON.parse(JSON.stringify(body)); // without what is undefined
}

function showDefaults({ width, height, num_inference_steps, guidance_scale, num_frames }) {
  const defaults = { width, height, steps: num_inference_steps, guidance: guidance_scale, frames: num_frames };
  for (const [id, value] of Object.entries(defaults)) at(id).placeholder = value ?? "default";
  at("kinds").hidden = num_frames === null;
  if (num_frames === null) form.elements.kind.value = "picture";
  showKind();
}

function showKind() {
  at("frames-field").hidden = kind() !== "video";
}

// One request

async function generate() {
  if (running || !form.reportValidity()) return;
  running = new AbortController();
  setBusy(true);
  const body = readForm();
  const started = performance.now();
  try {
    const made = kind() === "video" ? await makeVideo(body, running.signal) : await makePicture(body, running.signal);
    addToGallery({ ...made, kind: kind(), body: { ...body, seed: made.seed }, took: (performance.now() - started) / 1000 });
  } catch (error) {
    if (error.name === "AbortError") toast("Cancelled.");
    else showError(error);
  } finally {
    running = null;
    setBusy(false);
    checkHealth();
  }
}

async function makePicture(body, signal) {
  for await (const { name, data } of pictureEvents(body, signal)) {
    if (name === "error") throw new ApiError(data.error.message, 500);
    if (name.endsWith(".progress")) showProgress(data);
    if (name.endsWith(".partial_image")) showPreview(data);
    if (name.endsWith(".completed")) {
      return { blob: blobOf(data), seed: data.seed, size: data.size };
    }
  }
  throw new ApiError("The connection to the server was lost.", 0);
}

function blobOf({ b64_json, output_format }) {
  const content = Uint8Array.from(atob(b64_json), (letter) => letter.charCodeAt(0));
  return new Blob([content], { type: `image/${output_format}` });
}

// Not every pipeline shows previews: one that refuses them is asked again without, and remembered.
async function* pictureEvents(body, signal) {
  const path = "/v1/images/generations";
  if (!withoutPreviews.has(body.model)) {
    try {
      yield* streamEvents(path, { ...body, stream: true, partial_images: NUM_PREVIEWS }, signal);
      return;
    } catch (error) {
      if (error.status !== 400 || error.param !== "partial_images") throw error;
      withoutPreviews.add(body.model);
    }
  }
  yield* streamEvents(path, { ...body, stream: true }, signal);
}

function showPreview({ size, partial_image_index, ...picture }) {
  const preview = at("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(blobOf(picture));
  preview.classList.toggle("small", Math.max(...size.split("x").map(Number)) <= SMALL_SIDE);
  preview.alt = `Preview ${partial_image_index + 1} of the picture`;
  preview.hidden = false;
}

async function makeVideo(body, signal) {
  let video = await getJson("/v1/videos", { method: "POST", body, signal });
  const path = `/v1/videos/${video.id}`;
  try {
    while (video.status === "queued" || video.status === "in_progress") {
      showProgress({ stage: video.status === "queued" ? "queued" : "denoise", share: video.progress / 100 });
      await pause(POLL_MS, signal);
      video = await getJson(path, { signal });
    }
  } catch (error) {
    if (error.name === "AbortError") await request(`${path}/cancel`, { method: "POST" });
    throw error;
  }
  if (video.status === "failed") throw new ApiError(video.error.message, 500);
  const content = await request(`${path}/content`, { signal });
  return { blob: await content.blob(), seed: video.seed, size: video.size };
}

function pause(duration, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, duration);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}

const STAGES = { queued: "Waiting for a group", encode: "Encoding the prompt", denoise: "Denoising", decode: "Decoding" };

function showProgress({ stage, step, num_steps, seconds_left, share }) {
  const bar = at("progress");
  const done = share ?? (num_steps ? step / num_steps : null);
  if (stage === "queued" || stage === "encode" || done === null) bar.removeAttribute("value");
  else bar.value = stage === "decode" ? 1 : done;
  const count = stage !== "denoise" ? "" : num_steps ? `, step ${step} of ${num_steps}` : ` ${Math.round(done * 100)} %`;
  const left = seconds_left ? `, about ${seconds(seconds_left)} left` : "";
  at("progress-text").textContent = STAGES[stage] + count + left;
}

function setBusy(isBusy) {
  at("generate").disabled = isBusy;
  at("cancel").hidden = !isBusy;
  at("running").hidden = !isBusy;
  at("preview").hidden = true;
  at("error").hidden = at("error").hidden || isBusy;
  at("stage").setAttribute("aria-busy", isBusy);
  if (!isBusy) return;
  showProgress({ stage: "queued" });
  at("running").scrollIntoView({ block: "nearest" }); // on a narrow screen it is below the form
}

function showError(error) {
  if (error.status === 401) {
    askForKey(getKey() ? error.message : "");
    return;
  }
  at("error").textContent = error.message;
  at("error").hidden = false;
}

// The gallery: object URLs live as long as the tab

function addToGallery(made) {
  made.url = URL.createObjectURL(made.blob);
  const button = document.createElement("button");
  button.type = "button";
  button.title = made.body.prompt;
  button.setAttribute("aria-label", `Show: ${made.body.prompt}, seed ${made.seed}`);
  button.append(media(made, false));
  button.addEventListener("click", () => show(made, button));
  const item = document.createElement("li");
  item.append(button);
  at("gallery").prepend(item);
  at("gallery-title").hidden = false;
  show(made, button);
}

function media(made, isLarge) {
  const node = document.createElement(made.kind === "video" ? "video" : "img");
  node.src = made.url;
  if (made.kind === "video") Object.assign(node, { loop: true, muted: true, controls: isLarge, autoplay: isLarge });
  else node.alt = isLarge ? made.body.prompt : "";
  if (Math.max(...made.size.split("x").map(Number)) <= SMALL_SIDE) node.classList.add("small");
  return node;
}

function show(made, button) {
  for (const other of at("gallery").querySelectorAll("button")) other.removeAttribute("aria-current");
  button.setAttribute("aria-current", "true");
  at("view").replaceChildren(media(made, true));
  const words = document.createElement("span");
  words.textContent = `${made.body.prompt} · ${made.size.replace("x", " × ")} · seed ${made.seed} · ${seconds(made.took)}`;
  const actions = document.createElement("div");
  actions.className = "caption-actions";
  const download = document.createElement("a");
  download.href = made.url;
  download.download = `${made.seed}.${made.kind === "video" ? "mp4" : made.blob.type.split("/")[1]}`;
  download.textContent = "Download";
  download.className = "quiet";
  actions.append(
    download,
    quiet("Use this seed", () => (at("seed").value = made.seed)),
    quiet("Copy as curl", () => copy(asCurl(made.kind, made.body))),
    quiet("Copy as Python", () => copy(asPython(made.kind, made.body))),
  );
  at("caption").replaceChildren(words, actions);
}

function quiet(text, action) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.textContent = text;
  button.addEventListener("click", action);
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied.");
  } catch {
    showError(new ApiError("The browser does not let this page copy: it needs HTTPS or localhost.", 0));
  }
}

let toastTimer;
function toast(text) {
  at("toast").textContent = text;
  at("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (at("toast").hidden = true), 2500);
}

// The key

function askForKey(message = "") {
  const line = at("key-message");
  line.textContent = message || "This server may ask for a key. It is kept in this tab until you close it, and sent to this server only.";
  line.classList.toggle("error", Boolean(message));
  at("key").value = getKey();
  if (!at("key-dialog").open) at("key-dialog").showModal();
  at("key").select();
}

// The service

async function checkHealth() {
  let answer;
  try {
    answer = await getJson("/health", { accept: [503] });
  } catch (error) {
    if (error.status === 401) error.message = "needs an API key";
    answer = error.status === 0 ? { status: "gone", detail: "the server does not answer" } : { status: "unknown", detail: error.message };
  }
  const words = { ok: "a group is free", busy: "all groups are at work", unknown: "unknown", gone: "no connection", unavailable: "unavailable" };
  at("health").dataset.state = answer.status;
  at("health-text").textContent = answer.status === "ok" || answer.status === "busy" ? words[answer.status] : answer.detail || words[answer.status];
  showQueues(answer.queues ?? []);
}

function showQueues(queues) {
  at("queues").hidden = queues.length === 0;
  at("queues").replaceChildren(...queues.map(({ model, num_running, num_waiting, num_untaken_jobs, seconds_left }) => {
    const name = document.createElement("b");
    name.textContent = model;
    const jobs = num_untaken_jobs ? `, and ${num_untaken_jobs} ${num_untaken_jobs === 1 ? "job" : "jobs"} after that` : "";
    const left = seconds_left ? `, about ${seconds(seconds_left)} left` : "";
    const item = document.createElement("li");
    item.append(name, ` ${num_running} running, ${num_waiting} waiting${left}${jobs}`);
    return item;
  }));
}

async function loadModels() {
  try {
    const { data } = await getJson("/v1/models");
    at("model").replaceChildren(...data.map(({ id }) => new Option(id, id)));
    await loadPlan();
  } catch (error) {
    showError(error);
  }
  await checkHealth();
}

async function loadPlan() {
  const plan = await getJson(`/plan?model=${encodeURIComponent(at("model").value)}`);
  showDefaults(plan.defaults);
  showPlan(plan);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
form.addEventListener("change", showKind);
at("model").addEventListener("change", () => loadPlan().catch(showError));
at("cancel").addEventListener("click", () => running?.abort());
at("copy-curl").addEventListener("click", () => copy(asCurl(kind(), readForm())));
at("copy-python").addEventListener("click", () => copy(asPython(kind(), readForm())));
at("key-button").addEventListener("click", () => askForKey());
at("key-close").addEventListener("click", () => at("key-dialog").close());
at("key-form").addEventListener("submit", () => {
  setKey(at("key").value.trim());
  at("error").hidden = true;
  loadModels();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !at("key-dialog").open) generate();
  if (event.key === "Escape" && !at("key-dialog").open) running?.abort();
});
setInterval(() => document.hidden || checkHealth(), HEALTH_PERIOD_MS);
loadModels();
