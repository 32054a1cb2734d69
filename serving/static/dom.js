// Short names for what every module does to the document.

export const $ = (selector, root = document) => root.querySelector(selector);

export function element(tag, text = "", className = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  node.className = className;
  return node;
}

/** Terms and what they mean, as the children of a <dl>. */
export const terms = (facts) =>
  Object.entries(facts).flatMap(([name, value]) => [element("dt", name), element("dd", value)]);

/** An image of a data: URL, by way of a Blob, since the page's policy allows no data: in images. */
export function picture(url, alt) {
  const [type, content] = url.replace("data:", "").split(";base64,");
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const image = element("img");
  image.src = URL.createObjectURL(new Blob([bytes], { type }));
  image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  image.alt = alt;
  return image;
}

export const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

export function nameOf(model) {
  const version = model.version ? `version ${model.version}` : `file ${model.file_sha256.slice(0, 8)}`;
  const alias = model.alias ? ` (${model.alias})` : "";
  return `${model.name}, ${version}${alias}, ${model.precision.toUpperCase()}`;
}
