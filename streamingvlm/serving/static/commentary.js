// The commentary of a session: every line once and in order, across reconnects.

import { openSocket } from "./api.js";

const MIN_RETRY_MS = 250;
const MAX_RETRY_MS = 5000;

// handlers: line, state, partial, gap and end, each called with the event's data; disconnected and connected when the
// connection changes. Returns a function that stops listening.
export function listen(sessionId, handlers) {
  let lastId = 0;
  let retryMs = MIN_RETRY_MS;
  let hasStopped = false;
  let socket = null;

  function connect() {
    socket = openSocket(`/v1/sessions/${sessionId}/commentary?after=${lastId}`);
    socket.onopen = () => {
      retryMs = MIN_RETRY_MS;
      handlers.connected?.();
    };
    socket.onmessage = ({ data }) => handle(JSON.parse(data));
    socket.onclose = () => {
      if (hasStopped) return;
      handlers.disconnected?.();
      setTimeout(() => hasStopped || connect(), retryMs);
      retryMs = Math.min(2 * retryMs, MAX_RETRY_MS);
    };
  }

  function handle(message) {
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
