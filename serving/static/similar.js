// The training images that are nearest to the model, beside the map.

import { $, element, picture } from "./dom.js";

/** Lists `cases` of an explanation; a model file from before there was an index has none. */
export function showSimilar(card, cases) {
  $(".similar", card).hidden = cases.length === 0;
  $(".similar ol", card).replaceChildren(...cases.map(item));
}

function item({ id, label, distance, thumbnail }) {
  const line = element("li");
  if (thumbnail) line.append(picture(thumbnail, `Training image ${id}`));
  line.append(
    element("span", label, "label"),
    element("span", `distance ${distance.toFixed(2)}`),
    element("span", id),
  );
  return line;
}
