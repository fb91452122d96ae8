// Samples by methods: pictures with a before/after slider, reconstructions and differences; sorted, filtered, lazily filled.

import { choice, el, image, number, prompt, refill, runName, setOptions } from "./dom.js";

const CHUNK = 24; // rows that are built at a time, as the reader comes near the end
const MODES = [["edit", "Edit"], ["slider", "Slider"], ["reconstruction", "Reconstruction"], ["difference", "Difference"]];

/** Pictures of one cell on top of each other: the source before, something else after, and the place of the split. */
export function compare(before, after, alt, split = 0) {
  const stack = el("span", { class: "stack", vars: { "--split": `${split}%` } },
    before ? image(before, "", { class: "before" }) : null,
    after ? image(after, alt, { class: "after" }) : null);
  return stack;
}

/** A slider over a stack of pictures. */
export function slider(stack, label, value = 50) {
  const range = el("input", { type: "range", class: "split", min: 0, max: 100, step: 1, value, "aria-label": label,
    oninput: () => stack.style.setProperty("--split", `${range.value}%`) });
  stack.style.setProperty("--split", `${value}%`);
  return range;
}

/** One picture of the grid, which opens the sample when it is chosen. */
export function cellOf(doc, row, run, mode, metric, open) {
  const cell = row.cells[run];
  const caption = el("figcaption", {}, runName(doc.runs[run], run));
  const figure = (...content) => el("figure", { class: "cell", "data-run": run }, ...content, caption);
  if (!cell) return figure(el("span", { class: "picture empty" }, "not there yet"));
  const name = `${row.id}, ${doc.runs[run].name}`;
  const button = (properties, ...content) => el("button", { type: "button", "aria-label": `open ${name}`, onclick: () => open(row, run), ...properties }, ...content);
  if (cell.failed) return figure(button({ class: "picture failed", title: cell.failed }, el("b", {}, "failed"), el("span", {}, cell.failed)));
  const value = metric >= 0 ? cell.metrics[metric] : null;
  if (value !== null && value !== undefined) caption.append(el("span", { class: "value", title: doc.metrics[metric].label }, number(value)));
  const [thumbnail, full] = cell.edits[0] ?? ["", ""];
  const after = mode === "reconstruction" ? cell.reconstruction : thumbnail || full;
  if (!after) return figure(button({ class: "picture empty" }, mode === "reconstruction" ? "none" : "no picture"));
  const stack = compare(row.picture?.[0], after, mode === "reconstruction" ? `reconstruction of ${name}` : `edit of ${name}`);
  const badge = cell.edits.length > 1 && mode !== "reconstruction" ? el("span", { class: "badge" }, `1 of ${cell.edits.length}`) : null;
  if (mode === "slider") {
    return figure(el("span", { class: "picture" }, stack, slider(stack, `before and after, ${name}`), badge,
      button({ class: "open", title: "open" }, "⤢")));
  }
  const follow = (event) => {
    if (event.pointerType !== "mouse") return;
    const box = stack.getBoundingClientRect();
    stack.style.setProperty("--split", `${Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width))}%`);
  };
  const compares = mode !== "difference" && row.picture;
  return figure(button({
    class: "picture",
    onpointermove: compares ? follow : null,
    onpointerleave: compares ? () => stack.style.setProperty("--split", "0%") : null,
  }, stack, badge));
}

/** How bad a sample is by one figure, more being worse; null where it has none. */
function badness(row, metric, better, runs) {
  const values = runs.map((run) => row.cells[run]?.metrics?.[metric]).filter((value) => typeof value === "number");
  if (!values.length) return null;
  return better === "lower" ? Math.max(...values) : -Math.min(...values);
}

/** The grid with its tools. `open(row, run, rows)` shows one sample; `rows` are those in sight, in their order. */
export function createGrid(open) {
  const state = { mode: "edit", sort: "data", of: "all", worst: true, type: "", status: "", text: "", hidden: new Set() };
  let doc = { rows: [], runs: [], metrics: [] };
  let shown = [];
  let built = 0;
  const cache = new Map();

  const list = el("div", { class: "rows" });
  const end = el("div", { class: "end" });
  const count = el("span", { class: "quiet", role: "status" });
  const change = (key) => (value) => { state[key] = value; render(); };

  const modes = el("div", { class: "segments", role: "group", "aria-label": "what is shown" }, MODES.map(([key, label]) =>
    el("button", { type: "button", "data-mode": key, "aria-pressed": key === state.mode, onclick: () => {
      state.mode = key;
      modes.querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", button.dataset.mode === key));
      render();
    } }, label)));
  const gain = el("label", { class: "gain" }, "×", el("input", { type: "range", min: 1, max: 10, step: 1, value: 2, "aria-label": "gain of differences",
    oninput: (event) => list.style.setProperty("--gain", event.target.value) }));
  const sort = choice("sort by", [], change("sort"));
  const of = choice("of which method", [], change("of"));
  const direction = el("button", { type: "button", class: "tool", onclick: () => {
    state.worst = !state.worst;
    render();
  } });
  const type = choice("edit type", [], change("type"));
  const status = choice("which samples", [["", "all samples"], ["failed", "with failures"], ["notes", "with notes"], ["partial", "not finished everywhere"]], change("status"));
  const text = el("input", { type: "search", placeholder: "search ids and prompts", "aria-label": "search ids and prompts", oninput: () => change("text")(text.value) });
  const size = el("input", { type: "range", min: 80, max: 320, step: 10, value: 180, "aria-label": "size of pictures",
    oninput: () => list.style.setProperty("--cell", `${size.value}px`) });
  const chips = el("div", { class: "chips", role: "group", "aria-label": "methods" });
  const tools = el("div", { class: "tools" }, modes, gain, sort, of, direction, type, status, text, el("label", { class: "size" }, "size", size), chips, count);
  const node = el("div", {}, tools, list, end);

  const runs = () => doc.runs.map((_, index) => index).filter((index) => !state.hidden.has(doc.runs[index].name));

  function select() {
    const wanted = state.text.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const kept = doc.rows.filter((row) => {
      if (state.type && row.type !== state.type) return false;
      const cells = runs().map((run) => row.cells[run]);
      if (state.status === "failed" && !cells.some((cell) => cell?.failed)) return false;
      if (state.status === "notes" && !cells.some((cell) => cell?.notes || cell?.problems)) return false;
      if (state.status === "partial" && cells.every(Boolean)) return false;
      const words = [row.id, row.instruction, row.source, row.target].flat(2).join(" ").toLowerCase();
      return wanted.every((word) => words.includes(word));
    });
    const metric = doc.metrics.findIndex(({ key }) => key === state.sort);
    if (state.sort === "name") kept.sort((a, b) => a.id.localeCompare(b.id, "en", { numeric: true }));
    if (metric >= 0) {
      const chosen = doc.runs.findIndex((run) => run.name === state.of);
      const over = chosen >= 0 ? [chosen] : runs();
      const keys = new Map(kept.map((row) => [row, badness(row, metric, doc.metrics[metric].better, over)]));
      const sign = state.worst ? -1 : 1;
      // Samples without the figure come last, whichever way.
      kept.sort((a, b) => (keys.get(a) === null) - (keys.get(b) === null) || sign * (keys.get(a) - keys.get(b)));
    }
    return { kept, metric };
  }

  function build(row, metric) {
    const key = `${row.id} ${row.version}`;
    const signature = JSON.stringify([row, state.mode, metric, [...state.hidden], doc.runs.map((run) => run.name)]);
    if (cache.get(key)?.signature === signature) return cache.get(key).node;
    const source = row.picture ? el("figure", { class: "cell" },
      el("span", { class: "picture" }, el("span", { class: "stack" }, image(row.picture[0], `source of ${row.id}`, { class: "before" }))),
      el("figcaption", {}, "source")) : null;
    const built = el("article", { class: "row", "aria-label": row.id, vars: { "--ratio": `${row.size[0]} / ${row.size[1]}` } },
      el("header", {}, el("h3", {}, row.id), row.version > 1 ? el("span", { class: "tag bad" }, "another picture or prompt under this id") : null,
        row.type ? el("span", { class: "tag" }, `type ${row.type}`) : null,
        row.instruction ? el("span", { class: "instruction" }, row.instruction) : null),
      el("div", { class: "prompts" },
        row.source.length ? el("p", {}, prompt(row.source, "was")) : null,
        row.target.length ? el("p", {}, prompt(row.target, "is")) : null),
      el("div", { class: "strip" }, source, runs().map((run) => cellOf(doc, row, run, state.mode, metric, (r, k) => open(r, k, shown)))));
    cache.set(key, { signature, node: built });
    return built;
  }

  let metricShown = -1;
  function more(until = built + CHUNK) {
    const next = shown.slice(built, until).map((row) => build(row, metricShown));
    list.append(...next);
    built += next.length;
    end.hidden = built >= shown.length;
  }

  function render() {
    const { kept, metric } = select();
    const keep = Math.max(CHUNK, Math.min(built, kept.length));
    shown = kept;
    // A figure is written below the pictures: the one that is sorted by, or the first.
    metricShown = metric >= 0 ? metric : doc.metrics.length ? 0 : -1;
    list.dataset.mode = state.mode;
    gain.hidden = state.mode !== "difference";
    of.hidden = direction.hidden = metric < 0;
    const better = doc.metrics[metric]?.better;
    refill(direction, better ? (state.worst ? "worst first" : "best first") : (state.worst ? "smallest first" : "largest first"));
    const below = metricShown >= 0 ? `; numbers: ${doc.metrics[metricShown].label}` : "";
    refill(count, `${kept.length} of ${doc.rows.length} samples${below}`);
    refill(list, kept.length ? [] : el("p", { class: "none" }, doc.rows.length ? "No sample fits." : "No sample is finished yet."));
    built = 0;
    more(keep);
  }

  function update(next) {
    doc = next;
    const shared = doc.metrics.map((metric) => [metric.key, `by ${metric.label}`]);
    setOptions(sort, [["data", "in the data's order"], ["name", "by id"], ...shared]);
    setOptions(of, [["all", "of any method"], ...doc.runs.map((run) => [run.name, `of ${run.name}`])]);
    const types = [...new Set(doc.rows.map((row) => row.type))].filter(Boolean).sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    setOptions(type, [["", "all edit types"], ...types.map((name) => [name, `type ${name}`])]);
    type.hidden = types.length < 2;
    chips.hidden = doc.runs.length < 2;
    refill(chips, doc.runs.map((run, index) => {
      const chip = el("button", { type: "button", class: "chip", "aria-pressed": !state.hidden.has(run.name), onclick: () => {
        if (!state.hidden.delete(run.name)) state.hidden.add(run.name);
        chip.setAttribute("aria-pressed", !state.hidden.has(run.name));
        render();
      } }, runName(run, index));
      return chip;
    }));
    render();
  }

  list.addEventListener("keydown", (event) => moveFocus(event, list));
  new IntersectionObserver((seen) => { if (seen.some((entry) => entry.isIntersecting)) more(); }, { rootMargin: "1500px" }).observe(end);
  return { node, update };
}

/** Arrow keys walk from picture to picture. */
function moveFocus(event, list) {
  if (event.target.matches("input") || !event.key.startsWith("Arrow")) return;
  const strip = event.target.closest(".strip");
  if (!strip) return;
  const buttons = (place) => [...place.querySelectorAll("button.picture, button.open")];
  const at = buttons(strip).indexOf(event.target);
  const rows = [...list.querySelectorAll(".strip")];
  const row = rows.indexOf(strip) + ({ ArrowUp: -1, ArrowDown: 1 }[event.key] ?? 0);
  const column = at + ({ ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0);
  const next = rows[row] && buttons(rows[row])[column];
  if (next) {
    event.preventDefault();
    next.focus();
    next.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}
