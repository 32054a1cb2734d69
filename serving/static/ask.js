// Asks the server: with the API key where one is needed, and again where it is busy.

const TRIES = 6;
const LONGEST_PAUSE = 60; // seconds; whatever Retry-After says
const BUSY = new Set([429, 503, 504]);

const dialog = document.querySelector("#key");
let key = sessionStorage.getItem("key"); // forgotten with the tab
let asking = null; // requests that are refused meanwhile share one dialog

/** What the server, or the way to it, says against a request. */
export class Problem extends Error {
  constructor({ status = 0, title = "No answer", detail, request_id = "" }) {
    super(detail);
    Object.assign(this, { status, title, detail, requestId: request_id });
  }
}

/**
 * GETs `path`, or POSTs `body` (a File as it is, so that its name stays here; anything else as JSON), and returns the
 * answer's JSON. `say` is told what is being waited for, and "" once that is over. Throws a Problem, or an AbortError
 * once `signal` is aborted.
 */
export async function ask(path, { body, signal, say = () => {} } = {}) {
  for (let attempt = 1; ; attempt += 1) {
    const used = key;
    const response = await send(path, body, signal);
    if (response.ok) return response.json();
    const problem = await problemOf(response);
    if (problem.status === 401 || problem.status === 403) {
      if (key === used && !(await askForKey(signal))) throw problem;
      attempt = 0;
    } else if (BUSY.has(problem.status) && attempt < TRIES) {
      const seconds = Math.min((Number(response.headers.get("Retry-After")) || 1) * attempt, LONGEST_PAUSE);
      say(`${problem.title}. Trying again in ${seconds}\u00a0s…`);
      await pause(seconds + Math.random() / 2, signal); // so that pages that were refused together part
      say("");
    } else {
      throw problem;
    }
  }
}

async function send(path, body, signal) {
  const isFile = body instanceof Blob;
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = isFile ? "application/octet-stream" : "application/json";
  try {
    return await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: isFile || !body ? body : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    if (isFile && !(await readable(body))) {
      throw new Problem({
        title: "The file cannot be read",
        detail: "It is a folder, or it was moved or changed since. Choose it again.",
      });
    }
    throw new Problem({ detail: "The server cannot be reached. Check that it is running, then try again." });
  }
}

const readable = (file) => file.slice(0, 1).arrayBuffer().then(() => true, () => false);

async function problemOf(response) {
  const { status } = response;
  try {
    return new Problem({ ...(await response.json()), status });
  } catch {
    return new Problem({ status, detail: `The server answered with status ${status}.` });
  }
}

/** Whether a key was given. */
function askForKey(signal) {
  asking ??= new Promise((resolve) => {
    const input = dialog.querySelector("input");
    const why = key ? "The server did not accept this key." : "Whoever runs this server gives it to you.";
    dialog.querySelector("p").textContent = why;
    dialog.returnValue = "";
    const stop = () => dialog.close();
    signal?.addEventListener("abort", stop);
    dialog.addEventListener("close", () => {
      signal?.removeEventListener("abort", stop);
      asking = null;
      if (dialog.returnValue === "use") {
        key = input.value.trim();
        sessionStorage.setItem("key", key);
      }
      input.value = ""; // the document need not hold it
      resolve(dialog.returnValue === "use");
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}
