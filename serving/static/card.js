// A result card: the image, the answer in words, its scores, and what may be asked of it.

import { ask } from "./ask.js";
import { $, element, nameOf, percent, terms } from "./dom.js";
import { offerMap } from "./map.js";

/** A card for `file` that is being examined. */
export function newCard(file) {
  const card = $("#result").content.cloneNode(true).firstElementChild;
  card.setAttribute("aria-label", file.name);
  $("figcaption", card).textContent = file.name;
  const image = $(".preview", card);
  const url = URL.createObjectURL(file);
  image.alt = `Preview of ${file.name}`;
  image.addEventListener("load", () => URL.revokeObjectURL(url));
  image.addEventListener("error", () => {
    URL.revokeObjectURL(url);
    image.replaceWith(element("p", "This browser cannot show a preview of this file.", "nopreview"));
  });
  image.src = url;
  return card;
}

export function showWait(card, text) {
  verdict(card, "busy", text || "Examining…");
}

export function showAnswer(card, file, answer, { classes, operatingPoint }) {
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
  $(".malignant", card).textContent = answer.p_malignant === null
    ? ""
    : `Malignant classes together: ${percent(answer.p_malignant)}, ${side} the operating point${point}.`;
  $(".excluded", card).textContent = answer.not_excluded
    ? `Cannot be excluded: ${answer.not_excluded.map((key) => labels[key] ?? key).join(", ")}.`
    : "";
  $(".synthetic", card).hidden = !answer.model.synthetic;
  showDetails(card, answer);
  offerFeedback(card, answer, classes);
  offerMap(card, file, answer, classes);
  $(".found", card).hidden = false;
  card.setAttribute("aria-busy", "false");
}

export function showProblem(card, { title, detail, requestId }) {
  verdict(card, "error", title);
  $(".found", card).replaceWith(element("p", detail, "wording"));
  if (requestId) $(".answer", card).append(element("p", `Request id ${requestId}`, "small"));
  card.setAttribute("aria-busy", "false");
}

function verdict(card, kind, text) {
  const line = $(".verdict", card);
  line.dataset.kind = kind;
  line.textContent = text;
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

function showDetails(card, answer) {
  const { image, quality, timings_ms: ms } = answer;
  const facts = {
    Model: nameOf(answer.model),
    Image: `${image.format}, ${image.width} × ${image.height} pixels${image.note ? `; ${image.note}` : ""}`,
    "Image SHA-256": image.sha256,
    Unlikeness: `${answer.unlikeness.toFixed(2)} (referred beyond 1.00)`,
    Quality: `brightness ${quality.brightness.toFixed(0)}, sharpness ${quality.sharpness.toFixed(0)}, stain ${quality.stain.toFixed(2)}`,
    Time: `${(ms.read + ms.decode + ms.queue + ms.infer).toFixed(0)} ms`,
    "Request id": answer.request_id,
  };
  $("dl", card).replaceChildren(...terms(facts));
}

function offerFeedback(card, answer, classes) {
  const form = $(".feedback", card);
  const [choice, said] = [$("select", form), $("output", form)];
  choice.append(...classes.map(({ key, label }) => new Option(label, key)));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      const body = { request_id: answer.request_id, class: choice.value };
      const { agrees } = await ask("feedback", { body, say: (text) => { said.textContent = text; } });
      said.textContent = `Thank you. The model ${agrees ? "agreed" : `had ${answer.label} highest`}.`;
    } catch (problem) {
      said.textContent = `${problem.title}. ${problem.detail}`;
    }
  });
}
