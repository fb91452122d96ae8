// What stands around the pictures: status, the table of methods, failures, problems, and how to make it all again.

import { el, number, refill, runName } from "./dom.js";

const STATUS = {
  complete: ["Complete", "every sample is finished"],
  running: ["Running", "this page shows what is finished so far"],
  failures: ["Ended with failures", "every sample was tried"],
  stopped: ["Stopped", "the same command goes on with what is left"],
};

/** The worst of the runs' states, as one. */
function overall(runs) {
  const found = runs.map((run) => run.status);
  return ["running", "stopped", "failures", "complete"].find((status) => found.includes(status)) ?? "stopped";
}

const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

/** Title, state and counts. */
export function header(doc) {
  const status = overall(doc.runs);
  const sum = (key) => doc.runs.reduce((total, run) => total + run[key], 0);
  const [total, done, failed] = ["total", "done", "failed"].map(sum);
  const counts = [
    plural(doc.rows.length, "sample"),
    plural(doc.runs.length, "method"),
    `${done.toLocaleString("en")} of ${plural(total, "edit")} done`,
    failed ? `${failed.toLocaleString("en")} failed` : null,
    total - done - failed ? `${(total - done - failed).toLocaleString("en")} left` : null,
  ].filter(Boolean);
  return el("header", { class: "top" },
    el("div", { class: "title" },
      el("h1", {}, doc.title),
      el("span", { class: `status ${status}`, title: STATUS[status][1] }, STATUS[status][0])),
    el("p", { class: "counts" }, counts.join(" · ")),
    bar(done, failed, total),
    el("p", { class: "quiet" }, `Read from the records on ${new Date(doc.time * 1000).toLocaleString()}.`));
}

function bar(done, failed, total) {
  const share = (count) => `${total ? (100 * count) / total : 0}%`;
  return el("div", { class: "bar", role: "img", "aria-label": `${done} of ${total} done, ${failed} failed`,
    vars: { "--done": share(done), "--failed": share(failed) } }, el("i", { class: "done" }), el("i", { class: "failed" }));
}

/** Mean, spread and valid numbers of every figure, by method; the best mean of a column is marked. */
export function methods(doc) {
  const best = doc.metrics.map((metric, column) => {
    const means = doc.runs.map((run) => run.metrics[column]?.mean).filter((mean) => mean !== null && mean !== undefined);
    if (!metric.better || means.length < 2) return null;
    return metric.better === "higher" ? Math.max(...means) : Math.min(...means);
  });
  const heads = [
    ["method", ""], ["done", ""],
    ...doc.metrics.map((metric) => [metric.label, [metric.unit, { higher: "↑", lower: "↓" }[metric.better]].filter(Boolean).join(" ")]),
    ["evaluations", "per image"], ["seconds", "per image"], ["memory", "peak"],
  ];
  const rows = doc.runs.map((run, index) => el("tr", {},
    el("th", { scope: "row" }, runName(run, index), el("small", {}, run.method)),
    el("td", {}, `${run.done}/${run.total}`, run.failed ? el("small", { class: "bad" }, `${run.failed} failed`) : bar(run.done, run.failed, run.total)),
    run.metrics.map((summary, column) => figure(summary, summary !== null && summary.mean === best[column])),
    el("td", {}, number(run.evaluations, 4)),
    el("td", {}, number(run.seconds)),
    el("td", {}, memory(run.memory))));
  const fixed = Object.entries(doc.runs.find((run) => Object.keys(run.fixed).length)?.fixed ?? {});
  const compared = fixed.map(([name, summaries]) => el("tr", { class: "fixed" },
    el("th", { scope: "row" }, name), el("td", {}), summaries.map((summary) => figure(summary, false)), el("td", { colspan: 3 })));
  return [
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "table of methods" },
      el("table", { class: "methods" },
        el("thead", {}, el("tr", {}, heads.map(([label, unit]) => el("th", { scope: "col" }, label, unit ? el("small", {}, unit) : null)))),
        el("tbody", {}, rows),
        compared.length ? el("tbody", {}, compared) : null)),
    el("p", { class: "quiet" }, "Mean over samples ± standard deviation, n valid. An arrow says which direction is better, ",
      "bold which mean is best. Evaluations count every picture that the network was asked about; ",
      "seconds leave a process's first batch out where there are others.",
      compared.length ? " Rows below the line are fixed pictures measured in the same way, for comparison." : ""),
  ];
}

function figure(summary, best) {
  if (!summary || !summary.of) return el("td", { class: "none" }, "–");
  return el("td", { class: best ? "best" : null }, el("b", {}, number(summary.mean)),
    el("small", {}, `${summary.sd === null ? "" : `± ${number(summary.sd, 2)} · `}n ${summary.n}`,
      summary.n < summary.of ? el("span", { class: "bad" }, ` of ${summary.of}`) : null));
}

function memory(bytes) {
  return bytes ? `${number(bytes / 2 ** 30)} GiB` : "–";
}

/** Failed samples, grouped by method and reason. */
export function failures(doc, open) {
  const groups = new Map();
  doc.rows.forEach((row) => row.cells.forEach((cell, run) => {
    if (!cell?.failed) return;
    const key = `${run}\n${cell.failed}`;
    if (!groups.has(key)) groups.set(key, { run, reason: cell.failed, rows: [] });
    groups.get(key).rows.push(row);
  }));
  if (!groups.size) return [];
  const names = (rows, run) => rows.slice(0, 40).map((row) => el("button", { class: "link", onclick: () => open(row, run) }, row.id));
  return [el("div", { class: "scroll" }, el("table", { class: "failures" },
    el("thead", {}, el("tr", {}, ["method", "samples", "reason"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, [...groups.values()].map(({ run, reason, rows }) => el("tr", {},
      el("th", { scope: "row" }, runName(doc.runs[run], run)),
      el("td", { class: "ids" }, names(rows, run), rows.length > 40 ? ` and ${rows.length - 40} more` : null),
      el("td", {}, reason))))))];
}

/** What could not be read. */
export function problems(doc) {
  if (!doc.problems.length) return [];
  const count = doc.problems.length;
  return [el("details", { class: "problems" },
    el("summary", {}, `${plural(count, "problem")} in the records; what can be read is shown`),
    el("ul", {}, doc.problems.map((problem) => el("li", {}, problem))))];
}

/** Command, versions and settings of every run. */
export function reproduce(doc) {
  const line = (name, value) => (value ? [el("dt", {}, name), el("dd", {}, value)] : []);
  return doc.runs.map((run, index) => el("details", { class: "reproduce" },
    el("summary", {}, runName(run, index), " ", el("span", { class: "quiet" }, STATUS[run.status]?.[0] ?? run.status)),
    el("pre", { class: "command" }, `invedit run ${quoted(`${run.folder}/config.yaml`)} --output ${quoted(`${run.folder}-again`)}`),
    el("dl", {},
      line("folder", run.folder),
      line("seed", run.seed === null ? "" : String(run.seed)),
      line("versions", Object.entries(run.environment).filter(([, value]) => value !== null).map(([name, value]) => `${name} ${value}`).join(", ")),
      line("host", run.host && `${run.host}, ${run.processes === 1 ? "1 process" : `${run.processes} processes`}`),
      line("begun", run.started ? new Date(run.started * 1000).toLocaleString() : ""),
      line("written by", run.owner),
      line("samples", run.manifest && `${run.total}, SHA-256 of the manifest ${run.manifest}`)),
    el("pre", {}, run.config)));
}

const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** Show or hide a section with its link, by whether there is something in it. */
export function place(section, link, content) {
  refill(section.querySelector(".content"), content);
  section.hidden = link.hidden = !content.length;
}
