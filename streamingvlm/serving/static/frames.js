// Sends the shown frames of a <video> as JPEGs, each with its time, through a WebSocket. The server samples them.

import { openSocket } from "./api.js";

const JPEG_QUALITY = 0.86;
const MAX_BUFFERED_BYTES = 512 * 1024;
const POLL_MS = 40;
const MAX_ENCODING = 8; // frames that are being compressed at the same time

export class FramePusher {
  // maxPixels: larger frames are scaled down before they are sent; clock: returns the
  // stream time of the current video frame, in seconds.
  constructor(sessionId, video, { maxPixels, clock }) {
    this.video = video;
    this.maxPixels = maxPixels;
    this.clock = clock;
    this.newestS = -1;
    this.numEncoding = 0;
    this.sent = Promise.resolve();
    this.hasStopped = false;
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
    await this.sent;
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type: "finish" }));
  }

  capture(timeS = this.clock()) {
    if (this.hasStopped || this.video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA) return;
    if (this.numEncoding >= MAX_ENCODING || this.socket.bufferedAmount > MAX_BUFFERED_BYTES) return;
    // Send each moment once: seeking back in a file shows the transcript and does not process the video again.
    if (timeS <= this.newestS) return;
    this.newestS = timeS;
    this.#queue(timeS);
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

  // Copy the frame at once, compress it beside the others, send it after those before it.
  #queue(timeS) {
    this.numEncoding += 1;
    const encoded = this.#draw().convertToBlob({ type: "image/jpeg", quality: JPEG_QUALITY });
    this.sent = Promise.all([encoded, this.sent])
      .then(([jpeg]) => this.#send(timeS, jpeg))
      .catch((error) => console.error("A frame could not be sent:", error))
      .finally(() => (this.numEncoding -= 1));
  }

  async #send(timeS, jpeg) {
    const time = new DataView(new ArrayBuffer(8));
    time.setFloat64(0, timeS);
    const message = await new Blob([time, jpeg]).arrayBuffer();
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(message);
  }

  #draw() {
    const { videoWidth, videoHeight } = this.video;
    const scale = Math.min(1, Math.sqrt(this.maxPixels / (videoWidth * videoHeight)));
    const [width, height] = [videoWidth, videoHeight].map((side) => Math.max(1, Math.round(side * scale)));
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(this.video, 0, 0, width, height);
    return canvas;
  }
}
