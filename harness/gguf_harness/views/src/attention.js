/**
 * Attention of the reference, a candidate, and their difference: all heads as tiles, and one head over its tokens.
 *
 * data: {
 *   tokens: [string], of: number of tokens that the prompt has,
 *   models: [{ name, short, role, series, heads: [[layer, head]], side, weights: base64, first: [number],
 *              tokens?: [string] where they are not those of the others }]
 * }
 * `weights` are bytes: 255 times the square roots of the weights, of each head the lower triangle over the first
 * `side` tokens, row by row. `first` is what the first token takes of each head, mean over the rows after it.
 *
 * `el.shown` is { layer, head, candidate, withoutFirst, reference: [[weight]], other: [[weight]], most, apart, parts }.
 */
import { choice, colors, h, legend, number, toggles } from "./kit.js";
import { drawGrid, placeAt, tileSize } from "./attention_grid.js";
import { drawLines, drawMatrix, matrixSize, seen } from "./attention_head.js";
import { comparable, reach, read, weights } from "./attention_patterns.js";

const [NARROW, WIDE, SMALL_TILE, GAP] = [620, 760, 13, 14];
const ALONE = 0.44;
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

function render({ model, el }) {
  const data = model.get("data");
  const patterns = data.models.map((entry) => read(entry, data.tokens));
  const reference = patterns.find((pattern) => pattern.role === "reference") ?? null;
  const candidates = patterns.filter((pattern) => pattern !== reference);
  const state = start(model, reference, candidates);
  const controls = h("div", { class: "tools" });
  const body = h("div", { class: "attention" });
  el.append(controls, body);

  const set = (name, value) => {
    model.set(name, value);
    state[name] = value;
    update();
  };
  const update = () => {
    const scene = compose(el, state, reference, candidates);
    showControls(controls, scene, state, candidates, set);
    const [matrices, lines] = showHead(el, scene, data, model);
    body.replaceChildren(h("div", {}, showGrids(el, scene, state, set)), h("div", {}, matrices), h("div", {}, lines));
    body.classList.toggle("alone", scene.alone);
    el.shown = numbers(scene, state);
  };
  update();
}

/** What a person has chosen, or what is shown first: the head that the last candidates' patterns differ most in. */
function start(model, reference, candidates) {
  const whole = reference ?? candidates[0];
  const state = {
    candidate: Math.min(Number(model.get("candidate") ?? candidates.length - 1), candidates.length - 1),
    head: model.get("head") ?? whole.heads[0],
    seen: model.get("seen") ?? "reference",
    withoutFirst: model.get("withoutFirst") ?? mean(whole.first) > 0.5,
    reaches: {},
  };
  if (model.get("head") === undefined) state.head = mostChanged(reference, candidates[state.candidate]) ?? state.head;
  return state;
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);

function mostChanged(reference, candidate) {
  if (!candidate || !comparable(reference, candidate)) return null;
  let [most, found] = [0, null];
  for (const head of reference.heads) {
    const place = head.join();
    if (!candidate.has(place)) continue;
    const [own, base] = [candidate.of(place), reference.of(place)];
    let sum = 0;
    for (let query = 1; query < reference.side; query++) {
      for (let key = 0; key <= query; key++) sum += Math.abs(own.weight(query, key) - base.weight(query, key));
    }
    if (sum > most) [most, found] = [sum, head];
  }
  return found;
}

/** Everything that follows from what was chosen: parts side by side, tiles, scales. */
function compose(el, state, reference, candidates) {
  const candidate = candidates[state.candidate] ?? null;
  const shown = [reference, candidate].filter(Boolean);
  const layers = [...new Set(shown.flatMap((pattern) => pattern.heads.map(([layer]) => layer)))].sort((a, b) => a - b);
  const heads = [...new Set(shown.flatMap((pattern) => pattern.heads.map(([, head]) => head)))].sort((a, b) => a - b);
  let [layer, head] = state.head;
  if (!shown.some((pattern) => pattern.has(`${layer},${head}`))) [layer, head] = shown[0].heads[0];
  const all = [
    reference && { key: "reference", name: reference.name, short: reference.short, pattern: reference },
    candidate && { key: "candidate", name: candidate.name, short: candidate.short, pattern: candidate },
    comparable(reference, candidate) && { key: "difference", name: `${candidate.name} minus ${reference.name}`, short: "difference", pattern: reference, other: candidate },
  ].filter(Boolean);
  const third = (el.clientWidth - GAP * (all.length - 1)) / all.length;
  // A single picture of all heads leaves room for the chosen one beside it.
  const alone = all.length === 1 && el.clientWidth >= WIDE;
  const together = el.clientWidth >= NARROW && tileSize(third, heads.length, layers.length) >= SMALL_TILE;
  const one = all.find(({ key }) => key === state.seen) ?? all[0];
  const width = Math.floor(alone ? ALONE * el.clientWidth : together ? third : el.clientWidth);
  const from = state.withoutFirst ? 1 : 0;
  const places = layers.flatMap((each) => heads.map((other) => `${each},${other}`));
  return {
    all, parts: together ? all : [one], one, layers, heads, layer, head, place: `${layer},${head}`, candidate, reference, together, width, from,
    alone, headWidth: Math.floor(alone ? (1 - ALONE) * el.clientWidth - 2 * GAP : el.clientWidth >= NARROW ? third : el.clientWidth),
    headParts: el.clientWidth >= NARROW ? all : [one],
    tile: tileSize(width, heads.length, layers.length),
    grid: (state.reaches[[from, ...places]] ??= reach(reference, candidates, places, from)),
    own: reach(reference, candidates, [`${layer},${head}`], from),
  };
}

function showControls(controls, scene, state, candidates, set) {
  const focused = document.activeElement?.closest?.("[data-control]")?.dataset.control;
  const spot = [...(controls.querySelector(`[data-control="${focused}"]`)?.querySelectorAll("button, select, input") ?? [])].indexOf(document.activeElement);
  const named = (name, ...children) => h("span", { "data-control": name }, children);
  const whole = scene.reference ?? scene.candidate;
  const first = h("input", { type: "checkbox", onchange: () => set("withoutFirst", first.checked) });
  first.checked = state.withoutFirst;
  controls.replaceChildren(
    candidates.length > 1 ? named("candidate", choice("Candidate", candidates.map(({ short }, at) => [String(at), short]), String(state.candidate), (at) => set("candidate", Number(at)))) : "",
    named("layer", choice("Layer", scene.layers.map((layer) => [String(layer), String(layer)]), String(scene.layer), (layer) => set("head", near(scene, Number(layer), scene.head)))),
    named("head", choice("Head", scene.heads.filter((head) => has(scene, scene.layer, head)).map((head) => [String(head), String(head)]), String(scene.head), (head) => set("head", [scene.layer, Number(head)]))),
    named("first", h("label", { class: "choice" }, first, ` Leave out the first token, which takes ${percent(mean(whole.first))} of the weight on average${whole.has(scene.place) ? `, ${percent(whole.firstOf(scene.place))} in this head` : ""}`)),
    scene.parts.length < scene.all.length || scene.headParts.length < scene.all.length
      ? named("seen", toggles("Show", scene.all.map(({ key, short }) => [key, short]), scene.one.key, (key) => set("seen", key))) : "",
  );
  if (focused) controls.querySelector(`[data-control="${focused}"]`)?.querySelectorAll("button, select, input")[spot]?.focus();
}

const has = (scene, layer, head) => scene.all.some(({ pattern, other }) => (other ?? pattern).has(`${layer},${head}`));

/** The head of a layer with the number wanted, or the first that the layer has. */
function near(scene, layer, head) {
  return [layer, has(scene, layer, head) ? head : scene.heads.find((each) => has(scene, layer, each))];
}

/** Colours of the two scales, the square root of weights or weights, as the page's theme has them. */
function scalesOf(el, { most, apart }) {
  return {
    root: colors(el, "share", [0, Math.sqrt(most)]), weight: colors(el, "share", [0, most]),
    signedRoot: colors(el, "signed", [-Math.sqrt(apart), Math.sqrt(apart)]), difference: colors(el, "signed", [-apart, apart]),
  };
}

const rgb = (color) => color.match(/\d+/g).slice(0, 3).map(Number);

function showGrids(el, scene, state, set) {
  const scales = scalesOf(el, scene.grid);
  const weight = Array.from({ length: 256 }, (_, byte) => rgb(scales.root(byte / 255)));
  const steps = 512;
  const difference = Array.from({ length: 2 * steps + 1 }, (_, at) => rgb(scales.signedRoot(((at - steps) / steps) * Math.sqrt(scene.grid.apart))));
  const painter = ({ pattern, other }) => (place) => {
    if (!pattern.has(place) || (other && !other.has(place))) return null;
    const base = pattern.of(place);
    if (!other) return (query, key) => weight[base.byte(query, key)];
    const own = other.of(place);
    return (query, key) => {
      // One step of the bytes may be rounding alone.
      if (Math.abs(own.byte(query, key) - base.byte(query, key)) < 2) return difference[steps];
      const apart = (own.weight(query, key) - base.weight(query, key)) / scene.grid.apart;
      return difference[steps + Math.round(steps * Math.sign(apart) * Math.sqrt(Math.min(1, Math.abs(apart))))];
    };
  };
  const box = h("div", { class: "side-by-side", tabindex: 0, role: "group", "aria-label": "All heads. Arrow keys choose a head.", onkeydown: (event) => {
    const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key] ?? [0, 0];
    const to = [scene.layers[scene.layers.indexOf(scene.layer) + down], scene.heads[scene.heads.indexOf(scene.head) + right]];
    if ((!down && !right) || !has(scene, ...to)) return;
    event.preventDefault();
    set("head", to);
    el.querySelector(".side-by-side").focus();
  } }, scene.parts.map((part) => {
    const canvas = drawGrid(el, { ...scene, name: part.name, side: part.pattern.side, painter: painter(part), chosen: [scene.layer, scene.head] });
    canvas.addEventListener("click", (event) => {
      const to = placeAt(event, canvas, scene);
      if (to && has(scene, ...to)) set("head", to);
    });
    return titled(part, scene.width, canvas);
  }));
  const squared = (value) => number(value * Math.abs(value));
  return [
    h("div", { class: "legends" }, legend(scales.root, "weight, square root", squared), legendOfDifference(scene, scales.signedRoot, ", square root", squared)),
    box,
    h("p", { class: "muted" }, "Rows are layers, columns are heads. Click a tile, or use the arrow keys, to see a head below."),
  ];
}

function legendOfDifference(scene, scale, bent = "", format = number) {
  return scene.all.some(({ key }) => key === "difference") ? legend(scale, `difference, ${scene.candidate.short} minus ${scene.reference.short}${bent}`, format) : "";
}

const titled = (part, width, ...children) => h("div", { style: `width: ${width}px` }, h("p", { class: "part", title: part.name }, part.short), children);

/** [what shows the chosen head as matrices, what shows it as lines]. */
function showHead(el, scene, data, model) {
  const { place, own, from } = scene;
  const scales = scalesOf(el, own);
  const told = h("p", { class: "readout", "aria-live": "polite" });
  const [matrices, links] = [[], []];
  const size = matrixSize(scene.headWidth, Math.max(...scene.headParts.map(({ pattern }) => pattern.side)));
  const hint = "Point at a cell to read its weights.";
  const over = (cell) => {
    for (const mark of matrices) mark(cell);
    told.textContent = cell ? sentence(scene, cell) : hint;
  };
  over(null);
  let kept = model.get("token") ?? null;
  const choose = (token, keep) => {
    if (keep) model.set("token", (kept = token));
    for (const mark of links) mark(token ?? kept);
  };
  const linesWidth = scene.alone ? scene.width : scene.headWidth;
  const each = (make, width) => h("div", { class: "side-by-side" }, scene.headParts.map((part) => {
    const missing = !part.pattern.has(place) || (part.other && !part.other.has(place));
    return titled(part, width, missing ? h("p", { class: "muted" }, "has no such head") : make(part));
  }));
  const value = ({ pattern, other }) => {
    const [base, own] = [pattern.of(place), other?.of(place)];
    return own ? (query, key) => own.weight(query, key) - base.weight(query, key) : base.weight;
  };
  const shared = (part) => ({ name: part.name, tokens: part.pattern.tokens, side: part.pattern.side, from });
  const matrixOf = (part) => {
    const [at, scale] = [value(part), part.other ? scales.difference : scales.weight];
    const { canvas, mark } = drawMatrix(el, { ...shared(part), size, over, color: (query, key) => scale(at(query, key)) });
    matrices.push(mark);
    return canvas;
  };
  const linesOf = (part) => {
    const color = part.other ? (apart) => scales.difference(Math.sign(apart) * own.apart * 0.8) : () => "var(--accent)";
    const { figure, mark } = drawLines({ ...shared(part), width: linesWidth, value: value(part), most: part.other ? own.apart : own.most, color, choose });
    links.push(mark);
    return figure;
  };
  const parts = [[
    h("h4", {}, `Layer ${scene.layer}, head ${scene.head}`),
    h("div", { class: "legends" }, legend(scales.weight, "weight"), legendOfDifference(scene, scales.difference)),
    each(matrixOf, scene.headWidth),
    told,
  ], [
    h("p", { class: "muted" }, "From each token (left) to those it attends to (right): the stronger the line, the larger the weight. Point at a token, or use the arrow keys, to see its lines alone; Escape shows all."),
    each(linesOf, linesWidth),
  ]];
  choose(kept && kept.at < data.tokens.length ? kept : null, false);
  return parts;
}

/** `" fox" to " the": F16 0.31, Q2_K 0.28, difference -0.03` */
function sentence({ headParts, all, place }, [query, key]) {
  const [first] = headParts;
  const values = all.filter(({ pattern, other }) => !other && pattern.has(place) && query < pattern.side).map(({ short, pattern }) => [short, pattern.of(place).weight(query, key)]);
  const apart = all.some(({ other }) => other) && values.length === 2 ? `, difference ${(values[1][1] - values[0][1]).toFixed(3)}` : "";
  return `“${seen(first.pattern.tokens[query])}” to “${seen(first.pattern.tokens[key])}”: ${values.map(([short, value]) => `${short} ${value.toFixed(3)}`).join(", ")}${apart}`;
}

function numbers(scene, state) {
  const of = (pattern) => (pattern?.has(scene.place) ? weights(pattern, scene.place) : null);
  return {
    layer: scene.layer, head: scene.head, candidate: scene.candidate?.name ?? null, withoutFirst: state.withoutFirst,
    reference: of(scene.reference), other: of(scene.candidate), most: scene.own.most, apart: scene.own.apart,
    parts: scene.parts.map(({ key }) => key), tile: scene.tile, layers: scene.layers, heads: scene.heads,
  };
}

export default { render };
