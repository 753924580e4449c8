// The nodes and what their executors do now. Of very many only the first are shown until the
// reader asks: what an update costs is bounded by what is on the page.

import {Rows, at, fill, hint, make, mark, say, show} from "./dom.js";
import {bytes, bytesOf, counted, percent, short, ticking} from "./words.js";

const NODES_MAX = 24;
const EXECUTORS_MAX = 16;
const STATES = {up: "good", starting: "busy", suspected: "warn", drained: "idle", lost: "bad"};
const METERS = ["Load", "Memory", "Objects", "Spilled"];

export class Nodes {
  constructor(ask) {
    this.ask = ask;
    this.all = false;
    this.cards = new Rows(at("nodes-cards"), node => this.build(node), (card, node) => this.update(card, node));
    at("nodes-more").addEventListener("click", () => {
      this.all = true;
      this.render(this.last, 0, this.now_s);
    });
  }

  build(node) {
    const card = {title: make("h3"), state: make("span.badge"), traffic: make("span.traffic"), meters: {}, all: false};
    const meters = make("dl.meters");
    for (const name of METERS) {
      const label = make("dt", name), value = make("span"), bar = make("span.meter");
      bar.setAttribute("aria-hidden", "true");
      meters.append(make("div", label, make("dd", value, bar)));
      card.meters[name] = {label, value, bar};
    }
    const list = make("ul.executors");
    card.executors = new Rows(list, one => this.buildExecutor(one), (row, one) => this.updateExecutor(row, one));
    card.more = make("button.quiet.more");
    card.more.type = "button";
    card.more.addEventListener("click", () => {
      card.all = true;
      this.render(this.last, 0, this.now_s);
    });
    list.setAttribute("aria-label", `Executors of node ${node.id}`);
    card.element = make("li.card", make("div.line", card.title, card.state, card.traffic), meters, list, card.more);
    return card;
  }

  buildExecutor() {
    const row = {id: make("b"), dot: make("i.dot"), bar: make("span.meter"), share: make("span.share"), doing: make("button.doing"), restarts: make("span.restarts"), tasks: make("span.facts"), memory: make("span.facts.memory")};
    row.bar.setAttribute("aria-hidden", "true");
    row.dot.setAttribute("aria-hidden", "true");
    row.doing.type = "button";
    row.doing.addEventListener("click", () => row.now && this.ask(row.now.run_id, row.now.key));
    row.element = make("li", row.dot, row.id, row.bar, row.share, row.doing, row.restarts, row.tasks, row.memory);
    return row;
  }

  meter(card, name, text, share, high) {
    const {value, bar} = card.meters[name];
    say(value, text);
    fill(bar, "--share", share);
    mark(bar, "kind", high && share > high ? "warn" : "busy");
  }

  update(card, node) {
    say(card.title, `Node ${node.id} · ${node.host}`);
    say(card.state, node.state);
    mark(card.state, "kind", STATES[node.state] || "idle");
    mark(card.element, "state", node.state);
    this.meter(card, "Load", `${percent(node.load_share)}${node.cpu_load_1m === null ? "" : ` · cpu ${node.cpu_load_1m.toFixed(1)}`}`, node.load_share);
    const known = node.memory_used_bytes !== null && node.memory_total_bytes;
    this.meter(card, "Memory", known ? bytesOf(node.memory_used_bytes, node.memory_total_bytes) : "unknown", known ? node.memory_used_bytes / node.memory_total_bytes : 0, 0.9);
    say(card.meters.Objects.label, `${short(node.live_object_count)} ${node.live_object_count === 1 ? "object" : "objects"}`);
    this.meter(card, "Objects", node.shared_limit_bytes ? bytesOf(node.shared_bytes, node.shared_limit_bytes) : bytes(node.shared_bytes), node.shared_limit_bytes ? node.shared_bytes / node.shared_limit_bytes : 0, 0.9);
    const spilt = node.spilled_bytes + node.shared_bytes;
    this.meter(card, "Spilled", node.spill_count ? `${bytes(node.spilled_bytes)} · ${short(node.spill_count)} times` : "nothing", spilt ? node.spilled_bytes / spilt : 0, 0.001);
    say(card.traffic, node.in_bytes || node.out_bytes ? `in ${bytes(node.in_bytes)} · out ${bytes(node.out_bytes)}` : "");
    const shown = card.all ? node.executors : node.executors.slice(0, EXECUTORS_MAX);
    card.executors.set(shown, one => one.id);
    show(card.more, shown.length < node.executors.length);
    say(card.more, `Show all ${node.executors.length} executors`);
  }

  updateExecutor(row, one) {
    say(row.id, String(one.id));
    mark(row.dot, "state", one.state);
    fill(row.bar, "--share", one.busy_share);
    mark(row.bar, "kind", "busy");
    say(row.share, percent(one.busy_share));
    row.now = one.doing;
    if (one.doing) {
      const since = this.now_s - one.doing.since_s, many = one.doing.task_count > 1;
      say(row.doing, `${one.doing.function}${many ? ` × ${short(one.doing.task_count)}` : ""}${since >= 1 ? ` · ${ticking(since)}` : ""}`);
      hint(row.doing, one.doing.key ? `${one.doing.key}: why?` : "");
    } else {
      say(row.doing, one.state);
      hint(row.doing, "");
    }
    // Only a single task has a key to ask about.
    const mute = !one.doing || !one.doing.key;
    if (row.doing.disabled !== mute) row.doing.disabled = mute;
    mark(row.doing, "busy", one.doing ? "yes" : "no");
    say(row.restarts, one.restart_count ? `↻${short(one.restart_count)}` : "");
    hint(row.restarts, one.restart_count ? `restarted, ${counted(one.restart_count, "time")}` : "");
    say(row.tasks, `${short(one.task_count)} done`);
    say(row.memory, one.rss_bytes === null ? "" : bytes(one.rss_bytes));
  }

  render(snapshot, age_s, now_s) {
    this.last = snapshot;
    this.now_s = now_s;
    const nodes = snapshot.nodes, shown = this.all ? nodes : nodes.slice(0, NODES_MAX);
    show(at("nodes-empty"), nodes.length === 0);
    this.cards.set(shown, node => node.id);
    show(at("nodes-more"), shown.length < nodes.length);
    say(at("nodes-more"), `Show all ${nodes.length} nodes`);
    let executors = 0, busy = 0;
    for (const node of nodes) {
      for (const one of node.executors) {
        executors++;
        busy += one.state === "busy";
      }
    }
    const ill = nodes.filter(node => node.state === "lost" || node.state === "suspected").length;
    say(at("nodes-sum"), nodes.length ? `${counted(nodes.length, "node")}, ${busy} of ${counted(executors, "executor")} busy${ill ? `, ${ill} not well` : ""}` : "");
  }
}
