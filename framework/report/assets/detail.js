// One sample, large: slider, difference, side by side; the other methods and samples are one key away.

import { el, image, number, prompt, refill, runName } from "./dom.js";
import { compare, slider } from "./grid.js";

const VIEWS = [["slider", "Slider"], ["difference", "Difference"], ["beside", "Side by side"]];

/** The dialog. `open(doc, row, run, rows)` shows a sample; `update(doc)` takes over what has changed meanwhile. */
export function createDetail() {
  const state = { doc: null, rows: [], row: null, run: 0, picture: "edit-0", view: "slider", split: 50 };
  const stage = el("div", { class: "stage" });
  const facts = el("div", { class: "facts" });
  const heading = el("h2", {});
  const close = el("button", { type: "button", class: "tool close", "aria-label": "close", onclick: () => node.close() }, "✕");
  const step = (by, label, sign) => el("button", { type: "button", class: "tool", "aria-label": label, title: label, onclick: () => move(by) }, sign);
  const node = el("dialog", { class: "detail", tabindex: -1, "aria-label": "one sample", onclick: (event) => { if (event.target === node) node.close(); } },
    el("header", {}, step(-1, "previous sample (left arrow)", "←"), step(1, "next sample (right arrow)", "→"), heading, close),
    el("div", { class: "body" }, stage, facts),
    el("footer", { class: "quiet" }, "← → samples · ↑ ↓ methods · space before/after · d difference · Esc closes"));

  function move(by) {
    const at = state.rows.indexOf(state.row) + by;
    if (at < 0 || at >= state.rows.length) return;
    state.row = state.rows[at];
    render();
  }

  function method(by) {
    const count = state.doc.runs.length;
    for (let n = 1; n <= count; n += 1) {
      const run = (state.run + by * n + count * n) % count;
      if (state.row.cells[run]) {
        state.run = run;
        break;
      }
    }
    render();
  }

  // On the document, as the focus may be nowhere after a picture was replaced.
  document.addEventListener("keydown", key);

  function key(event) {
    if (!node.open || event.altKey || event.ctrlKey || event.metaKey) return;
    const ranged = event.target.matches("input[type=range]");
    const actions = {
      ArrowLeft: () => move(-1), ArrowRight: () => move(1), ArrowUp: () => method(-1), ArrowDown: () => method(1),
      d: () => { state.view = state.view === "difference" ? "slider" : "difference"; render(); },
      " ": () => { state.split = state.split === 100 ? 0 : 100; state.view = "slider"; render(); },
    };
    const action = actions[event.key];
    // The arrows move a slider that has the focus; the space bar presses a button that has it.
    if (!action || (ranged && event.key.startsWith("Arrow")) || (event.key === " " && event.target.matches("button, summary"))) return;
    event.preventDefault();
    action();
  }

  function pictures(cell) {
    const edits = cell.edits.map(([, full], index) => [`edit-${index}`, cell.edits.length > 1 ? `Edit ${index}` : "Edit", full]);
    return [...edits, ...(cell.reconstruction ? [["reconstruction", "Reconstruction", cell.reconstruction]] : [])];
  }

  function segments(label, options, chosen, choose) {
    return el("div", { class: "segments", role: "group", "aria-label": label }, options.map(([name, text]) =>
      el("button", { type: "button", "aria-pressed": name === chosen, onclick: () => { choose(name); render(); } }, text)));
  }

  function renderStage(cell) {
    const { row, doc } = state;
    if (!cell) return refill(stage, el("p", { class: "none" }, "This sample is not finished yet."));
    if (cell.failed) return refill(stage, el("div", { class: "reason" }, el("b", {}, "failed"), el("p", {}, cell.failed)));
    const choices = pictures(cell);
    const [name, label, src] = choices.find(([other]) => other === state.picture) ?? choices[0] ?? ["", "", ""];
    const source = row.picture?.[1];
    const alt = `${label} of ${row.id}, ${doc.runs[state.run].name}`;
    let shown;
    if (!src) shown = el("p", { class: "none" }, "There is no picture.");
    else if (state.view === "beside") {
      shown = el("div", { class: "beside" },
        el("figure", {}, source ? image(source, `source of ${row.id}`) : null, el("figcaption", {}, "source")),
        el("figure", {}, image(src, alt), el("figcaption", {}, label)));
    } else {
      const stack = compare(source, src, alt);
      const range = state.view === "slider" && source ? slider(stack, "before and after", state.split) : null;
      shown = el("div", { class: `picture large ${state.view}`, vars: { "--ratio": `${row.size[0]} / ${row.size[1]}`, "--wide": row.size[0] / row.size[1] } },
        stack, range, range ? el("span", { class: "ends" }, el("i", {}, "source"), el("i", {}, label.toLowerCase())) : null);
    }
    // Small pictures are enlarged as they are, not smoothed.
    stage.classList.toggle("small", Math.max(...row.size) <= 160);
    return refill(stage, el("div", { class: "choices" },
      choices.length > 1 ? segments("which picture", choices, name, (other) => { state.picture = other; }) : null,
      segments("how it is shown", VIEWS, state.view, (other) => { state.view = other; state.split = 50; })), shown);
  }

  function renderFacts(cell) {
    const { row, doc } = state;
    const others = doc.runs.map((run, index) => [run, index]).filter(([, index]) => row.cells[index]);
    const rows = doc.metrics.map((metric, index) => [metric, cell?.metrics?.[index]]).filter(([, value]) => value !== null && value !== undefined);
    const more = [...(cell?.more ?? [])];
    refill(facts,
      el("div", { class: "chips", role: "group", "aria-label": "method" }, others.map(([run, index]) =>
        el("button", { type: "button", class: "chip", "aria-pressed": index === state.run, onclick: () => { state.run = index; render(); } }, runName(run, index)))),
      row.instruction ? el("p", { class: "instruction" }, row.instruction) : null,
      el("dl", { class: "prompts" },
        el("dt", {}, "source"), el("dd", {}, row.source.length ? prompt(row.source, "was") : "–"),
        el("dt", {}, "target"), el("dd", {}, row.target.length ? prompt(row.target, "is") : "–"),
        row.negative ? [el("dt", {}, "negative"), el("dd", {}, row.negative)] : null,
        row.type ? [el("dt", {}, "type"), el("dd", {}, row.type)] : null),
      rows.length || cell?.evaluations ? el("table", { class: "measures" }, el("tbody", {},
        rows.map(([metric, value]) => el("tr", {}, el("th", { scope: "row" }, metric.label), el("td", {}, number(value, 4), metric.unit ? ` ${metric.unit}` : ""))),
        cell?.evaluations ? el("tr", {}, el("th", { scope: "row" }, "network evaluations"), el("td", {}, number(cell.evaluations, 5))) : null,
        cell?.seconds ? el("tr", {}, el("th", { scope: "row" }, "seconds"), el("td", {}, number(cell.seconds))) : null)) : null,
      list("Notes", cell?.notes), list("In the records", cell?.problems),
      cell?.words?.length ? el("section", {}, el("h3", {}, "Attention by word"), el("div", { class: "words" },
        cell.words.map(([word, src]) => link(src, word)))) : null,
      more.length ? el("section", {}, el("h3", {}, "More pictures"), el("div", { class: "more" }, more.map(([name, src]) => link(src, name)))) : null);
  }

  const list = (title, items) => (items?.length ? el("section", {}, el("h3", {}, title), el("ul", {}, items.map((item) => el("li", {}, item)))) : null);
  const link = (src, name) => el("figure", {}, el("a", { href: src.startsWith("data:") ? null : src, target: "_blank", rel: "noopener" }, image(src, name)), el("figcaption", {}, name));

  function render() {
    const focused = document.activeElement?.getAttribute?.("aria-label");
    const cell = state.row.cells[state.run];
    refill(heading, state.row.id, " ", runName(state.doc.runs[state.run], state.run));
    renderStage(cell);
    renderFacts(cell);
    // What was focused is made anew; the dialog must not lose the keyboard.
    if (!node.contains(document.activeElement)) {
      const again = focused && [...node.querySelectorAll("[aria-label]")].find((other) => other.getAttribute("aria-label") === focused);
      (again ?? node).focus({ preventScroll: true });
    }
  }

  function open(doc, row, run, rows) {
    Object.assign(state, { doc, row, run, rows, split: 50 });
    if (!node.open) node.showModal();
    render();
    node.focus(); // not a button, which the space bar would press
  }

  function update(doc) {
    if (!state.doc || !node.open) return;
    const find = (row) => doc.rows.find((other) => other.id === row.id && other.version === row.version);
    const run = doc.runs.findIndex((other) => other.name === state.doc.runs[state.run].name);
    const row = find(state.row);
    const changed = row && run >= 0 && JSON.stringify(row) !== JSON.stringify(state.row);
    Object.assign(state, { doc, rows: state.rows.map(find).filter(Boolean), row: row ?? state.row, run: Math.max(run, 0) });
    if (changed) render();
  }

  return { node, open, update };
}
