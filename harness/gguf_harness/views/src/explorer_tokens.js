/** The tokens of the prompt, on the colour of how much each surprised the model. Choosing one moves all sections there. */
import { colors, h, ink, legend, number, toggles } from "./kit.js";
import { Section } from "./explorer_section.js";
import { percent, plural, quoted, shape } from "./explorer_words.js";

const STRANGE = 8;

const LEAD = "A model reads tokens: pieces of text from a fixed list, each with a number of its own. The colour says how much a token surprised the model, given those before it. Choose a token, and the sections below look at what the model knew there. Tokens, layers and heads are counted from 0.";
const LEAD_TOKENS = "A model reads tokens: pieces of text from a fixed list, each with a number.";

export function tokensSection(app) {
  let value = "surprise";
  const controls = h("div", { class: "tools" });
  const key = h("div");
  const strip = h("div", { class: "strip chosen-strip", role: "group", "aria-label": "Tokens of the prompt. Arrow keys choose one." });
  const told = h("p", { class: "readout", role: "status" });
  let buttons = [];

  const choose = (at, focus) => {
    app.choosePlace(at);
    if (focus) buttons[app.place].focus();
  };
  strip.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: app.place - 1, ArrowRight: app.place + 1, ArrowUp: app.place - 10, ArrowDown: app.place + 10, Home: 0, End: app.last }[event.key];
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    choose(to, true);
  });

  const section = new Section(app, {
    id: "tokens", title: "Tokens", lead: LEAD,
    present: () => true,
    key: () => ["tokens", app.reading.id],
    load: () => app.reading,
    draw: () => draw(),
    body: [controls, key, strip, told],
  });
  app.on("place", mark);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => app.reading && draw());
  return section;

  function draw() {
    const { tokens } = app.reading;
    const ways = colourings(app);
    section.lead.textContent = ways.length ? LEAD : LEAD_TOKENS;
    const way = ways.find(({ name }) => name === value) ?? ways[0];
    controls.replaceChildren(ways.length > 1 ? toggles("Colour by", ways.map(({ name, text }) => [name, text]), way.name, (to) => { value = to; draw(); }) : "");
    const scale = way ? colors(strip, way.kind, way.domain) : null;
    const values = tokens.map((token) => (way ? way.of(token.nll) : null));
    key.replaceChildren(way ? legend(scale, way.title, (each) => `${number(Number(each.toFixed(2)))}${way.kind === "share" && each === scale.domain[1] ? " or more" : ""}`) : "");
    buttons = tokens.map(({ text }, at) => {
      const fill = scale?.(values[at]);
      const button = h("button", { type: "button", class: "token", tabindex: -1, onclick: () => choose(at, true) }, shape(text));
      // Important: the page paints pressed buttons in one colour.
      button.style.setProperty("background", fill ?? "transparent", "important");
      button.style.setProperty("color", fill ? ink(fill) : "var(--text)", "important");
      return button;
    });
    strip.replaceChildren(...buttons.flatMap((button, at) => (/[\n↵]/.test(tokens[at].text) ? [button, h("br")] : [button])));
    mark();
    strip.shown = { values, domain: scale?.domain ?? null, way: way?.name ?? null };
    return finding(app, ways);
  }

  function mark() {
    buttons.forEach((button, at) => {
      button.tabIndex = at === app.place ? 0 : -1;
      button.setAttribute("aria-pressed", String(at === app.place));
    });
    told.textContent = app.reading ? sentence(app) : "";
  }
}

/** What colours may say: the surprise of the studied model, and what changed it. */
function colourings(app) {
  const { tokens, readings } = app.reading;
  const [unchanged, changed] = [app.unchanged, app.changed];
  if (tokens.every(({ nll }) => nll[unchanged] === null)) return [];
  const finite = (of) => tokens.map(({ nll }) => of(nll)).filter((each) => each !== null);
  const less = (one, other) => (nll) => (nll[one] === null || nll[other] === null ? null : nll[one] - nll[other]);
  const apart = (one, other) => ({ kind: "signed", of: less(one, other), domain: [-1, 1].map((sign) => sign * Math.max(0.5, ...finite(less(one, other)).map(Math.abs))) });
  const ways = [{ name: "surprise", text: "surprise", title: `surprise of ${readings[unchanged].short}, in nats`, kind: "share", of: (nll) => nll[unchanged], domain: [0, STRANGE] }];
  if (changed >= 0) ways.push({ name: "off", text: "what being off changed", title: "more surprised with parts off, in nats", ...apart(changed, unchanged) });
  if (unchanged > 0) ways.push({ name: "difference", text: "difference to the reference", title: `${readings[unchanged].short} more surprised than ${readings[0].short}, in nats`, ...apart(unchanged, 0) });
  return ways;
}

function finding(app, ways) {
  const { tokens } = app.reading;
  const count = plural(tokens.length, "token");
  if (!ways.length) return `${count}.`;
  const most = tokens.reduce((best, { nll }, at) => ((nll[app.unchanged] ?? -1) > (tokens[best].nll[app.unchanged] ?? -1) ? at : best), 0);
  const nll = tokens[most].nll[app.unchanged];
  if (nll === null) return `${count}.`;
  return `${count}. The most surprising is ${quoted(tokens[most].text)}: ${app.reading.readings[app.unchanged].short} gave it ${percent(Math.exp(-nll))}.`;
}

/** The chosen token in words. */
function sentence(app) {
  const { tokens, readings } = app.reading;
  const { text, id, nll } = tokens[app.place];
  const where = `Token ${app.place}${app.place === app.last ? ", the last" : ""}: ${quoted(text)}, number ${id.toLocaleString("en-US")} of the vocabulary.`;
  if (app.place === 0) return `${where} It is the first: nothing comes before it.`;
  const known = readings.map(({ short }, at) => [short, nll[at]]).filter(([, each]) => each !== null);
  if (!known.length) return where;
  return `${where} Probability given the tokens before it: ${known.map(([short, each]) => `${known.length > 1 ? `${short} ` : ""}${percent(Math.exp(-each))}`).join(", ")} (surprise ${known.map(([, each]) => number(Number(each.toFixed(2)))).join(", ")} nats).`;
}
