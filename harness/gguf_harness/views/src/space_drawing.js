/** Points in three dimensions on a canvas: the projection, and what is drawn in which order. */
import { lch } from "d3";
import { isDark, themed } from "./kit.js";

/** How far the eye is from the middle, in radii: near enough to see depth, far enough not to distort. */
const EYE = 4;
const LABEL = 11;

/** Yaw and pitch in radians, and magnification. */
export const FIRST_VIEW = { yaw: 0.6, pitch: 0.35, zoom: 1.4 };

/** The view, with the pitch short of the poles and a zoom that shows something. */
export const bounded = ({ yaw, pitch, zoom }) => ({
  yaw: Math.atan2(Math.sin(yaw), Math.cos(yaw)),
  pitch: Math.min(1.5, Math.max(-1.5, pitch)),
  zoom: Math.min(30, Math.max(0.4, zoom)),
});

/**
 * A function from coordinates to pixels: [x, y, depth], where depth goes from -1, far, to 1, near.
 *
 * @param {{ center: number[], reach: number }} frame the same for all models.
 */
export function projection(frame, view, width, height) {
  const [sy, cy, sp, cp] = [Math.sin(view.yaw), Math.cos(view.yaw), Math.sin(view.pitch), Math.cos(view.pitch)];
  const size = 0.48 * Math.min(width, height) * view.zoom;
  return (xyz) => {
    const [x, y, z] = xyz.map((value, axis) => (value - frame.center[axis]) / frame.reach);
    const [across, away] = [cy * x - sy * y, sy * x + cy * y];
    const [up, depth] = [cp * z + sp * away, sp * z - cp * away];
    // Enlarged moves may lead past the eye.
    const near = EYE / Math.max(0.2, EYE - depth);
    return [width / 2 + size * near * across, height / 2 - size * near * up, depth];
  };
}

/** A colour for each group, evenly around the wheel, of two lightnesses so that neighbours differ; plain ones grey. */
export function groupColors(el, groups) {
  const lights = isDark(el) ? [78, 62] : [56, 38];
  const count = groups.filter((group) => !group.plain).length;
  let place = 0;
  return groups.map((group) => (group.plain ? themed(el, "--reference") : lch(lights[place % 2], 58, (20 + (360 * place++) / Math.max(1, count)) % 360).formatHex()));
}

/**
 * Draws everything.
 *
 * @param scene { width, height, frame, view, axes, points: [{ word, xyz, from, color, plain, text }], marked: Map of word
 *   to "word" | "kept" | "new" | "lost", trails: boolean }
 * @returns [{ word, x, y, depth }], nearest last, and the words that have labels.
 */
export function draw(canvas, el, scene) {
  const context = canvas.getContext("2d");
  const { width, height } = scene;
  const ratio = window.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  const colors = { text: themed(el, "--text"), muted: themed(el, "--muted"), card: themed(el, "--page"), line: themed(el, "--line"), accent: themed(el, "--accent") };
  const project = projection(scene.frame, scene.view, width, height);
  const placed = scene.points.map((point) => {
    const [x, y, depth] = project(point.xyz);
    return { ...point, x, y, depth, start: point.from ? project(point.from) : null, mark: scene.marked.get(point.word) };
  }).sort((a, b) => a.depth - b.depth);
  drawAxes(context, scene, project, colors);
  if (scene.trails) drawTrails(context, placed, colors);
  const dim = scene.marked.size > 0;
  drawLinks(context, placed, colors);
  for (const point of placed) {
    const nearness = Math.min(1, Math.max(0, (point.depth + 1) / 2));
    context.globalAlpha = (dim && !point.mark ? 0.35 : 1) * (point.plain ? 0.35 + 0.3 * nearness : 0.45 + 0.55 * nearness);
    context.fillStyle = point.color;
    context.beginPath();
    context.arc(point.x, point.y, (point.plain ? 1.6 : 2.4) + 2.2 * nearness + (point.mark ? 1.5 : 0), 0, 2 * Math.PI);
    context.fill();
    if (point.mark) {
      context.globalAlpha = 1;
      context.strokeStyle = colors.text;
      context.lineWidth = point.mark === "word" ? 2 : 1;
      context.stroke();
    }
  }
  context.globalAlpha = 1;
  return { placed, labels: drawLabels(context, placed, scene, colors) };
}

function drawAxes(context, { frame, axes }, project, colors) {
  context.strokeStyle = colors.line;
  context.lineWidth = 1;
  context.font = `${LABEL}px system-ui, sans-serif`;
  for (const axis of [0, 1, 2]) {
    const ends = [-1, 1].map((side) => project(frame.center.map((value, each) => value + (each === axis ? side * frame.reach * 0.7 : 0))));
    context.beginPath();
    context.moveTo(ends[0][0], ends[0][1]);
    context.lineTo(ends[1][0], ends[1][1]);
    context.stroke();
    if (axes) {
      context.fillStyle = colors.muted;
      context.fillText(axes[axis], ends[1][0] + 3, ends[1][1] - 3);
    }
  }
}

/** From the places in the reference, where anything has moved by more than a hair. */
function drawTrails(context, placed, colors) {
  context.strokeStyle = colors.muted;
  context.lineWidth = 1.2;
  for (const { start, x, y, depth } of placed) {
    if (!start || Math.hypot(start[0] - x, start[1] - y) < 0.5) continue;
    context.globalAlpha = 0.35 + 0.25 * Math.min(2, Math.max(0, depth + 1));
    context.beginPath();
    context.moveTo(start[0], start[1]);
    context.lineTo(x, y);
    context.stroke();
  }
  context.globalAlpha = 1;
}

/** From the marked word to its nearest: whole to those that the reference has too, dashed to new ones, dotted to lost. */
function drawLinks(context, placed, colors) {
  const from = placed.find((point) => point.mark === "word");
  if (!from) return;
  for (const point of placed) {
    if (!point.mark || point === from) continue;
    context.strokeStyle = point.mark === "lost" ? colors.muted : colors.accent;
    context.lineWidth = 1.5;
    context.setLineDash({ kept: [], new: [6, 4], lost: [2, 4] }[point.mark]);
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(point.x, point.y);
    context.stroke();
  }
  context.setLineDash([]);
}

/** As many words as fit without covering each other: marked ones first, then the nearest. */
function drawLabels(context, placed, { width, height }, colors) {
  const taken = [];
  const labels = [];
  const inOrder = [...placed].sort((a, b) => rank(b) - rank(a));
  context.lineJoin = "round";
  for (const point of inOrder) {
    if (point.x < 0 || point.x > width || point.y < 0 || point.y > height) continue;
    context.font = `${point.mark ? 600 : 400} ${point.mark ? LABEL + 2 : LABEL}px system-ui, sans-serif`;
    const long = context.measureText(point.text).width;
    const box = [point.x + 7, point.y - 8, long + 4, 16];
    if (box[0] + long > width) box[0] = point.x - 9 - long;
    if (!point.mark && taken.some((other) => box[0] < other[0] + other[2] && other[0] < box[0] + box[2] && box[1] < other[1] + other[3] && other[1] < box[1] + box[3])) continue;
    taken.push(box, [point.x - 3, point.y - 3, 6, 6]);
    labels.push(point.word);
    context.globalAlpha = point.mark ? 1 : 0.5 + 0.25 * Math.min(2, Math.max(0, point.depth + 1));
    context.strokeStyle = colors.card;
    context.lineWidth = 3;
    context.strokeText(point.text, box[0], point.y + 4);
    context.fillStyle = point.mark ? colors.text : point.plain ? colors.muted : colors.text;
    context.fillText(point.text, box[0], point.y + 4);
  }
  context.globalAlpha = 1;
  return labels;
}

const rank = (point) => (point.mark === "word" ? 8 : point.mark ? 6 : point.plain ? 0 : 3) + point.depth;
