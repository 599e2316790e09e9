// Video sources: camera, file and address. Each is opened, started with a session, and closed.

import { call, fetchBlob } from "./api.js";
import { FramePusher } from "./frames.js";

const CONNECT_MS = 6000;
const GATHER_MS = 2000;
const MIN_SENT_PIXELS = 640 * 360;
const PREVIEW_MS = 500;
const RESUME_LAG_S = 1;
const MAX_LAG_S = 3;

// A local file: it is played in the browser, which sends the frames. The file itself is not uploaded.
export class FileSource {
  kind = "file";
  canSeek = true;

  constructor(video, blob) {
    this.video = video;
    this.url = URL.createObjectURL(blob);
  }

  async open() {
    this.video.srcObject = null;
    this.video.src = this.url;
    this.video.hidden = false;
    await new Promise((resolve, reject) => {
      this.video.onloadeddata = () => (this.video.videoWidth ? resolve() : reject(new Error("The file has no picture; choose a video.")));
      this.video.onerror = () => reject(new Error("This browser cannot play the file; choose an MP4 or WebM."));
    });
  }

  request() {
    return { push: true };
  }

  timeS() {
    return this.video.currentTime;
  }

  async start(session, settings) {
    const clock = (mediaTime) => mediaTime ?? this.video.currentTime;
    this.pusher = new FramePusher(session.id, this.video, { ...limits(settings), clock });
    this.waitsForModel = session.lag === "wait";
    await this.pusher.start();
    this.video.onended = () => this.finish();
    await this.video.play();
  }

  // Pause the video while the model is behind.
  onState({ lag_s: lagS }) {
    if (!this.waitsForModel) return;
    if (lagS > MAX_LAG_S && !this.video.paused) {
      this.isPausedForModel = true;
      this.video.pause();
    } else if (this.isPausedForModel && lagS < RESUME_LAG_S) {
      this.isPausedForModel = false;
      this.video.play();
    }
  }

  finish() {
    this.pusher?.finish();
  }

  close() {
    this.pusher?.stop();
    this.video.onended = null;
    this.video.pause();
  }

  release() {
    this.video.removeAttribute("src");
    this.video.load();
    URL.revokeObjectURL(this.url);
  }
}

// A camera: by WebRTC if a connection can be made, otherwise as JPEGs.
export class CameraSource {
  kind = "camera";
  canSeek = false;

  constructor(video) {
    this.video = video;
  }

  async open() {
    if (!navigator.mediaDevices) throw new Error("Cameras need a page from https or localhost.");
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } }, audio: false });
    } catch (error) {
      throw new Error(error.name === "NotAllowedError" ? "Access to the camera was denied." : "No camera was found.");
    }
    this.video.srcObject = this.stream;
    this.video.hidden = false;
    await this.video.play();
  }

  request() {
    return { push: true };
  }

  timeS() {
    return this.startedMs === undefined ? 0 : (performance.now() - this.startedMs) / 1000;
  }

  async start(session, settings) {
    this.startedMs = performance.now();
    if (await this.#connect(session, settings)) return;
    this.transport = "JPEG";
    this.pusher = new FramePusher(session.id, this.video, { ...limits(settings), clock: () => this.timeS() });
    await this.pusher.start();
  }

  onState() {}

  finish() {
    this.pusher?.finish();
    this.peer?.close();
  }

  close() {
    this.pusher?.stop();
    this.peer?.close();
    for (const track of this.stream?.getTracks() ?? []) track.stop();
  }

  release() {
    this.video.srcObject = null;
  }

  async #connect(session, settings) {
    if (!window.RTCPeerConnection) return false;
    const peer = new RTCPeerConnection({ iceServers: settings.ice_servers.map((urls) => ({ urls })) });
    try {
      for (const track of this.stream.getVideoTracks()) peer.addTrack(track, this.stream);
      await peer.setLocalDescription(await peer.createOffer());
      await gathered(peer);
      const answer = await call("POST", `/v1/sessions/${session.id}/webrtc`, { sdp: peer.localDescription.sdp });
      await peer.setRemoteDescription(answer);
      await connected(peer);
    } catch {
      peer.close();
      return false;
    }
    this.transport = "WebRTC";
    this.peer = peer;
    return true;
  }
}

// An address, or a file on the server: the server reads it, and the page shows the newest frame of the model.
export class AddressSource {
  kind = "address";
  canSeek = false;

  constructor(image, address) {
    this.image = image;
    this.address = address;
    this.endS = 0;
  }

  async open() {}

  request() {
    return /^[a-z][a-z0-9+.-]*:\/\//i.test(this.address) ? { url: this.address } : { file: this.address };
  }

  timeS() {
    return this.endS;
  }

  async start(session) {
    this.path = `/v1/sessions/${session.id}/frame`;
    this.image.hidden = false;
    this.timer = setInterval(() => this.#show(), PREVIEW_MS);
  }

  onState() {
    this.hasNew = true;
  }

  onLine(line) {
    this.endS = line.end_s;
  }

  finish() {}

  close() {
    clearInterval(this.timer);
  }

  release() {
    this.image.hidden = true;
    this.image.removeAttribute("src");
    URL.revokeObjectURL(this.shown);
  }

  async #show() {
    if (!this.hasNew) return;
    this.hasNew = false;
    try {
      const url = URL.createObjectURL(await fetchBlob(this.path));
      URL.revokeObjectURL(this.shown);
      this.image.src = this.shown = url;
    } catch {
      this.hasNew = true; // retried at the next tick
    }
  }
}

function limits(settings) {
  // Twice the model's input size per side, so that the server's resize keeps its quality.
  const maxPixels = Math.max(4 * settings.video.max_pixels, MIN_SENT_PIXELS);
  return { maxPixels };
}

function gathered(peer) {
  if (peer.iceGatheringState === "complete") return Promise.resolve();
  return new Promise((resolve) => {
    setTimeout(resolve, GATHER_MS);
    peer.addEventListener("icegatheringstatechange", () => peer.iceGatheringState === "complete" && resolve());
  });
}

function connected(peer) {
  return new Promise((resolve, reject) => {
    setTimeout(reject, CONNECT_MS);
    peer.addEventListener("connectionstatechange", () => {
      if (peer.connectionState === "connected") resolve();
      if (peer.connectionState === "failed") reject();
    });
  });
}
