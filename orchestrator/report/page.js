"use strict";
(function () {
  const charts = JSON.parse(document.getElementById("data").textContent);

  // Charts -------------------------------------------------------------------------------------
  const config = {
    displaylogo: false,
    responsive: true,
    // Listed explicitly, because Plotly's default has a button that uploads the chart.
    modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "resetScale2d"]],
    showSendToCloud: false,
    plotlyServerURL: "",
    toImageButtonOptions: { scale: 2, filename: "front" },
  };

  function color(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function layoutOf(chart) {
    const axis = { gridcolor: color("--line"), linecolor: color("--line"), automargin: true };
    const given = chart.layout;
    const family = getComputedStyle(document.body).fontFamily;
    return Object.assign({}, given, {
      xaxis: Object.assign({}, given.xaxis, axis, window.innerWidth < 640 ? { tickangle: -45 } : {}),
      yaxis: Object.assign({}, given.yaxis, axis),
      ...(given.yaxis2 ? { yaxis2: Object.assign({}, given.yaxis2, { automargin: true }) } : {}),
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: color("--ink"), size: 13, family },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: color("--quiet"), activecolor: color("--mark") },
      margin: { l: 60, r: 16, t: 36, b: 56 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      hovermode: "closest",
      hoverlabel: {
        align: "left",
        bgcolor: color("--raised"),
        bordercolor: color("--line"),
        font: { color: color("--ink"), size: 12, family },
      },
    });
  }

  function draw(id, chart) {
    const element = document.getElementById(id);
    if (chart.traces.length === 0) {
      element.className = "empty";
      element.textContent = "Nothing to draw yet.";
      return;
    }
    for (const trace of chart.traces) {
      if (trace.meta === "staircase") trace.line.color = color("--quiet");
      if (trace.meta === "front") trace.marker.line = { color: color("--paper"), width: 1.5 };
    }
    Plotly.react(element, chart.traces, layoutOf(chart), config);
  }

  function drawAll() {
    draw("front-chart", charts.front);
    draw("progress-chart", charts.progress);
    if (charts.routes) draw("routes-chart", charts.routes);
  }

  drawAll();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

  // Table --------------------------------------------------------------------------------------
  const body = document.querySelector("#table tbody");
  const headers = Array.from(document.querySelectorAll("#table th"));
  const rows = Array.from(body.rows);

  function keyOf(row, column) {
    const key = row.cells[column].dataset.key;
    if (key === undefined) return null;
    return key !== "" && isFinite(key) ? Number(key) : key;
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === "number") return -1;
    if (typeof b === "number") return 1;
    return a.localeCompare(b, "en", { numeric: true });
  }

  function sortBy(column) {
    const header = headers[column];
    const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    headers.forEach((other) => other.setAttribute("aria-sort", "none"));
    header.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const keyed = rows.map((row) => [keyOf(row, column), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // missing values last
      return sign * compare(a, b);
    });
    body.append(...keyed.map(([, row]) => row));
  }

  document.querySelector("#table thead").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) sortBy(Number(button.dataset.column));
  });

  const filter = document.getElementById("filter");
  const shown = document.getElementById("shown");
  function applyFilter() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const titles = Array.from(row.querySelectorAll("[title]"), (cell) => cell.title);
      const text = [row.textContent, ...titles].join(" ").toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      count += row.hidden ? 0 : 1;
    }
    shown.textContent = count === rows.length ? `${count} shown` : `${count} of ${rows.length} shown`;
  }
  filter.addEventListener("input", applyFilter);
  applyFilter(); // a browser may restore the text of the last visit

  // A click on a point marks its row and scrolls to it.
  const chart = document.getElementById("front-chart");
  if (chart.on) {
    chart.on("plotly_click", (event) => {
      const id = event.points[0].customdata;
      for (const row of rows) {
        row.classList.toggle("chosen", row.dataset.id === id);
        if (row.dataset.id === id) row.scrollIntoView({ behavior: "smooth", block: "nearest" });
      }
    });
  }
})();
