// The page is complete without this script: it sorts the main table and opens the explorers.
// Data comes from JSON in the page and becomes text, never markup.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const status = document.getElementById("sorted");
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim().replace("\u2212", "-").replace(/[<,]/g, "");
    const number = parseFloat(text);
    return Number.isNaN(number) ? text.toLowerCase() : number;
  };
  // Lines without a number stay last in both directions.
  const compare = (a, b, sign) => typeof a !== typeof b ? (typeof a === "number" ? -1 : 1)
    : sign * (a < b ? -1 : a > b ? 1 : 0);
  heads.forEach((head, column) => {
    const title = head.textContent.trim();
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      for (const body of table.tBodies) {
        const rows = [...body.rows].slice(1);
        rows.sort((a, b) => compare(value(a, column), value(b, column), down ? -1 : 1));
        body.append(...rows);
      }
      status.textContent = `Sorted by ${title}, ${down ? "descending" : "ascending"}, in each block.`;
    });
  });
}

const make = (tag, text = "", name = "") => {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  if (name) node.className = name;
  return node;
};
const scrolling = (node, label) => {
  node.tabIndex = 0;
  node.setAttribute("role", "region");
  node.setAttribute("aria-label", label);
  return node;
};
const LONG = 400;
const quote = (label, found) => {
  const box = make("div", "", "quote");
  box.append(make("p", label, "label"));
  if (!found) {
    box.append(make("p", "not stored", "soft"));
    return box;
  }
  const text = make("pre", found.text, "text");
  text.dir = "auto";
  box.append(found.text.length > LONG ? scrolling(text, label) : text);
  if (found.note) box.append(make("p", found.note, "soft small"));
  return box;
};
const grid = (caption, heads, lines, name) => {
  const details = make("details"), table = make("table", "", name);
  const scroll = scrolling(make("div", "", "scroll"), caption);
  const top = table.createTHead().insertRow(), body = table.createTBody();
  const head = (text, scope) => {
    const cell = make("th", text);
    cell.scope = scope;
    return cell;
  };
  top.append(...heads.map(text => head(text, "col")));
  for (const [name, ...values] of lines)
    body.insertRow().append(head(name, "row"), ...values.map(value => make("td", value)));
  scroll.append(table);
  details.append(make("summary", caption), scroll);
  return details;
};

// A list shows a few cards, and the others when asked to.
const FEW = 5;
const explorer = name => {
  const control = part => document.getElementById(`${name}-${part}`);
  const data = JSON.parse(control("data").textContent);
  const show = control("show"), row = control("row"), tag = control("tag");
  const list = control("list"), more = control("more");
  const sides = ["left", "right"].map(side => ({row: control(side), seed: control(`${side}-seed`)}))
    .filter(side => side.row);
  let cards = [], all = false;
  const draw = () => {
    list.replaceChildren(...(all ? cards : cards.slice(0, FEW)));
    more.hidden = cards.length <= FEW;
    more.textContent = all ? `Show the first ${FEW}` : `Show all ${cards.length}`;
    more.setAttribute("aria-expanded", String(all));
  };
  // What one row answered under one seed.
  const response = (entry, side) => {
    const place = data.rows.indexOf(side.row.value);
    const column = data.columns.indexOf(Number(side.seed.value));
    const number = column < 0 ? null : entry.texts[place][column];
    const box = make("div", "", "quote");
    const head = make("h4", `${side.row.value}, seed ${side.seed.value} `);
    box.append(head);
    if (number === null || !side.seed.value) {
      box.append(make("p", "not on this page", "soft"));
      return box;
    }
    const answer = entry.lines[place][column + 1], mark = answer[0];
    const verdict = mark === "\u2713" ? "right" : "wrong";
    head.append(make("span", `${mark} ${verdict}`, `verdict ${verdict}`));
    box.append(quote(`Response (answer ${answer.slice(2)})`, data.texts[number]));
    return box;
  };
  const card = entry => {
    const item = make("li", "", "card"), head = make("h3", entry.id);
    if (entry.tag) head.append(" ", make("span", entry.tag, entry.flagged ? "chip failed" : "chip"));
    if (entry.facts) head.append(" ", make("span", entry.facts, "facts-line"));
    const texts = make("div", "", entry.quotes.length > 1 ? "pair" : "");
    texts.append(...entry.quotes.map(([label, text]) => quote(label, text)));
    const terms = make("dl", "", "plain small");
    for (const [title, text] of entry.terms) terms.append(make("dt", title), make("dd", text));
    item.append(head, texts, terms);
    if (sides.length) {
      const pair = make("div", "", "pair");
      pair.append(...sides.map(side => response(entry, side)));
      item.append(pair);
    }
    const lines = data.rows.map((row, i) => [row, ...entry.lines[i]]);
    item.append(grid(`${data.caption} ${entry.id}`, data.heads, lines, sides.length ? "" : "words"));
    return item;
  };
  const update = () => {
    const own = data.own[show.value], wanted = tag ? tag.value : "";
    row.parentElement.hidden = !own;
    const order = own ? own[row.value] || [] : data.orders[show.value];
    // Over all rows the list goes on with entries of each tag, for the filter alone.
    const first = own ? order.length : data.top;
    const chosen = order.map(place => data.entries[place])
      .filter((entry, place) => wanted ? entry.tag === wanted : place < first);
    cards = chosen.map(card);
    draw();
    const what = show.selectedOptions[0].textContent + (own ? `, ${row.value}` : "");
    const count = chosen.length || "none", of = wanted ? `tagged ${wanted}` : `of ${data.of}`;
    const change = own && data.changes ? ` ${data.changes[row.value]}.` : "";
    control("said").textContent = `${what}: ${count} ${of}.${change}`;
  };
  const fill = side => {
    const old = side.seed.value, seeds = data.seeds[side.row.value].map(String);
    side.seed.replaceChildren(...seeds.map(seed => new Option(seed, seed)));
    if (seeds.includes(old)) side.seed.value = old;
  };
  // A row's own list is about that row against the reference.
  const follow = () => {
    if (sides.length && data.own[show.value]) {
      sides[0].row.value = data.reference;
      sides[1].row.value = row.value;
      sides.forEach(fill);
    }
    update();
  };
  for (const select of [show, row]) select.addEventListener("change", follow);
  if (tag) tag.addEventListener("change", update);
  for (const side of sides) {
    side.row.addEventListener("change", () => { fill(side); update(); });
    side.seed.addEventListener("change", update);
  }
  more.addEventListener("click", () => { all = !all; draw(); });
  sides.forEach(fill);
  update();
  // Without the script a few lists stand in the page, and they are what is printed.
  control("lists").hidden = true;
  control("tool").hidden = false;
};
for (const name of ["examples", "answers"]) if (document.getElementById(`${name}-data`)) explorer(name);
