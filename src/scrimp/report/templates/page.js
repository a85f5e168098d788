"use strict";
// Shows the values under the pointer in each chart's legend. Without it the legend keeps the last values.
const format = (value) =>
  Math.abs(value) >= 9999.5 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));

const nearest = (points, x) => {
  let low = 0;
  let high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - points[low - 1][0] < points[low][0] - x ? points[low - 1] : points[low];
};

for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const chart = JSON.parse(figure.dataset.chart);
  const plot = figure.querySelector(".plot");
  const cursor = figure.querySelector(".cursor");
  const axis = figure.querySelector(".axis");
  const values = [...figure.querySelectorAll(".legend b")];
  const atRest = values.map((element) => element.textContent);

  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const part = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    const picked = chart.series.map((points) => nearest(points, chart.low + part * (chart.high - chart.low)));
    const x = picked.reduce((best, point) => (point && (!best || point[0] > best[0]) ? point : best), null)[0];
    picked.forEach((point, index) => {
      if (point) values[index].textContent = format(point[1]);
    });
    const place = `${(100 * (x - chart.low)) / (chart.high - chart.low)}%`;
    cursor.setAttribute("x1", place);
    cursor.setAttribute("x2", place);
    axis.textContent = `${chart.when} ${format(x)}`;
    figure.classList.add("pointed");
  });
  plot.addEventListener("pointerleave", () => {
    figure.classList.remove("pointed");
    axis.textContent = chart.when;
    values.forEach((element, index) => (element.textContent = atRest[index]));
  });
}
