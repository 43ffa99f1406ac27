"use strict";
// The viewer. Everything from the run reaches the page as text nodes or numbers, never as markup.
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const BREAK = "\u23CE";
  const END = "\u220E";
  const byId = (id) => document.getElementById(id);
  const state = { order: [], at: 0, redraw: [], told: null };

  function make(name, properties = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key === "class") node.className = value;
      else if (key.startsWith("aria-") || key === "role") node.setAttribute(key, value);
      else node[key] = value;
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  }

  function draw(parent, name, attributes) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    parent.append(node);
    return node;
  }

  // ---- numbers -------------------------------------------------------------------------------

  const minus = (text) => text.replace("-", "\u2212");
  const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)}%`;
  const score = (log) => Math.exp(log).toPrecision(log > Math.log(0.1) ? 3 : 2);
  const nats = (value) => minus(value.toFixed(2));
  const shown = (text) => text.replace(/\n/g, BREAK).replace(/\t/g, "\u21E5").replace(/ /g, "\u2423");

  function lowestBy(count) {
    if (count === 1) return "lowest";
    const tens = count % 100;
    const suffix = tens > 10 && tens < 14 ? "th" : ["th", "st", "nd", "rd"][count % 10] || "th";
    return `${count}${suffix} lowest`;
  }

  // ---- solutions as they are looked at -------------------------------------------------------

  // Tokens without text (part of a character) stand with the next one that has some.
  function groupsOf(solution) {
    if (solution.groups) return solution.groups;
    const groups = [];
    let from = 0;
    let start = 0;
    for (let token = 0; token < solution.lengths.length; token += 1) {
      const length = solution.lengths[token];
      if (length === 0 && token < lastWithText(solution)) continue;
      groups.push({ from, to: token, start, text: solution.text.slice(start, start + length) });
      from = token + 1;
      start += length;
    }
    return (solution.groups = groups);
  }

  function lastWithText(solution) {
    return solution.lengths.findLastIndex((length) => length > 0);
  }

  const logScore = (solution, token) => solution.log_scores[token] / 1000;

  // How many tokens have a lower score, plus one: the most critical token is first.
  function rankOf(solution, token) {
    const own = solution.log_scores[token];
    return 1 + solution.log_scores.filter((other) => other < own).length;
  }

  function numLow(solution) {
    return Math.max(1, Math.floor(DATA.top_share * solution.lengths.length));
  }

  // null where either the scores or the rollouts are missing.
  function agrees(solution) {
    if (solution.critical === null || !solution.log_scores) return null;
    return rankOf(solution, solution.critical) <= numLow(solution);
  }

  function lowest(problem) {
    const wrong = problem.solutions.filter((one) => one.is_correct === false && one.log_scores);
    const rows = wrong.length ? wrong : problem.solutions.filter((one) => one.log_scores);
    let least = Infinity;
    for (const one of rows) for (const value of one.log_scores) least = Math.min(least, value);
    return least / 1000;
  }

  for (const problem of DATA.problems) {
    problem.lowest = lowest(problem);
    problem.agreement = problem.solutions.map(agrees).filter((one) => one !== null);
    problem.searched = [problem.id, problem.question, ...problem.solutions.map((one) => one.text)]
      .join("\n")
      .toLowerCase();
  }

  // ---- which problems ------------------------------------------------------------------------

  const PROBLEMS = {
    all: () => true,
    critical: (problem) => problem.solutions.some((one) => one.critical !== null),
    agrees: (problem) => problem.agreement.includes(true),
    differs: (problem) => problem.agreement.includes(false),
    error: (problem) => problem.solutions.some((one) => one.first_error !== null),
  };
  const SOLUTIONS = {
    both: () => true,
    wrong: (solution) => solution.is_correct === false,
    right: (solution) => solution.is_correct === true,
  };

  function visible(problem) {
    return problem.solutions.filter(SOLUTIONS[byId("which").value]);
  }

  function choose(keep) {
    const wanted = byId("search").value.trim().toLowerCase();
    const filter = PROBLEMS[byId("outcome").value];
    const current = state.order[state.at];
    state.order = DATA.problems.filter(
      (problem) => filter(problem) && visible(problem).length && problem.searched.includes(wanted),
    );
    if (byId("sort").value === "lowest") state.order.sort((a, b) => a.lowest - b.lowest);
    state.at = keep ? Math.max(0, state.order.indexOf(current)) : 0;
    showList();
    show();
  }

  function go(step) {
    const to = state.at + step;
    if (to < 0 || to >= state.order.length) return;
    state.at = to;
    show();
  }

  function showList() {
    const rows = state.order.map((problem, place) => {
      const known = Number.isFinite(problem.lowest);
      const swatch = make("span", { class: "swatch" });
      swatch.style.setProperty("--w", 1 - Math.exp(problem.lowest));
      const marks = problem.agreement.map((one) => (one ? "\u2713 agrees" : "\u2260 differs"));
      const told = known ? [`min s ${score(problem.lowest)}`, ...new Set(marks)] : marks;
      const row = make("span", { class: "row" }, known ? swatch : null, told.join(" \u00B7 "));
      const words = problem.question.slice(0, 90);
      const button = make("button", { type: "button" }, make("span", { class: "words" }, words), row);
      button.addEventListener("click", () => {
        state.at = place;
        show();
      });
      return make("li", {}, button);
    });
    byId("list").replaceChildren(...rows);
  }

  // ---- one problem ---------------------------------------------------------------------------

  function show() {
    const total = state.order.length;
    const problem = state.order[state.at];
    hideTip();
    byId("problem").hidden = !problem;
    byId("empty").hidden = Boolean(problem);
    byId("previous").disabled = state.at === 0;
    byId("next").disabled = state.at >= total - 1;
    byId("place").value = problem ? `${state.at + 1} of ${total}` : "none";
    state.redraw = [];
    if (!problem) return;
    byId("name").textContent = `Problem ${problem.id}`;
    byId("question").textContent = problem.question;
    byId("gold").textContent = problem.gold;
    byId("solutions").replaceChildren(...visible(problem).map(solutionCard));
    for (const one of state.redraw) one();
    const rows = byId("list").children;
    byId("list").querySelector('[aria-current="true"]')?.removeAttribute("aria-current");
    rows[state.at].firstChild.setAttribute("aria-current", "true");
    scrollWithin(byId("list"), rows[state.at]);
    highlight();
    window.history.replaceState(null, "", `#${encodeURIComponent(problem.id)}`);
  }

  // Moves a list alone; scrollIntoView would move the page as well.
  function scrollWithin(box, row) {
    const [outer, inner] = [box.getBoundingClientRect(), row.getBoundingClientRect()];
    if (inner.top < outer.top) box.scrollTop -= outer.top - inner.top;
    if (inner.bottom > outer.bottom) box.scrollTop += inner.bottom - outer.bottom;
  }

  function solutionCard(solution) {
    const kind = { true: "right", false: "wrong", null: "ungraded" }[solution.is_correct];
    const sign = { right: "\u2713 ", wrong: "\u2717 ", ungraded: "" }[kind];
    const title = sign + kind[0].toUpperCase() + kind.slice(1);
    const answer = solution.answer === null ? "no answer" : `answer ${solution.answer}`;
    const cut = solution.is_cut_off ? " \u00B7 cut off" : "";
    const facts = `sample ${solution.sample} \u00B7 ${solution.lengths.length} tokens${cut}`;
    const head = make(
      "header",
      {},
      make("h3", { class: "verdict" }, title),
      make("span", {}, answer),
      make("span", { class: "quiet" }, facts),
    );
    const label = `${title} solution, ${answer}; arrow keys go from token to token`;
    const tokens = make("div", { class: "tokens", role: "group", "aria-label": label });
    fill(tokens, solution);
    return make("article", { class: `solution ${kind}` }, head, findings(solution), tokens);
  }

  function findings(solution) {
    const list = make("ul", { class: "findings" });
    const text = (token) => {
      const group = groupsOf(solution).find((one) => one.to >= token);
      return make("code", {}, shown(group.text) || END);
    };
    const { critical, first_error: error, success } = solution;
    const count = solution.lengths.length;
    const place = (token) => `, token ${token + 1} of ${count}`;
    if (critical !== null) {
      const line = make("li", {}, "\u25BC Critical token ", text(critical), place(critical));
      if (success) {
        const before = critical ? success[critical - 1] : null;
        line.append(before === null ? ": success " : `: success ${percent(before)} \u2192 `);
        line.append(success[critical] === null ? "unknown" : percent(success[critical]));
      }
      list.append(line);
      const agreed = agrees(solution);
      if (agreed !== null) {
        const said = make("span", { class: agreed ? "agrees" : "differs" });
        said.textContent = agreed ? "\u2713 contrast agrees" : "\u2260 contrast differs";
        const rank = lowestBy(rankOf(solution, critical));
        list.append(make("li", {}, said, `: ${rank} s of ${count} tokens`));
      }
    }
    if (error !== null) {
      list.append(make("li", {}, "\u2717 First arithmetic error ", text(error), place(error)));
    }
    return list;
  }

  function fill(box, solution) {
    const groups = groupsOf(solution);
    const within = (group, token) => token !== null && group.from <= token && token <= group.to;
    // Sorted once for all tokens: the score up to which a token counts as low.
    const sorted = solution.log_scores ? [...solution.log_scores].sort((a, b) => a - b) : [];
    const limit = sorted[numLow(solution) - 1];
    let word = null;
    for (const [place, group] of groups.entries()) {
      const node = make("span", { class: "token", tabIndex: place ? -1 : 0 });
      group.node = node;
      if (solution.log_scores) {
        const least = Math.min(...solution.log_scores.slice(group.from, group.to + 1));
        node.style.setProperty("--w", (1 - Math.exp(least / 1000)).toFixed(3));
        if (least <= limit) node.classList.add("low");
      }
      if (within(group, solution.critical)) node.classList.add("critical");
      if (within(group, solution.first_error)) node.classList.add("error");
      append(node, group.text);
      node.addEventListener("pointerenter", () => showTip(node, solution, group));
      node.addEventListener("pointerleave", hideTip);
      node.addEventListener("focus", () => showTip(node, solution, group));
      node.addEventListener("blur", hideTip);
      node.addEventListener("click", () => {
        focusOn(groups, place);
        showTip(node, solution, group);
      });
      node.addEventListener("keydown", (event) => walk(event, groups, place));
      if (!word || /^\s|\n/.test(group.text)) {
        // Lines break before a token's own space, so that no token is torn.
        word = make("span", { class: group.text.includes("\n") ? "" : "word" });
        box.append(word);
      }
      word.append(node);
      if (group.text.includes("\n")) word = null;
    }
    if (solution.success) {
      box.classList.add("curved");
      const picture = draw(box, "svg", { role: "img" });
      picture.setAttribute("aria-label", "Share of rollouts that succeed after each token");
      state.redraw.push(() => curve(picture, box, solution, groups));
    }
  }

  // A token's text; line breaks get a sign before they break.
  function append(node, text) {
    const parts = text.split(/(\n)/);
    if (text === "") node.append(make("span", { class: "glyph" }, END));
    for (const part of parts) {
      if (part === "\n") node.append(make("span", { class: "glyph", "aria-hidden": "true" }, BREAK));
      if (part) node.append(part);
    }
  }

  // ---- the success curve ---------------------------------------------------------------------

  function linesOf(box, solution, groups) {
    const origin = box.getBoundingClientRect();
    const lines = [];
    for (const group of groups) {
      const value = solution.success[group.to];
      for (const rect of group.node.getClientRects()) {
        if (rect.width < 1) continue;
        const left = rect.left - origin.left;
        const bottom = rect.bottom - origin.top;
        let line = lines.at(-1);
        if (!line || Math.abs(line.bottom - bottom) > 8) lines.push((line = { bottom, steps: [] }));
        line.bottom = Math.max(line.bottom, bottom);
        if (line.steps.length) line.steps.at(-1).right = left; // over the gap between tokens
        const middle = left + rect.width / 2;
        line.steps.push({ left, middle, right: left + rect.width, value, group });
      }
    }
    return lines;
  }

  const CURVE = { gap: 4, height: 20 };

  function curve(picture, box, solution, groups) {
    picture.replaceChildren();
    for (const [number, line] of linesOf(box, solution, groups).entries()) {
      const top = line.bottom + CURVE.gap;
      const floor = top + CURVE.height;
      const [left, right] = [line.steps[0].left, line.steps.at(-1).right];
      for (const y of [top, floor]) {
        draw(picture, "line", { class: "grid", x1: left, x2: right, y1: y, y2: y });
      }
      if (number === 0) {
        for (const [y, label] of [[top, "1"], [floor, "0"]]) {
          draw(picture, "text", { class: "axis", x: left - 5, y: y + 3.2 }).textContent = label;
        }
      }
      for (const run of runsOf(line.steps)) {
        const height = (step) => floor - CURVE.height * step.value;
        const path = run.map((step) => `${step.left},${height(step)} ${step.right},${height(step)}`);
        const [first, last] = [run[0].left, run.at(-1).right];
        const area = `${first},${floor} ${path.join(" ")} ${last},${floor}`;
        draw(picture, "polygon", { class: "area", points: area });
        draw(picture, "polyline", { class: "stroke", points: path.join(" ") });
        for (const step of run) {
          const token = solution.critical;
          if (token === null || token < step.group.from || token > step.group.to) continue;
          draw(picture, "circle", { class: "dot", cx: step.middle, cy: height(step), r: 4 });
        }
      }
    }
  }

  // Neighbours whose success is known.
  function runsOf(steps) {
    const runs = [[]];
    for (const step of steps) {
      if (step.value === null) runs.push([]);
      else runs.at(-1).push(step);
    }
    return runs.filter((run) => run.length);
  }

  // ---- one token -----------------------------------------------------------------------------

  function showTip(node, solution, group) {
    const tip = byId("tip");
    const count = solution.lengths.length;
    tip.replaceChildren(make("code", {}, shown(group.text) || `${END} end of text`));
    for (let token = group.from; token <= group.to; token += 1) {
      const table = make("table");
      const row = (name, ...cells) =>
        table.append(
          make("tr", {}, make("th", {}, name), ...cells.map((cell) => make("td", {}, cell))),
        );
      tip.append(make("p", { class: "quiet" }, `token ${token + 1} of ${count}`));
      if (solution.log_scores) {
        const log = logScore(solution, token);
        row("contrastive s", score(log), lowestBy(rankOf(solution, token)));
      }
      for (const name of ["positive", "negative"]) {
        if (!solution[name]) continue;
        const log = solution[name][token] / 100;
        row(`log p ${name}`, `${nats(log)} nats`, `p ${score(log)}`);
      }
      if (solution.success) {
        const rate = solution.success[token];
        row("rollouts right", rate === null ? "not sampled" : percent(rate));
      }
      tip.append(table);
    }
    if (node.classList.contains("critical")) tip.append(make("p", {}, "\u25BC critical by rollouts"));
    if (node.classList.contains("error")) tip.append(make("p", {}, "\u2717 first arithmetic error"));
    tip.hidden = false;
    state.told = node;
    placeTip();
    node.setAttribute("aria-describedby", "tip");
  }

  function placeTip() {
    const tip = byId("tip");
    const rect = state.told.getClientRects()[0];
    const [width, height] = [tip.offsetWidth, tip.offsetHeight];
    const left = Math.min(Math.max(8, rect.left), window.innerWidth - width - 8);
    const below = rect.bottom + 30 + height < window.innerHeight;
    tip.style.left = `${left}px`;
    tip.style.top = `${below ? rect.bottom + 28 : Math.max(8, rect.top - height - 16)}px`;
  }

  function hideTip() {
    byId("tip").hidden = true;
    state.told = null;
  }

  function focusOn(groups, place) {
    for (const group of groups) group.node.tabIndex = -1;
    groups[place].node.tabIndex = 0;
    groups[place].node.focus();
  }

  function walk(event, groups, place) {
    const last = groups.length - 1;
    const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: last }[event.key];
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    focusOn(groups, Math.min(Math.max(0, to), last));
  }

  function toCritical() {
    const node = byId("solutions").querySelector(".token.critical");
    const solution = state.order[state.at] && visible(state.order[state.at]);
    for (const one of node ? solution : []) {
      const place = groupsOf(one).findIndex((group) => group.node === node);
      if (place >= 0) focusOn(one.groups, place);
    }
  }

  // ---- search words in the text --------------------------------------------------------------

  function highlight() {
    if (!window.Highlight) return;
    const wanted = byId("search").value.trim().toLowerCase();
    const ranges = [];
    for (const box of wanted ? document.querySelectorAll("#question, .tokens") : []) {
      const texts = [];
      const walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
      while (walker.nextNode()) {
        const node = walker.currentNode;
        if (!node.parentNode.closest(".glyph, svg")) texts.push(node);
      }
      const whole = texts.map((node) => node.data).join("").toLowerCase();
      for (let at = whole.indexOf(wanted); at >= 0; at = whole.indexOf(wanted, at + 1)) {
        ranges.push(rangeOf(texts, at, at + wanted.length));
      }
    }
    CSS.highlights.set("found", new Highlight(...ranges));
  }

  function rangeOf(texts, from, to) {
    const range = new Range();
    let start = 0;
    for (const node of texts) {
      const end = start + node.length;
      if (from >= start && from < end) range.setStart(node, from - start);
      if (to > start && to <= end) range.setEnd(node, to - start);
      start = end;
    }
    return range;
  }

  // ---- facts, keys, start --------------------------------------------------------------------

  function counts() {
    const options = byId("outcome").options;
    for (const option of options) {
      const count = DATA.problems.filter(PROBLEMS[option.value]).length;
      option.textContent += ` (${count})`;
      option.disabled = count === 0;
    }
    const agreement = DATA.problems.flatMap((problem) => problem.agreement);
    if (!agreement.length) return;
    const agreed = agreement.filter(Boolean).length;
    const share = `${agreed} of ${agreement.length} (${percent(agreed / agreement.length)})`;
    const meaning = `critical token among the lowest ${percent(DATA.top_share)} of s`;
    const name = make("dt", {}, `Contrast agrees with rollouts (${meaning})`);
    byId("facts").append(make("div", {}, name, make("dd", {}, share)));
  }

  const KEYS = {
    n: () => go(1),
    j: () => go(1),
    ArrowRight: () => go(1),
    p: () => go(-1),
    k: () => go(-1),
    ArrowLeft: () => go(-1),
    c: toCritical,
    "/": () => byId("search").focus(),
  };

  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input, select");
    if (event.key === "Escape") {
      hideTip();
      document.activeElement.blur();
    }
    if (typing || event.ctrlKey || event.altKey || event.metaKey || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  });

  byId("previous").addEventListener("click", () => go(-1));
  byId("next").addEventListener("click", () => go(1));
  byId("search").addEventListener("input", () => choose(true));
  for (const id of ["which", "outcome", "sort"]) {
    byId(id).addEventListener("change", () => choose(id !== "sort"));
  }
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = root.dataset.theme || (dark ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });
  window.addEventListener(
    "scroll",
    () => (state.told && state.told === document.activeElement ? placeTip() : hideTip()),
    { passive: true },
  );
  // The list stays below the controls, however many rows they take.
  new ResizeObserver(([{ target }]) => {
    document.documentElement.style.setProperty("--controls", `${target.offsetHeight}px`);
  }).observe(byId("controls"));
  new ResizeObserver(() => state.redraw.forEach((one) => one())).observe(byId("solutions"));

  function fromAddress() {
    const wanted = window.location.hash.slice(1);
    const place = state.order.findIndex((problem) => encodeURIComponent(problem.id) === wanted);
    if (place < 0) return;
    state.at = place;
    show();
  }

  counts();
  const asked = window.location.hash;
  choose(false);
  if (asked) window.history.replaceState(null, "", asked);
  fromAddress();
  window.addEventListener("hashchange", fromAddress);
  document.documentElement.dataset.ready = "true";
})();
