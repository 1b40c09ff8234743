// The page's own list of files: what belongs to it, how long each is, and its SHA-256.

/** files.json, as `course phone build` wrote it. */
export async function list() {
  const answer = await fetch("files.json");
  if (!answer.ok) throw new Error("files.json is missing. Build the page again: course phone build");
  return answer.json();
}

/**
 * A file of the page as bytes, compared with the list.
 *
 * @param {string} name as in files.json.
 * @param {(share: number) => void} progress is called with 0 ... 1.
 */
export async function load(name, progress = () => {}) {
  const expected = (await list()).files[name];
  if (!expected) throw new Error(`${name} is no file of this page. Build it again: course phone build`);
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name} is missing (${answer.status}). Build again: course phone build`);
  let bytes;
  try {
    bytes = new Uint8Array(expected.bytes);
  } catch {
    throw new Error(`There is no room for ${name} (${Math.round(expected.bytes / 1e6)} MB). ` +
      "Close other pages and apps, then load this page again.");
  }
  let at = 0;
  const reader = answer.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (at + part.value.length > bytes.length) throw damaged(name);
    bytes.set(part.value, at);
    at += part.value.length;
    progress(at / bytes.length);
  }
  if (at !== bytes.length || !(await agrees(bytes, expected.sha256))) throw damaged(name);
  return bytes;
}

function damaged(name) {
  return new Error(`${name} is damaged: it is not the file that was built. ` +
    "Clear this page's data in the browser and load it again, or build it again: course phone build");
}

/** Browsers compute SHA-256 on trusted addresses only (HTTPS, localhost); elsewhere the length must do. */
async function agrees(bytes, expected) {
  if (!globalThis.crypto?.subtle) return true;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") === expected;
}
