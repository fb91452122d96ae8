// Elements and numbers. Text goes into text nodes only: prompts, ids and reasons are never read as html.

/** Make an element. Properties: `class`, `on<event>`, `vars` (custom properties), otherwise attributes (true, false and null too). */
export function el(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** Make an element of a drawing. */
export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || (value === false && !name.startsWith("aria-"))) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "vars") for (const [key, v] of Object.entries(value)) node.style.setProperty(key, v);
    else node.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

/** A number in at most `digits` significant digits; a dash where there is none. */
export function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-4)) return value.toExponential(digits - 1);
  if (Math.abs(value) >= 10 ** digits) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(digits)));
}

/** A colour of a run: `--run-0` to `--run-9`, again and again. */
export function colour(run) {
  return `var(--run-${run % 10})`;
}

/** The coloured name of a run. */
export function runName(run, index) {
  return el("span", { class: "run", vars: { "--colour": colour(index) } }, run.name);
}

/** A prompt with its pieces that differ marked. */
export function prompt(pieces, kind) {
  return pieces.map(([text, differs]) => (differs ? el("mark", { class: kind }, text) : text));
}

/** An empty place, or what was there, refilled. */
export function refill(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

/** A picture that is fetched when it comes near the window. */
export function image(src, alt, properties = {}) {
  return el("img", { src, alt, loading: "lazy", decoding: "async", draggable: "false", ...properties });
}

/** Options of a choice, with their labels. */
export function choice(label, options, onchange, value) {
  const select = el("select", { "aria-label": label, onchange: () => onchange(select.value) });
  setOptions(select, options, value);
  return select;
}

/** Replace the options of a choice; what was chosen stays if it is still there. */
export function setOptions(select, options, value = select.value) {
  refill(select, options.map(([key, text]) => el("option", { value: key }, text)));
  if (options.some(([key]) => key === value)) select.value = value;
}
