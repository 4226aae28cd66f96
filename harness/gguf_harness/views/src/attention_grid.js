/** All heads of a model as tiles, the first layer at the top. */
import { h, themed } from "./kit.js";

const [LEFT, TOP] = [24, 18];

/** Edge of a tile, the same in every grid of the picture. */
export function tileSize(width, heads, layers) {
  return Math.max(4, Math.min((width - LEFT - 2) / heads, 64, Math.max(22, 680 / layers)));
}

/**
 * @param {(place: string) => ((query: number, key: number) => [number, number, number]) | null} painter colours of a
 *   head's cells; null if the model has no such head.
 */
export function drawGrid(el, { name, layers, heads, side, tile, painter, chosen, from }) {
  const [width, height] = [LEFT + tile * heads.length + 2, TOP + tile * layers.length + 2];
  const canvas = h("canvas", { class: "grid", role: "img", "aria-label": `${name}: all heads, of which layer ${chosen[0]}, head ${chosen[1]} is chosen` });
  const ratio = devicePixelRatio || 1;
  Object.assign(canvas, { width: Math.ceil(width * ratio), height: Math.ceil(height * ratio) });
  canvas.style.cssText = `width: ${width}px; height: ${height}px; cursor: pointer`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  numbers(context, themed(el, "--muted"), getComputedStyle(el).fontFamily, { layers, heads, tile });
  const buffer = Object.assign(document.createElement("canvas"), { width: side, height: side });
  const small = buffer.getContext("2d");
  context.imageSmoothingEnabled = tile * ratio < side;
  context.imageSmoothingQuality = "high";
  const line = themed(el, "--line");
  layers.forEach((layer, row) => heads.forEach((head, column) => {
    const [x, y] = [LEFT + column * tile, TOP + row * tile];
    const paint = painter(`${layer},${head}`);
    if (paint) {
      const image = small.createImageData(side, side);
      for (let query = 0; query < side; query++) {
        for (let key = from; key <= query; key++) {
          const at = 4 * (query * side + key);
          [image.data[at], image.data[at + 1], image.data[at + 2]] = paint(query, key);
          image.data[at + 3] = 255;
        }
      }
      small.putImageData(image, 0, 0);
      context.drawImage(buffer, x, y, tile, tile);
    }
    context.strokeStyle = line;
    context.lineWidth = 1;
    context.strokeRect(x, y, tile, tile);
  }));
  const [row, column] = [layers.indexOf(chosen[0]), heads.indexOf(chosen[1])];
  context.strokeStyle = themed(el, "--warn");
  context.lineWidth = 2.5;
  context.strokeRect(LEFT + column * tile, TOP + row * tile, tile, tile);
  return canvas;
}

/** The place of a click, or null beside the tiles. */
export function placeAt(event, canvas, { layers, heads, tile }) {
  const box = canvas.getBoundingClientRect();
  const [column, row] = [Math.floor((event.clientX - box.left - LEFT) / tile), Math.floor((event.clientY - box.top - TOP) / tile)];
  return layers[row] === undefined || heads[column] === undefined ? null : [layers[row], heads[column]];
}

function numbers(context, color, font, { layers, heads, tile }) {
  const step = Math.max(1, Math.ceil(16 / tile));
  context.fillStyle = color;
  context.font = `11px ${font}`;
  context.textBaseline = "middle";
  context.textAlign = "center";
  heads.forEach((head, at) => { if (at % step === 0) context.fillText(head, LEFT + (at + 0.5) * tile, TOP - 8); });
  context.textAlign = "right";
  layers.forEach((layer, at) => { if (at % step === 0) context.fillText(layer, LEFT - 5, TOP + (at + 0.5) * tile); });
}
