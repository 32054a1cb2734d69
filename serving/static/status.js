// The status page: asks for /status.json every few seconds and draws it anew.

import { $, element, nameOf } from "./dom.js";

const EVERY = 5000; // milliseconds
const NAMES = {
  class: "Predicted class", confidence: "Confidence", unlikeness: "Unlikeness", brightness: "Brightness",
  saturation: "Saturation", sharpness: "Sharpness", stain_hue: "Stain hue", embedding: "Embedding",
};
const SVG = "http://www.w3.org/2000/svg";

const whole = (number) => Math.round(number).toLocaleString("en-GB");
const words = (key) => key.replaceAll("_", " ").replace(/^./, (first) => first.toUpperCase());

async function ask() {
  let note = "";
  try {
    const response = await fetch("status.json");
    if (!response.ok) throw new Error(`it answers ${response.status}`);
    const status = await response.json();
    draw(status);
    note = status.health.note ?? (status.health.status === "ok" ? "" : `The server is ${status.health.status}.`);
    $("#asked").textContent = `As of ${new Date().toLocaleTimeString("en-GB")}`;
  } catch (error) {
    note = `The server could not be asked (${error.message}). What is shown may be old; it is asked again every ${EVERY / 1000} seconds.`;
  }
  say($("#note"), note);
  $("#note").hidden = !note;
}

function draw(status) {
  const { health } = status;
  $("#model").textContent = nameOf(health.model);
  $("#synthetic").hidden = !health.model.synthetic;
  $("#disclaimer").textContent = health.disclaimer;

  const time = (ms) => {
    if (ms === null) return "–";
    if (ms < status.lowest_ms) return `< ${whole(status.lowest_ms)} ms`;
    return ms < status.highest_ms ? `${whole(ms)} ms` : `≥ ${whole(status.highest_ms)} ms`;
  };
  const predict = status.routes["/predict"] ?? { count: 0, p50_ms: null, p95_ms: null };
  figures([
    ["Server", health.status, health.status !== "ok"],
    ["Requests a minute", status.per_minute < 10 ? status.per_minute.toFixed(1) : whole(status.per_minute)],
    ["/predict, median", time(predict.p50_ms)],
    ["/predict, 95 %", time(predict.p95_ms)],
    ["In the queue", whole(health.queue_depth)],
    ["Estimated wait", `${whole(health.estimated_wait_ms)} ms`],
  ]);

  trend(status.trend, time);
  $("#latency tbody").replaceChildren(
    ...Object.entries({ ...status.stages, "all of /predict": predict }).map(([stage, { count, p50_ms, p95_ms }]) => {
      const row = element("tr");
      const name = element("th", stage);
      name.scope = "row";
      row.append(name, element("td", whole(count)), element("td", time(p50_ms)), element("td", time(p95_ms)));
      return row;
    }),
  );

  drift(status.drift);

  const labels = Object.fromEntries(health.classes.map(({ key, label }) => [key, label]));
  bars($("#answers .classes"), health.classes.map(({ key }) => [labels[key], status.classes[key] ?? 0]));
  bars($("#answers .referrals"), Object.entries(status.referrals).map(([reason, count]) => [words(reason), count]), "None.");
  bars($("#requests .outcomes"), status.outcomes.map(({ code, reason, count }) => [reason ? `${code} ${reason}` : `${code}`, count]), "None.");
  bars($("#requests .routes"), Object.entries(status.routes).map(([route, { count }]) => [route, count]), "None.");
  for (const section of document.querySelectorAll("main section, #figures")) section.hidden = false;
}

function figures(facts) {
  $("#figures").replaceChildren(
    ...facts.map(([name, value, bad]) => {
      const group = element("div", "", bad ? "bad" : "");
      group.append(element("dt", name), element("dd", value));
      return group;
    }),
  );
}

/** Bars in proportion to the largest sum: what they count together. */
function bars(list, counts, none = "") {
  const all = counts.reduce((sum, [, count]) => sum + count, 0);
  list.replaceChildren(
    ...counts.map(([name, count]) => {
      const row = element("li");
      row.append(element("span", name), bar(all ? count / all : 0, name), element("span", whole(count), "share"));
      return row;
    }),
  );
  if (!counts.length) list.append(element("li", none));
}

function bar(share, name) {
  const progress = element("progress");
  progress.value = Math.min(share, 1);
  progress.setAttribute("aria-label", name);
  return progress;
}

/** One line for each percentile; where there were no requests, none. */
function trend(points, time) {
  const shown = points.filter(({ predict }) => predict.p95_ms !== null);
  const highest = Math.max(10, ...shown.map(({ predict }) => predict.p95_ms)) * 1.1;
  const path = (field) =>
    points
      .map(({ seconds_ago, predict }, index) => {
        if (predict[field] === null) return "";
        const joined = index > 0 && points[index - 1].predict[field] !== null;
        const x = (600 * (1 - seconds_ago / 300)).toFixed(1);
        const y = (139 - (138 * predict[field]) / highest).toFixed(1);
        return joined ? `L${x} ${y}` : `M${x} ${y}h-4M${x} ${y}`; // a point alone is a short stroke
      })
      .join("");
  const svg = $("#latency svg");
  svg.replaceChildren(
    ...[["grid", "M0 139H600M0 70H600M0 1H600"], ["p50", path("p50_ms")], ["p95", path("p95_ms")]].map(([name, d]) => {
      const line = document.createElementNS(SVG, "path");
      line.setAttribute("class", name);
      line.setAttribute("d", d);
      return line;
    }),
  );
  const last = shown.at(-1)?.predict;
  svg.setAttribute("aria-label", last ? `Latency over five minutes, now about ${time(last.p50_ms)} and ${time(last.p95_ms)}` : "No predictions in five minutes");
  const top = $("#latency .top") ?? element("span", "", "top");
  top.textContent = `${whole(highest)} ms`;
  $("#latency figure").append(top);
}

function drift({ images, needed, signals }) {
  const alarms = signals.filter(({ alarm }) => alarm).map(({ signal }) => NAMES[signal].toLowerCase());
  const window = `the last ${whole(images)} answers`;
  say(
    $("#drift .said"),
    !signals.length
      ? `${whole(images)} of the ${needed} answers that a comparison needs.`
      : alarms.length
        ? `${window[0].toUpperCase()}${window.slice(1)} differ from the validation images in ${alarms.join(", ")}. Look before you trust the answers.`
        : `${window[0].toUpperCase()}${window.slice(1)} are like the validation images.`,
  );
  $("#drift .scale").hidden = !signals.length;
  $("#drift ul").replaceChildren(
    ...signals.map(({ signal, alarm, meaning, tests }) => {
      const row = element("li", "", alarm ? "alarm" : "");
      const all = element("div", "", "tests");
      all.append(...tests.map((each) => test(each, NAMES[signal])));
      row.append(element("span", NAMES[signal], "name"), all, element("span", alarm ? "Alarm" : "As expected", "state"));
      if (alarm) row.append(element("p", meaning, "small meaning"));
      return row;
    }),
  );
}

function test({ test: name, statistic, threshold }, signal) {
  const row = element("div", "", statistic > threshold ? "test beyond" : "test");
  const track = element("span", "", "track");
  track.append(bar(threshold ? statistic / threshold / 2 : 0, `${signal}, ${name.toUpperCase()}`));
  row.append(element("span", name.toUpperCase()), track, element("span", `${statistic.toFixed(2)} of ${threshold.toFixed(2)}`, "numbers"));
  return row;
}

/** So that a screen reader hears only what is new. */
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

setInterval(() => document.hidden || ask(), EVERY);
document.addEventListener("visibilitychange", () => document.hidden || ask());
await ask();
