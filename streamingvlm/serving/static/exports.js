// Export the transcript as WebVTT, SubRip or JSON Lines.

const TYPES = { vtt: "text/vtt", srt: "application/x-subrip", jsonl: "application/jsonl" };

// The mark of streamingvlm/provenance.py: whoever prepares training data is told that a model wrote the file.
const MARK = "streamingvlm";

export function formatTranscript(format, lines, model) {
  return { vtt, srt, jsonl }[format](lines, JSON.stringify({ [MARK]: { model } }));
}

export function download(format, lines, model) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([formatTranscript(format, lines, model)], { type: TYPES[format] }));
  link.download = `commentary.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function vtt(lines, origin) {
  const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const cues = nonEmpty(lines).map((line) => `${span(line, ".")}\n${escaped(oneLine(line.text))}\n\n`);
  return [`WEBVTT\n\nNOTE ${MARK}\n${origin.replaceAll("-->", "->")}\n\n`, ...cues].join("");
}

function srt(lines) {
  const mark = (index) => (index ? "" : ` ${MARK}`);
  const cue = (line, index) => `${index + 1}\n${span(line, ",")}${mark(index)}\n${oneLine(line.text)}\n\n`;
  return nonEmpty(lines).map(cue).join("");
}

function jsonl(lines, origin) {
  return [origin, ...lines.map((line) => JSON.stringify(line))].map((line) => line + "\n").join("");
}

function nonEmpty(lines) {
  return lines.filter((line) => line.text);
}

// A blank line would end the cue.
function oneLine(text) {
  return text.split(/\s+/).filter(Boolean).join(" ");
}

function span(line, decimal) {
  return `${timestamp(line.start_s, decimal)} --> ${timestamp(line.end_s, decimal)}`;
}

function timestamp(timeS, decimal) {
  const ms = Math.round(timeS * 1000);
  const parts = [Math.floor(ms / 3_600_000), Math.floor(ms / 60_000) % 60, Math.floor(ms / 1000) % 60];
  const clock = parts.map((part) => String(part).padStart(2, "0")).join(":");
  return `${clock}${decimal}${String(ms % 1000).padStart(3, "0")}`;
}
