/**
 * The likeliest next tokens of a model, or of two as paired bars, and what sampling makes of them.
 *
 * data: {
 *   known: how many of each model's likeliest tokens are there,
 *   temperatures: [number]: those at which the sum over all other tokens is known,
 *   models: [{ name, short, role, series }], the reference first,
 *   pairs: [{ model: index of the candidate, pieces: [string],
 *             logprobs: [[number], [number]] of reference and candidate,
 *             rest: [[number | null], [number | null]]: by temperature, null if there are no others }];
 *             of a single model one pair, with one row of each
 * }
 */
import { Plot, choice, cut, h, logarithmic, look, modelLegend, number, plot, toggles } from "./kit.js";
import { DEFAULTS, PLAIN, sample } from "./sampling.js";

const SHOWN = 20;
const NAMED = 12;

const SETTINGS = [
  { name: "topK", text: "top-k", min: 0, step: 1, told: (value) => (value > 0 ? String(value) : "off") },
  { name: "topP", text: "top-p", min: 0.05, max: 1, step: 0.01, told: (value) => (value < 1 ? value.toFixed(2) : "off") },
  { name: "minP", text: "min-p", min: 0, max: 0.5, step: 0.01, told: (value) => (value > 0 ? value.toFixed(2) : "off") },
  { name: "temperature", text: "temperature", min: 0, step: 0.1, told: (value) => (value > 0 ? value.toFixed(1) : "0: greedy") },
];

function render({ model, el }) {
  const data = model.get("data");
  const settings = { ...PLAIN, ...model.get("sampling") };
  let pair = data.pairs.find((each) => each.model === model.get("candidate")) ?? data.pairs.at(-1);
  const picture = h("div");
  const draw = () => { picture.replaceChildren(); show(picture, el, data, pair, settings, model.get("scale") === "log"); };
  const inputs = SETTINGS.map((setting) => slider(setting, data, settings, () => { model.set("sampling", { ...settings }); draw(); }));
  const preset = (text, values) => h("button", { type: "button", onclick: () => {
    Object.assign(settings, values);
    model.set("sampling", { ...settings });
    for (const input of inputs) input.refresh();
    draw();
  } }, text);
  const candidates = data.pairs.map((each) => [String(each.model), data.models[each.model].short]);
  el.append(
    ...(candidates.length > 1 ? [choice("Candidate", candidates, String(pair.model), (value) => {
      pair = data.pairs.find((each) => each.model === Number(value));
      model.set("candidate", pair.model);
      draw();
    })] : []),
    h("div", { class: "tools", role: "group", "aria-label": "Sampling", style: "align-items: center; gap: .3rem 1.2rem; margin-top: .5rem" },
      inputs.map((input) => input.element), h("span", { class: "tools", style: "margin: 0" }, preset("No sampling settings", PLAIN), preset("llama.cpp's defaults", DEFAULTS))),
    toggles("Scale", [["linear", "Linear scale"], ["log", "Logarithmic"]], model.get("scale") ?? "linear", (value) => { model.set("scale", value); draw(); }),
    picture,
  );
  draw();
}

function slider({ name, text, min, max, step, told }, data, settings, changed) {
  const most = name === "topK" ? data.known : name === "temperature" ? Math.max(...data.temperatures) : max;
  const value = h("output", { class: "num", style: "min-width: 4.2rem; text-align: left" });
  const input = h("input", { type: "range", min, max: most, step, "aria-label": text, style: "padding: 0; width: 7.5rem", oninput: () => {
    settings[name] = Number(input.value);
    refresh();
    changed();
  } });
  const refresh = () => {
    input.value = String(settings[name]);
    value.textContent = told(settings[name]);
    input.setAttribute("aria-valuetext", told(settings[name]));
  };
  refresh();
  return { element: h("label", { style: "display: inline-flex; align-items: center; gap: .45rem; font-size: .9rem" }, text, input, value), refresh };
}

function show(picture, el, data, pair, settings, log) {
  const models = pair.logprobs.length > 1 ? [data.models[0], data.models[pair.model]] : [data.models[pair.model]];
  const drawn = pair.logprobs.map((logprobs, side) => sample(logprobs, restOf(data, pair, side), data.known, settings));
  const plain = pair.logprobs.map((logprobs) => logprobs.map(Math.exp));
  const best = (at) => Math.max(...pair.logprobs.map((logprobs) => logprobs[at]));
  const places = pair.pieces.map((_, at) => at).sort((a, b) => best(b) - best(a)).slice(0, SHOWN)
    .sort((a, b) => pair.logprobs[0][b] - pair.logprobs[0][a]);
  const bars = places.flatMap((at, row) => models.map((each, side) => ({
    row, side, value: 100 * drawn[side].shares[at], plain: 100 * plain[side][at], color: look(each).color,
    title: [`${quoted(pair.pieces[at])}, ${each.short}`, `probability ${percent(plain[side][at])} (log ${number(pair.logprobs[side][at])})`,
      drawn[side].kept[at] ? `drawn in ${percent(drawn[side].shares[at])} of samples` : "cut: cannot be sampled"].join("\n"),
  })));
  const low = log ? 0.8 * Math.min(...bars.map((bar) => bar.plain)) : 0;
  const seen = bars.filter((bar) => bar.value > 0);
  picture.append(modelLegend(models));
  const names = places.map((at) => cut(quoted(pair.pieces[at]), el.clientWidth < 560 ? 12 : 20));
  const half = (side) => (models.length === 1 ? { insetTop: 4, insetBottom: 4 } : side === 0 ? { insetTop: 2, insetBottom: 11 } : { insetTop: 11, insetBottom: 2 });
  plot(picture, {
    width: Math.max(260, Math.min(el.clientWidth, 820)),
    height: 46 + 24 * places.length,
    marginLeft: 16 + 7 * Math.max(...names.map((name) => name.length)), marginTop: 8, marginBottom: 38,
    x: { label: "probability (%)", labelArrow: "none", grid: true, ...(log ? { ...logarithmic([low, 100]), domain: [low, 100] } : { domain: [0, Math.max(...bars.flatMap((bar) => [bar.plain, bar.value]))] }) },
    y: { label: null, domain: places.map((_, row) => row), tickFormat: (row) => names[row], tickSize: 0, padding: 0.04 },
    marks: [
      ...models.map((_, side) => Plot.barX(seen.filter((bar) => bar.side === side), { x1: low, x2: (bar) => Math.max(low, bar.value), y: "row", fill: "color", ...half(side) })),
      // What it was without any setting, so that a change can be seen.
      ...models.map((_, side) => Plot.tickX(bars.filter((bar) => bar.side === side), { x: "plain", y: "row", stroke: (bar) => (bar.value > bar.plain ? "var(--text)" : bar.color), strokeWidth: 1.5, ...half(side) })),
      Plot.ruleX([low]),
      Plot.tip(bars, Plot.pointer({ x: (bar) => Math.max(low, bar.value || bar.plain), y: "row", title: "title", maxRadius: 60 })),
    ],
  });
  picture.append(...told(pair, models, drawn));
  el.shown = {
    pieces: pair.pieces, places, settings: { ...settings }, candidate: models[1]?.name ?? null,
    shares: drawn.map((each) => each.shares), rest: drawn.map((each) => each.rest), kept: drawn.map((each) => each.kept),
    tail: drawn.map((each) => each.tail), certain: drawn.map((each) => each.certain),
  };
}

/** Which tokens can be sampled, in words. */
function told(pair, models, drawn) {
  const count = ({ kept, tail }) => (tail ? "any token" : plural(kept.filter(Boolean).length, "token"));
  const only = (side) => pair.pieces.filter((_, at) => drawn[side].kept[at] && !drawn[1 - side].kept[at]);
  const lines = [`Can be sampled: ${models.map((each, side) => `${count(drawn[side])}${models.length > 1 ? ` (${each.short})` : ""}`).join(", ")}.`];
  if (models.length > 1) {
    const apart = (drawn[0].shares.reduce((sum, share, at) => sum + Math.abs(share - drawn[1].shares[at]), 0) + Math.abs(drawn[0].rest - drawn[1].rest)) / 2;
    lines[0] += ` The two distributions differ by ${percent(apart)} (total variation): at least that share of draws cannot agree.`;
  }
  for (const side of models.length > 1 ? [0, 1] : []) {
    const names = drawn[1 - side].tail ? [] : only(side);
    if (names.length) lines.push(`Only by ${models[side].short}: ${names.slice(0, NAMED).map(quoted).join(" ")}${names.length > NAMED ? ` and ${names.length - NAMED} more` : ""}${drawn[side].tail ? " and all others" : ""}.`);
  }
  for (const side of models.keys()) {
    if (drawn[side].rest > 0.0005) lines.push(`${models[side].short}: ${percent(drawn[side].rest)} go to tokens beyond the ${pair.pieces.length} that are listed one by one.`);
    if (!drawn[side].certain) lines.push(`${models[side].short}: the cut falls among tokens that are not listed one by one; shown as if it cut none of them. A top-k makes it exact.`);
  }
  return lines.map((line) => h("p", { class: "how" }, line));
}

const restOf = (data, pair, side) => (temperature) => {
  const at = data.temperatures.findIndex((each) => Math.abs(each - temperature) < 1e-6);
  return pair.rest[side][at];
};

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const percent = (share) => `${share < 1e-12 ? 0 : share < 0.0005 ? number(Number((100 * share).toPrecision(2))) : (100 * share).toFixed(share < 0.1 ? 2 : 1)} %`;
const quoted = (piece) => `“${piece.replace(/ {4,}/g, (spaces) => `␣×${spaces.length}`).replaceAll(" ", "␣").replaceAll("\n", "↵")}”`;

export default { render };
