"use strict";
for (const table of document.querySelectorAll("section > .wide > table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.n;
      const order = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x !== undefined && y !== undefined) return x - y;
        if (x !== undefined || y !== undefined) return x === undefined ? 1 : -1;
        return a.cells[column].textContent.localeCompare(b.cells[column].textContent);
      };
      const rows = [...table.tBodies[0].rows].sort(order);
      table.tBodies[0].append(...(up ? rows : rows.reverse()));
    });
  });
}
const save = (name, kind, text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
for (const button of document.querySelectorAll("[data-get]")) {
  const figure = button.closest("figure");
  button.addEventListener("click", () => {
    if (button.dataset.get === "svg") {
      const text = new XMLSerializer().serializeToString(figure.querySelector("svg"));
      save(`${figure.id}.svg`, "image/svg+xml", text);
    } else {
      save(`${figure.id}.csv`, "text/csv", JSON.parse(figure.querySelector("script").textContent));
    }
  });
}
