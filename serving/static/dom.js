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

export const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

export function nameOf(model) {
  const version = model.version ? `version ${model.version}` : `file ${model.file_sha256.slice(0, 8)}`;
  const alias = model.alias ? ` (${model.alias})` : "";
  return `${model.name}, ${version}${alias}, ${model.precision.toUpperCase()}`;
}
