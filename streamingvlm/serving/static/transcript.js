// The transcript: lines, questions and notes; scrolls along until the reader scrolls back.

const MAX_SHOWN = 2000;
const NEAR_END_PX = 48;
const CAPTION_S = 4;

export function clockText(timeS) {
  const whole = Math.floor(timeS);
  const [hours, minutes, seconds] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const tail = `${String(seconds).padStart(2, "0")}`;
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${tail}` : `${minutes}:${tail}`;
}

export class Transcript {
  // onSeek: called with the stream time of a line that was clicked. onLines: called with the number of lines when it
  // changes.
  constructor({ list, scroll, newest, caption, onSeek, onLines }) {
    Object.assign(this, { list, scroll, newest, caption, onSeek, onLines });
    this.clear(false);
    scroll.addEventListener("scroll", () => this.#onScroll());
    newest.addEventListener("click", () => this.#follow());
    list.addEventListener("click", (event) => this.#onClick(event));
    list.addEventListener("keydown", (event) => this.#moveFocus(event));
  }

  clear(canSeek) {
    this.canSeek = canSeek;
    this.lines = [];
    this.entries = [];
    this.onLines(0);
    this.isFollowing = true;
    this.current = null;
    this.list.replaceChildren();
    this.caption.classList.remove("shown");
    this.newest.hidden = true;
  }

  add(line) {
    this.lines.push(line);
    this.onLines(this.lines.length);
    if (!line.text) return;
    const item = document.createElement("li");
    const row = document.createElement(this.canSeek ? "button" : "div");
    if (this.canSeek) Object.assign(row, { type: "button", tabIndex: this.entries.length ? -1 : 0 });
    row.className = "line";
    row.append(time(line.start_s), span(line.text));
    item.append(row);
    this.entries.push({ line, row });
    this.#append(item);
  }

  // Shows the text of the line that is being generated, unless the reader has sought back.
  showPartial(text, timeS) {
    if (timeS < (this.entries.at(-1)?.line.start_s ?? 0)) return;
    this.caption.textContent = text;
    this.caption.classList.toggle("shown", text !== "");
  }

  addNote(text) {
    const item = document.createElement("li");
    item.className = "note";
    item.textContent = text;
    this.#append(item);
  }

  // Adds a question; returns a function that shows its answer, or the error.
  ask(question, timeS) {
    const item = document.createElement("li");
    item.className = "exchange";
    const questionText = document.createElement("p");
    questionText.className = "question";
    questionText.append(time(timeS), question);
    const answer = document.createElement("p");
    answer.className = "answer waiting";
    answer.textContent = "Thinking …";
    item.append(questionText, answer);
    this.#append(item);
    return (text, hasFailed = false) => {
      answer.className = hasFailed ? "answer failed" : "answer";
      answer.textContent = text;
      this.#scrollToEnd();
    };
  }

  // Shows the line of this time as a caption, and marks it in the list.
  showAt(timeS) {
    const index = this.#lastBefore(timeS);
    const entry = this.entries[index];
    const isRecent = entry && timeS - entry.line.end_s < CAPTION_S;
    if (isRecent) this.caption.textContent = entry.line.text;
    this.caption.classList.toggle("shown", Boolean(isRecent));
    this.#mark(isRecent ? entry.row : null);
  }

  #lastBefore(timeS) {
    let index = this.entries.length - 1;
    while (index >= 0 && this.entries[index].line.start_s > timeS) index -= 1;
    return index;
  }

  #mark(row) {
    if (row === this.current) return;
    this.current?.removeAttribute("aria-current");
    row?.setAttribute("aria-current", "true");
    this.current = row;
  }

  #append(item) {
    this.list.append(item);
    while (this.list.childElementCount > MAX_SHOWN) this.list.firstElementChild.remove();
    if (this.entries.length > MAX_SHOWN) this.entries.shift();
    this.#scrollToEnd();
  }

  #scrollToEnd() {
    if (this.isFollowing) this.scroll.scrollTop = this.scroll.scrollHeight;
    this.newest.hidden = this.isFollowing;
  }

  #onScroll() {
    const { scrollTop, clientHeight, scrollHeight } = this.scroll;
    this.isFollowing = scrollTop + clientHeight > scrollHeight - NEAR_END_PX;
    this.newest.hidden = this.isFollowing || !this.list.childElementCount;
  }

  #follow() {
    this.isFollowing = true;
    this.#scrollToEnd();
    this.scroll.focus();
  }

  #onClick(event) {
    const row = event.target.closest("button.line");
    const entry = this.entries.find((candidate) => candidate.row === row);
    if (entry) this.onSeek(entry.line.start_s);
  }

  #moveFocus(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !event.target.matches("button.line")) return;
    const rows = this.entries.map((entry) => entry.row);
    const next = rows[rows.indexOf(event.target) + step];
    if (next) {
      for (const row of rows) row.tabIndex = row === next ? 0 : -1;
      next.focus();
    }
    event.preventDefault();
  }
}

function time(timeS) {
  const element = document.createElement("time");
  element.dateTime = `PT${timeS.toFixed(1)}S`;
  element.textContent = clockText(timeS);
  return element;
}

function span(text) {
  const element = document.createElement("span");
  element.textContent = text;
  return element;
}
