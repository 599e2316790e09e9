// The page: one session at a time, from the choice of a source to its last line.

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

// What suits a source where nobody says otherwise; null leaves it to the server.
const LAG = { file: "wait", camera: "drop", address: null };

let settings = null;
let source = null;
let session = null;
let stopListening = () => {};

function phase(name, status) {
  document.body.dataset.phase = name;
  byId("status").textContent = status;
  for (const id of ["ask", "ask-button"]) byId(id).disabled = name !== "live";
  byId("stop").textContent = name === "over" ? "Watch something else" : "Stop";
}

async function watch(chosen, previousText) {
  byId("trouble").textContent = "";
  const asked = {
    query: byId("query").value.trim(),
    previous_text: byId("previous").value.trim() || previousText || "",
  };
  source = chosen;
  phase("opening", "Opening …");
  try {
    await source.open();
    asked.lag = byId("lag").value || LAG[source.kind];
    session = await call("POST", "/v1/sessions", { source: source.sourceAsked(), ...asked });
    begin();
    await source.start(session, settings);
  } catch (error) {
    await giveUp(error);
    return;
  }
  phase("live", source.way ? `Watching, by ${source.way}` : "Watching");
  byId("stop").focus();
}

function begin() {
  transcript.clear(source.canSeek);
  gauges.clear();
  player.show(source.canSeek);
  let wasLost = false;
  stopListening = listen(session.id, {
    line: takeLine,
    words: ({ text }) => transcript.utter(text, source.timeS()),
    state: takeState,
    gap: ({ num_missed: count }) => transcript.remark(`${count} lines went by while you were away`),
    end: ({ reason }) => over(reason),
    lost: () => {
      wasLost = true;
      byId("status").textContent = "Connecting again …";
    },
    found: () => {
      if (wasLost) byId("status").textContent = "Watching";
      wasLost = false;
    },
  });
}

function takeLine({ type, id, ...line }) {
  transcript.add(line);
  gauges.line(line);
  source.onLine?.(line);
  // A line is of a moment that has passed: over a live picture the newest stands, until it has been read.
  if (!source.canSeek) transcript.showAt(line.end_s);
}

function takeState(state) {
  gauges.state(state);
  source.onState(state);
}

async function giveUp(error) {
  source.close();
  source.forget();
  if (session) call("DELETE", `/v1/sessions/${session.id}`).catch(() => {});
  stopListening();
  player.hide();
  session = null;
  video.hidden = true;
  phase("idle", "Nothing is being watched");
  byId("trouble").textContent = error.message;
}

function over(reason) {
  source.close();
  phase("over", reason === "finished" ? "The video is over" : `Ended: ${reason}`);
  transcript.remark(reason === "finished" ? "The end" : `Ended: ${reason}`);
}

async function stop() {
  if (document.body.dataset.phase === "over") {
    reset();
    return;
  }
  phase("live", "Stopping …");
  source.finish();
  try {
    await call("POST", `/v1/sessions/${session.id}/finish`);
  } catch {
    over("the server has left"); // there is nobody to stop
  }
}

function reset() {
  stopListening();
  player.hide();
  source.forget();
  session = null;
  video.hidden = true;
  transcript.clear(false);
  gauges.clear();
  phase("idle", "Nothing is being watched");
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
  const settle = transcript.ask(question, source.timeS());
  try {
    const { answer } = await call("POST", `/v1/sessions/${session.id}/questions`, { question });
    settle(answer || "(It says nothing.)");
  } catch (error) {
    settle(error.message, true);
  }
}

async function watchSample() {
  phase("opening", "Fetching the match …");
  try {
    const [blob, text] = await Promise.all([fetchBlob("/sample/match.mp4"), fetchBlob("/sample/match.txt")]);
    await watch(new FileSource(video, blob), (await text.text()).trim());
  } catch (error) {
    phase("idle", "Nothing is being watched");
    byId("trouble").textContent = error.message;
  }
}

function toggleAddress() {
  const row = byId("address-row");
  row.hidden = !row.hidden;
  byId("use-address").setAttribute("aria-expanded", String(!row.hidden));
  if (!row.hidden) byId("address").focus();
}

async function enter() {
  try {
    settings = await call("GET", "/v1/settings");
  } catch (error) {
    if (error instanceof ServerError && error.status === 401) byId("key-dialog").showModal();
    else byId("trouble").textContent = error.message;
    return;
  }
  byId("key-dialog").close();
  byId("model").textContent = settings.model;
  const isOpen = settings.addresses || settings.files;
  byId("use-address").disabled = !isOpen;
  byId("address-note").textContent = isOpen ? "a stream, a playlist" : "closed by the operator";
}

async function useKey(event) {
  event.preventDefault();
  key.set(byId("key").value.trim());
  byId("key-trouble").textContent = "";
  await enter();
  if (byId("key-dialog").open) byId("key-trouble").textContent = "That key is not known here.";
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
  if (address) watch(new AddressSource(byId("preview"), address));
});
byId("use-sample").addEventListener("click", watchSample);
byId("stop").addEventListener("click", stop);
byId("ask-form").addEventListener("submit", ask);
byId("key-form").addEventListener("submit", useKey);
for (const button of document.querySelectorAll("[data-export]")) {
  button.addEventListener("click", () => download(button.dataset.export, transcript.lines));
}
video.addEventListener("timeupdate", () => source?.canSeek && transcript.showAt(video.currentTime));
window.addEventListener("resize", () => gauges.cache.redraw());
window.addEventListener("pagehide", () => source?.close());

enter();
