// The commentary of a session: every line once, in order, across connections that break.

import { openSocket } from "./api.js";

const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 5000;

// handlers: line, state, words, gap and end, each called with what the server told; lost and found when the connection
// breaks and comes back. Returns a function that stops listening.
export function listen(sessionId, handlers) {
  let lastId = 0;
  let waitMs = FIRST_WAIT_MS;
  let hasStopped = false;
  let socket = null;

  function connect() {
    socket = openSocket(`/v1/sessions/${sessionId}/commentary?after=${lastId}`);
    socket.onopen = () => {
      waitMs = FIRST_WAIT_MS;
      handlers.found?.();
    };
    socket.onmessage = ({ data }) => take(JSON.parse(data));
    socket.onclose = () => {
      if (hasStopped) return;
      handlers.lost?.();
      setTimeout(() => hasStopped || connect(), waitMs);
      waitMs = Math.min(2 * waitMs, LONGEST_WAIT_MS);
    };
  }

  function take(message) {
    if (message.type === "line") lastId = message.id;
    if (message.type === "end") hasStopped = true;
    handlers[message.type]?.(message);
  }

  connect();
  return () => {
    hasStopped = true;
    socket.close();
  };
}
