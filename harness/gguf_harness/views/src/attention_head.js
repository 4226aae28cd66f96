/** One head over its tokens: as a matrix, and as lines from each token to those that it attends to. */
import { h, number, themed } from "./kit.js";

const SVG = "http://www.w3.org/2000/svg";
const FAINT = 0.01;

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A token as it can be seen: a dot for each space before it. */
export const seen = (token) => token.replace(/^ +| +$/g, (spaces) => "·".repeat(spaces.length)) || "(empty)";

const cut = (text, most) => (text.length <= most ? text : `${text.slice(0, most - 1)}…`);

/** Size of the matrices, the same for all that stand side by side. */
export function matrixSize(width, side) {
  const left = Math.min(82, 0.27 * width);
  return { left, cell: Math.max(2, Math.min(24, (width - left - 2) / side)) };
}

/**
 * Rows are the tokens that attend, columns those attended to.
 *
 * @param {(query: number, key: number) => string} color of a cell.
 * @param {(cell: [number, number] | null) => void} over told where the pointer is.
 */
export function drawMatrix(el, { name, tokens, side, size, color, from, over }) {
  const { left, cell } = size;
  const extent = left + side * cell + 2;
  const canvas = h("canvas", { class: "matrix", role: "img", "aria-label": `${name}: weights over ${side} tokens` });
  const ratio = devicePixelRatio || 1;
  Object.assign(canvas, { width: Math.ceil(extent * ratio), height: Math.ceil(extent * ratio) });
  canvas.style.cssText = `width: ${extent}px; height: ${extent}px`;
  const context = canvas.getContext("2d");
  const gap = cell > 7 ? 0.5 : 0;

  const draw = (marked) => {
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, extent, extent);
    for (let query = 0; query < side; query++) {
      for (let key = from; key <= query; key++) {
        context.fillStyle = color(query, key);
        context.fillRect(left + key * cell + gap, left + query * cell + gap, cell - 2 * gap, cell - 2 * gap);
      }
    }
    context.strokeStyle = themed(el, "--line");
    context.strokeRect(left, left, side * cell, side * cell);
    labels(context, el, { tokens, side, left, cell, marked });
    if (!marked) return;
    context.strokeStyle = themed(el, "--warn");
    context.lineWidth = 1.5;
    context.strokeRect(left + marked[1] * cell, left + marked[0] * cell, cell, cell);
    context.lineWidth = 1;
  };
  draw(null);
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const [key, query] = [event.clientX - box.left, event.clientY - box.top].map((at) => Math.floor((at - left) / cell));
    over(key >= from && query < side && key <= query ? [query, key] : null);
  });
  canvas.addEventListener("pointerleave", () => over(null));
  return { canvas, mark: draw };
}

/** Tokens beside the rows and above the columns, as many as there is room for, and those of the marked cell. */
function labels(context, el, { tokens, side, left, cell, marked }) {
  const step = Math.max(1, Math.ceil(9.5 / cell));
  const [muted, strong] = [themed(el, "--muted"), themed(el, "--text")];
  const most = Math.floor(left / 5.6);
  context.font = `${Math.min(11, Math.max(9, cell * step))}px ${getComputedStyle(el).fontFamily}`;
  context.textBaseline = "middle";
  const write = (at, axis, fill) => {
    context.save();
    context.fillStyle = fill;
    if (axis === 0) context.translate(left - 4, left + (at + 0.5) * cell);
    else {
      context.translate(left + (at + 0.5) * cell, left - 4);
      context.rotate(-Math.PI / 2);
    }
    context.textAlign = axis === 0 ? "right" : "left";
    context.fillText(cut(seen(tokens[at]), most), 0, 0);
    context.restore();
  };
  for (const axis of [0, 1]) {
    const own = marked?.[axis];
    for (let at = 0; at < side; at += step) if (own === undefined || Math.abs(at - own) * cell > 10) write(at, axis, muted);
    if (own !== undefined) write(own, axis, strong);
  }
}

/**
 * Tokens that attend at the left, tokens attended to at the right, and lines whose opacity is the weight.
 *
 * @param {(query: number, key: number) => number} value weight or difference; lines are as strong as it is large.
 * @param {(value: number) => string} color of a line.
 * @param {{ side: "query" | "key", at: number } | null} chosen the token whose lines are seen; all if null.
 * @param {(token: object | null, kept: boolean) => void} choose called with the token under the pointer or the focus.
 */
export function drawLines({ name, tokens, side, width, value, most, color, from, choose }) {
  const [row, edge] = [17, Math.min(120, 0.34 * width)];
  const height = side * row + 8;
  const figure = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${name}: lines from tokens to those they attend to` });
  const y = (at) => at * row + row / 2 + 4;
  const links = svg("g", { fill: "none" });
  const lines = [];
  for (let query = 0; query < side; query++) {
    for (let key = from; key <= query; key++) {
      const each = value(query, key);
      if (Math.abs(each) < FAINT) continue;
      const line = svg("path", { d: `M${edge + 4},${y(query)}L${width - edge - 4},${y(key)}`, stroke: color(each), "stroke-width": 0.8 + 2.4 * Math.min(1, Math.abs(each) / most) });
      lines.push({ query, key, line, strength: Math.min(1, Math.abs(each) / most) });
      links.append(line);
    }
  }
  const texts = { query: [], key: [] };
  const most_letters = Math.floor(edge / 6.6);
  for (const end of ["query", "key"]) {
    for (let at = 0; at < side; at++) {
      const attributes = { x: end === "query" ? edge : width - edge, y: y(at), dy: "0.32em", "text-anchor": end === "query" ? "end" : "start", fill: "var(--text)", "font-size": 11, role: "button", tabindex: end === "query" && at === side - 1 ? 0 : -1 };
      const text = svg("text", { ...attributes, "aria-label": `${end === "query" ? "from" : "to"} token ${at + 1}, ${seen(tokens[at])}` }, cut(seen(tokens[at]), most_letters));
      text.style.cursor = "pointer";
      text.addEventListener("pointerenter", () => choose({ side: end, at }, false));
      text.addEventListener("focus", () => choose({ side: end, at }, true));
      text.addEventListener("click", () => { text.focus(); choose({ side: end, at }, true); });
      text.addEventListener("keydown", (event) => step(event, end, at));
      texts[end].push(text);
    }
  }
  function step(event, end, at) {
    if (event.key === "Escape") choose(null, true);
    const to = { ArrowDown: [end, at + 1], ArrowUp: [end, at - 1], ArrowLeft: ["query", at], ArrowRight: ["key", at] }[event.key];
    if (!to || !texts[to[0]][to[1]]) return;
    event.preventDefault();
    texts[to[0]][to[1]].focus();
  }
  figure.addEventListener("pointerleave", () => choose(null, false));
  figure.append(links, ...texts.query, ...texts.key);

  /** Shows the lines of a token alone, with their numbers at the other end; all lines if there is none. */
  const mark = (chosen) => {
    for (const { query, key, line, strength } of lines) {
      const own = !chosen || (chosen.side === "query" ? query : key) === chosen.at;
      line.setAttribute("stroke-opacity", own ? Math.max(0.05, chosen ? 0.25 + 0.75 * strength : strength * 0.9) : 0);
    }
    for (const end of ["query", "key"]) {
      texts[end].forEach((text, at) => {
        const other = chosen && chosen.side !== end;
        const pair = other ? (end === "key" ? [chosen.at, at] : [at, chosen.at]) : null;
        const linked = pair && pair[1] <= pair[0] && pair[1] >= from ? value(...pair) : null;
        const own = chosen && chosen.side === end && chosen.at === at;
        const told = linked !== null && Math.abs(linked) >= FAINT ? number(Number(linked.toFixed(2))) : "";
        const word = cut(seen(tokens[at]), Math.max(3, most_letters - (told ? told.length + 1 : 0)));
        text.textContent = told ? (end === "key" ? `${word} ${told}` : `${told} ${word}`) : word;
        text.setAttribute("font-weight", own || told ? 600 : 400);
        text.setAttribute("fill-opacity", !chosen || own || told ? 1 : 0.45);
      });
    }
  };
  mark(null);
  return { figure, mark };
}
