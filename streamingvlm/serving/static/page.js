// The page: runs one session at a time, from the choice of a source to the last line.

import { call, fetchBlob, key, ServerError } from "./api.js";
import { listen } from "./commentary.js";
import { download } from "./exports.js";
import { Gauges } from "./gauges.js";
import { Player } from "./player.js";
import { AddressSource, CameraSource, FileSource } from "./sources.js";
import { Transcript } from "./transcript.js";

const byId = (id) => document.getElementById(id);
const video = byId("video");
const player = new Player(video, byId("stage"), byId);
const gauges = new Gauges(byId);
const transcript = new Transcript({
  list: byId("lines"),
  scroll: byId("scroll"),
  newest: byId("newest"),
  caption: byId("caption"),
  onSeek: seek,
  onLines: (count) => document.querySelectorAll("[data-export]").forEach((button) => (button.disabled = !count)),
});

// Default lag policy per source; null is the server's default.
const LAG = { file: "wait", camera: "drop", address: null };

let settings = null;
let source = null;
let session = null;
let hasStopped = false;
let stopListening = () => {};

function phase(name, status) {
  document.body.dataset.phase = name;
  byId("status").textContent = status;
  for (const id of ["ask", "ask-button"]) byId(id).disabled = name !== "live";
  byId("stop").textContent = name === "over" ? "Choose another source" : "Stop";
}

async function watch(chosen, previousText) {
  for (const id of ["trouble", "address-trouble"]) byId(id).textContent = "";
  const options = {
    query: byId("query").value.trim(),
    previous_text: byId("previous").value.trim() || previousText || "",
  };
  source = chosen;
  hasStopped = false;
  phase("opening", "Opening …");
  try {
    await source.open();
    options.lag = byId("lag").value || LAG[source.kind];
    session = await call("POST", "/v1/sessions", { source: source.request(), ...options });
    begin();
    await source.start(session, settings);
  } catch (error) {
    await abort(error);
    return;
  }
  phase("live", source.transport ? `Watching (${source.transport})` : "Watching");
  byId("stop").focus();
}

function begin() {
  transcript.clear(source.canSeek);
  gauges.clear();
  player.show(source.canSeek);
  let isReconnecting = false;
  stopListening = listen(session.id, {
    line: onLine,
    partial: ({ text }) => transcript.showPartial(text, source.timeS()),
    state: onState,
    gap: ({ num_missed: count }) => transcript.addNote(`${count} lines were missed`),
    end: ({ reason }) => showEnd(reason),
    disconnected: () => {
      isReconnecting = true;
      byId("status").textContent = "Reconnecting …";
    },
    connected: () => {
      if (isReconnecting) byId("status").textContent = "Watching";
      isReconnecting = false;
    },
  });
}

function onLine({ type, id, ...line }) {
  transcript.add(line);
  gauges.line(line);
  source.onLine?.(line);
  // A line describes a moment that has passed: over live video, show the newest line for as long as it takes to read.
  if (!source.canSeek) transcript.showAt(line.end_s);
}

function onState(state) {
  gauges.state(state);
  source.onState(state);
}

async function abort(error) {
  source.close();
  source.release();
  if (session) call("DELETE", `/v1/sessions/${session.id}`).catch(() => {});
  stopListening();
  player.hide();
  session = null;
  video.hidden = true;
  phase("idle", "No video");
  byId(source.kind === "address" ? "address-trouble" : "trouble").textContent = error.message;
}

function showEnd(reason) {
  source.close();
  const ended = hasStopped ? "Stopped" : reason === "finished" ? "The video has ended" : `Ended: ${reason}`;
  phase("over", ended);
  transcript.addNote(ended);
}

async function stop() {
  if (document.body.dataset.phase === "over") {
    reset();
    return;
  }
  hasStopped = true;
  phase("live", "Stopping …");
  source.finish();
  try {
    await call("POST", `/v1/sessions/${session.id}/finish`);
  } catch {
    showEnd("the server is not reachable"); // the session cannot be stopped
  }
}

function reset() {
  stopListening();
  player.hide();
  source.release();
  session = null;
  video.hidden = true;
  transcript.clear(false);
  gauges.clear();
  phase("idle", "No video");
  byId("use-camera").focus();
}

function seek(timeS) {
  if (!source?.canSeek) return;
  video.currentTime = timeS + 0.01;
  transcript.showAt(video.currentTime);
}

async function ask(event) {
  event.preventDefault();
  const question = byId("ask").value.trim();
  if (!question || !session) return;
  byId("ask").value = "";
  const showAnswer = transcript.ask(question, source.timeS());
  try {
    const { answer } = await call("POST", `/v1/sessions/${session.id}/questions`, { question });
    showAnswer(answer || "(empty answer)");
  } catch (error) {
    showAnswer(error.message, true);
  }
}

async function watchSample() {
  phase("opening", "Loading the sample …");
  try {
    const [blob, text] = await Promise.all([fetchBlob("/sample/match.mp4"), fetchBlob("/sample/match.txt")]);
    await watch(new FileSource(video, blob), (await text.text()).trim());
  } catch (error) {
    phase("idle", "No video");
    byId("trouble").textContent = error.message;
  }
}

function toggleAddress() {
  const row = byId("address-row");
  row.hidden = !row.hidden;
  byId("use-address").setAttribute("aria-expanded", String(!row.hidden));
  if (!row.hidden) byId("address").focus();
}

async function loadSettings() {
  try {
    settings = await call("GET", "/v1/settings");
    if (settings.files) await listVideos();
  } catch (error) {
    if (error instanceof ServerError && error.status === 401) byId("key-dialog").showModal();
    else byId("trouble").textContent = error.message;
    return;
  }
  byId("key-dialog").close();
  byId("model").textContent = settings.model;
  const isOpen = settings.addresses || settings.files;
  byId("use-address").disabled = !isOpen;
  byId("address-note").textContent = addressNote(settings);
}

function addressNote({ addresses, files }) {
  if (files) return addresses ? "or a video on the server" : "a video on the server";
  return addresses ? "stream or playlist" : "disabled by the operator";
}

async function listVideos() {
  const { data } = await call("GET", "/v1/videos");
  byId("videos").replaceChildren(...data.map(({ id }) => new Option(id, id)));
  byId("address-label").textContent = settings.addresses
    ? "Address, or name of a video on the server"
    : "Name of a video on the server";
}

async function useKey(event) {
  event.preventDefault();
  key.set(byId("key").value.trim());
  byId("key-trouble").textContent = "";
  await loadSettings();
  if (byId("key-dialog").open) byId("key-trouble").textContent = "This key is not valid.";
}

byId("use-camera").addEventListener("click", () => watch(new CameraSource(video)));
byId("use-file").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", ({ target }) => {
  if (target.files.length) watch(new FileSource(video, target.files[0]));
  target.value = "";
});
byId("use-address").addEventListener("click", toggleAddress);
byId("chooser").addEventListener("submit", (event) => {
  event.preventDefault();
  const address = byId("address").value.trim();
  byId("address-trouble").textContent = address ? "" : "Enter an address or the name of a video.";
  if (address) watch(new AddressSource(byId("preview"), address));
  else byId("address").focus();
});
byId("use-sample").addEventListener("click", watchSample);
byId("stop").addEventListener("click", stop);
byId("ask-form").addEventListener("submit", ask);
byId("key-form").addEventListener("submit", useKey);
for (const button of document.querySelectorAll("[data-export]")) {
  button.addEventListener("click", () => download(button.dataset.export, transcript.lines, settings.model));
}
video.addEventListener("timeupdate", () => source?.canSeek && transcript.showAt(video.currentTime));
window.addEventListener("resize", () => gauges.cache.redraw());
window.addEventListener("pagehide", () => source?.close());

loadSettings();
