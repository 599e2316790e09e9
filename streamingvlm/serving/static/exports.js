// Export the transcript as WebVTT, SubRip or JSON Lines.

const TYPES = { vtt: "text/vtt", srt: "application/x-subrip", jsonl: "application/jsonl" };

export function formatTranscript(format, lines) {
  return { vtt, srt, jsonl }[format](lines);
}

export function download(format, lines) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([formatTranscript(format, lines)], { type: TYPES[format] }));
  link.download = `commentary.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function vtt(lines) {
  const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  return "WEBVTT\n\n" + nonEmpty(lines).map((line) => `${span(line, ".")}\n${escaped(oneLine(line.text))}\n\n`).join("");
}

function srt(lines) {
  return nonEmpty(lines).map((line, index) => `${index + 1}\n${span(line, ",")}\n${oneLine(line.text)}\n\n`).join("");
}

function jsonl(lines) {
  return lines.map((line) => JSON.stringify(line) + "\n").join("");
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
