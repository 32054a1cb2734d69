// The class activation map of POST /explain, laid over the preview; its similar cases go beside it.

import { ask } from "./ask.js";
import { $, element, picture } from "./dom.js";
import { showSimilar } from "./similar.js";

// Viridis: its lightness rises evenly, so that it reads the same to colour-blind eyes; yellow stands out on purple nuclei.
const RAMP = [
  [68, 1, 84], [71, 45, 123], [59, 82, 139], [44, 114, 142], [33, 145, 140],
  [40, 174, 128], [94, 201, 98], [173, 220, 48], [253, 231, 37],
];
const LONGEST_SIDE = 256; // pixels; the map is so smooth that more would not be seen

/** Gives `card` the button "Show where the model looked", for the image that `answer` is about. */
export function offerMap(card, file, answer, classes) {
  const [button, panel, note, choice, slider] = [".look", ".map", ".note", ".map select", ".map input"]
    .map((name) => $(name, card));
  const canvas = $(".picture canvas", card);
  choice.replaceChildren(...classes.map(({ key, label }) => new Option(label, key, false, key === answer.class)));
  draw($(".ramp", card), [Array.from({ length: 64 }, (_, step) => step / 63)], 64, 1);
  let laid = false;
  const show = async () => {
    const waiting = "Asking the model where it looked…";
    note.textContent = waiting;
    try {
      const path = `explain?class=${encodeURIComponent(choice.value)}`;
      const map = await ask(path, { body: file, say: (text) => { note.textContent = text || waiting; } });
      if (map.class === choice.value) await lay(card, map); // else another was chosen meanwhile
      showSimilar(card, map.similar);
      laid = true;
    } catch (problem) {
      note.textContent = `${problem.title}. ${problem.detail}`;
    }
  };
  const fade = () => {
    canvas.style.opacity = slider.value / 100;
    slider.setAttribute("aria-valuetext", `${slider.value} %`);
  };
  button.addEventListener("click", () => {
    const open = card.classList.toggle("mapped");
    panel.hidden = !open;
    button.textContent = open ? "Hide the map" : "Show where the model looked";
    if (open && !laid) show();
  });
  choice.addEventListener("change", show);
  slider.addEventListener("input", fade);
  fade();
  button.hidden = false;
}

async function lay(card, { cam, label, note, overlay }) {
  const empty = cam.flat().every((value) => value === 0);
  const preview = $(".preview", card);
  await preview?.decode();
  if (preview) {
    const canvas = $(".picture canvas", card);
    const scale = Math.min(1, LONGEST_SIDE / Math.max(preview.naturalWidth, preview.naturalHeight));
    draw(canvas, cam, Math.round(preview.naturalWidth * scale), Math.round(preview.naturalHeight * scale));
    canvas.setAttribute("aria-label", `Map for ${label}: ${empty ? "empty" : `strongest ${strongest(cam)}`}`);
    canvas.hidden = false;
  } else {
    showOverlay(card, overlay, label);
  }
  $(".note", card).textContent = note;
}

/** Where the browser cannot show the file, the server's picture of file and map together takes its place. */
function showOverlay(card, overlay, label) {
  const image = picture(overlay, `The image with its map for ${label}`);
  image.className = "overlay";
  $(".overlay", card)?.remove();
  $(".picture", card).append(image);
}

/** Draws `cam` (rows of values 0..1) at width × height: interpolated, the larger the more opaque. */
function draw(canvas, cam, width, height) {
  Object.assign(canvas, { width, height });
  const picture = new ImageData(width, height);
  for (let y = 0, at = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, at += 4) {
      const value = sample(cam, ((x + 0.5) * cam[0].length) / width - 0.5, ((y + 0.5) * cam.length) / height - 0.5);
      picture.data.set([...colour(value), 255 * value], at);
    }
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

/** Bilinear, with the outermost values held beyond the middle of their cells. */
function sample(cam, x, y) {
  const [x0, x1, right] = between(x, cam[0].length);
  const [y0, y1, below] = between(y, cam.length);
  const mix = (row) => row[x0] + (row[x1] - row[x0]) * right;
  return mix(cam[y0]) + (mix(cam[y1]) - mix(cam[y0])) * below;
}

function colour(value) {
  const [low, high, share] = between(value * (RAMP.length - 1), RAMP.length);
  return RAMP[low].map((part, channel) => part + (RAMP[high][channel] - part) * share);
}

/** The two whole positions around one of 0..count-1, and how far it is from the first. */
function between(position, count) {
  const held = Math.min(Math.max(position, 0), count - 1);
  const low = Math.floor(held);
  return [low, Math.min(low + 1, count - 1), held - low];
}

/** The highest value's place in words, for those who do not see the map. */
function strongest(cam) {
  const values = cam.flat();
  const at = values.indexOf(Math.max(...values));
  const third = (index, count) => Math.floor((3 * (index + 0.5)) / count);
  const column = ["left", "centre", "right"][third(at % cam[0].length, cam[0].length)];
  const row = ["upper", "middle", "lower"][third(Math.floor(at / cam[0].length), cam.length)];
  return row === "middle" && column === "centre" ? "in the middle" : `at the ${row} ${column}`;
}
