/** Heads and layers of the studied model as switches, and what the prediction did when some were switched off. */
import { h, number } from "./kit.js";
import { KINDS } from "./explorer_heads.js";
import { Section } from "./explorer_section.js";
import { headName, offName, percent, plural, problemNote, quoted } from "./explorer_words.js";

const LEAD = "What does the prediction need? Switch a head off, and what it read is no longer added to the stream; switch a layer off, and the stream passes it unchanged. The prompt is then read again. Letters say what a head did on this prompt with everything on.";

export function switchesSection(app) {
  const effect = h("div", { class: "effect", role: "status" });
  const notes = h("div");
  const all = h("button", { type: "button", onclick: () => app.switchOff({ heads: [], layers: [] }) }, "All on again");
  const grid = switchGrid(app);
  const section = new Section(app, {
    id: "off", title: "Switch off", lead: LEAD,
    present: ({ reading, heads }) => Boolean(reading.prediction) && heads.length > 0,
    key: () => ["off", app.reading.id],
    load: () => app.reading,
    draw: () => {
      grid.label();
      effect.replaceChildren(...effectOf(app));
      return findingOf(app);
    },
    body: [h("div", { class: "off-sides" }, h("div", {}, h("div", { class: "tools" }, all), grid.element, grid.legend), h("div", {}, notes, effect))],
  });
  const show = () => {
    grid.update();
    all.disabled = !app.anythingOff;
  };
  app.on("models", grid.build);
  app.on("off reading", show);
  app.on("busy", () => { if (app.busy) notes.replaceChildren(); section.body.classList.toggle("reading", app.busy); });
  app.on("problem", ({ problem, from, again }) => { if (from === "off") notes.replaceChildren(problemNote(problem, again)); });
  return section;
}

/** The grid of switches: rows are layers, the first column switches a whole layer. */
function switchGrid(app) {
  const element = h("div", { class: "switches", role: "group", "aria-label": "Switches. Arrow keys move, Enter or Space switches." });
  const legend = h("p", { class: "muted legend" });
  let rows = [];

  const build = () => {
    const { heads, layers, skips } = app.studied;
    rows = Array.from({ length: layers }, (_, layer) => [
      cell({ layer }, `L${layer}`, skips && !skips.includes(layer)),
      ...Array.from({ length: heads[layer] ?? 0 }, (_, head) => cell({ layer, head }, "")),
    ]);
    const widest = Math.max(0, ...heads);
    const numbers = h("div", { class: "switch-row heads", "aria-hidden": "true" }, h("span", { class: "switch layer" }, "head"), Array.from({ length: widest }, (_, head) => h("span", { class: "switch" }, String(head))));
    element.replaceChildren(numbers, ...rows.map((row) => h("div", { class: "switch-row" }, row)));
    if (rows[0]) rows[0][0].tabIndex = 0;
    update();
  };
  const cell = (place, text, fixed) => {
    const button = h("button", { type: "button", class: place.head === undefined ? "switch layer" : "switch", tabindex: -1, onclick: () => flip(place) }, text);
    if (fixed) {
      button.setAttribute("aria-disabled", "true");
      button.title = "This layer cannot be switched off: the stream before or after it cannot be read in this architecture.";
    }
    button.place = place;
    return button;
  };
  const flip = (place) => {
    const button = rows[place.layer][place.head === undefined ? 0 : place.head + 1];
    if (button.getAttribute("aria-disabled") === "true") return;
    focusOn(button);
    app.switchOff(flipped(app.off, place));
  };
  const focusOn = (button) => {
    for (const each of rows.flat()) each.tabIndex = each === button ? 0 : -1;
    button.focus();
  };
  element.addEventListener("keydown", (event) => {
    const row = rows.findIndex((each) => each.includes(document.activeElement));
    if (row < 0) return;
    const column = rows[row].indexOf(document.activeElement);
    const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key] ?? [0, 0];
    if (!down && !right) return;
    event.preventDefault();
    const next = rows[row + down];
    const to = next?.[Math.min(next.length - 1, Math.max(0, column + right))];
    if (to) focusOn(to);
  });
  const update = () => {
    for (const button of rows.flat()) {
      const { layer, head } = button.place;
      const off = head === undefined ? app.off.layers.includes(layer) : app.off.heads.some(([one, other]) => one === layer && other === head);
      button.setAttribute("aria-pressed", String(off));
      button.classList.toggle("within", head !== undefined && app.off.layers.includes(layer));
    }
  };
  const label = () => {
    const found = new Map(app.heads.map((each) => [each.place, each]));
    const kinds = new Set();
    for (const button of rows.flat()) {
      const { layer, head } = button.place;
      const kind = head === undefined ? null : found.get(`${layer},${head}`)?.kind;
      if (kind) kinds.add(kind);
      if (head !== undefined) button.textContent = kind ? KINDS[kind].sign : "·";
      button.setAttribute("aria-label", head === undefined ? `Switch off layer ${layer}${button.title ? ", which cannot be switched off" : ""}` : `Switch off head ${layer}.${head}${kind ? `, ${KINDS[kind].name}` : ""}`);
      if (head !== undefined) button.title = `head ${layer}.${head}${kind ? `: ${KINDS[kind].does}` : ""}`;
    }
    legend.replaceChildren(...[...kinds].sort((a, b) => Object.keys(KINDS).indexOf(a) - Object.keys(KINDS).indexOf(b)).map((kind) => h("span", {}, h("b", {}, KINDS[kind].sign), ` ${KINDS[kind].does}`)), h("span", {}, h("b", {}, "·"), " something else or several things"));
  };
  app.on("models", label);
  return { element, legend, build, update, label };
}

/** What is off after a switch was pressed. */
function flipped({ heads, layers }, { layer, head }) {
  if (head === undefined) return { heads, layers: layers.includes(layer) ? layers.filter((each) => each !== layer) : [...layers, layer].sort((a, b) => a - b) };
  const others = heads.filter(([one, other]) => one !== layer || other !== head);
  return { heads: others.length < heads.length ? others : [...heads, [layer, head]].sort((a, b) => a[0] - b[0] || a[1] - b[1]), layers };
}

/** Before and after, in a sentence. */
function findingOf(app) {
  const { prediction, readings } = app.reading;
  const [unchanged, changed] = [app.unchanged, app.changed];
  const token = quoted(prediction.text);
  if (changed < 0 && app.compares) return `${readings[0].short} finds ${token} likeliest, with ${percent(prediction.p[0])}. ${readings[unchanged].short} with everything on gives it ${percent(prediction.p[unchanged])}.`;
  if (changed < 0) return `With everything on, ${readings[unchanged].short} finds ${token} likeliest, with ${percent(prediction.p[unchanged])}.`;
  const [before, after] = [prediction.p[unchanged], prediction.p[changed]];
  const word = after < before / 1.1 ? "fell" : after > before * 1.1 ? "rose" : "hardly moved:";
  return `With ${offName(app.off)} off, the probability of ${token} ${word}${word.endsWith(":") ? "" : " from"} ${percent(before)} ${word.endsWith(":") ? "before," : "to"} ${percent(after)}${word.endsWith(":") ? " after" : ""}.`;
}

/** Bars before and after, the divergence, and the token that is likeliest now. */
function effectOf(app) {
  const { prediction, readings, moved } = app.reading;
  const changed = app.changed;
  const rows = readings.map(({ label, role, off }, at) => h("div", { class: "bar-row" },
    h("span", { class: "bar-name" }, label),
    h("span", { class: "bar-track" }, h("span", { class: `bar ${off ? "changed" : app.compares ? role : "candidate"}`, style: `width: ${(100 * prediction.p[at]).toFixed(2)}%` })),
    h("span", { class: "num" }, percent(prediction.p[at]))));
  const parts = [h("p", { class: "bar-title" }, "Probability of ", h("b", {}, quoted(prediction.text)), " as the next token"), h("div", { class: "bars", role: "group", "aria-label": "Probability by reading" }, rows)];
  if (changed < 0) return [...parts, h("p", { class: "muted" }, "Press a switch to see what happens without that head or layer.")];
  const [was, now] = [prediction.likeliest[app.unchanged], prediction.likeliest[changed]];
  return [...parts,
    h("p", {}, now.text === was.text ? `${quoted(now.text)} is still the likeliest token${app.compares ? ` of ${app.studied.short}` : ""}, with ${percent(now.p)}.` : ["The likeliest token is now ", h("b", {}, quoted(now.text)), `, with ${percent(now.p)}. It was ${quoted(was.text)}, with ${percent(was.p)}.`]),
    h("p", { class: "muted" }, `The distribution over all tokens after the last one moved by ${number(Number(moved.toPrecision(3)))} nats of KL divergence from ${readings[app.unchanged].short} with everything on.`)];
}

/** The switches in one line, for the bar that stays in sight. */
export function switchedLine(app) {
  if (!app.reading?.prediction || app.changed < 0) return "";
  const { prediction } = app.reading;
  return `${plural(app.off.heads.length + app.off.layers.length, "switch", "switches")} off (${app.off.heads.map(headName).concat(app.off.layers.map((layer) => `layer ${layer}`)).slice(0, 4).join(", ")}${app.off.heads.length + app.off.layers.length > 4 ? "…" : ""}): ${quoted(prediction.text)} ${percent(prediction.p[app.unchanged])} → ${percent(prediction.p[app.changed])}`;
}
