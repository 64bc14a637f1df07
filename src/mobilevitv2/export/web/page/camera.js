// The camera as a stream of bitmaps.

const WANTED = { video: { facingMode: "environment", width: { ideal: 1280 }, height: { ideal: 720 } }, audio: false };
const REASONS = {
  NotAllowedError: "its use was not allowed",
  NotFoundError: "there is none",
  NotReadableError: "another program uses it",
};

export const hasCamera = () => Boolean(navigator.mediaDevices?.getUserMedia);

/** Shows one frame after the other to `look`, which gives a promise, until `stop` is called. */
export class Camera {
  #stream;
  #on = false;

  get on() {
    return this.#on;
  }

  async start(look) {
    this.#on = true;
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia(WANTED);
    } catch (error) {
      this.#on = false;
      throw new Error(`The camera cannot be used: ${REASONS[error.name] ?? error.message}.`);
    }
    if (!this.#on) return this.stop(); // stopped while the question was open
    const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true, srcObject: this.#stream });
    await video.play();
    while (this.#on) {
      await new Promise((seen) => ("requestVideoFrameCallback" in video ? video.requestVideoFrameCallback(seen) : requestAnimationFrame(seen)));
      if (this.#on) await look(await createImageBitmap(video));
    }
    return undefined;
  }

  stop() {
    this.#on = false;
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#stream = undefined;
  }
}
