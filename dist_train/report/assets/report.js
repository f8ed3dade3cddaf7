"use strict";
{
  const data = JSON.parse(document.getElementById("data").textContent);
  const axis = document.getElementById("axis"), log = document.getElementById("log");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  let drawn = [];

  const place = (chart) => chart.step.map((step, at) => ({
    step, epoch: step / data.stepsPerEpoch, samples: step * data.samplesPerStep, hours: chart.hours[at],
  })[axis.value]);

  const marks = (chart, xs) => ({ hooks: { draw: [(plot) => {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = colour("--soft");
    ctx.setLineDash([4, 4]);
    ctx.textAlign = "left";
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    for (const mark of data.marks) {
      const at = chart.step.findIndex((step) => step >= mark.step);
      if (at < 0 || xs[at] == null) continue;
      const x = Math.round(plot.valToPos(xs[at], "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
      ctx.fillText(mark.text, x + 4, bbox.top + 12 * devicePixelRatio);
    }
    ctx.restore();
  }] } });

  const draw = () => {
    drawn.forEach((plot) => plot.destroy());
    drawn = [...document.querySelectorAll(".chart")].map((box) => {
      const chart = data.charts[box.dataset.chart], xs = place(chart);
      const positive = chart.curves.every((curve) => curve.y.every((y) => y == null || y > 0));
      const order = xs.map((_, at) => at).filter((at) => xs[at] != null).sort((a, b) => xs[a] - xs[b]);
      const series = chart.curves.map((curve, number) => ({
        label: curve.label, stroke: colour(`--c${curve.colour ?? (chart.curves.length > 1 ? number % 6 : 1)}`),
        width: curve.kind === "raw" ? 1 : 2, spanGaps: true, points: { show: curve.kind === "points" },
        value: (_, value) => (value == null ? "–" : value.toPrecision(4)),
      }));
      const lines = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
      return new uPlot({
        width: box.clientWidth, height: 240, cursor: { sync: { key: "all" } }, legend: { live: true },
        scales: { x: { time: false }, y: { distr: log.checked && positive ? 3 : 1 } },
        axes: [{ ...lines }, { ...lines, size: 64, values: (_, ticks) => ticks.map((y) => +y.toPrecision(4)) }],
        series: [{ label: axis.selectedOptions[0].textContent, value: (_, x) => (x == null ? "–" : +x.toPrecision(6)) }, ...series],
        plugins: [marks(chart, xs)],
      }, [order.map((at) => xs[at]), ...chart.curves.map((curve) => order.map((at) => curve.y[at]))], box);
    });
  };

  if (axis) {
    for (const option of [...axis.options]) {
      const known = { epoch: data.stepsPerEpoch, samples: data.samplesPerStep, hours: data.hours }[option.value];
      if (known === 0) option.remove();
    }
    axis.addEventListener("change", draw);
    log.addEventListener("change", draw);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    let width = 0;
    new ResizeObserver(([entry]) => {
      if (entry.contentRect.width !== width) { width = entry.contentRect.width; draw(); }
    }).observe(document.querySelector("main"));
  }

  const value = (row, column) => row.cells[column].textContent;
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => head.firstChild.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      const rows = [...table.tBodies[0].rows].sort((a, b) =>
        value(a, column).localeCompare(value(b, column), undefined, { numeric: true }) * (down ? -1 : 1));
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      table.tBodies[0].append(...rows);
    }));
  }
}
