// Both explorers: data comes from JSON in the page and becomes text, never markup.
const make = (tag, text = "", name = "") => {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  if (name) node.className = name;
  return node;
};
const LONG = 400;
const quote = (label, found, absent) => {
  const box = make("div", "", "quote");
  box.append(make("p", label, "label"));
  if (!found) {
    box.append(make("p", absent, "soft"));
    return box;
  }
  const text = make("pre", found.text, "text");
  text.dir = "auto";
  if (found.text.length > LONG) {
    text.tabIndex = 0;
    text.setAttribute("role", "region");
    text.setAttribute("aria-label", label);
  }
  box.append(text);
  if (found.note) box.append(make("p", found.note, "soft small"));
  return box;
};
const grid = (caption, heads, lines, name = "") => {
  const details = make("details");
  const scroll = make("div", "", "scroll");
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", caption);
  const table = make("table", "", name);
  const top = table.createTHead().insertRow();
  for (const head of heads) {
    const cell = make("th", head);
    cell.scope = "col";
    top.append(cell);
  }
  const body = table.createTBody();
  for (const [name, ...values] of lines) {
    const row = body.insertRow();
    const cell = make("th", name);
    cell.scope = "row";
    row.append(cell, ...values.map(value => make("td", value)));
  }
  scroll.append(table);
  details.append(make("summary", caption), scroll);
  return details;
};
const read = name => JSON.parse(document.getElementById(`${name}-data`).textContent);
const fill = (select, values) => {
  const old = select.value;
  select.replaceChildren(...values.map(value => new Option(value, value)));
  if (values.includes(old)) select.value = old;
};
// Without the script a few lists stand in the page, and they are what is printed.
const open = name => {
  document.getElementById(`${name}-lists`).hidden = true;
  document.getElementById(`${name}-tool`).hidden = false;
};
const control = id => document.getElementById(id);
const heading = (entry, rest) => {
  const head = make("h3", entry.id);
  head.append(" ", ...rest);
  return head;
};

// A list shows a few cards, and the others when asked to.
const FEW = 5;
const lister = name => {
  const list = control(`${name}-list`), more = control(`${name}-more`);
  let cards = [], all = false;
  const draw = () => {
    list.replaceChildren(...(all ? cards : cards.slice(0, FEW)));
    more.hidden = cards.length <= FEW;
    more.textContent = all ? `Show the first ${FEW}` : `Show all ${cards.length}`;
    more.setAttribute("aria-expanded", String(all));
  };
  more.addEventListener("click", () => { all = !all; draw(); });
  return found => { cards = found; draw(); };
};

const examples = () => {
  const data = read("examples");
  const show = control("examples-show"), row = control("examples-row");
  const kind = control("examples-class"), list = lister("examples");
  const card = entry => {
    const item = make("li", "", "card");
    const facts = [];
    if (entry.class) facts.push(make("span", entry.class, entry.planted ? "chip failed" : "chip"));
    facts.push(make("span", entry.facts, "facts-line"));
    item.append(heading(entry, facts));
    const texts = make("div", "", "pair");
    texts.append(
      quote("Prompt", entry.prompt, "not stored"), quote("Response", entry.response, "not stored"));
    item.append(texts);
    if (entry.influence) item.append(make("p", entry.influence, "small"));
    const keepers = make("dl", "", "plain small");
    for (const [title, rows] of
      [["Kept by", entry.kept], ["In part", entry.some], ["Pruned by", entry.pruned]])
      if (rows) keepers.append(make("dt", title), make("dd", rows));
    const lines = data.rows.map((name, i) => [name, ...entry.lines[i]]);
    const heads = ["Row", "Kept", "Score", `Place of ${data.of}`, "Further scores"];
    item.append(keepers, grid(`Scores of ${entry.id}, row by row`, heads, lines, "words"));
    return item;
  };
  const update = () => {
    const own = show.value === "best" || show.value === "worst";
    row.parentElement.hidden = !own;
    const order = own ? data[show.value][row.value] || [] : data.orders[show.value];
    const wanted = kind ? kind.value : "";
    // Over all rows the list goes on with examples of each class, for the filter alone.
    const first = own ? order.length : data.top;
    const chosen = order.map(place => data.examples[place])
      .filter((entry, place) => wanted ? entry.class === wanted : place < first);
    list(chosen.map(card));
    const what = show.selectedOptions[0].textContent + (own ? `, ${row.value}` : "");
    control("examples-said").textContent = chosen.length
      ? `${what}: ${chosen.length} ${wanted ? `of class ${wanted}` : `of ${data.of}`}.`
      : `${what}: none of class ${wanted} among them.`;
  };
  for (const select of [show, row, kind]) if (select) select.addEventListener("change", update);
  update();
  open("examples");
};

const answers = () => {
  const data = read("answers");
  const names = data.rows.map(row => row.name);
  const show = control("answers-show"), row = control("answers-row"), task = control("answers-task");
  const list = lister("answers");
  const sides = ["left", "right"].map(side =>
    ({row: control(`answers-${side}`), seed: control(`answers-${side}-seed`)}));
  const mark = cell => cell[1] ? "\u2713 right" : "\u2717 wrong";
  const told = cell => cell[2] === null ? "no answer found" : `answer ${cell[2]}`;
  const side = (entry, name, seed) => {
    const place = names.indexOf(name);
    const cell = entry.cells[place][data.rows[place].seeds.indexOf(seed)];
    const box = make("div", "", "quote");
    const head = make("h4", `${name}, seed ${seed} `);
    box.append(head);
    if (!cell) {
      box.append(make("p", "not on this page", "soft"));
      return box;
    }
    head.append(make("span", mark(cell), cell[1] ? "verdict right" : "verdict wrong"));
    const cut = cell[3] ? ", cut at the token limit" : "";
    box.append(quote(`Response (${told(cell)}${cut})`, data.texts[cell[0]], "not stored"));
    return box;
  };
  const card = entry => {
    const item = make("li", "", "card");
    item.append(heading(entry, [make("span", entry.task, "chip")]));
    item.append(quote("Question", entry.question, "not stored"));
    const right = make("p", "Right answer: ", "small");
    right.append(make("b", entry.answer ?? "not stored"));
    const pair = make("div", "", "pair");
    for (const one of sides) pair.append(side(entry, one.row.value, Number(one.seed.value)));
    const seeds = data.rows.map(other => other.seeds).reduce((a, b) => b.length > a.length ? b : a);
    const heads = ["Row", "Right", ...seeds.map(seed => `Seed ${seed}`)];
    const lines = data.rows.map((other, i) => [other.name, entry.counts[i], ...seeds.map(seed => {
      const cell = entry.cells[i][other.seeds.indexOf(seed)];
      return cell ? `${cell[1] ? "\u2713" : "\u2717"} ${cell[2] ?? "none"}` : "\u2013";
    })]);
    item.append(right, pair, grid(`Answers of every row to ${entry.id}`, heads, lines));
    return item;
  };
  const seeds = one => fill(one.seed, data.rows[names.indexOf(one.row.value)].seeds.map(String));
  const update = () => {
    const own = show.value === "won" || show.value === "lost";
    row.parentElement.hidden = !own;
    const order = own ? data[show.value][row.value] || [] : data.orders[show.value] || [];
    const chosen = order.map(place => data.items[place])
      .filter(entry => !task.value || entry.task === task.value);
    list(chosen.map(card));
    let said = `${show.selectedOptions[0].textContent}: ${chosen.length} of ${data.of} items.`;
    if (own) {
      const changed = data.rows[names.indexOf(row.value)].changed;
      said = `${row.value} against ${data.reference}: ${changed}. Shown: ${chosen.length}.`;
    }
    control("answers-said").textContent = said;
  };
  const follow = () => {
    if (show.value === "won" || show.value === "lost") {
      sides[0].row.value = data.reference;
      sides[1].row.value = row.value;
      sides.forEach(seeds);
    }
    update();
  };
  show.addEventListener("change", follow);
  row.addEventListener("change", follow);
  task.addEventListener("change", update);
  for (const one of sides) {
    one.row.addEventListener("change", () => { seeds(one); update(); });
    one.seed.addEventListener("change", update);
  }
  sides.forEach(seeds);
  update();
  open("answers");
};

if (document.getElementById("examples-data")) examples();
if (document.getElementById("answers-data")) answers();
