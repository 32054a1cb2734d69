// The page: sends each image as the body of POST /predict (so that its file name stays here) and shows the answer.

const $ = (selector, root = document) => root.querySelector(selector);
const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

let classes = []; // key and label of each, in the model's order
let operatingPoint = null;

async function describeServer() {
  try {
    const health = await (await fetch("/health")).json();
    const { model } = health;
    classes = health.classes;
    operatingPoint = health.operating_point;
    $("#model").textContent = nameOf(model);
    $("#disclaimer").textContent = health.disclaimer;
    $("#synthetic").hidden = !model.synthetic;
    if (health.note) {
      $("#degraded").textContent = health.note;
      $("#degraded").hidden = false;
    }
  } catch {
    $("#model").textContent = "The server does not answer. Reload the page to try again.";
  }
}

function nameOf(model) {
  const version = model.version ? `version ${model.version}` : `file ${model.file_sha256.slice(0, 8)}`;
  const alias = model.alias ? ` (${model.alias})` : "";
  return `${model.name}, ${version}${alias}, ${model.precision.toUpperCase()}`;
}

async function examine(file) {
  const card = $("#result").content.cloneNode(true).firstElementChild;
  const image = $("img", card);
  const url = URL.createObjectURL(file);
  image.addEventListener("load", () => URL.revokeObjectURL(url));
  image.addEventListener("error", () => {
    URL.revokeObjectURL(url);
    image.replaceWith(element("p", "This browser cannot show a preview of this file.", "nopreview"));
  });
  image.src = url;
  image.alt = `Preview of ${file.name}`;
  $("figcaption", card).textContent = file.name;
  $("#results").prepend(card);
  try {
    const response = await fetch("/predict", {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream" },
      body: file,
    });
    if (response.ok) show(card, await response.json());
    else fail(card, ...(await problem(response)));
  } catch {
    fail(card, "No answer", "The server cannot be reached. Check that it is running, then try again.");
  }
  card.setAttribute("aria-busy", "false");
}

async function problem(response) {
  try {
    const { title, detail, request_id } = await response.json();
    return [title, detail, request_id];
  } catch {
    return ["No answer", `The server answered with status ${response.status}.`];
  }
}

function show(card, answer) {
  const refer = answer.decision === "refer";
  verdict(card, answer.decision, refer ? "Not reported" : answer.label);
  $(".wording", card).textContent = answer.wording;
  $(".reasons", card).replaceChildren(...answer.reasons.map((reason) => element("li", reason.detail)));
  $(".reasons", card).hidden = !refer;
  $("h3", card).textContent = refer ? "The model's scores, for reference only" : "Confidence";
  const labels = Object.fromEntries(classes.map(({ key, label }) => [key, label]));
  $(".bars", card).replaceChildren(
    ...Object.entries(answer.probabilities).map(([key, share]) => bar(labels[key] ?? key, share, key === answer.class)),
  );
  const side = answer.malignant ? "at or above" : "below";
  const point = operatingPoint === null ? "" : ` of ${percent(operatingPoint)}`;
  $(".malignant", card).textContent =
    `Malignant classes together: ${percent(answer.p_malignant)}, ${side} the operating point${point}.`;
  $(".synthetic", card).hidden = !answer.model.synthetic;
  details(card, answer);
  $(".found", card).hidden = false;
}

function bar(label, share, highest) {
  const item = element("li", "", highest ? "highest" : "");
  const progress = document.createElement("progress");
  progress.max = 1;
  progress.value = share;
  progress.setAttribute("aria-label", label);
  item.append(element("span", label), progress, element("span", percent(share), "share"));
  return item;
}

function details(card, answer) {
  const { image, quality, timings_ms: ms } = answer;
  const facts = {
    Model: nameOf(answer.model),
    Image: `${image.format}, ${image.width} × ${image.height} pixels`,
    "Image SHA-256": image.sha256,
    Unlikeness: `${answer.unlikeness.toFixed(2)} (referred beyond 1.00)`,
    Quality: `brightness ${quality.brightness.toFixed(0)}, sharpness ${quality.sharpness.toFixed(0)}`,
    Time: `${(ms.read + ms.decode + ms.queue + ms.infer).toFixed(0)} ms`,
    "Request id": answer.request_id,
  };
  $("dl", card).replaceChildren(
    ...Object.entries(facts).flatMap(([name, value]) => [element("dt", name), element("dd", value)]),
  );
}

function fail(card, title, detail, requestId) {
  verdict(card, "error", title);
  const answer = $(".answer", card);
  $(".found", card).remove();
  answer.append(element("p", detail, "wording"));
  if (requestId) answer.append(element("p", `Request id ${requestId}`, "small"));
}

function verdict(card, kind, text) {
  const line = $(".verdict", card);
  line.dataset.kind = kind;
  line.textContent = text;
}

function element(tag, text, className = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  node.className = className;
  return node;
}

const waiting = [];
let busy = false;

async function add(files) {
  waiting.push(...files);
  if (busy) return;
  busy = true; // one after the other: the server answers others in between
  while (waiting.length) await examine(waiting.shift());
  busy = false;
}

const drop = $("#drop");
const input = $("#files");
input.addEventListener("change", () => {
  add(input.files);
  input.value = ""; // so that the same file can be chosen again
});
// The whole window takes a drop: one that misses the frame must not navigate away.
for (const type of ["dragenter", "dragover"]) {
  window.addEventListener(type, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
window.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
window.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  add(event.dataTransfer.files);
});

await describeServer();
