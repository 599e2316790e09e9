// Requests and WebSockets to the server, with its API key.

const SUBPROTOCOL = "streamingvlm";
const KEY_NAME = "streamingvlm key";

export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// Stored for this tab only: a key must not be written to disk.
export const key = {
  get: () => sessionStorage.getItem(KEY_NAME) ?? "",
  set: (value) => sessionStorage.setItem(KEY_NAME, value),
};

export async function call(method, path, body) {
  const response = await send(method, path, body);
  return response.status === 204 ? null : response.json();
}

export async function fetchBlob(path) {
  return (await send("GET", path)).blob();
}

export function openSocket(path) {
  const url = new URL(path, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const offered = key.get() ? [SUBPROTOCOL, `${SUBPROTOCOL}.key.${base64url(key.get())}`] : [SUBPROTOCOL];
  const socket = new WebSocket(url, offered);
  socket.binaryType = "arraybuffer";
  return socket;
}

async function send(method, path, body) {
  const headers = {};
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new ServerError(0, "The server cannot be reached; check that it is running.");
  }
  if (!response.ok) throw new ServerError(response.status, await reason(response));
  return response;
}

async function reason(response) {
  try {
    const { error } = await response.json();
    return sentence(error.message);
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

function base64url(text) {
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
