// Curves over the steps: one small chart per quantity, one line per method.

import { colour, el, image, number, refill, runName, svg } from "./dom.js";

const W = 380, H = 230, LEFT = 46, RIGHT = 10, TOP = 10, BOTTOM = 30;

/** Round places on an axis, about `count` of them, that cover low to high. */
export function ticks(low, high, count = 6) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const first = Math.ceil(low / step) * step;
  return Array.from({ length: Math.floor((high - first) / step + 1e-9) + 1 }, (_, index) => Number((first + index * step).toPrecision(12)));
}

/** Extent of all finite numbers; [0, 1] if there is none, and never empty. */
function extent(values) {
  const finite = values.filter((value) => Number.isFinite(value) && value !== null);
  if (!finite.length) return [0, 1];
  const low = Math.min(...finite), high = Math.max(...finite);
  const margin = high > low ? (high - low) * 0.06 : Math.max(Math.abs(high) * 0.1, 0.5);
  return [low - margin, high + margin];
}

/** A path through points, interrupted where there is no value. */
function path(points) {
  let pen = "M";
  return points.map(([x, y]) => {
    if (y === null) {
      pen = "M";
      return "";
    }
    const piece = `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
    pen = "L";
    return piece;
  }).join("");
}

function chart(doc, about, hidden) {
  const lines = about.lines.filter((line) => !hidden.has(doc.runs[line.run].name));
  const [x0, x1] = extent(lines.flatMap((line) => line.x));
  const withBand = lines.flatMap((line) => line.y.flatMap((y, index) => (y === null ? [] : [y - (line.spread?.[index] ?? 0), y + (line.spread?.[index] ?? 0)])));
  const positive = lines.length > 0 && lines.every((line) => line.y.every((y) => y === null || y > 0));
  const all = lines.flatMap((line) => line.y).filter((y) => y !== null);
  const log = positive && Math.max(...all) / Math.min(...all) > 50;
  const measure = log ? Math.log10 : (value) => value;
  const [y0, y1] = extent(log ? all.map(Math.log10) : withBand);
  const px = (x) => LEFT + ((x - x0) / (x1 - x0)) * (W - LEFT - RIGHT);
  const py = (y) => Math.min(H, Math.max(0, H - BOTTOM - ((measure(y) - y0) / (y1 - y0)) * (H - TOP - BOTTOM)));
  const marks = log
    ? ticks(Math.ceil(y0), Math.floor(y1), 5).filter(Number.isInteger).map((power) => 10 ** power)
    : ticks(y0, y1);
  const name = `${about.name}${about.unit ? ` (${about.unit})` : ""}`;
  const rule = svg("line", { class: "rule", y1: TOP, y2: H - BOTTOM, visibility: "hidden" });
  const tip = el("div", { class: "tip", hidden: true });
  const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${name} over the steps of ${lines.map((line) => doc.runs[line.run].name).join(", ")}` },
    marks.map((y) => [svg("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: py(y), y2: py(y) }),
      svg("text", { class: "tick", x: LEFT - 6, y: py(y) + 4, "text-anchor": "end" }, number(y))]),
    ticks(Math.max(0, x0), x1, 5).map((x) => svg("text", { class: "tick", x: px(x), y: H - BOTTOM + 16, "text-anchor": "middle" }, number(x))),
    svg("text", { class: "tick", x: W - RIGHT, y: H - 2, "text-anchor": "end" }, "step, 0 is the noisiest"),
    lines.map((line) => {
      const style = { "--colour": colour(line.run) };
      const points = line.x.map((x, index) => [px(x), line.y[index] === null ? null : py(line.y[index])]);
      const drawn = [];
      if (line.spread) {
        const floor = log ? 10 ** y0 : -Infinity; // a band may reach below zero, a logarithmic axis does not
        const there = line.x.map((_, index) => index).filter((index) => line.y[index] !== null && line.spread[index] !== null);
        const edge = (sign) => there.map((index) => `${px(line.x[index]).toFixed(1)} ${py(Math.max(floor, line.y[index] + sign * line.spread[index])).toFixed(1)}`);
        if (there.length > 1) drawn.push(svg("path", { class: "band", vars: style, d: `M${[...edge(1), ...edge(-1).reverse()].join("L")}Z` }));
      }
      drawn.push(svg("path", { class: line.run >= 10 ? "line dashed" : "line", vars: style, d: path(points) }));
      return drawn;
    }), rule);
  const figure = el("figure", { class: "chart" }, el("figcaption", {}, name, log ? el("small", {}, " log") : null), el("div", { class: "plot" }, drawing, tip));
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const at = x0 + ((((event.clientX - box.left) / box.width) * W - LEFT) / (W - LEFT - RIGHT)) * (x1 - x0);
    const near = lines.map((line) => [line, line.x.reduce((best, x, index) => (Math.abs(x - at) < Math.abs(line.x[best] - at) ? index : best), 0)]);
    if (!near.length) return;
    const x = near[0][0].x[near[0][1]];
    for (const end of ["x1", "x2"]) rule.setAttribute(end, px(x));
    rule.setAttribute("visibility", "visible");
    refill(tip, el("b", {}, `step ${number(x)}`), near.map(([line, index]) => el("span", {}, runName(doc.runs[line.run], line.run), " ", number(line.y[index]))));
    tip.hidden = false;
    tip.classList.toggle("left", px(x) > W / 2);
  });
  drawing.addEventListener("pointerleave", () => {
    rule.setAttribute("visibility", "hidden");
    tip.hidden = true;
  });
  return figure;
}

/** The noise panel: which run was measured on what, charts to look at first, the others, and the figures that runs left. */
export function createNoise() {
  const hidden = new Set();
  const node = el("div", { class: "noise" });
  let doc = null, signature = "", opened = new Set();

  function render() {
    const runs = doc.runs.map((run, index) => [run, index]).filter(([, index]) => doc.noise.some((about) => about.lines.some((line) => line.run === index)));
    const about = (index) => {
      const lines = doc.noise.flatMap((other) => other.lines).filter((line) => line.run === index);
      return [[...new Set(lines.map((line) => line.of).filter(Boolean))].join("; "), Math.max(0, ...lines.map((line) => line.images ?? 0))];
    };
    const legend = el("div", { class: "chips", role: "group", "aria-label": "methods in the charts" }, runs.map(([run, index]) => {
      const [of, images] = about(index);
      return el("button", { type: "button", class: "chip", "aria-pressed": !hidden.has(run.name), onclick: () => {
        if (!hidden.delete(run.name)) hidden.add(run.name);
        render();
      } }, runName(run, index), el("small", {}, [of, images ? `${images} images` : ""].filter(Boolean).join(", ")));
    }));
    const [first, others] = [true, false].map((wanted) => doc.noise.filter((other) => other.first === wanted));
    const fold = (title, content) => {
      if (!content.length) return null;
      const details = el("details", { open: opened.has(title), ontoggle: () => (details.open ? opened.add(title) : opened.delete(title)) }, el("summary", {}, title), content);
      return details;
    };
    const charts = (list) => el("div", { class: "charts" }, list.map((other) => chart(doc, other, hidden)));
    refill(node,
      doc.noise.length ? [el("p", { class: "quiet" }, "Mean over images; bands are one standard deviation over images. Methods may be measured on different things: their names say on what."), legend] : null,
      charts(first.length ? first : others),
      fold(`${others.length} more quantities`, first.length && others.length ? [charts(others)] : []),
      doc.figures.map((group) => fold(group.title, [el("div", { class: "figures" }, group.items.map(([run, src]) =>
        el("figure", {}, image(src, `${group.title}, ${doc.runs[run].name}`), el("figcaption", {}, runName(doc.runs[run], run)))))])));
  }

  function update(next) {
    const now = JSON.stringify([next.noise, next.figures, next.runs.map((run) => run.name)]);
    doc = next;
    if (now === signature) return;
    signature = now;
    render();
  }

  return { node, update };
}
