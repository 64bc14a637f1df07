// The camera as a stream of bitmaps.

const WANTED = { video: { facingMode: "environment", width: { ideal: 1280 }, height: { ideal: 720 } }, audio: false };
const REASONS = {
  NotAllowedError: "its use was not allowed",
  NotFoundError: "there is none",
  NotReadableError: "another program uses it",
};

export const hasCamera = () => Boolean(navigator.mediaDevices?.getUserMedia);

/** Shows one frame after the other to `look`, which gives a promise, until `stop` is called, or `start` anew. */
export class Camera {
  #stream;
  #turn = 0;
  #on = false;

  get on() {
    return this.#on;
  }

  async start(look) {
    this.stop();
    const own = this.#turn, wanted = () => own === this.#turn;
    this.#on = true;
    try {
      await this.#show(look, wanted);
    } catch (error) {
      if (wanted()) throw error; // else of a stream that was stopped
    } finally {
      if (wanted()) this.stop();
    }
  }

  async #show(look, wanted) {
    const stream = await navigator.mediaDevices.getUserMedia(WANTED).catch((error) => {
      throw new Error(`The camera cannot be used: ${REASONS[error.name] ?? error.message}.`);
    });
    if (!wanted()) return stopped(stream); // while the question was open
    this.#stream = stream;
    const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true, srcObject: stream });
    await video.play();
    while (wanted()) {
      await new Promise((seen) => ("requestVideoFrameCallback" in video ? video.requestVideoFrameCallback(seen) : requestAnimationFrame(seen)));
      const bitmap = wanted() && (await createImageBitmap(video));
      if (wanted()) await look(bitmap);
      else if (bitmap) bitmap.close();
    }
    return undefined;
  }

  stop() {
    this.#turn++;
    this.#on = false;
    if (this.#stream) stopped(this.#stream);
    this.#stream = undefined;
  }
}

function stopped(stream) {
  for (const track of stream.getTracks()) track.stop();
}
