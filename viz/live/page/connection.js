// The line to the environment: opens, notices that it is cut off, comes back by itself, and tells
// a break from an end.

const SILENT_MS = 15000; // nothing is sent while nothing changes: after this long it is asked
const AGAIN_MS = 700, AGAIN_MAX_MS = 10000; // from one attempt to the next, longer each time
const WAIT_MS = 5000;

export class Connection {
  constructor(take, tell) {
    this.take = take;
    this.tell = tell; // state: connecting, live, cut, ended, refused
    this.run = null;
    this.state = "connecting";
    this.pause_ms = AGAIN_MS;
    setInterval(() => this.look(), AGAIN_MS);
    addEventListener("pagehide", () => this.close());
    addEventListener("pageshow", event => event.persisted && this.open());
  }

  open() {
    this.close();
    this.heard = performance.now();
    const source = new EventSource(this.run === null ? "events" : `events?run=${encodeURIComponent(this.run)}`);
    this.source = source;
    source.addEventListener("open", () => this.becomes("live"));
    source.addEventListener("snapshot", event => {
      this.heard = performance.now();
      this.take(JSON.parse(event.data));
      this.becomes("live");
    });
    source.addEventListener("end", () => {
      this.close();
      this.becomes("ended");
    });
    source.addEventListener("error", () => {
      if (this.state !== "ended" && this.state !== "refused") this.becomes("cut");
      // From here on `look` tries: it can tell what the answer was, and has more patience each time.
      this.close();
    });
  }

  close() {
    if (this.source) this.source.close();
    this.source = null;
  }

  becomes(state) {
    if (state === this.state) return;
    this.state = state;
    if (state === "live") this.pause_ms = AGAIN_MS;
    this.tell(state);
  }

  choose(run) {
    this.run = run;
    this.open();
  }

  /** Now and then: is the line still there, or the environment back? */
  async look() {
    const now = performance.now();
    if (this.asking || document.hidden || now - this.heard < (this.source ? SILENT_MS : this.pause_ms)) return;
    this.asking = true;
    this.heard = now;
    if (!this.source) this.pause_ms = Math.min(AGAIN_MAX_MS, this.pause_ms * 1.5);
    try {
      const answer = await fetch("api/snapshot", {cache: "no-store", signal: AbortSignal.timeout(WAIT_MS)});
      await answer.body?.cancel();
      if (answer.status === 403) this.becomes("refused");
      else if (answer.ok && (!this.source || this.state !== "live")) this.open();
    } catch {
      if (this.state === "live" || this.state === "connecting") this.becomes("cut");
      this.close();
    } finally {
      this.asking = false;
    }
  }
}
