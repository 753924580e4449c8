// The runs, newest first: how far each is, how fast, how long yet. Choosing one shows its graph,
// functions and failures.

import {Rows, at, attribute, fill, make, mark, say, show} from "./dom.js";
import {count, counted, percent, short, ticking, time} from "./words.js";

const KINDS = {running: "busy", done: "good", failed: "bad", lost: "bad"}; // and warn: stopped by somebody

const goesOn = run => run.state === "running";
const TALL = 78; // px a row, as the style sheet has it
const kindOf = run => KINDS[run.state] || "warn";

export class Runs {
  constructor(choose) {
    this.rows = new Rows(at("runs-rows"), run => this.build(run, choose), (row, run) => this.update(row, run));
    this.states = new Map();
  }

  build(run, choose) {
    const part = {
      id: make("b.mono"), state: make("span.badge"), left: make("span.left"), bar: make("span.bar"),
      facts: make("span.facts"), share: make("b.share"),
    };
    part.bar.setAttribute("role", "progressbar");
    part.bar.setAttribute("aria-valuemin", "0");
    part.bar.setAttribute("aria-valuemax", "100");
    const button = make("button.run", make("span.line", part.id, part.state, part.left), part.bar, make("span.line", part.facts, part.share));
    button.type = "button";
    button.addEventListener("click", () => choose(run.run_id));
    return {...part, button, element: make("li", button)};
  }

  update(row, run) {
    const running = goesOn(run);
    // Since the snapshot a clock has gone on; a run that has ended stands still.
    const duration = run.duration_s + (running ? this.age_s : 0);
    const share = run.task_count ? run.done_count / run.task_count : 0;
    say(row.id, run.run_id);
    say(row.state, run.state.replaceAll("_", " "));
    mark(row.state, "kind", kindOf(run));
    const left = run.left_s === null || !running ? null : Math.max(0, run.left_s - this.age_s);
    say(row.left, running
      ? (left === null ? `since ${ticking(duration)}` : `${ticking(left)} left`)
      : `${run.state === "done" ? "took" : "after"} ${time(run.duration_s)}`);
    fill(row.bar, "--done", share);
    fill(row.bar, "--failed", run.task_count ? run.failed_count / run.task_count : 0);
    mark(row.bar, "kind", kindOf(run));
    attribute(row.bar, "aria-valuenow", String(Math.floor(share * 100)));
    attribute(row.bar, "aria-label", `Progress of ${run.run_id}`);
    say(row.share, percent(run.done_count, run.task_count));
    const facts = [`${count(run.done_count)} of ${counted(run.task_count, "task")}`];
    if (running && run.rate > 0) facts.push(`${short(run.rate)}/s`);
    if (run.failed_count) facts.push(`${count(run.failed_count)} failed`);
    if (run.retry_count) facts.push(counted(run.retry_count, "retry", "retries"));
    say(row.facts, facts.join(" · "));
    attribute(row.button, "aria-pressed", String(run.run_id === this.shown));
  }

  /** Rows anew; gives what is worth saying aloud: runs that have ended since. */
  render(snapshot, age_s) {
    this.age_s = age_s;
    this.shown = snapshot.shown;
    show(at("runs-empty"), snapshot.runs.length === 0);
    this.rows.set(snapshot.runs, run => run.run_id);
    // A new run comes first: the others are moved by a transform, which lays nothing out.
    snapshot.runs.forEach((run, index) => {
      const {style} = this.rows.byKey.get(run.run_id).element, place = `translateY(${index * TALL}px)`;
      if (style.transform !== place) style.transform = place;
    });
    const tall = `${snapshot.runs.length * TALL}px`, list = at("runs-rows").style;
    if (list.height !== tall) list.height = tall;
    const going = snapshot.runs.filter(goesOn).length;
    say(at("runs-sum"), snapshot.runs.length ? `${going} going on, ${snapshot.runs.length - going} over` : "");
    const news = [];
    for (const run of snapshot.runs) {
      const before = this.states.get(run.run_id);
      if (before && before !== run.state && !goesOn(run)) news.push(`Run ${run.run_id}: ${run.state.replaceAll("_", " ")}.`);
      this.states.set(run.run_id, run.state);
    }
    return news;
  }
}
