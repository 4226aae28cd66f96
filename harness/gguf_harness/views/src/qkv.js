/**
 * How a head computes its output for one query: a row for each key, a column for each step, two models beside each other.
 *
 * data: {
 *   tokens: [string], total: number of tokens of the prompt, causal: boolean, facts: [string], start: the query to begin with,
 *   models: [{ name, short, role, series }],
 *   heads: [{ name, label, models: [{
 *     model: index, scale, usual: string, explained: boolean, deviation,
 *     products: [[number]], weights: [[number]]: by query, of each key that it may see,
 *     values: [number]: norms, norms: [number]: of the outputs by query, cosine: [number | null]: with the reference's
 *   }] }]
 * }
 */
import { Plot, choice, cut, h, look, modelLegend, number, plot } from "./kit.js";

const ROW = 27;

function render({ model, el }) {
  const data = model.get("data");
  const reference = data.models.findIndex((each) => each.role === "reference");
  const others = data.heads[0].models.map((each) => each.model).filter((each) => each !== reference);
  const state = { head: model.get("head") ?? 0, candidate: model.get("candidate") ?? others.at(-1) ?? null, query: model.get("query") ?? data.start };
  const picture = h("div");
  const redraw = (name) => (value) => {
    state[name] = Number(value);
    model.set(name, state[name]);
    picture.replaceChildren();
    show(picture, el, data, reference, state);
  };
  el.append(
    h("div", { style: "display: flex; flex-wrap: wrap; gap: .3rem 0" },
      data.heads.length > 1 ? choice("Head", data.heads.map((head, at) => [String(at), head.label]), String(state.head), redraw("head")) : null,
      choice("Query", data.tokens.map((token, at) => [String(at), `${at}: ${quoted(token)}`]), String(state.query), redraw("query")),
      others.length > 1 ? choice("Candidate", others.map((at) => [String(at), data.models[at].short]), String(state.candidate), redraw("candidate")) : null),
    picture,
  );
  show(picture, el, data, reference, state);
}

function show(picture, el, data, reference, { head: headAt, query, candidate }) {
  const head = data.heads[headAt];
  const sides = [reference, candidate].map((at) => head.models.find((each) => each.model === at)).filter(Boolean);
  const models = sides.map((side) => data.models[side.model]);
  const keys = sides[0].weights[query].map((_, at) => at);
  const steps = columns(sides);
  const narrow = el.clientWidth < 620;
  const names = data.tokens.map((token) => cut(quoted(token), narrow ? 11 : 16));
  const left = 22 + 6.8 * Math.max(...keys.map((at) => names[at].length + String(at).length));
  const width = Math.max(300, Math.min(el.clientWidth, 900));
  // One scale for all models, not only the two that are seen.
  const cells = steps.flatMap((step, column) => {
    const all = head.models.flatMap((each) => keys.map((key) => step.value(each, query, key)));
    const [low, high] = [Math.min(0, ...all), Math.max(0, ...all)];
    const digits = Math.max(high, -low) < 10 ? 3 : Math.max(high, -low) < 1000 ? 1 : 0;
    const text = narrow ? 0 : 0.34;
    const at = (value) => column + 0.03 + ((value - low) / (high - low || 1)) * (0.92 - text);
    return sides.flatMap((side, place) => keys.map((key) => {
      const value = step.value(side, query, key);
      return { key, column, place, value, from: at(0), to: at(value), end: column + 0.95, color: look(models[place]).color, text: value === 0 ? "0" : value.toFixed(digits).replace("-", "−") };
    }));
  });
  const half = (place) => (sides.length === 1 ? { insetTop: 6, insetBottom: 6 } : place === 0 ? { insetTop: 3, insetBottom: 14 } : { insetTop: 14, insetBottom: 3 });
  const said = h("p", { class: "how", "aria-live": "polite", style: "min-height: 4.6em; font-variant-numeric: tabular-nums; white-space: pre-line" });
  picture.append(modelLegend(models));
  const frame = h("div", { tabindex: "0", role: "group", "aria-label": "Keys of this query: arrow keys go through them" });
  picture.append(frame);
  const figure = plot(frame, {
    width, height: 44 + ROW * keys.length, marginLeft: left, marginTop: 38, marginBottom: 6, marginRight: 4,
    x: { axis: null, domain: [0, steps.length] },
    y: { label: null, domain: keys, tickFormat: (at) => `${at} ${names[at]}`, tickSize: 0, padding: 0 },
    marks: [
      Plot.ruleY(keys, { y: (at) => at, stroke: "var(--line)", dy: ROW / 2, strokeWidth: 0.7 }),
      Plot.text(steps, { x: (_, at) => at + 0.03, text: (step) => (narrow ? step.narrow : step.title), frameAnchor: "top", textAnchor: "start", lineAnchor: "bottom", dy: -8, fill: "var(--text)", fontWeight: 600 }),
      ...sides.flatMap((_, place) => {
        const own = cells.filter((cell) => cell.place === place);
        return [
          Plot.rect(own, { x1: "from", x2: "to", y: "key", fill: "color", ...half(place) }),
          narrow ? null : Plot.text(own, { x: "end", y: "key", text: "text", textAnchor: "end", dy: sides.length === 1 ? 0 : place === 0 ? -5.5 : 5.5, fontSize: 11, fill: "var(--text)" }),
        ];
      }),
      Plot.ruleX(steps.map((step, column) => cells.find((cell) => cell.column === column).from), { stroke: "var(--muted)", strokeWidth: 0.7 }),
    ],
  });
  const tell = pointing(frame, figure, keys, (key) => { said.textContent = inWords(data, sides, models, steps, query, key); });
  picture.append(said, ...conclusion(data, sides, models, query));
  tell(keys.reduce((best, key) => (change(sides, query, key) > change(sides, query, best) ? key : best)));
  el.shown = {
    head: head.name, query, models: models.map((each) => each.name),
    products: sides.map((side) => side.products[query]), weights: sides.map((side) => side.weights[query]),
    drawn: steps.map((step, column) => sides.map((_, place) => cells.filter((cell) => cell.column === column && cell.place === place).map((cell) => cell.value))),
    lengths: steps.map((step, column) => cells.filter((cell) => cell.column === column).map((cell) => cell.to - cell.from)),
  };
}

function columns(sides) {
  const [{ scale, usual }] = sides;
  const scaled = `× ${number(scale)}`;
  return [
    { title: "q · k", narrow: "q · k", value: (side, query, key) => side.products[query][key] },
    { title: `${scaled}${usual ? ` = ${usual}` : ""}`, narrow: scaled, value: (side, query, key) => side.scale * side.products[query][key] },
    { title: "softmax: weight", narrow: "weight", value: (side, query, key) => side.weights[query][key] },
    { title: "weight × |v|", narrow: "× |v|", value: (side, query, key) => side.weights[query][key] * side.values[key] },
  ];
}

/** Rows answer to the pointer and to arrow keys. Returns a function that marks a row. */
function pointing(frame, figure, keys, told) {
  const y = figure.scale("y");
  const mark = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  for (const [name, value] of Object.entries({ x: 0, width: figure.getAttribute("width"), height: ROW, rx: 3, fill: "var(--accent)", "fill-opacity": 0.12 })) mark.setAttribute(name, value);
  figure.prepend(mark);
  let at = keys[0];
  const go = (key) => {
    at = key;
    mark.setAttribute("y", y.apply(key));
    told(key);
  };
  frame.addEventListener("pointermove", (event) => {
    const top = figure.getBoundingClientRect().top;
    const near = keys.find((key) => event.clientY - top >= y.apply(key) && event.clientY - top < y.apply(key) + y.bandwidth);
    if (near !== undefined && near !== at) go(near);
  });
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    go(keys[Math.min(keys.length - 1, Math.max(0, keys.indexOf(at) + step))]);
  });
  return go;
}

const change = (sides, query, key) => (sides.length > 1 ? Math.abs(sides[0].weights[query][key] - sides[1].weights[query][key]) : sides[0].weights[query][key]);

/** All numbers of a key. */
function inWords(data, sides, models, steps, query, key) {
  const lines = sides.map((side, place) => {
    const [product, scaled, weight, part] = steps.map((step) => number(step.value(side, query, key)));
    return `${models[place].short}: q · k = ${product}, × ${number(side.scale)} = ${scaled}, weight ${weight}, × |v| ${number(side.values[key])} = ${part}`;
  });
  return [`Token ${query} ${quoted(data.tokens[query])} looks at token ${key} ${quoted(data.tokens[key])}`, ...lines].join("\n");
}

/** What was masked, the output, and whether these steps are all of it. */
function conclusion(data, sides, models, query) {
  const later = data.total - query - 1;
  const sums = sides.map((side) => side.weights[query].reduce((sum, weight) => sum + weight, 0));
  const lines = [];
  if (data.causal && later > 0) lines.push(`Mask: the ${later === 1 ? "token" : `${later} tokens`} after token ${query} ${later === 1 ? "is" : "are"} in the future: −∞ before the softmax, weight 0 after it.`);
  if (!data.causal) lines.push(`Nothing is masked: this model looks both ways.${data.total > data.tokens.length ? ` ${data.total - data.tokens.length} more tokens are not shown.` : ""}`);
  if (sums.some((sum) => Math.abs(sum - 1) > 0.01)) lines.push(`The weights shown add up to ${sums.map((sum, place) => `${number(Number(sum.toPrecision(4)))} (${models[place].short})`).join(", ")}.`);
  const norms = sides.map((side, place) => `${number(side.norms[query])} (${models[place].short})`).join(", ");
  lines.push(`Output, the sum of weight × v: norm ${norms}${sides.length > 1 && sides[1].cosine[query] !== null && sides[1].cosine[query] !== undefined ? `; cosine between the two ${number(sides[1].cosine[query])}` : ""}.`);
  for (const [place, side] of sides.entries()) {
    if (!side.explained) lines.push(`${models[place].short}: scale and mask alone do not give these weights (they differ by up to ${number(side.deviation)}): this architecture does more to its scores.`);
  }
  return [...lines, ...data.facts].map((line) => h("p", { class: "how" }, line));
}

const quoted = (token) => `“${token.replaceAll(" ", "␣")}”`;

export default { render };
