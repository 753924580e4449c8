// What went wrong, newest first; each opens to its traceback.

import {Rows, at, make, mark, say, show} from "./dom.js";
import {clock, counted} from "./words.js";

const WORDS = {retried: "tried again"};

/** Each with a name that stays: what alike ones have in common, and which of those it is. */
function named(failures) {
  const seen = new Map();
  // From the oldest on: the newest comes first, and shall not rename the others.
  return [...failures].reverse().map(one => {
    const what = [one.run_id, one.key, one.attempt, one.kind, one.node, one.executor, one.text].join("|");
    seen.set(what, (seen.get(what) || 0) + 1);
    return {name: `${what}|${seen.get(what)}`, one};
  }).reverse();
}

export class Failures {
  constructor(ask) {
    this.ask = ask;
    this.seen = null;
    this.rows = new Rows(at("failures-rows"), ({one}) => this.build(one), () => {});
  }

  /** A failure never changes, so that its row is written once. */
  build(one) {
    const badge = make("span.badge", WORDS[one.kind] || one.kind.replaceAll("_", " "));
    mark(badge, "kind", one.final ? "bad" : "warn");
    const what = make("span.what", [one.type, (one.text || "").split("\n")[0]].filter(Boolean).join(": "));
    const summary = make("summary", make("span.line", badge, make("b.mono", one.key || one.function || (one.node ? `node ${one.node}` : one.run_id))), what);
    const place = [
      clock(one.time_s), one.run_id && `run ${one.run_id}`, one.function, one.node && `node ${one.node}`, one.executor && `executor ${one.executor}`, one.attempt && `attempt ${one.attempt}`,
      one.final ? "for good" : "not for good",
    ].filter(Boolean).join(" · ");
    const inside = make("div.inside", make("p.sum", place));
    if (one.run_id && one.key) {
      const button = make("button.quiet", "What happened to it");
      button.type = "button";
      button.addEventListener("click", () => this.ask(one.run_id, one.key));
      inside.append(button);
    }
    const trace = make("pre", one.traceback || one.text || "There is no traceback.");
    trace.tabIndex = 0;
    trace.setAttribute("role", "region");
    trace.setAttribute("aria-label", "Traceback");
    inside.append(trace);
    return {element: make("li", make("details", summary, inside))};
  }

  /** Rows anew; gives what is worth saying aloud. */
  render(snapshot) {
    const {failures} = snapshot;
    show(at("failures-empty"), failures.length === 0);
    this.rows.set(named(failures), item => item.name);
    const final = failures.filter(one => one.final).length;
    say(at("failures-sum"), failures.length ? `${final} for good, ${failures.length - final} made good or tried again` : "");
    const newest = failures.length ? failures[0].time_s : 0;
    const fresh = this.seen === null ? 0 : failures.filter(one => one.final && one.time_s > this.seen + 0.01).length;
    this.seen = Math.max(this.seen || 0, newest);
    return fresh ? [`${counted(fresh, "task")} failed.`] : [];
  }
}
