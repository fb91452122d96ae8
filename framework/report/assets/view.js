// The whole page, from one document. The report calls `show` once; the plugin calls `update` as the run goes on.

import { choice, el, number, refill } from "./dom.js";
import { failures, header, methods, place, problems, reproduce } from "./summary.js";
import { cellOf, createGrid } from "./grid.js";
import { createDetail } from "./detail.js";
import { createNoise } from "./charts.js";

const WORST = 10;

/** Put the page into `root`. Returns `update(doc)`. */
export function show(root, doc) {
  const detail = createDetail();
  const open = (row, run, rows) => detail.open(current, row, run, rows ?? current.rows);
  const grid = createGrid(open);
  const noise = createNoise();
  const worst = createWorst(open);
  let current = doc;

  const links = {}, sections = {};
  const section = (key, title, content = []) => {
    links[key] = el("a", { href: `#${key}` }, title);
    sections[key] = el("section", { id: key }, el("h2", {}, title), el("div", { class: "content" }, content));
    return sections[key];
  };
  const top = el("div", {});
  const trouble = el("div", {});
  const body = [
    section("methods", "Methods"), section("samples", "Samples", [grid.node]), section("worst", "Worst ten", [worst.node]),
    section("noise", "Noise", [noise.node]), section("failures", "Failures"), section("reproduce", "Reproduce"),
  ];
  refill(root, top, trouble, el("nav", { "aria-label": "sections" }, Object.values(links)), body, detail.node);

  function update(next) {
    current = next;
    const opened = [...sections.reproduce.querySelectorAll("details")].map((details) => details.open);
    refill(top, header(next));
    refill(trouble, problems(next));
    place(sections.methods, links.methods, methods(next));
    place(sections.failures, links.failures, failures(next, open));
    place(sections.reproduce, links.reproduce, reproduce(next));
    sections.reproduce.querySelectorAll("details").forEach((details, index) => { details.open = opened[index] ?? false; });
    sections.noise.hidden = links.noise.hidden = !next.noise.length && !next.figures.length;
    grid.update(next);
    noise.update(next);
    sections.worst.hidden = links.worst.hidden = !worst.update(next);
    detail.update(next);
  }

  update(doc);
  return { update };
}

/** The ten worst edits of all methods by one figure. */
function createWorst(open) {
  let doc = null;
  const list = el("div", { class: "rows worst" });
  const metric = choice("by which figure", [], render);
  const node = el("div", {}, el("div", { class: "tools" }, metric), list);

  function render() {
    const column = doc.metrics.findIndex(({ key }) => key === metric.value);
    const sign = doc.metrics[column]?.better === "lower" ? -1 : 1;
    const found = doc.rows.flatMap((row) => row.cells.map((cell, run) => ({ row, run, value: cell?.metrics?.[column] })))
      .filter(({ value }) => typeof value === "number")
      .sort((a, b) => sign * (a.value - b.value)).slice(0, WORST);
    const rows = [...new Set(found.map(({ row }) => row))];
    refill(list, el("div", { class: "strip wrap" }, found.map(({ row, run }) => {
      const cell = cellOf(doc, row, run, "edit", column, (r, k) => open(r, k, rows));
      cell.style.setProperty("--ratio", `${row.size[0]} / ${row.size[1]}`);
      cell.append(el("figcaption", { class: "quiet" }, row.id));
      return cell;
    })));
  }

  function update(next) {
    doc = next;
    const usable = doc.metrics.map((about, column) => {
      const values = doc.rows.flatMap((row) => row.cells.map((cell) => cell?.metrics?.[column])).filter((value) => typeof value === "number");
      return { about, different: new Set(values.map((value) => number(value, 4))).size };
    }).filter(({ about, different }) => about.better && different > 1);
    if (!usable.length) return false;
    // A figure of many values tells more about the worst than a yes or no.
    const telling = usable.find(({ different }) => different > 2) ?? usable[0];
    const before = metric.value;
    const options = usable.map(({ about }) => [about.key, about.label]);
    metric.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
    metric.value = options.some(([value]) => value === before) ? before : telling.about.key;
    render();
    return true;
  }

  return { node, update };
}
