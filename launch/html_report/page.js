'use strict';
// Shows the values of curves at the pointer, or at the place chosen with the arrow keys.
const number = v => Math.abs(v) >= 1e4 ? Math.round(v).toLocaleString('en')
  : String(Number(v.toPrecision(4)));

function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
}

for (const figure of document.querySelectorAll('figure.chart')) {
  const told = JSON.parse(figure.querySelector('.values').textContent);
  const plot = figure.querySelector('.plot');
  const pictures = [...plot.querySelectorAll('svg')];
  const places = [...new Set(told.series.flatMap(s => s.x))].sort((a, b) => a - b);
  const tip = document.createElement('div');
  tip.className = 'tip';
  tip.hidden = true;
  plot.append(tip);
  let current = 0, at = null;  // which picture, and which of the places

  const placeX = x => told.left
    + (told.right - told.left) * (x - told.x[0]) / (told.x[1] - told.x[0]);
  const placeY = y => {
    const view = told.views[current];
    const of = view.log ? Math.log : v => v;
    const [low, high] = view.y.map(of);
    return told.bottom - (told.bottom - told.top) * (of(y) - low) / (high - low);
  };

  function show(index) {
    at = index;
    const x = places[at], picture = pictures[current];
    const cursor = picture.querySelector('.cursor');
    cursor.setAttribute('x1', placeX(x));
    cursor.setAttribute('x2', placeX(x));
    cursor.style.display = 'block';
    const head = document.createElement('div');
    head.textContent = told.unit + ' ' + number(x);
    const rows = [head];
    picture.querySelectorAll('.dot').forEach((dot, i) => {
      const series = told.series[i];
      dot.style.display = 'none';
      if (!series.x.length) return;
      const near = nearest(series.x, x);
      if (Math.abs(placeX(series.x[near]) - placeX(x)) > 25) return;  // it isn't here
      dot.setAttribute('class', 'dot ' + series.colour);
      dot.setAttribute('cx', placeX(series.x[near]));
      dot.setAttribute('cy', placeY(series.y[near]));
      dot.style.display = 'block';
      const row = document.createElement('div'), line = document.createElement('i');
      line.className = 'swatch ' + series.colour;
      const other = series.x[near] === x ? '' : ' at ' + number(series.x[near]);
      row.append(line, series.name + ' ' + number(series.y[near]) + other);
      rows.push(row);
    });
    tip.replaceChildren(...rows);
    tip.hidden = false;
    const width = plot.clientWidth, scale = width / picture.viewBox.baseVal.width;
    const left = placeX(x) * scale, own = tip.offsetWidth;
    tip.style.left = Math.max(0, left + 12 + own > width ? left - 12 - own : left + 12) + 'px';
    tip.style.top = told.top * scale + 'px';
  }

  function hide() {
    at = null;
    tip.hidden = true;
    for (const part of plot.querySelectorAll('.cursor, .dot')) part.style.display = 'none';
  }

  for (const picture of pictures) {
    const follow = event => {
      const box = picture.getBoundingClientRect();
      const place = (event.clientX - box.left) / box.width * picture.viewBox.baseVal.width;
      const share = (place - told.left) / (told.right - told.left);
      show(nearest(places, told.x[0] + share * (told.x[1] - told.x[0])));
    };
    picture.addEventListener('pointermove', follow);
    picture.addEventListener('pointerdown', follow);
    picture.addEventListener('pointerleave', hide);
    picture.addEventListener('blur', hide);
    picture.addEventListener('keydown', event => {
      const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (event.key === 'Escape') hide();
      if (!by) return;
      event.preventDefault();
      const from = at === null ? (by > 0 ? -1 : places.length) : at;
      show(Math.min(places.length - 1, Math.max(0, from + by)));
    });
  }

  const button = figure.querySelector('button.log');
  if (button) button.addEventListener('click', () => {
    hide();
    current = 1 - current;
    pictures.forEach((picture, i) => picture.classList.toggle('away', i !== current));
    button.setAttribute('aria-pressed', String(current === 1));
  });
}
