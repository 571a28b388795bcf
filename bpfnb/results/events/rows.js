// A table that is sorted and searched where it stands: in a notebook that is open, or was saved, or is a page of HTML.
// Without this script its first rows remain, as they are. Text is somebody else's: textContent only.
(function (id, data) {
  const root = document.getElementById(id);
  if (!root || root.dataset.ready) return;
  root.dataset.ready = "yes";
  const { columns, size, total } = data;
  const body = root.querySelector("tbody");
  const heads = [...root.querySelectorAll("th")];
  const model = body.rows[0];
  const cells = heads.map((head) =>
    `padding:1px 16px 1px 0;border:none;white-space:nowrap;text-align:${head.style.textAlign}`,
  );
  let order = [...Array(total).keys()], page = 0, by = -1, down = false, wanted = "";

  const bar = document.createElement("div");
  bar.setAttribute("style", "display:flex;gap:10px;align-items:center;margin-bottom:6px;font-size:12px;flex-wrap:wrap");
  const search = document.createElement("input");
  search.type = "search";
  search.placeholder = "search";
  search.setAttribute("aria-label", "search in all columns");
  search.setAttribute(
    "style",
    "font:inherit;color:inherit;background:transparent;border:1px solid var(--jp-border-color1,#8888);" +
      "border-radius:4px;padding:2px 8px;width:180px",
  );
  const said = document.createElement("span");
  said.setAttribute("role", "status");
  said.style.opacity = 0.75;
  const turn = (text, label, step) => {
    const button = document.createElement("button");
    button.textContent = text;
    button.setAttribute("aria-label", label);
    button.setAttribute(
      "style",
      "font:inherit;color:inherit;background:transparent;border:1px solid var(--jp-border-color1,#8888);" +
        "border-radius:4px;padding:1px 9px;cursor:pointer",
    );
    button.onclick = () => ((page += step), draw());
    return button;
  };
  const back = turn("\u2039", "rows before", -1), on = turn("\u203a", "next rows", 1);
  bar.append(search, back, on, said);
  root.querySelector("table").parentNode.insertBefore(bar, root.querySelector("table"));

  function choose() {
    let rows = [...Array(total).keys()];
    if (wanted) {
      const hits = columns.map(([texts]) => texts.map((text) => text.toLowerCase().includes(wanted)));
      rows = rows.filter((row) => columns.some(([, codes], i) => hits[i][codes[row]]));
    }
    if (by >= 0) {
      // Texts are in the order of their values; what is missing (-1) comes last either way.
      const codes = columns[by][1], sign = down ? -1 : 1;
      const rank = (row) => (codes[row] < 0 ? Infinity : sign * codes[row]);
      rows.sort((a, b) => (rank(a) === rank(b) ? a - b : rank(a) - rank(b)));
    }
    order = rows;
    page = 0;
    draw();
  }
  function draw() {
    const last = Math.max(Math.ceil(order.length / size) - 1, 0);
    page = Math.min(Math.max(page, 0), last);
    const shown = order.slice(page * size, page * size + size);
    body.replaceChildren(
      ...shown.map((row) => {
        const line = document.createElement("tr");
        line.setAttribute("style", model.getAttribute("style"));
        columns.forEach(([texts, codes], i) => {
          const cell = document.createElement("td");
          cell.setAttribute("style", cells[i]);
          const text = codes[row] < 0 ? "-" : texts[codes[row]];
          cell.textContent = text;
          if (text.length > 60) {
            cell.title = text;
            Object.assign(cell.style, { maxWidth: "40em", overflow: "hidden", textOverflow: "ellipsis" });
          }
          line.append(cell);
        });
        return line;
      }),
    );
    back.disabled = page === 0;
    on.disabled = page === last;
    for (const button of [back, on]) button.style.opacity = button.disabled ? 0.35 : 1;
    const n = (number) => number.toLocaleString("en");
    const of = order.length === total ? "" : ` of ${n(total)}`;
    said.textContent = order.length
      ? `${n(page * size + 1)} to ${n(page * size + shown.length)} of ${n(order.length)} rows${wanted ? " found" + of : ""}`
      : `none of ${n(total)} rows`;
    heads.forEach((head, i) => {
      head.setAttribute("aria-sort", i !== by ? "none" : down ? "descending" : "ascending");
      head.querySelector("[data-mark]").textContent = i !== by ? "" : down ? " \u25be" : " \u25b4";
    });
  }
  heads.forEach((head, i) => {
    const mark = document.createElement("span");
    mark.dataset.mark = "";
    head.append(mark);
    head.tabIndex = 0;
    head.style.cursor = "pointer";
    const sort = () => {
      [by, down] = i !== by ? [i, false] : down ? [-1, false] : [i, true];
      choose();
    };
    head.onclick = sort;
    head.onkeydown = (event) => {
      if (event.key === "Enter" || event.key === " ") (event.preventDefault(), event.stopPropagation(), sort());
    };
  });
  search.oninput = () => ((wanted = search.value.toLowerCase()), choose());
  // The notebook has letters of its own, such as x; its Ctrl-S stays.
  search.onkeydown = (event) => event.ctrlKey || event.metaKey || event.stopPropagation();
  draw();
})
