/**
 * Any view as a widget of a notebook: `view` is its name, `data` what it draws, `state` what is chosen at first.
 *
 * The interface is anywidget's. What a person chooses stays in the picture: it is nobody else's, and a name such as
 * `layout` must not reach the widget's own traits. It is drawn again when its data, the room for it or the theme change.
 */
import style from "./views.css";
import own from "./widget.css";
import { h } from "./kit.js";
import { VIEWS } from "./views.js";

const LIGHT_OR_DARK = ["class", "data-jp-theme-light", "data-vscode-theme-kind", "data-theme", "theme"];

/** The theme of the notebook around it, which may not be the machine's; null where it does not say. */
function theme() {
  const [page, body] = [document.documentElement, document.body];
  const told = body.dataset.vscodeThemeKind ?? body.dataset.theme ?? page.dataset.theme ?? page.getAttribute("theme") ?? "";
  if (body.dataset.jpThemeLight !== undefined) return body.dataset.jpThemeLight === "false" ? "dark" : "light";
  if (/light/.test(told)) return "light";
  if (/dark|high-contrast/.test(told)) return "dark";
  return [page, body].some(({ classList }) => classList.contains("dark") || classList.contains("theme-dark")) ? "dark" : null;
}

function render({ model, el }) {
  const view = h("div", { class: "view" });
  const root = h("div", { class: "gguf-view", role: "group", "aria-label": model.get("title") || "Picture" }, h("style", {}, style, own), view);
  const state = new Map(Object.entries(model.get("state") ?? {}));
  const host = {
    get: (name) => (name === "data" ? model.get("data") : state.get(name)),
    set: (name, value) => state.set(name, value),
    on() {}, off() {}, save_changes() {},
  };
  let [clean, width, seen] = [null, 0, undefined];

  function draw() {
    clean?.();
    view.replaceChildren();
    width = view.clientWidth;
    clean = VIEWS[model.get("view")].render({ model: host, el: view }) ?? null;
  }
  function follow() {
    const now = theme();
    if (now === seen) return;
    seen = now;
    if (now) root.dataset.theme = now;
    else delete root.dataset.theme;
    if (width > 0) draw();
  }
  /** Other data may be of another prompt: what was chosen in the old one need not be there. */
  function changed() {
    state.clear();
    if (width > 0) draw();
  }

  el.append(root);
  follow();
  // It comes at once, and whenever a cell becomes visible or changes its width.
  const room = new ResizeObserver(() => { if (view.clientWidth > 0 && Math.abs(view.clientWidth - width) > 4) draw(); });
  room.observe(view);
  const around = new MutationObserver(follow);
  for (const each of [document.documentElement, document.body]) around.observe(each, { attributes: true, attributeFilter: LIGHT_OR_DARK });
  const machine = matchMedia("(prefers-color-scheme: dark)");
  const redraw = () => { if (width > 0) draw(); };
  machine.addEventListener("change", redraw);
  model.on("change:data", changed);
  return () => {
    room.disconnect();
    around.disconnect();
    machine.removeEventListener("change", redraw);
    model.off("change:data", changed);
    clean?.();
    root.remove();
  };
}

export default { render };
