// The line to the environment: opens, notices that it is cut off, comes back by itself, and tells
// a break from an end.

const SILENT_MS = 15000; // nothing is sent while nothing changes: after this long it is asked
const AGAIN_MS = 3000;
const WAIT_MS = 5000;

export class Connection {
  constructor(take, tell) {
    this.take = take;
    this.tell = tell; // state: connecting, live, cut, ended, refused
    this.run = null;
    this.state = "connecting";
    setInterval(() => this.look(), 1000);
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
      // An answer that is no stream closes it for good; else the browser tries again by itself.
      if (source.readyState === EventSource.CLOSED) this.close();
    });
  }

  close() {
    clearTimeout(this.again);
    if (this.source) this.source.close();
    this.source = null;
  }

  becomes(state) {
    if (state === this.state) return;
    this.state = state;
    this.tell(state);
  }

  choose(run) {
    this.run = run;
    this.open();
  }

  /** Once a second: is the line still there, or the environment back? */
  async look() {
    const now = performance.now();
    if (this.asking || document.hidden || now - this.heard < (this.source ? SILENT_MS : AGAIN_MS)) return;
    this.asking = true;
    this.heard = now;
    try {
      const answer = await fetch("api/snapshot", {cache: "no-store", signal: AbortSignal.timeout(WAIT_MS)});
      await answer.body?.cancel();
      if (answer.status === 403) this.becomes("refused");
      else if (answer.ok && (!this.source || this.state !== "live")) this.open();
    } catch {
      if (this.state === "live" || this.state === "connecting") this.becomes("cut");
      if (this.source && this.source.readyState === EventSource.OPEN) this.open();
    } finally {
      this.asking = false;
    }
  }
}
