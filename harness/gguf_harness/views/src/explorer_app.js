/**
 * What the explorer's page looks at: models, a prompt that they read, and the token and head that are chosen.
 *
 * Parts of the page listen to events: `models`, `reading` (a new one is there), `place`, `head`, `off`, `busy`, `problem`.
 */
import { Newest, ask } from "./explorer_server.js";
import { read } from "./attention_patterns.js";
import { continuing, headKinds, strongest } from "./explorer_heads.js";

const LONGEST_LABEL = 26;
const NOTHING_OFF = { heads: [], layers: [] };

export class Explorer extends EventTarget {
  models = [];
  examples = [];
  prompt = null;
  chat = false;
  off = NOTHING_OFF;
  reading = null;
  place = 0;
  head = null;
  busy = false;
  #reads = new Newest();

  tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  on(names, listener) {
    for (const name of names.split(" ")) this.addEventListener(name, (event) => listener(event.detail, name));
  }

  /** The model that switches apply to. */
  get studied() {
    return this.models.at(-1);
  }

  /** Whether a candidate is compared with a reference. */
  get compares() {
    return this.models.length > 1;
  }

  /** Index of the reading by the studied model with everything on, and of the one with something off, or -1. */
  get unchanged() {
    return this.reading.readings.findLastIndex(({ off }) => !off);
  }

  get changed() {
    return this.reading.readings.findLastIndex(({ off }) => off);
  }

  get anythingOff() {
    return this.off.heads.length + this.off.layers.length > 0;
  }

  /** Index of the last token. */
  get last() {
    return this.reading.tokens.length - 1;
  }

  async loadModels() {
    const { models, examples, most_tokens: mostTokens, side } = await ask("api/models");
    Object.assign(this, { models, examples, mostTokens, side });
    this.tell("models");
  }

  /** Read a prompt; a newer one takes its place. Returns whether it was read. */
  async read(prompt = this.prompt, { chat = this.chat, off = this.off, from = "prompt" } = {}) {
    const [same, before] = [prompt === this.prompt && chat === this.chat, this.off];
    this.off = off;
    this.#setBusy(true, from);
    this.tell("off");
    let reading;
    try {
      reading = await this.#reads.run((signal) => ask("api/read", { prompt, chat, off }, signal));
    } catch (problem) {
      if (from === "off") {
        this.off = before;
        this.tell("off");
      }
      this.#setBusy(false, from);
      this.tell("problem", { problem, from, again: () => this.read(prompt, { chat, off, from }) });
      return false;
    }
    if (reading === undefined) return false;
    this.#label(reading);
    const keeps = same && this.reading?.tokens.length === reading.tokens.length;
    Object.assign(this, { prompt, chat, reading, place: keeps ? this.place : reading.tokens.length - 1 });
    this.#readPatterns();
    if (!this.heads.some(({ place }) => place === this.head?.join())) this.head = this.#firstHead();
    this.#setBusy(false, from);
    this.tell("reading", { from });
    return true;
  }

  /** Switch heads and layers of the studied model, and read the prompt again. */
  switchOff(off) {
    return this.read(this.prompt, { off, from: "off" });
  }

  /** The reading is no longer there: bring it back. */
  again() {
    return this.read(this.prompt, { from: "again" });
  }

  choosePlace(place) {
    const to = Math.max(0, Math.min(this.last, place));
    if (to === this.place) return;
    this.place = to;
    this.tell("place");
  }

  chooseHead(head) {
    if (!head || head.join() === this.head?.join()) return;
    this.head = [...head];
    this.tell("head");
  }

  /** What the heads of the studied model do on this prompt, with everything on; empty where there is no attention. */
  heads = [];
  pattern = null;

  /** Readings get the name of their model as `short`, for sentences, and a `label` that tells them apart in pictures. */
  #label(reading) {
    const alone = !this.compares;
    reading.readings = reading.readings.map((each) => {
      const { short } = this.models[each.model];
      const off = each.off.length <= LONGEST_LABEL ? each.off : "parts off";
      return { ...each, short, label: off ? (alone ? off : `${short}, ${off}`) : alone && reading.readings.length > 1 ? "everything on" : short };
    });
  }

  /** Data of a view, with the labels of the readings. */
  named(data) {
    const labels = new Map(this.reading.readings.map(({ name, label }) => [name, label]));
    const models = data.models.map((model) => ({ ...model, short: labels.get(model.name) ?? model.short }));
    return { ...data, models, ...(data.lines ? { lines: data.lines.map((line) => ({ ...line, name: models[line.model].short })) } : {}) };
  }

  #readPatterns() {
    const { views: { attention }, readings, tokens } = this.reading;
    const entry = attention?.models.find(({ name }) => name === readings[this.unchanged].name) ?? attention?.models[0];
    this.pattern = entry ? read(entry, attention.tokens) : null;
    this.ids = tokens.map(({ id }) => id);
    this.heads = this.pattern ? headKinds(this.pattern, this.ids) : [];
  }

  #firstHead() {
    const { layer, head } = continuing(this.heads) ?? strongest(this.heads, "previous") ?? this.heads[0] ?? {};
    return layer === undefined ? null : [layer, head];
  }

  #setBusy(busy, from) {
    this.busy = busy;
    this.tell("busy", { from });
  }
}
