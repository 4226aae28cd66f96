/**
 * What models write: a cell for each prompt and candidate, and the two texts of the cell that is chosen.
 *
 * data: {
 *   models: [{ name, short, role, series }], reference: index, candidates: [index],
 *   scores: [title]: of a pair's `scores`,
 *   prompts: [{
 *     name, given, note: string | null: how it was given,
 *     reference: { text, tokens, problem },
 *     pairs: one for each candidate, [{ text, tokens, problem, same?: true: the reference's text, equal: tokens before
 *       the first that differs | null, scores: [string | null] }],
 *   }],
 *   chosen: [prompt, candidate]
 * }
 * Of a text or a problem the other is null. Only the chosen pair's texts are in the page.
 */
import { colors, h, ink, legend, look } from "./kit.js";

const WIDE = 700;
const NAMES = 120;
const CELL = 30;

function render({ model, el }) {
  const data = model.get("data");
  let chosen = model.get("pair") ?? data.chosen;
  const pair = h("div", { class: "pair" });
  const choose = (prompt, candidate) => {
    chosen = [prompt, candidate];
    model.set("pair", chosen);
    draw();
  };
  const grid = data.candidates.length ? makeGrid(el, data, chosen, choose) : makeList(data, chosen, choose);
  function draw() {
    grid.select(...chosen);
    const shown = showPair(pair, data, ...chosen);
    el.shown = { cells: grid.cells, prompt: data.prompts[chosen[0]].name, ...shown };
  }
  el.append(...grid.elements, pair);
  draw();
}

/** What a cell says, in a word or a number, and in a sentence. */
function outcome(prompt, pair) {
  if (pair.problem) return { text: "✗", kind: "none", said: `could not be generated: ${pair.problem}` };
  if (prompt.reference.problem) return { text: "–", kind: "none", said: "the reference has no text" };
  if (pair.same) return { text: "same", kind: "same", said: `the same text, ${count(prompt.reference.tokens)}` };
  if (pair.equal === null) return { text: "≠", kind: "other", said: "another text; its tokens were not compared" };
  return { text: String(pair.equal), kind: "parts", equal: pair.equal, said: pair.equal ? `equal for ${pair.equal} of ${count(pair.tokens)}` : "differs from the first token on" };
}

const count = (tokens) => `${tokens} token${tokens === 1 ? "" : "s"}`;

/** A table of cells that the arrow keys reach: candidates below each other where there is room for all prompts. */
function makeGrid(el, data, chosen, choose) {
  const cells = data.prompts.map((prompt) => prompt.pairs.map((pair) => outcome(prompt, pair)));
  const most = Math.max(1, ...cells.flat().map((cell) => cell.equal ?? 0));
  // The darker, the earlier.
  const scale = colors(el, "share", [-most, 0]);
  const prompts = { names: data.prompts.map(({ name }) => name), full: data.prompts.map(({ name }) => name) };
  const models = { names: data.candidates.map((at) => data.models[at].short), full: data.candidates.map((at) => data.models[at].name) };
  const across = el.clientWidth > WIDE && NAMES + CELL * data.prompts.length <= el.clientWidth;
  const [rows, columns] = across ? [models, prompts] : [prompts, models];
  // Names of columns stand upright where they would not fit beside each other.
  const upright = across || NAMES + columns.names.reduce((wide, name) => wide + Math.max(CELL, 14 + 6.6 * name.length), 0) > el.clientWidth;
  const of = (row, column) => (across ? [column, row] : [row, column]);
  const boxes = rows.names.map((_, row) => columns.names.map((_, column) => {
    const [prompt, candidate] = of(row, column);
    const cell = cells[prompt][candidate];
    const color = cell.kind === "parts" ? scale(-cell.equal) : null;
    const said = `${prompts.full[prompt]}, ${models.full[candidate]}: ${cell.said}`;
    return h("td", { role: "gridcell", tabindex: "-1", class: cell.kind, title: said, "aria-label": said,
      style: color && `background: ${color}; color: ${ink(color)}`, onclick: () => choose(prompt, candidate) }, cell.kind === "same" ? "=" : cell.text);
  }));
  const table = h("table", { role: "grid", class: upright ? "cells upright" : "cells", "aria-label": "After how many tokens texts part from the reference's", onkeydown: move },
    h("thead", {}, h("tr", {}, h("td"), columns.names.map((name, at) => h("th", { scope: "col", title: columns.full[at] }, h("span", {}, name))))),
    h("tbody", {}, rows.names.map((name, row) => h("tr", {}, h("th", { scope: "row", title: rows.full[row] }, name), boxes[row]))));

  const key = legend(scale, "equal tokens before the texts part:", (value) => String(Math.abs(value)));
  key.append(h("span", {}, "= the same text"));
  if (cells.flat().some(({ text }) => text === "✗")) key.append(h("span", {}, "✗ could not be generated"));

  function move(event) {
    const row = boxes.findIndex((line) => line.includes(event.target));
    if (row < 0) return;
    const column = boxes[row].indexOf(event.target);
    const to = { ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], Home: [row, 0], End: [row, columns.names.length - 1] }[event.key];
    if (to) boxes[to[0]]?.[to[1]]?.focus();
    else if (event.key === "Enter" || event.key === " ") choose(...of(row, column));
    else return;
    event.preventDefault();
  }

  return {
    cells: cells.map((line) => line.map(({ text }) => text)),
    elements: [
      key,
      h("div", { class: "scroll cells-room" }, table),
    ],
    select(prompt, candidate) {
      const [row, column] = across ? [candidate, prompt] : [prompt, candidate];
      for (const box of boxes.flat()) {
        const is = box === boxes[row][column];
        box.setAttribute("aria-selected", String(is));
        box.tabIndex = is ? 0 : -1;
      }
    },
  };
}

/** Without candidates: the prompts, of which one is chosen. */
function makeList(data, chosen, choose) {
  const select = h("select", { onchange: () => choose(Number(select.value), 0) }, data.prompts.map(({ name }, at) => h("option", { value: at }, name)));
  return { cells: [], elements: [h("label", { class: "choice" }, "Prompt ", select)], select: (prompt) => { select.value = String(prompt); } };
}

/** The two texts: what they have in common is plain, and what comes after the first difference is marked. */
function showPair(into, data, prompt, candidate) {
  const { name, given, note, reference, pairs } = data.prompts[prompt];
  const pair = pairs[candidate];
  const texts = [reference.text, pair && (pair.same ? reference.text : pair.text)];
  const common = pair ? commonPrefix(...texts) : null;
  const told = pair ? outcome(data.prompts[prompt], pair) : null;
  const scores = pair ? data.scores.map((title, at) => [title, pair.scores[at]]).filter(([, score]) => score !== null) : [];
  const rest = (text) => (text === null || common === null ? "" : text.slice(common));
  const columns = [[data.reference, reference, texts[0]]];
  if (pair) columns.push([data.candidates[candidate], pair, texts[1]]);
  into.replaceChildren(
    h("p", { class: "asked" }, h("strong", {}, name), note ? h("span", { class: "muted" }, ` ${note}`) : null),
    h("pre", { class: "given", tabindex: "0", role: "region", "aria-label": "Prompt" }, given),
    h("p", { role: "status" }, pair ? `${data.models[data.candidates[candidate]].short}: ${told.said}` : "",
      scores.length ? h("span", { class: "muted" }, `. ${scores.map(([title, score]) => `${title} ${score}`).join(", ")}`) : null),
    h("div", { class: "sides" }, columns.map(([at, { problem, tokens }, text]) => h("div", {},
      h("h4", {}, h("span", { class: "swatch", style: `background: ${look(data.models[at]).color}` }), ` ${data.models[at].name}`,
        tokens === null ? null : h("span", { class: "muted" }, ` ${count(tokens)}`)),
      problem ? h("p", { class: "warning" }, `Could not be generated: ${problem}`)
        : h("pre", {}, common === null ? text : [text.slice(0, common), rest(text) ? h("mark", { class: at === data.reference ? "was" : "is" }, ends(rest(text))) : rest(texts[0]) || rest(texts[1]) ? h("span", { class: "muted" }, " (ends here)") : null]),
    ))),
  );
  return { candidate: pair ? data.models[data.candidates[candidate]].name : null, common, rest: texts.map((text) => (text === undefined ? null : rest(text))), outcome: told?.text ?? null, scores };
}

/** A text whose ends of lines can be seen: they may be all that differs. */
const ends = (text) => text.replaceAll("\n", "⏎\n");

/** How long the common beginning of two texts is, without cutting a character; null where one is missing. */
function commonPrefix(one, other) {
  if (one === null || other === null) return null;
  let at = 0;
  while (at < Math.min(one.length, other.length) && one[at] === other[at]) at += 1;
  const cut = one.charCodeAt(at - 1);
  return cut >= 0xd800 && cut <= 0xdbff ? at - 1 : at;
}

export default { render };
