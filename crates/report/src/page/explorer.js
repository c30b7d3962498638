for (const explorer of document.querySelectorAll(".explorer")) {
  const tables = JSON.parse(explorer.querySelector("script").textContent);
  const selects = [...explorer.querySelectorAll("select")];
  const element = (kind, text) => {
    const made = document.createElement(kind);
    made.textContent = text;
    return made;
  };
  const chosen = (words, count) => selects.slice(0, count).every((s, i) => s.value === words[i]);
  const fill = (from) => {
    for (let at = from; at < selects.length; at++) {
      const words = [...new Set(tables.filter(([w]) => chosen(w, at)).map(([w]) => w[at]))];
      const before = selects[at].value;
      selects[at].replaceChildren(...words.map((word) => new Option(word)));
      if (words.includes(before)) selects[at].value = before;
    }
    const [, notes, rows] = tables.find(([words]) => chosen(words, selects.length));
    explorer.querySelector(".notes").replaceChildren(...notes.map((note) => element("p", note)));
    explorer.querySelector("tbody").replaceChildren(...rows.map(([kind, cells]) => {
      const row = document.createElement("tr");
      row.className = `k${kind}`;
      row.append(...cells.map((cell) => element("td", cell)));
      return row;
    }));
  };
  selects.forEach((select, at) => select.addEventListener("change", () => fill(at + 1)));
  fill(0);
}
