// Sends the shown frames of a <video> as JPEGs, each with its time, through a WebSocket. The server samples them.

import { openSocket } from "./api.js";

const JPEG_QUALITY = 0.86;
const MAX_BUFFERED_BYTES = 512 * 1024;
const POLL_MS = 40;

export class FramePusher {
  // maxPixels: larger frames are scaled down before they are sent; clock: returns the
  // stream time of the current video frame, in seconds.
  constructor(sessionId, video, { maxPixels, clock }) {
    this.video = video;
    this.maxPixels = maxPixels;
    this.clock = clock;
    this.newestS = -1;
    this.isBusy = false;
    this.hasStopped = false;
    this.canvas = document.createElement("canvas");
    this.socket = openSocket(`/v1/sessions/${sessionId}/frames`);
    this.opened = new Promise((resolve, reject) => {
      this.socket.onopen = resolve;
      this.socket.onclose = () => reject(new Error("The server does not accept frames."));
    });
    this.opened.catch(() => {});
  }

  async start() {
    await this.opened;
    this.socket.onclose = () => this.stop();
    // One callback per shown frame where the browser supports it; the timer catches the last frame of a paused video.
    this.timer = setInterval(() => (this.video.paused || !this.video.requestVideoFrameCallback) && this.capture(), POLL_MS);
    this.#watchFrames();
  }

  stop() {
    this.hasStopped = true;
    clearInterval(this.timer);
    this.socket.close();
  }

  // Send no more frames; the server still processes those that were sent.
  async finish() {
    this.hasStopped = true;
    clearInterval(this.timer);
    while (this.isBusy) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type: "finish" }));
  }

  capture(timeS = this.clock()) {
    if (this.hasStopped || this.isBusy || this.video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA) return;
    // Send each moment once: seeking back in a file shows the transcript and does not process the video again.
    if (timeS <= this.newestS || this.socket.bufferedAmount > MAX_BUFFERED_BYTES) return;
    this.newestS = timeS;
    this.#send(timeS);
  }

  #watchFrames() {
    if (!this.video.requestVideoFrameCallback) return;
    const onFrame = (_, { mediaTime }) => {
      if (this.hasStopped) return;
      this.capture(this.clock(mediaTime));
      this.video.requestVideoFrameCallback(onFrame);
    };
    this.video.requestVideoFrameCallback(onFrame);
  }

  async #send(timeS) {
    this.isBusy = true;
    try {
      this.#draw();
      const jpeg = await new Promise((resolve) => this.canvas.toBlob(resolve, "image/jpeg", JPEG_QUALITY));
      if (jpeg && this.socket.readyState === WebSocket.OPEN) {
        const time = new DataView(new ArrayBuffer(8));
        time.setFloat64(0, timeS);
        this.socket.send(await new Blob([time, jpeg]).arrayBuffer());
      }
    } finally {
      this.isBusy = false;
    }
  }

  #draw() {
    const { videoWidth, videoHeight } = this.video;
    const scale = Math.min(1, Math.sqrt(this.maxPixels / (videoWidth * videoHeight)));
    this.canvas.width = Math.max(1, Math.round(videoWidth * scale));
    this.canvas.height = Math.max(1, Math.round(videoHeight * scale));
    const context = this.canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(this.video, 0, 0, this.canvas.width, this.canvas.height);
  }
}
