// Playback controls: play, position, sound, full screen.

import { clockText } from "./transcript.js";

export class Player {
  constructor(video, stage, byId) {
    Object.assign(this, { video, stage });
    this.bar = byId("controls");
    this.play = byId("play");
    this.position = byId("position");
    this.times = byId("times");
    this.sound = byId("sound");
    this.fullscreen = byId("fullscreen");
    this.play.addEventListener("click", () => (video.paused ? video.play() : video.pause()));
    this.position.addEventListener("input", () => (video.currentTime = this.position.valueAsNumber));
    this.sound.addEventListener("click", () => (video.muted = !video.muted));
    this.fullscreen.addEventListener("click", () => (document.fullscreenElement ? document.exitFullscreen() : stage.requestFullscreen()));
    this.fullscreen.hidden = !stage.requestFullscreen;
    for (const name of ["play", "pause", "timeupdate", "durationchange", "volumechange", "seeking"]) {
      video.addEventListener(name, () => this.#draw());
    }
  }

  // canSeek: true for a file, false for a camera.
  show(canSeek) {
    this.bar.hidden = false;
    for (const element of [this.play, this.position, this.times, this.sound]) element.hidden = !canSeek;
    this.stage.classList.add("with-controls");
    this.#draw();
  }

  hide() {
    this.bar.hidden = true;
    this.stage.classList.remove("with-controls");
    if (document.fullscreenElement) document.exitFullscreen();
  }

  #draw() {
    const { currentTime, paused, muted } = this.video;
    const duration = Number.isFinite(this.video.duration) ? this.video.duration : 0;
    this.position.max = duration;
    this.position.value = currentTime;
    this.times.textContent = `${clockText(currentTime)} / ${clockText(duration)}`;
    this.position.setAttribute("aria-valuetext", `${clockText(currentTime)} of ${clockText(duration)}`);
    this.bar.classList.toggle("is-paused", paused);
    this.play.setAttribute("aria-label", paused ? "Play" : "Pause");
    this.sound.setAttribute("aria-pressed", String(!muted));
  }
}
