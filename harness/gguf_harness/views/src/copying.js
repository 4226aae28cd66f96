/** Buttons that copy a table as markdown or CSV, and save a picture as PNG. */

const visible = (cell) => getComputedStyle(cell).display !== "none";

const text = (cell) => (cell.dataset.text ?? cell.textContent).trim().replace(/\s+/g, " ");

/** The visible cells of a table: [[head, ...], [cell, ...], ...]. */
function cells(table) {
  return [...table.rows].map((row) => [...row.cells].filter(visible).map(text));
}

function markdown(table) {
  const [head, ...rows] = cells(table);
  const numbers = [...table.tHead.rows[0].cells].filter(visible).map((cell) => cell.classList.contains("num"));
  const line = (row) => `| ${row.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
  return [line(head), `|${numbers.map((is) => (is ? "---:" : "---")).join("|")}|`, ...rows.map(line)].join("\n");
}

function csv(table) {
  const quoted = (cell) => (/[",\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
  // Values as they were measured, not as they are shown.
  const rows = [...table.rows].map((row) => [...row.cells].filter(visible).map((cell) => quoted(cell.dataset.value ?? text(cell))));
  return rows.map((row) => row.join(",")).join("\r\n");
}

/** Copy to the clipboard, which a page from disk may only do through a selection. */
async function put(words) {
  try {
    await navigator.clipboard.writeText(words);
  } catch {
    const area = document.createElement("textarea");
    area.value = words;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function said(button, words) {
  const before = button.textContent;
  button.textContent = words;
  setTimeout(() => { button.textContent = before; }, 1500);
}

/** All that a picture has drawn, where it stands, as a PNG of twice its size. */
async function png(view) {
  const frame = view.getBoundingClientRect();
  const style = getComputedStyle(document.documentElement);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [2 * Math.max(frame.width, view.scrollWidth), 2 * frame.height];
  const context = canvas.getContext("2d");
  context.fillStyle = style.getPropertyValue("--card").trim();
  context.fillRect(0, 0, canvas.width, canvas.height);
  for (const part of view.querySelectorAll("svg, canvas")) {
    const { left, top, width, height } = part.getBoundingClientRect();
    const image = part.tagName === "CANVAS" ? part : await rasterized(part, style);
    context.drawImage(image, 2 * (left - frame.left), 2 * (top - frame.top), 2 * width, 2 * height);
  }
  return canvas.toDataURL("image/png");
}

/** An SVG with the theme's colours written out: an image knows no custom properties. */
async function rasterized(svg, style) {
  const markup = new XMLSerializer().serializeToString(svg);
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(
    markup.replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim() || "currentColor"),
  )}`;
  await image.decode();
  return image;
}

export function copying() {
  for (const button of document.querySelectorAll("button[data-copy]")) {
    const table = document.getElementById(button.dataset.table);
    button.addEventListener("click", async () => {
      await put(button.dataset.copy === "csv" ? csv(table) : markdown(table));
      said(button, "copied");
    });
  }
  for (const button of document.querySelectorAll("button[data-png]")) {
    button.addEventListener("click", async () => {
      const figure = button.closest("figure");
      const link = document.createElement("a");
      [link.href, link.download] = [await png(figure.querySelector(".view")), `${figure.dataset.picture}.png`];
      link.click();
    });
  }
}
