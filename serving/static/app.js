// The page: takes images, has each examined by POST /predict, and shows a card for each.

import { ask } from "./ask.js";
import { newCard, showAnswer, showProblem, showWait } from "./card.js";
import { toCsv } from "./csv.js";
import { $, element, nameOf, percent, terms } from "./dom.js";

const IN_FLIGHT = 2; // one is on its way while the other is computed; more would only crowd out other people
const server = { classes: [], operatingPoint: null }; // classes: key and label of each, in the model's order

async function describeServer() {
  try {
    const health = await ask("health");
    const { model } = health;
    server.classes = health.classes;
    server.operatingPoint = health.operating_point;
    $("#subject").textContent = health.subject;
    document.title = `LeukDetect: ${health.subject}`;
    $("#model").textContent = nameOf(model);
    $("#disclaimer").textContent = health.disclaimer;
    $("#synthetic").hidden = !model.synthetic;
    $("#degraded").textContent = health.note ?? "";
    $("#degraded").hidden = !health.note;
  } catch {
    $("#model").textContent = "The server does not answer. Reload the page to try again.";
  }
}

// --- examining ---

const results = $("#results");
const found = new Map(); // card → {file, answer} or {file, problem}
let waiting = []; // {file, before}: before is the card that it goes above
let working = 0;
let total = 0; // of this round, which lasts until nothing waits
let done = 0;
let stopping = new AbortController();

function add(files) {
  if (!files.length) return;
  const before = results.firstElementChild; // a later choice goes above an earlier one, each in its own order
  waiting.push(...[...files].map((file) => ({ file, before })));
  total += files.length;
  // One card is read out whole; of many only the progress is, and at the end the summary.
  results.setAttribute("aria-live", total > 1 ? "off" : "polite");
  $("#batch").hidden = false;
  showProgress();
  while (working < IN_FLIGHT && waiting.length) work();
}

async function work() {
  working += 1;
  while (waiting.length) {
    const { file, before } = waiting.shift();
    await examine(file, before, stopping.signal);
    showProgress();
  }
  working -= 1;
  if (working === 0) finish();
}

async function examine(file, before, signal) {
  const card = newCard(file);
  results.insertBefore(card, before);
  try {
    const answer = await ask("predict", { body: file, signal, say: (text) => showWait(card, text) });
    found.set(card, { file, answer });
    showAnswer(card, file, answer, server);
  } catch (problem) {
    if (signal.aborted) {
      card.remove();
      return;
    }
    found.set(card, { file, problem });
    showProblem(card, problem);
    if (problem.status === 401 || problem.status === 403) stop(); // the others would be refused as well
  }
  done += 1;
}

function stop() {
  waiting = [];
  stopping.abort();
}

function finish() {
  const stopped = done < total ? `Stopped after ${done} of ${total}. ` : "";
  $("#summary").textContent = $("#said").textContent = stopped + summary();
  if (document.activeElement === $("#stop")) $("#save").focus(); // what vanishes must not take the focus with it
  [total, done, stopping] = [0, 0, new AbortController()];
  showProgress();
}

// --- progress, summary, CSV ---

function showProgress() {
  $("#progress").hidden = total < 2;
  $("#progress label").textContent = `${done} of ${total} examined`;
  Object.assign($("#examined"), { max: total || 1, value: done });
  if (total > 1 && done % Math.ceil(total / 4) === 0) $("#said").textContent = $("#progress label").textContent;
  $("#save").disabled = found.size === 0;
}

/** How many of each decision, once there are several. */
function summary() {
  if (found.size < 2) return "";
  const all = [...found.values()];
  const count = (test) => all.filter(test).length;
  const parts = [
    ...server.classes.map(({ key, label }) => [
      label, count(({ answer }) => answer?.decision === "report" && answer.class === key),
    ]),
    ["referred to a haematologist", count(({ answer }) => answer?.decision === "refer")],
    ["without an answer", count(({ problem }) => problem)],
  ];
  const told = parts.filter(([, number]) => number).map(([what, number]) => `${number}\u00a0${what}`);
  return `${all.length} images: ${told.join(", ")}.`;
}

$("#stop").addEventListener("click", stop);
$("#save").addEventListener("click", () => {
  const inOrder = [...results.children].filter((card) => found.has(card)).map((card) => found.get(card));
  const moment = new Date().toISOString().slice(0, 19).replaceAll(":", "");
  save(`leukdetect-${moment}.csv`, "text/csv", toCsv(inOrder, server.classes));
});

function save(name, type, text) {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000); // the download has begun by then
}

// --- about the model ---

$("#about").addEventListener("toggle", async () => {
  const about = $("#about div");
  if (!$("#about").open) return;
  try {
    const { model, contract, model_card: card } = await ask("model");
    const { validation, provenance, thresholds } = contract;
    const facts = {
      Model: nameOf(model),
      "Intended use": contract.intended_use,
      "Trained on": provenance.source,
      Made: new Date(provenance.created).toLocaleDateString(undefined, { dateStyle: "long" }),
      Validation: measured(validation) + (provenance.synthetic ? ", on rendered images: no clinical meaning" : ""),
      ...(thresholds.malignant !== null && {
        "Operating point": `malignant from ${percent(thresholds.malignant)} on, `
          + `chosen for a sensitivity of ${percent(contract.target_sensitivity)}`,
      }),
      Referral: `confidence below ${percent(thresholds.confidence)}, unlikeness above 1, or a poor image`,
    };
    const list = element("dl");
    list.append(...terms(facts));
    about.replaceChildren(list);
    if (card) {
      const button = element("button", "Save the model card");
      button.addEventListener("click", () => save("model-card.md", "text/markdown", card));
      about.append(button);
    }
    if (model.version) {
      for (const [href, what] of [
        ["model/report", "The evaluation: model card, plots, datasheet"],
        ["model/datasheet", "The data's sheet alone"],
      ]) {
        const link = element("a", what);
        link.href = href;
        const line = element("p");
        line.append(link);
        about.append(line);
      }
    }
  } catch (problem) {
    about.replaceChildren(element("p", `${problem.title}. ${problem.detail}`));
  }
});

function measured({ images, balanced_accuracy: balanced, ...others }) {
  const shares = { "balanced accuracy": balanced, accuracy: others.accuracy };
  const told = Object.entries(shares).filter(([, share]) => share !== undefined);
  return told.map(([name, share]) => `${name} ${percent(share)}`).join(", ") + (images ? ` (${images} images)` : "");
}

// --- choosing ---

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
