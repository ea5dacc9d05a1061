// Click a heading to sort the lines within each block; the page is complete without this.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const said = document.getElementById("sorted");
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
      said.textContent = `Sorted by ${title}, ${down ? "descending" : "ascending"}, in each block.`;
    });
  });
}
