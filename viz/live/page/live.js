// The page of a running environment: takes snapshots from the connection, hands each part to its
// panel once a frame at most, and keeps the clock.

import {Connection} from "./connection.js";
import {at, make, mark, say, show} from "./dom.js";
import {Failures} from "./failures.js";
import {FunctionTable} from "./functions.js";
import {Graph} from "./graph.js";
import {Logs, Why} from "./asking.js";
import {Nodes} from "./nodes.js";
import {Functions, inks, sharp} from "./palette.js";
import {Runs} from "./runs.js";
import {Stream} from "./stream.js";
import {clock, count, percent, short, ticking} from "./words.js";

const TICK_MS = 1000;
const SPEAK_MS = 3000;
const CONNECTIONS = {connecting: "Connecting", live: "Live", cut: "Cut off", ended: "Ended", refused: "Refused"};
const NOTICES = {
  cut: seen => `Cut off${seen && ` since ${seen}`}. This page tries again by itself; what it shows is how things were.`,
  ended: seen => `The environment has ended${seen && `, at ${seen}`}. What is shown is its last state.`,
  refused: () => "The environment here is another one than before, or wants its key: open the address that it printed.",
};
const STORES = {up: "good", degraded: "warn", down: "bad"};

// The key came with the address and is in a cookie now: nobody shall read it over a shoulder.
if (location.search.includes("token=")) history.replaceState(null, "", location.pathname + location.hash);

/** What is said aloud: rarely, and only what changed. */
class Voice {
  constructor() {
    this.waiting = [];
    setInterval(() => {
      if (this.waiting.length) at("spoken").textContent = this.waiting.splice(0).join(" ");
    }, SPEAK_MS);
  }

  say(texts) {
    this.waiting.push(...texts);
  }
}

/** The note beside the pointer. */
const tip = {
  at(text, x, y) {
    const note = at("tip");
    say(note, text);
    show(note, true);
    const left = Math.max(8, Math.min(x + 14, innerWidth - note.offsetWidth - 8));
    const top = y + 18 + note.offsetHeight > innerHeight ? y - note.offsetHeight - 10 : y + 18;
    note.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
  },
  hide() {
    show(at("tip"), false);
  },
  speak(text) {
    say(at("spoken"), text.replaceAll("\n", ". "));
  },
};

let snapshot = null, fresh = false, ahead_s = 0, rendered_ms = 0, seen_ms = 0;
const functions = new Functions();
const voice = new Voice();

/** The environment's clock, as far as known here; it stands still while the line is cut. */
function now_s() {
  const here_ms = connection.state === "live" ? Date.now() : seen_ms;
  return here_ms / 1000 + ahead_s;
}

function take(next) {
  seen_ms = Date.now();
  const measured = next.time_s - seen_ms / 1000;
  // What comes soonest knows best; clocks that drift apart are followed slowly.
  ahead_s = snapshot === null || Math.abs(measured - ahead_s) > 5 ? measured : Math.max(measured, ahead_s - 0.01);
  snapshot = next;
  fresh = true;
  stream.merge(next.stream);
}

function tell(state) {
  say(at("connection-text"), CONNECTIONS[state]);
  mark(at("connection"), "state", state);
  mark(document.body, "state", state);
  const seen = seen_ms ? clock(seen_ms / 1000) : "";
  const text = NOTICES[state] ? NOTICES[state](seen) : "";
  say(at("notice"), text);
  show(at("notice"), text !== "");
  asked.live = state === "live";
}

const connection = new Connection(take, tell);
const stream = new Stream(functions, now_s, tip);
const why = new Why();
const asked = new Logs();
const ask = (run, key) => why.about(run, key);
const graph = new Graph(tip);
const nodes = new Nodes(ask);
const failures = new Failures(ask);
const table = new FunctionTable(functions);
const runs = new Runs(run => choose(run));

function choose(run) {
  show(at("runs-newest"), run !== null);
  connection.choose(run);
}

at("runs-newest").addEventListener("click", () => {
  choose(null);
  at("runs-body").focus();
});

function header(age_s) {
  const {environment, shown} = snapshot;
  say(at("where"), `${environment.token} · ${environment.host}, up ${ticking(environment.uptime_s + age_s)}`);
  at("where").title = environment.rootpath || "";
  say(at("rate"), short(snapshot.rate));
  const store = environment.store || {state: "none", reason: ""};
  say(at("store-text"), `Store ${store.state}`);
  at("store").title = store.reason || "";
  mark(at("store"), "state", STORES[store.state] || "none");
  const run = snapshot.runs.find(one => one.run_id === shown);
  const title = run ? `${percent(run.done_count, run.task_count)} ${run.run_id} – dagsched` : "dagsched";
  if (document.title !== title) document.title = title;
  say(at("versions"), `dagsched ${environment.dagsched} · process ${environment.pid} · ${environment.rootpath}`);
}

function counters() {
  const names = Object.keys(snapshot.environment.counters).filter(name => snapshot.environment.counters[name]).sort();
  const wanted = names.join(" "), list = at("counters");
  if (list.dataset.names !== wanted) {
    list.dataset.names = wanted;
    list.replaceChildren(...names.map(name => make("div", make("dt", name.replaceAll("_", " ")), make("dd"))));
  }
  names.forEach((name, index) => say(list.children[index].lastChild, count(snapshot.environment.counters[name])));
}

function sparkline() {
  const canvas = at("sparkline"), wide = canvas.clientWidth, tall = canvas.clientHeight;
  if (!wide || !tall) return;
  const pen = sharp(canvas, wide, tall), ink = inks(), rates = snapshot.rates;
  pen.clearRect(0, 0, wide, tall);
  const most = Math.max(1, ...rates), step = wide / 119;
  const xOf = index => wide - (rates.length - 1 - index) * step, yOf = rate => tall - 1.5 - (tall - 4) * Math.sqrt(rate / most); // roots: a peak hides nothing
  pen.beginPath();
  rates.forEach((rate, index) => pen.lineTo(xOf(index), yOf(rate)));
  pen.strokeStyle = ink.accent;
  pen.lineWidth = 1.5;
  pen.lineJoin = "round";
  pen.stroke();
  pen.lineTo(wide, tall);
  pen.lineTo(xOf(0), tall);
  pen.globalAlpha = 0.16;
  pen.fillStyle = ink.accent;
  pen.fill();
  pen.globalAlpha = 1;
}

function render() {
  const at_s = now_s(), age_s = Math.max(0, at_s - snapshot.time_s);
  header(age_s);
  voice.say(runs.render(snapshot, age_s));
  nodes.render(snapshot, age_s, at_s);
  if (fresh) {
    sparkline();
    counters();
    stream.render(snapshot);
    graph.render(snapshot);
    table.render(snapshot);
    voice.say(failures.render(snapshot));
    why.render(snapshot);
    asked.render(snapshot);
    mark(document.body, "ready", "yes");
  }
  fresh = false;
  rendered_ms = performance.now();
}

// Once a frame: what has come, else the clocks, and the stream's place.
function frame() {
  if (snapshot && (fresh || performance.now() - rendered_ms > TICK_MS)) render();
  if (snapshot && !stream.still.matches) stream.frame();
  requestAnimationFrame(frame);
}

document.addEventListener("themechange", () => snapshot && sparkline());
connection.open();
requestAnimationFrame(frame);
