// The service's API: the key, errors as the server says them, and server-sent events of a POST.

const KEY = "heliograph.key";

export const getKey = () => sessionStorage.getItem(KEY) ?? "";

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export class ApiError extends Error {
  constructor(message, status, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

/** A response that is a success; else throws what the server said. Status 0: no server answered. */
export async function request(path, { method = "GET", body, signal, accept = [] } = {}) {
  const headers = {};
  if (getKey()) headers.Authorization = `Bearer ${getKey()}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer.", 0);
  }
  if (response.ok || accept.includes(response.status)) return response;
  const { message, param } = await detailOf(response);
  throw new ApiError(message, response.status, param);
}

async function detailOf(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error;
  } catch {
    return { message: text.slice(0, 300) || `The server answered ${response.status}.` };
  }
}

export const getJson = async (path, options) => (await request(path, options)).json();

/** Events of a streaming POST, each as {name, data}. */
export async function* streamEvents(path, body, signal) {
  const response = await request(path, { method: "POST", body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    let chunk;
    try {
      chunk = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The connection to the server was lost.", 0);
    }
    if (chunk.done) return;
    const frames = (buffer + chunk.value).split("\n\n");
    buffer = frames.pop();
    for (const frame of frames) yield parseFrame(frame);
  }
}

function parseFrame(frame) {
  const fields = { event: "message", data: "" };
  for (const line of frame.split("\n")) {
    const colon = line.indexOf(": ");
    if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 2);
  }
  return { name: fields.event, data: JSON.parse(fields.data) };
}
