/** Tables that sort by a click on a head, show more columns, and are filtered by words. */
import { h } from "./kit.js";

/** What a cell is sorted by: its number, its text, or null for no data, which is always last. */
function key(cell) {
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  return cell.classList.contains("num") ? null : cell.textContent.trim().toLowerCase();
}

function sort(table, column, descending) {
  const rows = [...table.tBodies[0].rows].map((row) => [key(row.cells[column]), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const order = a < b ? -1 : a > b ? 1 : 0;
    return descending ? -order : order;
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) =>
    head.querySelector("button")?.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sort(table, column, descending);
    }),
  );
}

export function sorting() {
  document.querySelectorAll("table.sortable").forEach(sortable);
  for (const button of document.querySelectorAll("button[data-more]")) {
    button.addEventListener("click", () => {
      const shown = document.getElementById(button.dataset.more).classList.toggle("all");
      button.setAttribute("aria-pressed", String(shown));
    });
  }
}

/** A long table is data until it is opened: its rows are made then, with a filter over them. */
export function filters() {
  for (const fold of document.querySelectorAll("details.later")) fold.addEventListener("toggle", () => reveal(fold), { once: true });
  for (const fold of document.querySelectorAll("details.rows")) fold.addEventListener("toggle", () => fill(fold));
}

/** What is there for pages without scripts becomes elements when it is opened: text until then. */
function reveal(fold) {
  const kept = fold.querySelector("noscript");
  kept.outerHTML = kept.textContent;
}

function fill(fold) {
  if (!fold.open || fold.querySelector("table")) return;
  const { heads, numbers, rows } = JSON.parse(fold.querySelector("script").textContent);
  const body = h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, column) => {
    const [text, value] = Array.isArray(cell) ? cell : [cell, undefined];
    const outcome = heads[column] === "outcome";
    return h("td", { class: numbers.includes(column) ? "num" : text.length > 60 ? "told" : null, "data-value": value },
      outcome ? h("span", { class: `chip ${text}` }, text) : text);
  }))));
  const head = h("tr", {}, heads.map((title, column) => h("th", { scope: "col", class: numbers.includes(column) ? "num" : null }, h("button", { type: "button" }, title))));
  const table = h("table", { class: "sortable" }, h("thead", {}, head), body);
  const filter = h("input", { type: "search", placeholder: "words that a row has", oninput: () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  } });
  fold.append(h("p", {}, h("label", {}, "Filter ", filter)), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": fold.querySelector("summary").textContent.trim() }, table));
  sortable(table);
}
