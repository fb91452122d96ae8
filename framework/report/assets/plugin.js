// TensorBoard's tab: the same page, read from the run folders again whenever they change.

import { el, refill, setOptions } from "./dom.js";
import { show } from "./view.js";

const PAUSE = 4000; // milliseconds between two looks at the records

/** A copy of a document whose pictures are found from this module, wherever TensorBoard is mounted. */
function located(doc) {
  const at = (address) => (address ? new URL(address, import.meta.url).href : "");
  const cell = (found) => (!found || found.failed ? found : {
    ...found,
    edits: found.edits.map((pair) => pair.map(at)),
    reconstruction: at(found.reconstruction),
    words: found.words.map(([word, src]) => [word, at(src)]),
    more: found.more.map(([name, src]) => [name, at(src)]),
  });
  return {
    ...doc,
    rows: doc.rows.map((row) => ({ ...row, picture: row.picture?.map(at) ?? null, cells: row.cells.map(cell) })),
    figures: doc.figures.map((group) => ({ ...group, items: group.items.map(([run, src]) => [run, at(src)]) })),
  };
}

/** Take the colours of the TensorBoard around this frame. */
function followTheme() {
  try {
    document.documentElement.dataset.theme = window.parent.document.body.classList.contains("dark-mode") ? "dark" : "light";
  } catch {
    delete document.documentElement.dataset.theme;
  }
}

/** TensorBoard calls this once. */
export async function render() {
  document.head.append(el("link", { rel: "stylesheet", href: new URL("./report.css", import.meta.url).href }));
  const none = (text) => el("p", { class: "none" }, text);
  const root = el("main", {}, none("Reading the records…"));
  const groups = el("select", { "aria-label": "experiment", onchange: () => { group = groups.value; tag = ""; page = null; look(); } });
  const choice = el("p", { class: "tools groups", hidden: true }, el("label", {}, "Experiment "), groups);
  document.body.replaceChildren(choice, root);
  let page = null, tag = "", group = "", timer = 0;

  function take(found) {
    choice.hidden = found.groups.length < 2;
    if (groups.options.length !== found.groups.length || found.groups.some((name, index) => groups.options[index].value !== name)) {
      setOptions(groups, found.groups.map((name) => [name, name === "." ? "this folder" : name]), found.group);
    }
    if (!found.document) return;
    const doc = located(found.document);
    if (!doc.runs.length) {
      page = null;
      refill(root, none("There is no run in this folder yet."));
    } else if (page && found.group === group) page.update(doc);
    else page = show(root, doc);
    [tag, group] = [found.tag, found.group];
  }

  async function look() {
    clearTimeout(timer);
    followTheme();
    if (!document.hidden) {
      try {
        const words = new URLSearchParams({ group, tag });
        const asked = group;
        const answer = await fetch(new URL(`./data?${words}`, import.meta.url), { cache: "no-store" });
        const found = await answer.json();
        if (asked === group) take(found);
      } catch (problem) {
        if (!page) refill(root, none(`The records cannot be read: ${problem.message}`));
      }
    }
    timer = setTimeout(look, PAUSE);
  }

  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  await look();
}
