/**
 * Words in the three dimensions of a layout that all models share: choosing a model moves words, and nothing else.
 *
 * data: {
 *   words: [string], of: [index of the group], tokens: [number], groups: [{ name, plain: boolean }],
 *   axes: [string] | null, center: [x, y, z], reach: number, the same for all models,
 *   base: { at: [index of the word], xyz }: places in the reference,
 *   models: [{ name, short, role, series, space: index, fitted: boolean }],
 *   spaces: [{ at: [index of the word], xyz: [[x, y, z]], near: [[index of the word]] }]
 * }
 */
import { choice, h, number } from "./kit.js";
import { FIRST_VIEW, bounded, draw, groupColors } from "./space_drawing.js";

const STEP = 0.12;
const REACH = 16;
const MOST_LOST = 12;
let made = 0;

function render({ model, el }) {
  const data = model.get("data");
  const reference = data.models.find((each) => each.role === "reference");
  const first = data.models.findLast((each) => each.role === "candidate") ?? data.models[0];
  // What a person has chosen, kept for the next time that it is drawn.
  const state = model.get("space") ?? { model: data.models.indexOf(first), view: FIRST_VIEW, hidden: [], word: null, trails: true, times: 1, open: el.clientWidth > 700 };
  const keep = (changes) => { Object.assign(state, changes); model.set("space", state); };
  const colors = groupColors(el, data.groups);
  const several = data.models.length > 1;
  const base = new Map(data.base.at.map((word, row) => [word, data.base.xyz[row]]));
  let hovered = null;
  let placed = [];

  const canvas = h("canvas", { tabindex: "0", role: "application", "aria-label": "Map of words. Arrow keys rotate it, plus and minus zoom, 0 resets." });
  const told = h("div", { class: "told-of-word", "aria-live": "polite" });
  const lost = h("div", {});
  const tip = h("div", { class: "space-tip", hidden: true });
  const [map, beside] = [h("div", { class: "space-map" }, canvas, tip), h("div", { class: "space-beside" }, told, lost)];
  el.append(
    h("div", { class: "tools" }, several ? modelChoice() : null, reference && several ? timesChoice() : null, search(), button("+", "Zoom in", () => zoom(1.3)), button("−", "Zoom out", () => zoom(1 / 1.3)),
      button("reset", "Reset the view", () => turn(FIRST_VIEW))),
    groupBoxes(),
    h("div", { class: "space" }, map, beside),
    h("p", { class: "muted how" }, "Drag or arrow keys: rotate. + and − or the wheel (after a click on the map) or two fingers: zoom. Click a word to see its neighbours."),
  );
  const [width, height] = [Math.max(240, map.clientWidth), Math.round(Math.min(560, Math.max(300, 0.8 * map.clientWidth)))];
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });

  const current = () => data.models[state.model];
  const space = () => data.spaces[current().space];

  function modelChoice() {
    return choice("Model", data.models.map((each, index) => [String(index), each.short]), String(state.model), (index) => { keep({ model: Number(index) }); tell(); paint(); });
  }

  /** Quantization moves words by less than a pixel: larger moves can be seen, and are said to be larger. */
  function timesChoice() {
    const options = [1, 10, 100].map((each) => [String(each), each === 1 ? "as they are" : `× ${each}`]);
    return choice("Moves", options, String(state.times), (times) => { keep({ times: Number(times) }); paint(); });
  }

  const drawnAt = (word, xyz) => {
    const from = base.get(word);
    return from && state.times !== 1 && !current().fitted ? from.map((value, axis) => value + state.times * (xyz[axis] - value)) : xyz;
  };

  function search() {
    const list = `words-${(made += 1)}`;
    const find = (fits) => data.words.findIndex((each) => fits(each.toLowerCase(), input.value.trim().toLowerCase()));
    const input = h("input", { type: "search", list, placeholder: "find a word", "aria-label": "Find a word",
      oninput: () => {
        const word = find((each, typed) => each === typed);
        if (word >= 0 || input.value === "") select(word >= 0 ? word : null);
      },
      // Enter, not "change": that comes when the focus leaves, and would replace the button that is being clicked.
      onkeydown: (event) => {
        if (event.key !== "Enter" || input.value.trim() === "") return;
        const word = [find((each, typed) => each === typed), find((each, typed) => each.startsWith(typed))].find((place) => place >= 0) ?? -1;
        if (word >= 0) select(word);
        else told.replaceChildren(h("p", {}, `“${input.value}” is not on the map.`));
      } });
    return [input, h("datalist", { id: list }, data.words.map((word) => h("option", { value: word })))];
  }

  function button(text, label, act) {
    return h("button", { type: "button", "aria-label": label, title: label, onclick: act }, text);
  }

  function groupBoxes() {
    const boxes = data.groups.map((group, index) => {
      const box = h("input", { type: "checkbox", onchange: () => {
        keep({ hidden: box.checked ? state.hidden.filter((each) => each !== index) : [...state.hidden, index] });
        paint();
      } });
      box.checked = !state.hidden.includes(index);
      return h("label", {}, box, h("span", { class: "swatch", style: `background: ${colors[index]}` }), group.name);
    });
    const all = (shown) => () => {
      keep({ hidden: shown ? [] : data.groups.map((_, index) => index) });
      boxes.forEach((label) => { label.querySelector("input").checked = shown; });
      paint();
    };
    const trails = h("input", { type: "checkbox", onchange: () => { keep({ trails: trails.checked }); paint(); } });
    trails.checked = state.trails;
    return h("details", { open: state.open, ontoggle: (event) => keep({ open: event.target.open }) }, h("summary", {}, "Groups and lines"),
      h("div", { class: "groups" }, reference ? h("label", {}, trails, "lines from the reference") : null, boxes, button("all", "Show all groups", all(true)), button("none", "Hide all groups", all(false))));
  }

  /** Nearest words of a word in the chosen model, and what they were in the reference; null if the model lacks it. */
  function neighbours(word) {
    const of = (each) => each?.near[each.at.indexOf(word)] ?? null;
    const [near, before] = [of(space()), reference ? of(data.spaces[reference.space]) : null];
    return { near, before, lost: near && before ? before.filter((each) => !near.includes(each)) : [] };
  }

  function marks(word) {
    const marked = new Map();
    if (word === null) return marked;
    const { near, before, lost: gone } = neighbours(word);
    for (const each of gone) marked.set(each, "lost");
    for (const each of near ?? []) marked.set(each, !before || before.includes(each) ? "kept" : "new");
    return marked.set(word, "word");
  }

  function paint() {
    const { at, xyz } = space();
    const word = hovered ?? state.word;
    const marked = marks(word);
    const points = at.map((each, row) => ({
      word: each, xyz: drawnAt(each, xyz[row]), from: current().role === "candidate" ? base.get(each) : null, color: colors[data.of[each]],
      plain: data.groups[data.of[each]].plain, text: data.words[each],
    })).filter((point) => !state.hidden.includes(data.of[point.word]) || marked.has(point.word));
    const drawn = draw(canvas, el, { width, height, frame: data, view: state.view, axes: data.axes, points, marked, trails: state.trails });
    placed = drawn.placed;
    const names = (list) => list?.map((each) => data.words[each]) ?? null;
    el.shown = {
      model: current().name, words: names(at), xyz, center: data.center, reach: data.reach, view: { ...state.view }, times: state.times, farthest: farthest(),
      drawn: names(placed.map((point) => point.word)), labels: names(drawn.labels), moved: points.filter((point) => point.from).length,
      word: word === null ? null : data.words[word], near: word === null ? null : names(neighbours(word).near), lost: word === null ? [] : names(neighbours(word).lost),
      places: placed.map(({ word: each, x, y }) => [data.words[each], x, y]),
    };
  }

  function turn(view) { keep({ view: bounded(view) }); paint(); }
  function zoom(times) { turn({ ...state.view, zoom: state.view.zoom * times }); }
  function select(word) { keep({ word }); hovered = null; tip.hidden = true; tell(); paint(); }

  /** The chosen word and its nearest, then the words that lost most: buttons, so that one can go from word to word. */
  function tell() {
    const named = (word, extra = "") => h("button", { type: "button", class: `word ${extra}`, onclick: () => select(word) }, data.words[word]);
    told.replaceChildren(...(state.word === null ? [h("p", { class: "muted" }, "No word is chosen.")] : about(state.word, named)));
    const rows = current() === reference || !reference ? [] : space().at.map((word) => ({ word, ...neighbours(word) }))
      .filter((row) => row.lost.length > 0).sort((a, b) => b.lost.length - a.lost.length);
    const far = current().role === "candidate" && reference ? h("p", { class: "muted" }, `No word is farther from its place in ${reference.short} than ${number(Number((100 * farthest()).toPrecision(2)))} % of the map's radius${current().fitted ? "; it has another vocabulary, and its own map was turned to fit" : ""}.`) : "";
    lost.replaceChildren(several ? h("h4", {}, heading(rows)) : "", far, rows.length === 0 ? "" : h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "word"), h("th", { scope: "col" }, "no longer near"), h("th", { scope: "col" }, "now near"))),
      h("tbody", {}, rows.slice(0, MOST_LOST).map((row) => h("tr", {}, h("th", { scope: "row" }, named(row.word)), h("td", {}, row.lost.map((each) => data.words[each]).join(", ")),
        h("td", {}, row.near.filter((each) => !row.before.includes(each)).map((each) => data.words[each]).join(", ")))))));
  }

  /** The longest move in the map, as a share of its radius. */
  function farthest() {
    const { at, xyz } = space();
    return Math.max(0, ...at.map((word, row) => (base.has(word) ? Math.hypot(...xyz[row].map((value, axis) => value - base.get(word)[axis])) : 0))) / data.reach;
  }

  function heading(rows) {
    if (current() === reference) return "The reference: choose another model to see what it lost.";
    if (!reference) return "There is no reference to compare with.";
    return rows.length === 0 ? "Every word keeps its nearest words." : `${rows.length} of ${space().at.length} words changed their nearest`;
  }

  function about(word, named) {
    const { near, before, lost: gone } = neighbours(word);
    const tokens = data.tokens[word] > 1 ? `, the mean of ${data.tokens[word]} tokens` : "";
    const head = h("p", {}, h("strong", {}, data.words[word]), h("span", { class: "muted" }, ` (${data.groups[data.of[word]].name}${tokens})`));
    if (!near) return [head, h("p", {}, `${current().short} does not have it.`)];
    const kept = before && current() !== reference ? h("p", {}, `${near.length - near.filter((each) => !before.includes(each)).length} of ${near.length} are also nearest in ${reference.short}.`) : null;
    return [head, h("p", {}, "Nearest: ", near.map((each) => [named(each, before && !before.includes(each) ? "new" : ""), " "]).flat()), kept,
      gone.length ? h("p", {}, "No longer: ", gone.map((each) => [named(each, "gone"), " "]).flat()) : null].filter(Boolean);
  }

  /** The word under a place of the canvas: of several the one in front. */
  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const near = placed.map((point) => ({ ...point, far: Math.hypot(point.x - x, point.y - y) })).filter((point) => point.far < REACH);
    return near.sort((a, b) => a.far - b.far || b.depth - a.depth)[0] ?? null;
  };

  function hover(point) {
    if ((point?.word ?? null) === hovered) return;
    hovered = point?.word ?? null;
    tip.hidden = !point;
    if (point) {
      const { near, before } = neighbours(point.word);
      const kept = near && before && current() !== reference ? h("div", {}, `${near.filter((each) => before.includes(each)).length} of ${near.length} also nearest in ${reference.short}`) : "";
      tip.replaceChildren(h("strong", {}, data.words[point.word]), ` (${data.groups[data.of[point.word]].name})`, h("div", {}, `nearest: ${(near ?? []).map((each) => data.words[each]).join(", ")}`), kept);
      Object.assign(tip.style, { left: `${Math.max(0, Math.min(point.x + 12, width - 230))}px`, top: `${point.y + (point.y > height - 110 ? -100 : 14)}px` });
    }
    paint();
  }

  listen(canvas, { view: () => state.view, turn, zoom, hover, under, select: (point) => select(point?.word ?? null) });
  tell();
  paint();
}

/** Dragging, two fingers, the wheel and keys. */
function listen(canvas, { view, turn, zoom, hover, under, select }) {
  const fingers = new Map();
  let [moved, apart] = [false, 0];
  const spread = () => { const [a, b] = [...fingers.values()]; return Math.hypot(a[0] - b[0], a[1] - b[1]); };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    if (fingers.size === 0) moved = false;
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (fingers.size === 2) apart = spread();
  });
  canvas.addEventListener("pointermove", (event) => {
    const last = fingers.get(event.pointerId);
    if (!last) { hover(under(event)); return; }
    const [x, y] = [event.clientX - last[0], event.clientY - last[1]];
    if (!moved && Math.hypot(x, y) < 4) return;
    moved = true;
    hover(null);
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (fingers.size === 2) {
      const now = spread();
      zoom(now / (apart || now));
      apart = now;
    } else turn({ ...view(), yaw: view().yaw + x * 0.008, pitch: view().pitch + y * 0.008 });
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => {
      if (fingers.delete(event.pointerId) && !moved && end === "pointerup") select(under(event));
    });
  }
  canvas.addEventListener("pointerleave", () => { if (fingers.size === 0) hover(null); });
  // Only once a person has clicked on the map: a page that scrolls past must not get stuck on it.
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas && !event.ctrlKey) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * 0.0015));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const { yaw, pitch, zoom: times } = view();
    const to = { ArrowLeft: { yaw: yaw - STEP }, ArrowRight: { yaw: yaw + STEP }, ArrowUp: { pitch: pitch - STEP }, ArrowDown: { pitch: pitch + STEP },
      "+": { zoom: times * 1.2 }, "=": { zoom: times * 1.2 }, "-": { zoom: times / 1.2 }, 0: FIRST_VIEW }[event.key];
    if (!to || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    turn({ ...view(), ...to });
  });
}

export default { render };
