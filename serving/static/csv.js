// The results as a file for a spreadsheet. It is made here: file names do not leave the browser.

/** RFC 4180, with the byte order mark that Excel knows UTF-8 by. `results`: {file, answer} or {file, problem}. */
export function toCsv(results, classes) {
  const columns = {
    file: ({ file }) => file.name,
    class: ({ answer }) => answer?.class,
    label: ({ answer }) => answer?.label,
    decision: ({ answer }) => answer?.decision ?? "error",
    reasons: ({ answer }) => answer?.reasons.map(({ code }) => code).join("; "),
    ...Object.fromEntries(classes.map(({ key }) => [`probability_${key}`, ({ answer }) => answer?.probabilities[key]])),
    p_malignant: ({ answer }) => answer?.p_malignant,
    malignant: ({ answer }) => answer?.malignant,
    not_excluded: ({ answer }) => answer?.not_excluded?.join("; "),
    unlikeness: ({ answer }) => answer?.unlikeness,
    model: ({ answer }) => answer?.model.name,
    model_version: ({ answer }) => answer?.model.version,
    precision: ({ answer }) => answer?.model.precision,
    model_sha256: ({ answer }) => answer?.model.file_sha256,
    synthetic_model: ({ answer }) => answer?.model.synthetic,
    image_sha256: ({ answer }) => answer?.image.sha256,
    request_id: ({ answer, problem }) => answer?.request_id ?? problem.requestId,
    error: ({ problem }) => problem?.title,
    error_detail: ({ problem }) => problem?.detail,
  };
  const rows = results.map((result) => Object.values(columns).map((value) => value(result)));
  return `\ufeff${[Object.keys(columns), ...rows].map((row) => `${row.map(cell).join(",")}\r\n`).join("")}`;
}

function cell(value) {
  // A spreadsheet runs what begins so as a formula, full-width signs included; an apostrophe makes it text.
  const text = String(value ?? "").replace(/^[=+\-@\t\r\n＝＋－＠]/, "'$&");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
