// From a playing <video> to JPEGs at the model's own rate, each with its time, through a WebSocket.

import { openSocket } from "./api.js";

const JPEG_QUALITY = 0.86;
const MAX_WAITING_BYTES = 512 * 1024;
const POLL_MS = 40;

export class FramePusher {
  // fps: frames a second that the model looks at; maxPixels: of a frame, beyond which it is scaled down here already;
  // clock: gives the stream time of what the video shows now, in seconds.
  constructor(sessionId, video, { fps, maxPixels, clock }) {
    this.video = video;
    this.fps = fps;
    this.maxPixels = maxPixels;
    this.clock = clock;
    this.nextMoment = 0;
    this.isBusy = false;
    this.hasStopped = false;
    this.canvas = document.createElement("canvas");
    this.socket = openSocket(`/v1/sessions/${sessionId}/frames`);
    this.opened = new Promise((resolve, reject) => {
      this.socket.onopen = resolve;
      this.socket.onclose = () => reject(new Error("The server does not take frames."));
    });
    this.opened.catch(() => {});
  }

  async start() {
    await this.opened;
    this.socket.onclose = () => this.stop();
    // A callback a shown frame where the browser has it, and a timer for the rest: the last frame of a paused video.
    this.timer = setInterval(() => this.look(), POLL_MS);
    this.#watchFrames();
  }

  stop() {
    this.hasStopped = true;
    clearInterval(this.timer);
    this.socket.close();
  }

  // No frame comes any more: what has been sent is still spoken of.
  async finish() {
    this.hasStopped = true;
    clearInterval(this.timer);
    while (this.isBusy) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type: "finish" }));
  }

  look(timeS = this.clock()) {
    if (this.hasStopped || this.isBusy || this.video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA) return;
    const moment = Math.round(timeS * this.fps);
    // Nothing is shown twice: going back in a file looks at what was said, not at the pictures anew.
    if (moment < this.nextMoment || this.socket.bufferedAmount > MAX_WAITING_BYTES) return;
    this.nextMoment = moment + 1;
    this.#send(timeS);
  }

  #watchFrames() {
    if (!this.video.requestVideoFrameCallback) return;
    const onFrame = (_, { mediaTime }) => {
      if (this.hasStopped) return;
      this.look(this.clock(mediaTime));
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
