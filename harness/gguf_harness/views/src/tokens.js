/**
 * One piece of a text, token by token, on the colour of what a candidate changed there.
 *
 * data: {
 *   models: [{ name, short, role, series }],
 *   tokens: [string], reference: { nll: [number], top: [string]: what it found likeliest },
 *   candidates: [{ model: index, delta_p, kld, nll: [number | null], top: [string | null]: null for the reference's }],
 *   values: [{ name, title, button, meaning, kind, domain, points?: true: of a hundred }], with a domain for all candidates,
 *   chosen: index of a candidate, listed: how many of the largest to list
 * }
 */
import { choice, colors, h, ink, legend, number, toggles } from "./kit.js";

const MOST_BUTTONS = 9;

function render({ model, el }) {
  const data = model.get("data");
  const state = { value: model.get("value") ?? data.values[0].name, candidate: model.get("candidate") ?? data.chosen };
  const names = data.candidates.map((candidate, at) => [String(at), data.models[candidate.model].short]);
  const set = (name, to) => { state[name] = to; model.set(name, to); draw(); };
  const chooseCandidate = (at) => set("candidate", Number(at));
  const about = h("p", { class: "muted" });
  const key = h("div", { class: "legend" });
  const tip = h("div", { class: "tip", role: "status", hidden: true });
  const spans = data.tokens.map((token, at) => h("span", { class: "token", tabindex: at ? "-1" : "0", "data-at": at }, shape(token)));
  const text = h("div", { class: "strip", role: "group", "aria-label": "The text. Arrow keys move from token to token.", onkeydown: move },
    spans.flatMap((span, at) => [span, ...Array.from({ length: data.tokens[at].split("\n").length - 1 }, () => h("br"))]));
  const largest = h("div", { class: "tools", role: "group", "aria-label": "Tokens with the largest values" });
  for (const kind of ["pointerover", "focusin", "click"]) text.addEventListener(kind, (event) => { if (event.target.dataset.at) tell(Number(event.target.dataset.at)); });
  for (const kind of ["pointerleave", "focusout"]) text.addEventListener(kind, hide);
  el.append(
    toggles("Colour by", data.values.map(({ name, button }) => [name, button]), state.value, (to) => set("value", to)),
    names.length > MOST_BUTTONS ? choice("Candidate", names, String(state.candidate), chooseCandidate) : toggles("Candidate", names, String(state.candidate), chooseCandidate),
    about, key, text, largest, tip,
  );
  draw();
  const keep = () => { if (!tip.hidden) place(); };
  addEventListener("scroll", keep, { passive: true });
  return () => removeEventListener("scroll", keep);

  function draw() {
    const value = data.values.find(({ name }) => name === state.value);
    const candidate = data.candidates[state.candidate];
    const values = candidate[value.name];
    const scale = colors(el, value.kind, value.domain);
    const format = (each) => (value.points ? `${each > 0 ? "+" : ""}${(100 * each).toFixed(Math.abs(each) < 0.01 ? 2 : 1)}` : number(each));
    const fills = values.map(scale);
    for (const [at, span] of spans.entries()) {
      span.style.background = fills[at] ?? "none";
      span.style.color = fills[at] ? ink(fills[at]) : "inherit";
      span.classList.toggle("other", candidate.top[at] !== null);
    }
    about.textContent = value.meaning;
    key.replaceChildren(legend(scale, value.title, (each) => `${format(each)}${value.kind === "signed" || each > 0 ? " and beyond" : ""}`.trim()),
      h("span", {}, h("span", { class: "token other" }, "dotted"), " another token would have come next"));
    const ranked = values.map((each, at) => [Math.abs(each ?? 0), at]).sort(([a], [b]) => b - a).slice(0, data.listed).map(([, at]) => at);
    largest.replaceChildren(h("span", { class: "muted" }, "Largest: "), ...ranked.map((at) =>
      h("button", { type: "button", onclick: () => focus(at) }, `${shape(data.tokens[at]).trim()} `, h("span", { class: "num" }, format(values[at])))));
    hide();
    el.shown = { value: value.name, candidate: data.models[candidate.model].name, values, domain: scale.domain, fills, largest: ranked };
  }

  /** Everything about a token, in words. */
  function tell(at) {
    const candidate = data.candidates[state.candidate];
    const name = data.models[candidate.model].short;
    spans[state.at]?.classList.remove("at");
    spans[at].classList.add("at");
    state.at = at;
    const before = data.reference.nll[at];
    const parts = [
      `probability: reference ${share(before)}, ${name} ${share(candidate.nll[at])}`,
      `loss: reference ${number(before)}, ${name} ${number(candidate.nll[at])} nats`,
      `KL: ${number(candidate.kld[at])} nats`,
      candidate.top[at] === null ? `likeliest for both: ${quoted(data.reference.top[at])}` : `likeliest: reference ${quoted(data.reference.top[at])}, ${name} ${quoted(candidate.top[at])}`,
    ];
    tip.replaceChildren(h("strong", {}, quoted(data.tokens[at])), ...parts.map((part) => h("div", {}, part)));
    tip.hidden = false;
    place();
    el.shown.told = [data.tokens[at], ...parts];
  }

  /** The tip below its token, or above it at the end of the window, and never beside the page. */
  function place() {
    const { left, top, bottom } = spans[state.at].getBoundingClientRect();
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(left, document.documentElement.clientWidth - width - 8))}px`;
    tip.style.top = `${bottom + 8 + height > innerHeight ? top - height - 8 : bottom + 8}px`;
  }

  function hide() {
    tip.hidden = true;
    spans[state.at]?.classList.remove("at");
  }

  function focus(at) {
    for (const span of spans) span.tabIndex = -1;
    spans[at].tabIndex = 0;
    spans[at].focus();
  }

  function move(event) {
    const at = Number(event.target.dataset.at);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - 10, ArrowDown: at + 10, Home: 0, End: spans.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    focus(Math.min(spans.length - 1, Math.max(0, to)));
  }
}

/** Spaces and ends of lines that can be seen, where a token is nothing else. */
const shape = (token) => {
  const lines = token.replaceAll("\n", "⏎");
  return lines.trim() === "" || /^[\s⏎]+$/.test(lines) ? lines.replaceAll(" ", "·") || "∅" : lines;
};

const quoted = (token) => `"${token.replaceAll("\n", "⏎")}"`;

function share(nll) {
  const percent = 100 * Math.exp(-nll);
  return percent >= 9.95 ? `${percent.toFixed(0)} %` : percent >= 0.1 ? `${percent.toFixed(1)} %` : "less than 0.1 %";
}

export default { render };
