// What makes a page live: charts, tables of maps, and the explorer of contributions. Texts enter the page as text nodes
// and attributes only, never as HTML.
"use strict";
(() => {
const content = JSON.parse(document.getElementById("content").textContent);
const decoded = new Map();

// ---------------------------------------------------------------- arrays

async function bytes(element) {
  const packed = Uint8Array.from(atob(element.textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

// A typed array by its JSON value {chunk, type, shape}, decoded once.
function array(ref) {
  if (!decoded.has(ref.chunk)) {
    const kind = globalThis[ref.type];
    decoded.set(ref.chunk, bytes(document.getElementById(`chunk-${ref.chunk}`)).then((buffer) => new kind(buffer)));
  }
  return decoded.get(ref.chunk);
}

let plotting;
function plotLibrary() {
  plotting ??= (async () => {
    for (const id of ["d3", "plot"]) {
      const script = document.createElement("script");
      script.textContent = new TextDecoder().decode(await bytes(document.getElementById(id)));
      document.head.append(script);
    }
    return globalThis.Plot;
  })();
  return plotting;
}

// ---------------------------------------------------------------- small things

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
const number = (value, digits = 4) => (Math.abs(value) < 0.5 * 10 ** -digits ? 0 : value).toFixed(digits).replace("-", "−");
const signed = (value, digits = 4) => (value >= 0.5 * 10 ** -digits ? "+" : "") + number(value, digits);
const short = (value) => (value === 0 ? "0" : Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5 ? String(+value.toPrecision(3)) : value.toExponential(1)).replaceAll("-", "−");
const percent = (share) => (Number.isFinite(share) ? `${number(100 * share, Math.abs(share) < 0.1 ? 2 : 1)} %` : "–");
const words = (name) => ({ decomposition: "exact contributions", decompose: "exact contributions" })[name] ?? name.replace(/^lrp/, "LRP").replaceAll("_", " ");
const sum = (values) => values.reduce((total, value) => total + value, 0);

// Round the parts of a sum so that the written numbers add up to the written total; the parts must sum to it but for
// rounding, or be shown with what is left.
function written(parts, total, digits = 4) {
  if (![total, ...parts].every(Number.isFinite)) return { total: number(total, digits), parts };
  const unit = 10 ** digits, target = Math.round(total * unit);
  const rounded = parts.map((part) => Math.round(part * unit));
  for (let missing = target - sum(rounded); missing !== 0;) {
    const step = Math.sign(missing) * Math.max(1, Math.floor(Math.abs(missing) / parts.length));
    const off = parts.map((part, i) => Math.sign(missing) * (part * unit - rounded[i]));
    rounded[off.indexOf(Math.max(...off))] += step;
    missing -= step;
  }
  return { total: number(target / unit, digits), parts: rounded.map((part) => part / unit) };
}

function save(name, blob) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 5000);
}
const asFile = (name) => name.normalize("NFKD").replace(/[^A-Za-z0-9.]+/g, "-").replace(/^-|-$/g, "").slice(0, 80) || "figure";

// Buttons that save a figure: its data, and its drawing as SVG text and as PNG.
function saves(name, data, svg) {
  const stem = () => asFile(typeof name === "function" ? name() : name);
  const json = async () => save(`${stem()}.json`, new Blob([JSON.stringify(await data(), null, 1)], { type: "application/json" }));
  const vector = async () => save(`${stem()}.svg`, new Blob([await svg()], { type: "image/svg+xml" }));
  const raster = async () => {
    const picture = new Image();
    picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(await svg())}`;
    await picture.decode();
    const canvas = make("canvas", { width: 2 * picture.width, height: 2 * picture.height });
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => save(`${stem()}.png`, blob));
  };
  return make("div", { class: "saves" }, "Save as",
    make("button", { type: "button", onclick: json }, "JSON"),
    make("button", { type: "button", onclick: vector }, "SVG"),
    make("button", { type: "button", onclick: raster }, "PNG"));
}

const escaped = (text) => text.replace(/[&<>"]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[sign]);
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// ---------------------------------------------------------------- colors of contributions

let palette = "orange";
const redraws = new Set();
const redrawAll = () => redraws.forEach((redraw) => redraw());

function ramp() {
  if (palette === "red") return { zero: [255, 255, 255], against: [0, 0, 255], for: [255, 0, 0] };
  const read = (name) => style(`--${name}`).split(",").map(Number);
  return { zero: read("zero"), against: read("against"), for: read("for") };
}

// Paint values over [−limit, limit] into a canvas of one pixel a cell.
function paint(values, height, width, limit, kept = null) {
  const canvas = make("canvas", { width, height }), context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height), colors = ramp();
  for (let i = 0; i < values.length; i++) {
    const t = Math.max(-1, Math.min(1, values[i] / limit)), end = t < 0 ? colors.against : colors.for;
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = colors.zero[c] + Math.abs(t) * (end[c] - colors.zero[c]);
    pixels.data[4 * i + 3] = kept === null || kept[i] ? 255 : 40;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function legend(limit) {
  const bar = make("span", { class: "ramp", role: "img", "aria-label": "colors from against the class over zero to for it" });
  const fill = () => {
    const colors = ramp(), css = (c) => `rgb(${c.join(",")})`;
    bar.style.background = `linear-gradient(90deg, ${css(colors.against)}, ${css(colors.zero)}, ${css(colors.for)})`;
  };
  fill();
  return { element: make("div", { class: "legend" }, `against, −${short(limit)}`, bar, `+${short(limit)}, for`), fill };
}

// ---------------------------------------------------------------- charts

const charts = {
  lines: (Plot, data, base) => {
    const points = data.series.flatMap((one) => one.y.map((y, i) => ({ x: one.x[i], y, name: one.name })));
    return Plot.plot({
      ...base, height: base.height ?? 300,
      x: { label: data.x, grid: false, ...(data.ticks ? { ticks: data.ticks, tickFormat: "d" } : {}) },
      y: { label: data.y, grid: true, type: data.log ? "log" : "linear", ...(data.log ? { ticks: 4, tickFormat: "~g" } : { nice: true }), ...(data.range ? { domain: data.range } : {}) },
      color: { domain: data.series.map((one) => one.name), range: data.series.map(strokeOf) },
      marks: [
        ...(data.rules ?? []).map((rule) => Plot.ruleY([rule.at], { strokeDasharray: "4 3", stroke: "currentColor", strokeOpacity: 0.7 })),
        Plot.line(points, { x: "x", y: "y", z: "name", stroke: "name", strokeWidth: 2, strokeDasharray: null }),
        ...(points.length <= 60 * data.series.length ? [Plot.dot(points, { x: "x", y: "y", fill: "name", r: 2.5, symbol: "name" })] : []),
        ...(data.rules ?? []).map((rule) => Plot.text([rule], { x: Math.max(...points.map((p) => p.x)), y: "at", text: "text", textAnchor: "end", dy: -10, fill: "currentColor", stroke: style("--card"), strokeWidth: 4 })), // readable where a line crosses it
        Plot.tip(points, Plot.pointer({ x: "x", y: "y", title: (p) => `${p.name}\n${data.x}: ${short(p.x)}\n${data.y}: ${short(p.y)}` })),
      ],
    });
  },
  boxes: (Plot, data, base) => Plot.plot({
    ...base, height: 34 * data.rows.length + 70, marginLeft: Math.min(170, base.width / 2.6), marginTop: 24,
    x: { label: data.x, domain: [-0.02, 1.04] }, y: { label: null, domain: data.rows.map((row) => row.name) },
    marks: [
      ...(data.rules ?? []).flatMap((rule) => [
        Plot.ruleX([rule.at], { strokeDasharray: "4 3", stroke: "currentColor", strokeOpacity: 0.7 }),
        Plot.text([rule], { x: "at", text: "text", frameAnchor: "top", dy: -14 }),
      ]),
      Plot.ruleY(data.rows, { x1: "low", x2: "high", y: "name" }),
      Plot.barX(data.rows, { x1: "first", x2: "third", y: "name", fill: "color", insetTop: 4, insetBottom: 4, stroke: "currentColor" }),
      Plot.tickX(data.rows, { x: "median", y: "name", strokeWidth: 3, stroke: style("--card"), insetTop: 4, insetBottom: 4 }),
      Plot.tickX(data.rows, { x: "median", y: "name", strokeWidth: 1.5, stroke: style("--text"), insetTop: 4, insetBottom: 4 }),
      Plot.dot(data.rows, { x: "mean", y: "name", symbol: "diamond", fill: style("--card"), stroke: style("--text") }),
      Plot.tip(data.rows, Plot.pointerY({ x: "median", y: "name", title: (row) => `${row.name}\nmedian ${number(row.median, 3)}, quartiles ${number(row.first, 3)} to ${number(row.third, 3)}\nmean ${number(row.mean, 3)}, ${row.count} scores` })),
    ],
  }),
  histogram: (Plot, data, base) => {
    const bars = data.counts.map((count, i) => ({ count, from: data.edges[i], to: data.edges[i + 1] }));
    return Plot.plot({
      ...base, height: 240,
      x: { label: data.x, type: "log", tickFormat: (x) => short(x), ticks: Math.min(6, Math.max(2, base.width / 110)) }, y: { label: data.y, grid: true },
      marks: [
        Plot.rectY(bars, { x1: "from", x2: "to", y: "count", fill: data.color, stroke: style("--card"), tip: true, title: (b) => `${short(b.from)} to ${short(b.to)}: ${b.count}` }),
        Plot.ruleY([0]),
        ...(data.rules ?? []).flatMap((rule) => [
          Plot.ruleX([rule.at], { strokeDasharray: "4 3", stroke: "currentColor" }),
          Plot.text([rule], { x: "at", text: "text", frameAnchor: "top", dy: -12 }),
        ]),
      ],
    });
  },
  bars: (Plot, data, base) => Plot.plot({
    ...base, height: base.height ?? 240,
    x: { label: data.x, type: "band", tickFormat: (x) => (data.values.length <= 26 || x % Math.ceil(data.values.length / 16) === 0 ? String(x) : "") },
    y: { label: data.y, grid: true, type: data.log ? "log" : "linear", ...(data.log ? { ticks: 4, tickFormat: "~g" } : {}) },
    marks: [
      Plot.rectY(data.values.map((y, i) => ({ x: data.names?.[i] ?? i, y, on: data.on?.[i] ?? true, i })), {
        x: "x", y1: data.log ? Math.min(...data.values.filter((v) => v > 0)) / 2 : 0, y2: (d) => (data.log ? Math.max(d.y, Math.min(...data.values.filter((v) => v > 0)) / 2) : d.y),
        fill: (d) => (d.on ? (data.color ?? "#3a78c3") : "transparent"), stroke: "currentColor", strokeOpacity: 0.7,
        tip: true, title: (d) => `${data.x} ${d.x}: ${short(d.y)}${data.on ? (d.on ? `\n${data.marked}` : `\n${data.unmarked}`) : ""}`,
      }),
      ...(data.log ? [] : [Plot.ruleY([0])]),
    ],
  }),
  matrix: (Plot, data, base) => {
    const cells = data.values.flatMap((row, i) => row.map((value, j) => ({ value, row: data.rows[i], column: data.columns[j] })));
    const side = Math.max(10, Math.min(34, (base.width - 90) / data.columns.length));
    return Plot.plot({
      ...base, width: Math.min(base.width, side * data.columns.length + 90), height: side * data.rows.length + 80, marginLeft: 80, marginBottom: 60, padding: 0,
      x: { domain: data.columns, label: data.x, tickRotate: -45, tickFormat: (d) => (data.columns.length > 30 ? "" : d) },
      y: { domain: data.rows, label: data.y, tickFormat: (d) => (data.rows.length > 30 ? "" : d) },
      color: data.diverging ? { type: "diverging", scheme: "RdBu", reverse: true } : { scheme: "Viridis" },
      marks: [Plot.cell(cells, { x: "column", y: "row", fill: "value", tip: true, title: (c) => `${data.y ?? ""} ${c.row}, ${data.x ?? ""} ${c.column}: ${c.value === null ? "–" : short(c.value)}` })],
    });
  },
};
const dark = () => style("color-scheme") === "dark" || getComputedStyle(document.documentElement).colorScheme === "dark";
// Black and white lines would not be seen on a ground of their own color.
const strokeOf = (one) => ({ "#1a1a1a": dark() ? "#f2f2f2" : "#1a1a1a", "#ffffff": dark() ? "#ffffff" : "#6f7780", "#d2b48c": dark() ? "#d2b48c" : "#9a7442", "#ffd23f": dark() ? "#ffd23f" : "#b28600" })[one.color] ?? one.color;

// Put a chart into its place, drawn anew when its width or the theme changes.
function chart(place, data, { name, alt, buttons = true } = {}) {
  const drawing = make("div", { class: "chart", role: "img", "aria-label": alt ?? name });
  const key = data.series && data.series.length > 1 ? make("ul", { class: "key" }) : null;
  place.append(...(key ? [key] : []), drawing);
  let width = 0, current = data;
  const draw = async () => {
    const Plot = await plotLibrary();
    if (!drawing.clientWidth) return;
    width = drawing.clientWidth;
    const base = { width: Math.min(width, current.width ?? 760), style: { background: "transparent", fontSize: "12px", fontFamily: "inherit", overflow: "visible" }, marginBottom: 40, marginLeft: 52, ...(current.height ? { height: current.height } : {}) };
    const svg = charts[current.kind](Plot, current, base);
    svg.setAttribute("aria-hidden", "true"); // the image around it says what it shows
    drawing.replaceChildren(svg);
    key?.replaceChildren(...current.series.map((one) => {
      const swatch = make("i");
      swatch.style.background = strokeOf(one);
      return make("li", {}, swatch, one.label ?? one.name);
    }));
  };
  new ResizeObserver(() => { if (Math.abs(drawing.clientWidth - width) > 1) draw(); }).observe(drawing);
  redraws.add(draw);
  if (buttons) place.append(saves(name, () => current, async () => { await draw(); return svgText(drawing.querySelector("svg")); }));
  return { update: (next) => { current = next; return draw(); }, draw };
}

function svgText(svg) {
  const copy = svg.cloneNode(true);
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.removeAttribute("aria-hidden");
  copy.setAttribute("font-family", "sans-serif");
  copy.style.color = style("--text");
  copy.style.background = style("--card");
  copy.querySelectorAll("[aria-label=tip]").forEach((tip) => tip.remove());
  return new XMLSerializer().serializeToString(copy);
}

// ---------------------------------------------------------------- tables of maps

async function mapTable(place, data) {
  const pairs = data.rows.every((row) => row.cells.length <= 2); // lie side by side
  const table = make("div", { class: pairs ? "table-of-maps pairs" : "table-of-maps" });
  table.style.setProperty("--cell", `${data.cell}px`);
  place.append(table);
  const drawn = [];
  const values = data.values ? await array(data.values) : null, scale = data.values ? await array(data.scale) : null;
  const [, height, width] = data.values ? data.values.shape : [0, 0, 0];
  const maps = Array.from({ length: data.values ? data.values.shape[0] : 0 }, (_, k) => Float64Array.from(values.subarray(k * height * width, (k + 1) * height * width), (q) => q * scale[k]));
  const largest = maps.map((map) => map.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1);
  const most = Math.max(...largest, 1e-30);
  for (const row of data.rows) {
    const line = make("div", { class: "line" });
    const together = Math.max(...row.cells.filter((cell) => "map" in cell).map((cell) => largest[cell.map]), 1e-30);
    for (const cell of row.cells) {
      const box = make("div", { class: "cell" }, make("span", {}, cell.title));
      if ("map" in cell) {
        const canvas = make("canvas", { role: "img", "aria-label": cell.alt });
        const limit = { row: together, map: largest[cell.map], all: most }[data.shared];
        const draw = () => {
          const zoom = Math.max(1, Math.ceil(240 / width));
          canvas.width = zoom * width;
          canvas.height = zoom * height;
          const context = canvas.getContext("2d");
          context.imageSmoothingEnabled = false;
          context.drawImage(paint(maps[cell.map], height, width, limit), 0, 0, canvas.width, canvas.height);
          outline(context, cell.outline, canvas.width, canvas.height);
        };
        draw();
        drawn.push(draw);
        redraws.add(draw);
        box.append(canvas);
      } else {
        box.append(make("img", { src: cell.source, alt: cell.alt, loading: "lazy" }));
      }
      line.append(box);
    }
    table.append(line);
  }
  const svg = async () => {
    const columns = Math.max(...data.rows.map((row) => row.cells.length)), side = 150, high = side * (data.ratio ?? 1) + 44;
    const parts = data.rows.flatMap((row, i) => row.cells.map((cell, j) => {
      const element = table.children[i].children[j].lastChild, source = element.tagName === "CANVAS" ? element.toDataURL() : element.src;
      const [first, second = ""] = cell.title.split("\n");
      return `<g transform="translate(${j * (side + 8)},${i * high})"><text y="13">${escaped(first)}</text><text y="28">${escaped(second)}</text><image y="34" width="${side}" height="${high - 44}" preserveAspectRatio="none" style="image-rendering:pixelated" href="${source}"/></g>`;
    }));
    return drawing(columns * (side + 8), data.rows.length * high, parts.join(""));
  };
  place.append(saves(data.name, async () => ({ rows: data.rows.map((row) => row.cells.map((cell) => ({ title: cell.title, ...("map" in cell ? { height, width, contributions: Array.from(maps[cell.map]) } : {}) }))) }), svg));
}

function outline(context, box, width, height) {
  if (!box) return;
  const [top, left, bottom, right] = box;
  for (const [color, line] of [["#ffffff", 6], ["#0a7a2f", 3]]) {
    context.strokeStyle = color;
    context.lineWidth = line;
    context.strokeRect(left * width + 2, top * height + 2, (right - left) * width - 4, (bottom - top) * height - 4);
  }
}

const drawing = (width, height, inside) =>
  `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="11" fill="${style("--text")}"><rect width="100%" height="100%" fill="${style("--card")}"/>${inside}</svg>`;

// ---------------------------------------------------------------- how alike two maps are, as in metrics/similarity.py

function ranks(values) {
  const order = Array.from(values.keys()).sort((a, b) => values[a] - values[b]), found = new Float64Array(values.length);
  for (let i = 0; i < order.length;) {
    let j = i;
    while (j < order.length && values[order[j]] === values[order[i]]) j++;
    for (let k = i; k < j; k++) found[order[k]] = (i + j + 1) / 2;
    i = j;
  }
  return found;
}
function cosine(a, b) {
  let both = 0, one = 0, other = 0;
  for (let i = 0; i < a.length; i++) { both += a[i] * b[i]; one += a[i] * a[i]; other += b[i] * b[i]; }
  return both / Math.sqrt(one * other);
}
const centered = (values) => { const mean = sum(values) / values.length; return values.map((value) => value - mean); };
function distances(a, b) {
  const mass = (values) => values.reduce((total, value) => total + Math.abs(value), 0), massA = mass(a), massB = mass(b);
  let known = 0, agree = 0, apart = 0;
  for (let i = 0; i < a.length; i++) {
    if (b[i] !== 0) { known++; if (Math.sign(a[i]) === Math.sign(b[i])) agree++; }
    apart += Math.abs(a[i] / massA - b[i] / massB);
  }
  return { cosine: cosine(a, b), "rank correlation": cosine(centered(ranks(a)), centered(ranks(b))), "sign agreement": agree / known, "misplaced mass": apart / 2 };
}

// ---------------------------------------------------------------- the explorer

async function explore(place, data) {
  const count = data.images.length, classes = data.classes;
  const [logits, probabilities] = await Promise.all([array(data.logits), data.probabilities ? array(data.probabilities) : null]);
  const logit = (i, k) => logits[i * classes.length + k];
  const known = Array.from({ length: count }, (_, i) => classes.map((_, k) => k).filter((k) => Number.isFinite(logit(i, k))).sort((a, b) => logit(i, b) - logit(i, a)));
  const probability = (i, k) => (probabilities ? probabilities[i * classes.length + k] : NaN);
  const read = (i) => known[i][0], label = (i) => data.images[i].label;
  const misread = (i) => data.complete && label(i) >= 0 && label(i) !== read(i);
  const sure = (i) => (Number.isFinite(probability(i, read(i))) ? ` with p ${number(probability(i, read(i)), 2)}` : "");
  const said = (i) => {
    const { name } = data.images[i], what = label(i) >= 0 ? `a ${classes[label(i)]}` : name || `image ${i + 1}`;
    return data.complete ? `${what}, read as ${classes[read(i)]}${sure(i)}` : what;
  };
  const order = Array.from({ length: count }, (_, i) => i).sort((a, b) => misread(b) - misread(a) || a - b);
  const methods = [...new Set(data.sets.map((set) => set.method))], exact = methods[0];
  const layersOf = (method) => data.sets.filter((set) => set.method === method).map((set) => set.layer);
  const state = { image: order[0], target: read(order[0]), against: -1, method: exact, other: "", layer: data.sets[0].layer, kept: Infinity, shared: true };
  let maps = [], cursor = null, region = null, brushing = false, curve = null;

  // -- values of a map: of the class, less those of the other
  async function one(set, i, k) {
    const [targets, values, scale, total, constants] = await Promise.all([array(set.targets), array(set.values), array(set.scale), array(set.total), set.constants ? array(set.constants) : null]);
    const [, T, height, width] = set.values.shape, row = targets.subarray(i * T, (i + 1) * T).indexOf(k);
    if (row < 0) return null;
    const at = i * T + row, cells = height * width;
    const map = Float64Array.from(values.subarray(at * cells, (at + 1) * cells), (q) => q * scale[at]);
    let largest = 0;
    for (let c = 1; c < cells; c++) if (Math.abs(map[c]) > Math.abs(map[largest])) largest = c;
    map[largest] += total[at] - sum(map); // less than half a step
    return { values: map, constant: constants ? constants[at] : null, height, width };
  }
  async function difference(set, i, k, against) {
    const [own, other] = await Promise.all([one(set, i, k), against < 0 ? null : one(set, i, against)]);
    if (!own || (against >= 0 && !other)) return null;
    if (other) {
      own.values = own.values.map((value, c) => value - other.values[c]);
      if (own.constant !== null) own.constant -= other.constant;
    }
    const sorted = Array.from(own.values.keys()).sort((a, b) => Math.abs(own.values[b]) - Math.abs(own.values[a]));
    own.rank = new Uint32Array(sorted.length);
    own.running = new Float64Array(sorted.length + 1);
    sorted.forEach((c, r) => { own.rank[c] = r + 1; own.running[r + 1] = own.running[r] + own.values[c]; });
    own.total = own.running[sorted.length];
    own.sorted = sorted;
    own.limit = Math.abs(own.values[sorted[Math.floor(sorted.length / 500)]]) || Math.abs(own.values[sorted[0]]) || 1;
    return { ...own, set };
  }
  const explainedLogit = () => logit(state.image, state.target) - (state.against < 0 ? 0 : logit(state.image, state.against));
  const explainedName = () => (state.against < 0 ? classes[state.target] : `${classes[state.target]} against ${classes[state.against]}`);

  // -- controls
  const option = (value, text) => make("option", { value }, text);
  const select = (name, change) => {
    const element = make("select", { onchange: () => change(element.value) });
    return { element, label: make("label", {}, make("span", {}, name), element) };
  };
  const fill = (control, options, chosen) => {
    control.element.replaceChildren(...options.map(([value, text]) => option(value, text)));
    control.element.value = chosen;
    control.label.hidden = options.length < 2;
  };
  const ofLabel = select("Label", () => filter()), ofRead = select("Read as", () => filter());
  const wrong = make("input", { type: "checkbox", onchange: () => filter() });
  const target = select("Explain", (k) => { state.target = +k; if (state.against === +k) state.against = -1; update(); });
  const against = select("against", (k) => { state.against = +k; update(); });
  const method = select("Method", (name) => { state.method = name; state.layer = layersOf(name).includes(state.layer) ? state.layer : layersOf(name)[0]; update(); });
  const layer = select("Layer", (name) => { state.layer = name; update(); });
  const other = select("Beside it", (name) => { state.other = name; update(); });
  const colors = select("Colors", (name) => { palette = name; redrawAll(); });
  const scales = select("Scale", (name) => { state.shared = name === "one"; update(); });
  fill(colors, [["orange", "blue – orange"], ["red", "blue – white – red, as in the paper"]], palette);
  fill(scales, [["one", "one for both maps"], ["own", "each map its own"]], "one");
  const strip = make("fieldset", { class: "strip" }, make("legend", {}, "Image"));
  const found = make("p", { class: "soft", role: "status" });
  const reading = make("p", { class: "reading" });
  const figures = make("div", { class: "maps" });
  const bar = make("div"), comparison = make("div"), buttons = make("div", { class: "classes", role: "group", "aria-label": "classes by their logits" });
  const pixel = make("p"), brushed = make("p");
  const readout = make("div", { class: "readout", "aria-live": "polite" }, pixel, brushed);
  const slider = make("input", { type: "range", min: 0, step: 1, "aria-label": "keep the strongest cells", oninput: () => { state.kept = +slider.value; keep(); } });
  const carried = make("p", { role: "status" }), curvePlace = make("div"), panels = make("div");
  const unclear = make("ul", { class: "soft" });
  const touch = make("button", { type: "button", "aria-pressed": "false", onclick: () => {
    touch.setAttribute("aria-pressed", String(touch.getAttribute("aria-pressed") !== "true"));
    figures.querySelectorAll("canvas.map").forEach((c) => c.classList.toggle("brushing", touch.getAttribute("aria-pressed") === "true"));
  } }, "Brush by touch");
  const clear = make("button", { type: "button", onclick: () => { region = null; draw(); tell(); } }, "Clear region");

  const distinct = (values) => [...new Set(values)].filter((k) => k >= 0).sort((a, b) => a - b);
  const indices = order.slice();
  fill(ofLabel, [["", "any"], ...distinct(indices.map(label)).map((k) => [k, classes[k]])], "");
  fill(ofRead, !data.complete ? [["", "any"]] : [["", "any"], ...distinct(indices.map(read)).map((k) => [k, classes[k]])], "");
  const thumbs = new Map(), brief = (name) => (name.length > 10 ? `${name.slice(0, 9)}…` : name);
  for (const i of count > 1 ? order : []) {
    const input = make("input", { type: "radio", name: "image", value: i, "aria-label": said(i), onchange: () => choose(i) });
    const { source, name } = data.images[i];
    const picture = source ? make("img", { src: source, alt: "" }) : make("span", { class: "none" }, String(i + 1));
    const below = misread(i) ? `${brief(classes[label(i)])}\n→ ${brief(classes[read(i)])}` : brief(data.complete ? classes[read(i)] : label(i) < 0 ? `${i + 1}` : classes[label(i)]);
    const box = make("label", { class: misread(i) ? "misread" : "", title: name ? `${name}: ${said(i)}` : said(i) }, input, picture, below);
    thumbs.set(i, { box, input });
    strip.append(box);
  }
  const passes = (i) => (ofLabel.element.value === "" || label(i) === +ofLabel.element.value) && (ofRead.element.value === "" || read(i) === +ofRead.element.value) && (!wrong.checked || misread(i));
  function filter() {
    const shown = order.filter(passes);
    for (const [i, { box }] of thumbs) box.hidden = !shown.includes(i);
    const bad = shown.filter(misread).length, some = order.some((i) => label(i) >= 0);
    found.textContent = `${shown.length} of ${count} images${some ? `, ${bad} misread` : ""}${shown.length ? "" : ": no image fits the filter"}`;
    if (shown.length && !shown.includes(state.image)) choose(shown[0]);
  }
  function choose(i) {
    state.image = i;
    state.target = read(i);
    state.against = -1;
    region = null;
    if (thumbs.has(i)) thumbs.get(i).input.checked = true;
    update();
  }

  // -- drawing
  const current = () => maps.filter(Boolean);
  function figure(map, title, sentence) {
    const canvas = make("canvas", { class: "map", tabindex: 0, role: "application", "aria-roledescription": "map of contributions", "aria-label": sentence });
    const zoom = Math.max(1, Math.round(360 / map.width));
    canvas.width = zoom * map.width;
    canvas.height = zoom * map.height;
    if (touch.getAttribute("aria-pressed") === "true") canvas.classList.add("brushing");
    const cell = (event) => {
      const box = canvas.getBoundingClientRect();
      const bound = (value, most) => Math.max(0, Math.min(most - 1, Math.floor(value)));
      return [bound((event.clientY - box.top) / box.height * map.height, map.height), bound((event.clientX - box.left) / box.width * map.width, map.width)];
    };
    const place = ([row, column]) => ({ y: (row + 0.5) / map.height, x: (column + 0.5) / map.width });
    let start = null;
    canvas.addEventListener("pointerdown", (event) => {
      start = cell(event);
      cursor = place(start);
      if (event.pointerType === "mouse" || canvas.classList.contains("brushing")) canvas.setPointerCapture(event.pointerId);
      moved();
    });
    canvas.addEventListener("pointermove", (event) => {
      const at = cell(event);
      cursor = place(at);
      if (start && event.buttons && (at[0] !== start[0] || at[1] !== start[1])) {
        const [a, b] = [place(start), place(at)];
        region = { top: Math.min(a.y, b.y), bottom: Math.max(a.y, b.y), left: Math.min(a.x, b.x), right: Math.max(a.x, b.x) };
      }
      moved();
    });
    canvas.addEventListener("pointerup", () => { start = null; });
    canvas.addEventListener("pointercancel", () => { start = null; });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (event.key === "Escape") { region = null; moved(); return; }
      if (!step) return;
      event.preventDefault();
      const at = cursor ? [Math.floor(cursor.y * map.height), Math.floor(cursor.x * map.width)] : [Math.floor(map.height / 2), Math.floor(map.width / 2)];
      const from = place(at), to = place([Math.max(0, Math.min(map.height - 1, at[0] + step[0])), Math.max(0, Math.min(map.width - 1, at[1] + step[1]))]);
      if (event.shiftKey) {
        anchor ??= from;
        region = { top: Math.min(anchor.y, to.y), bottom: Math.max(anchor.y, to.y), left: Math.min(anchor.x, to.x), right: Math.max(anchor.x, to.x) };
      } else anchor = null;
      cursor = cursor ? to : from;
      moved();
    });
    map.canvas = canvas;
    return make("figure", {}, make("figcaption", {}, title), canvas);
  }
  let anchor = null, waiting = false;
  function moved() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); tell(); });
  }
  const limitOf = (map) => (state.shared ? Math.max(...current().map((m) => m.limit)) : map.limit);
  function mask(map) {
    const kept = Math.min(state.kept, map.values.length);
    return kept >= map.values.length ? null : map.rank.map((r) => (r <= kept ? 1 : 0));
  }
  function draw(afresh = false) {
    for (const map of current()) {
      const context = map.canvas.getContext("2d"), { width, height } = map.canvas;
      const wanted = `${limitOf(map)} ${Math.min(state.kept, map.values.length)}`;
      if (afresh || map.painted !== wanted) {
        map.picture = paint(map.values, map.height, map.width, limitOf(map), mask(map));
        map.painted = wanted;
      }
      context.imageSmoothingEnabled = false;
      context.clearRect(0, 0, width, height);
      context.drawImage(map.picture, 0, 0, width, height);
      const stroke = (x, y, w, h) => {
        context.lineWidth = 3; context.strokeStyle = "#ffffff"; context.strokeRect(x, y, w, h);
        context.lineWidth = 1.5; context.strokeStyle = "#000000"; context.strokeRect(x, y, w, h);
      };
      const [cw, ch] = [width / map.width, height / map.height];
      if (region) {
        const box = cells(map);
        stroke(box.left * cw + 1, box.top * ch + 1, (box.right - box.left + 1) * cw - 2, (box.bottom - box.top + 1) * ch - 2);
      }
      if (cursor) stroke(Math.floor(cursor.x * map.width) * cw, Math.floor(cursor.y * map.height) * ch, cw, ch);
    }
  }
  const cells = (map) => ({ top: Math.floor(region.top * map.height), bottom: Math.floor(region.bottom * map.height), left: Math.floor(region.left * map.width), right: Math.floor(region.right * map.width) });
  const nameOf = (map) => (current().length > 1 ? `${words(map.set.method)}: ` : "");

  // -- what is said
  function tell() {
    if (!cursor) pixel.textContent = "Point at a cell of a map, or move there with the arrow keys; drag, or hold shift, for a region.";
    else {
      pixel.textContent = current().map((map) => {
        const [row, column] = [Math.floor(cursor.y * map.height), Math.floor(cursor.x * map.width)], c = row * map.width + column;
        const goal = leavesOut(map) ? `, with the ${constantWords(map)} ${number(map.running[map.rank[c]] + map.constant)} of ${number(explainedLogit())}` : ` of their sum ${number(map.total)}`;
        return `${nameOf(map)}row ${row}, column ${column}: ${signed(map.values[c])}, ${percent(map.values[c] / map.total)} of the sum; number ${map.rank[c]} of ${map.values.length} by strength, running sum ${number(map.running[map.rank[c]])}${goal}.`;
      }).join(" ");
    }
    brushed.textContent = region ? current().map((map) => {
      const box = cells(map);
      let total = 0;
      for (let row = box.top; row <= box.bottom; row++) for (let column = box.left; column <= box.right; column++) total += map.values[row * map.width + column];
      return `${nameOf(map)}region of rows ${box.top}–${box.bottom}, columns ${box.left}–${box.right}: sum ${signed(total)}, ${percent(total / map.total)} of the whole.`;
    }).join(" ") : "";
    clear.hidden = !region;
  }
  const constantWords = (map) => (map.set.exact ? "bias" : "output at the baseline");
  const leavesOut = (map) => map.constant !== null && (map.set.exact || map.constant !== 0); // a method without a baseline leaves out nothing

  function equation(map) {
    const goal = explainedLogit(), line = make("p", { class: "equation" });
    if (map.constant === null) {
      line.append(`${nameOf(map)}sum ${number(map.total)}. This method does not claim to sum to the logit, ${number(goal)}.`);
      return line;
    }
    const rest = goal - map.total - map.constant, visible = Math.abs(rest) >= Math.max(0.5e-4, 1e-5 * Math.abs(goal)); // half a digit, or float32
    const terms = [[map.total], ...(leavesOut(map) ? [[map.constant, constantWords(map)]] : []), ...(visible ? [[rest, `residual, ${percent(Math.abs(rest / goal))} of it`]] : [])];
    const { total, parts } = written(terms.map(([value]) => value), goal);
    line.append(nameOf(map), make("b", { class: "logit" }, total), ` logit of ${explainedName()} = `, make("b", { class: "sum" }, number(parts[0])), " sum of all contributions", ...terms.slice(1).flatMap(([, what], n) => [" ", ...add(parts[n + 1], what)]));
    if (!visible) line.append(make("span", { class: "soft" }, ` (absolute residual ${short(rest)}, rounding of float32)`));
    return line;
  }
  const add = (value, what) => [value < 0 ? "−\u00a0" : "+\u00a0", make("b", {}, number(Math.abs(value))), ` ${what}`];

  let latest = 0;
  async function update() {
    const i = state.image, turn = ++latest; // an update that began later wins
    const first = data.sets.find((set) => set.method === state.method && set.layer === state.layer);
    const second = state.other ? data.sets.find((set) => set.method === state.other && set.layer === state.layer) ?? data.sets.find((set) => set.method === state.other) : null;
    const targets = await array(first.targets), T = first.values.shape[1];
    if (turn !== latest) return;
    const offered = Array.from(targets.subarray(i * T, (i + 1) * T)).sort((a, b) => a - b);
    if (!offered.includes(state.target)) state.target = offered.includes(read(i)) ? read(i) : offered[0];
    if (!offered.includes(state.against)) state.against = -1;
    const [a, b] = await Promise.all([difference(first, i, state.target, state.against), second ? difference(second, i, state.target, state.against) : null]);
    if (turn !== latest) return;
    maps = [a, b];
    const unlike = known[i].length > 1;
    fill(target, offered.map((k) => [k, classes[k]]), state.target);
    fill(against, [[-1, "nothing"], ...offered.filter((k) => k !== state.target).map((k) => [k, classes[k]])], state.against);
    fill(method, methods.map((name) => [name, words(name)]), state.method);
    fill(layer, layersOf(state.method).map((name) => [name, words(name)]), state.layer);
    fill(other, [["", "nothing"], ...methods.filter((name) => name !== state.method).map((name) => [name, words(name)])], state.other === state.method ? "" : state.other);
    scales.label.hidden = !second;
    const name = data.images[i].name, named = name && label(i) < 0; // such as by a file's name, which stays as it is
    reading.replaceChildren(`${named ? said(i) : said(i)[0].toUpperCase() + said(i).slice(1)}${misread(i) ? " — misread" : ""}.`);
    if (name && !named) reading.append(make("span", { class: "soft" }, ` ${name}`));
    figures.replaceChildren();
    if (data.images[i].source) figures.append(make("figure", {}, make("figcaption", {}, "The image"), make("img", { class: "shown", src: data.images[i].source, alt: said(i), width: data.size[1], height: data.size[0] })));
    bar.replaceChildren();
    for (const [map, set] of [[a, first], ...(second ? [[b, second]] : [])]) {
      if (!map) {
        figures.append(make("figure", {}, make("figcaption", {}, words(set.method)), make("p", { class: "soft" }, "Of this class no map of the method was kept; the likeliest have one.")));
        continue;
      }
      const strongest = map.sorted[0], where = `row ${Math.floor(strongest / map.width)}, column ${strongest % map.width}`;
      const title = `${words(set.method)} to ${explainedName()}${set.layer === "input" ? "" : ` at ${words(set.layer)}`}`;
      figures.append(figure(map, title, `Map of ${title}: sum ${number(map.total)}, strongest ${signed(map.values[strongest])} at ${where}. Arrow keys move over the cells.`));
      bar.append(equation(map));
    }
    slider.max = a.values.length;
    slider.value = Math.min(state.kept, a.values.length);
    ramps.clear();
    const limits = [...new Set(current().map(limitOf))];
    bar.append(...limits.map((limit) => { const l = legend(limit); ramps.add(l.fill); return l.element; }));
    buttons.replaceChildren(...known[i].slice(0, 12).filter((k) => unlike && offered.includes(k)).map((k) => {
      const share = make("i");
      share.style.width = `${100 * (Number.isFinite(probability(i, k)) ? probability(i, k) : 0)}%`;
      return make("button", { type: "button", "aria-pressed": String(k === state.target), onclick: () => { state.target = k; if (state.against === k) state.against = -1; update(); } },
        make("span", {}, `${classes[k]}${k === label(i) ? " (label)" : ""}`), make("span", {}, `${number(logit(i, k), 2)}${Number.isFinite(probability(i, k)) ? `, p ${number(probability(i, k), 2)}` : ""}`), share);
    }));
    compare();
    draw(true);
    tell();
    keep();
    for (const show of views) show();
    place.dataset.shown = `${i} ${state.target} ${state.against} ${state.method} ${state.other} ${state.layer}`;
  }
  const ramps = new Set();
  redraws.add(() => { draw(true); ramps.forEach((f) => f()); });

  function compare() {
    comparison.replaceChildren();
    const [a, b] = maps;
    if (!a || !b) return;
    const at = (map) => (map.height === data.size[0] && map.width === data.size[1] ? map.values : enlarged(map, data.size));
    const same = a.height === b.height && a.width === b.width;
    const found = same ? distances(b.values, a.values) : distances(at(b), at(a));
    comparison.append(make("p", {}, `${words(b.set.method)} beside ${words(a.set.method)}: `, ...Object.entries(found).flatMap(([name, value], n) => [n ? ", " : "", `${name} `, make("b", { "data-distance": name }, number(value, 3))]), a.set.method === exact ? ". These are the distances of the audit, of this image and class." : "."));
  }
  function enlarged(map, [height, width]) {
    const found = new Float64Array(height * width);
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) found[y * width + x] = map.values[Math.floor((y + 0.5) * map.height / height) * map.width + Math.floor((x + 0.5) * map.width / width)];
    return found;
  }
  function keep() {
    const [a] = maps;
    draw();
    carried.textContent = current().map((map) => {
      const kept = Math.min(state.kept, map.values.length);
      return `${nameOf(map)}the ${kept} strongest of ${map.values.length} cells carry ${number(map.running[kept])}, ${percent(map.running[kept] / map.total)} of the sum ${number(map.total)}.`;
    }).join(" ");
    const colorsOf = ["#3a78c3", "#e1702e"];
    const series = current().map((map, n) => {
      const cells = map.values.length, places = [...new Set(Array.from({ length: 161 }, (_, p) => Math.round(cells * (p / 160) ** 2)))];
      return { name: words(map.set.method), color: colorsOf[n], x: places.map((p) => 100 * p / cells), y: places.map((p) => 100 * map.running[p] / map.total) };
    });
    const kept = Math.min(state.kept, a.values.length);
    series.push({ name: "kept", color: style("--mark"), label: "the cells that are kept", x: [100 * kept / a.values.length], y: [100 * a.running[kept] / a.total] });
    const next = { kind: "lines", x: "strongest cells kept (%)", y: "of the sum (%)", series, rules: [{ at: 100, text: "the whole sum" }], width: 620, height: 240 };
    if (curve) curve.update(next);
    else curve = chart(curvePlace, next, { name: "Sum of the strongest cells", alt: "The share of the sum that the strongest cells carry" });
  }

  // -- saving the maps that are shown
  const selection = () => ({
    image: { index: state.image, name: data.images[state.image].name, label: classes[label(state.image)] ?? null, read: classes[read(state.image)] },
    explained: explainedName(), logit: explainedLogit(),
    maps: current().map((map) => ({ method: map.set.method, layer: map.set.layer, bias: map.constant, sum: map.total, height: map.height, width: map.width, contributions: Array.from(map.values) })),
  });
  const picture = async () => {
    const shown = [...figures.querySelectorAll("figure")].filter((f) => f.querySelector("img, canvas")), side = 300;
    const ratio = data.size[0] / data.size[1];
    const parts = shown.map((f, n) => {
      const element = f.querySelector("img, canvas"), source = element.tagName === "CANVAS" ? element.toDataURL() : element.src;
      return `<g transform="translate(${n * (side + 12) + 6},0)"><text y="18" font-size="12">${escaped(f.querySelector("figcaption").textContent)}</text><image y="28" width="${side}" height="${side * ratio}" preserveAspectRatio="none" style="image-rendering:pixelated" href="${source}"/></g>`;
    });
    const line = [...bar.querySelectorAll(".equation")].map((e, n) => `<text x="6" y="${side * ratio + 48 + 18 * n}">${escaped(e.textContent)}</text>`);
    return drawing(shown.length * (side + 12), side * ratio + 50 + 18 * line.length, parts.join("") + line.join(""));
  };

  // -- laid out
  const views = [];
  if (count > 1) {
    place.append(make("div", { class: "controls" }, ofLabel.label, ofRead.label, ...(order.some((i) => label(i) >= 0) ? [make("label", { class: "inline" }, wrong, "only misread images")] : [])), strip, found);
  }
  place.append(
    reading,
    make("div", { class: "controls" }, target.label, against.label, method.label, layer.label, other.label, scales.label, colors.label),
    figures, bar, comparison, readout, make("div", { class: "controls" }, clear, touch),
    saves(() => `${said(state.image)} ${explainedName()}`, selection, picture),
    ...(known.some((k) => k.length > 1) ? [make("h3", {}, "All classes"), buttons] : []),
    make("h3", {}, "Keep the strongest"), make("div", { class: "halves" }, make("div", {}, slider, carried), curvePlace),
    panels, unclear);
  unclear.append(...data.notes.map((note) => make("li", {}, note)));
  unclear.hidden = !data.notes.length;
  for (const panel of data.panels) {
    const box = make("div", { class: "panel", "data-panel": panel.kind });
    panels.append(make("h3", {}, panel.title), make("p", { class: "soft" }, panel.text), box);
    views.push(await readings[panel.kind](box, panel.values, { state, classes, data, said, logit, read, label }));
  }
  filter();
  choose(state.image);
  performance.mark("explorer");
}

// ---------------------------------------------------------------- families' own readings

// Maps that were packed as one stack: the k-th as numbers.
async function stack(ref) {
  const [values, scale] = await Promise.all([array(ref.values), array(ref.scale)]);
  const shape = ref.values.shape, [height, width] = shape.slice(-2), cells = height * width;
  return { height, width, at: (k) => Float64Array.from(values.subarray(k * cells, (k + 1) * cells), (q) => q * scale[k]) };
}
function mapCanvas(alt) {
  const canvas = make("canvas", { role: "img", "aria-label": alt });
  let last = null;
  const show = (values, height, width, limit, decorate, says) => {
    last = [values, height, width, limit, decorate, says];
    const zoom = Math.max(1, Math.round(280 / width));
    canvas.width = zoom * width;
    canvas.height = zoom * height;
    if (says) canvas.setAttribute("aria-label", says);
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(paint(values, height, width, limit), 0, 0, canvas.width, canvas.height);
    decorate?.(context, zoom);
  };
  redraws.add(() => last && show(...last));
  return { canvas, show };
}
const largestOf = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
const absent = (box) => box.replaceChildren(make("p", { class: "soft" }, "Not computed for this image."));

const readings = {
  // The series of a polynomial: values.terms (n, classes, orders), maps of the read class, pairs of marked pixels.
  orders: async (box, values, { state, classes, logit, read }) => {
    const terms = await array(values.terms), [, C, M] = values.terms.shape;
    const maps = await stack(values.maps), shownOrders = values.maps.values.shape[1];
    const pairs = values.pairs ? { maps: await stack(values.pairs.maps), pixels: await array(values.pairs.pixels), count: values.pairs.pixels.shape[1] } : null;
    let order = 1, hovered = 0;
    const slider = make("input", { type: "range", min: 0, max: M - 1, value: order, step: 1, "aria-label": "orders up to", oninput: () => { order = +slider.value; show(); } });
    const line = make("p", { class: "equation", role: "status" }), bars = make("div");
    const one = mapCanvas("map of one order"), title = make("figcaption", {});
    const pairTitle = make("figcaption", {}), marked = mapCanvas("order 2, marked pixels"), pair = mapCanvas("pairs with a pixel");
    const choice = make("select", { "aria-label": "marked pixel", onchange: () => { hovered = +choice.value; show(); } });
    box.append(slider, line, make("div", { class: "halves" }, bars, make("div", { class: "maps" }, make("figure", {}, title, one.canvas), ...(pairs ? [make("figure", {}, make("figcaption", {}, "order 2: point at a marked pixel, or choose ", choice), marked.canvas), make("figure", {}, pairTitle, pair.canvas)] : []))));
    const drawn = chart(bars, { kind: "bars", x: "order", y: "part of the logit", values: [0], width: 420 }, { name: "Orders of the logit" });
    if (pairs) marked.canvas.addEventListener("pointermove", (event) => {
      const r = marked.canvas.getBoundingClientRect(), y = (event.clientY - r.top) / r.height * maps.height, x = (event.clientX - r.left) / r.width * maps.width;
      let best = 0, near = Infinity;
      for (let p = 0; p < pairs.count; p++) {
        const d = Math.hypot(pairs.pixels[2 * (state.image * pairs.count + p)] + 0.5 - y, pairs.pixels[2 * (state.image * pairs.count + p) + 1] + 0.5 - x);
        if (d < near) { near = d; best = p; }
      }
      if (best !== hovered) { hovered = best; show(); }
    });
    function show() {
      const at = (state.image * C + state.target) * M, own = Array.from(terms.subarray(at, at + M)), upTo = sum(own.slice(0, order + 1));
      line.textContent = `Order ${order} adds ${signed(own[order])}; orders 0 to ${order} are ${number(upTo)} of the logit ${number(logit(state.image, state.target))} of ${classes[state.target]}, ${number(logit(state.image, state.target) - upTo)} is left to higher orders.`;
      drawn.update({ kind: "bars", x: "order", y: `part of the logit of ${classes[state.target]}`, values: own, on: own.map((_, m) => m <= order), marked: "counted", unmarked: "not counted", width: 420 });
      const m = Math.max(1, Math.min(order, shownOrders));
      const map = maps.at(state.image * shownOrders + m - 1);
      title.textContent = `order ${m}, ${classes[read(state.image)]}: sum ${signed(sum(map))}`;
      one.show(map, maps.height, maps.width, largestOf(map), null, `Contributions of pixels to order ${m} of ${classes[read(state.image)]}, sum ${signed(sum(map))}`);
      if (!pairs) return;
      const second = maps.at(state.image * shownOrders + 1), place = (p) => [pairs.pixels[2 * (state.image * pairs.count + p)], pairs.pixels[2 * (state.image * pairs.count + p) + 1]];
      const dots = (context, zoom) => {
        for (let p = 0; p < pairs.count; p++) {
          const [y, x] = place(p);
          context.lineWidth = p === hovered ? 4 : 1.5;
          context.strokeStyle = style("--text");
          context.strokeRect(x * zoom, y * zoom, zoom, zoom);
        }
      };
      marked.show(second, maps.height, maps.width, largestOf(second), dots, "Contributions to order 2, the strongest pixels marked");
      choice.replaceChildren(...Array.from({ length: pairs.count }, (_, p) => make("option", { value: p, selected: p === hovered }, `row ${place(p)[0]}, column ${place(p)[1]}`)));
      const map2 = pairs.maps.at(state.image * pairs.count + hovered), [y, x] = place(hovered);
      pairTitle.textContent = `pairs with row ${y}, column ${x}: sum ${signed(sum(map2))}`;
      pair.show(map2, maps.height, maps.width, largestOf(map2), (context, zoom) => { context.lineWidth = 3; context.strokeStyle = style("--text"); context.strokeRect(x * zoom, y * zoom, zoom, zoom); }, `Pairs of pixels with row ${y}, column ${x}`);
    }
    return show;
  },

  // Coded paths: energies (n, blocks, paths), shares of the read class, words (blocks, classes, paths), decoded (n, blocks).
  paths: async (box, values, { state, classes, read, label }) => {
    const [energies, shares, words, decoded] = await Promise.all([array(values.energies), array(values.shares), array(values.words), array(values.decoded)]);
    const [, B, N] = values.energies.shape, C = classes.length;
    let block = B - 1;
    const slider = make("input", { type: "range", min: 0, max: B - 1, value: block, step: 1, "aria-label": "block", oninput: () => { block = +slider.value; show(); } });
    const line = make("p", { role: "status" }), exits = make("ol", { class: "key" }), left = make("div"), right = make("div");
    box.append(slider, line, make("div", { class: "halves" }, left, right), make("p", { class: "soft" }, "The class that each block's energies decode to: an image may leave at the first block that is sure."), exits);
    const bars = chart(left, { kind: "bars", x: "path", y: "energy", values: [0], width: 480 }, { name: "Energies of paths" });
    const parts = chart(right, { kind: "bars", x: "path", y: "contribution", values: [0], width: 480 }, { name: "Contributions of paths" });
    function show() {
      const i = state.image, at = (i * B + block) * N, word = Array.from(words.subarray((block * C + state.target) * N, (block * C + state.target + 1) * N), Boolean);
      const own = Array.from(energies.subarray(at, at + N)), share = Array.from(shares.subarray(at, at + N));
      const active = own.filter((_, n) => word[n]), rest = own.filter((_, n) => !word[n]);
      const found = decoded[i * B + block];
      line.textContent = `${values.names[block]}: paths that the code gives to ${classes[state.target]} have energy ${short(sum(active) / active.length)} on average, the others ${short(rest.length ? sum(rest) / rest.length : 0)}. Its energies decode to ${classes[found]}${label(i) < 0 ? "" : found === label(i) ? ", which is right" : `, which is wrong: the label is ${classes[label(i)]}`}.`;
      const style = { on: word, marked: "active in the code word", unmarked: "not active in the code word", width: 480, kind: "bars", x: "path" };
      bars.update({ ...style, y: "energy", values: own });
      parts.update({ ...style, y: `handed on to the logit of ${classes[read(i)]}`, values: share });
      exits.replaceChildren(...values.names.map((name, b) => make("li", {}, `${name}: ${classes[decoded[i * B + b]]}`)));
    }
    return show;
  },

  // Gates: bits (n, drawn units of all layers), open gates (n, layers) among all units, sizes of the drawn layers.
  gates: async (box, values, { state, data, said }) => {
    const [bits, counts] = await Promise.all([array(values.open), array(values.counts)]), units = values.open.shape[1], count = values.open.shape[0];
    let beside = -1;
    const choice = make("select", { onchange: () => { beside = +choice.value; show(); } });
    choice.append(make("option", { value: -1 }, "nothing"), ...data.images.map((_, i) => i).filter((i) => i < count).map((i) => make("option", { value: i }, said(i))));
    const list = make("div", { class: "bits" }), line = make("p", { role: "status" });
    box.append(make("div", { class: "controls" }, make("label", {}, make("span", {}, "Compare with"), choice)), line, list);
    function show() {
      if (state.image >= count) return absent(list);
      const own = bits.subarray(state.image * units, (state.image + 1) * units), other = beside < 0 ? null : bits.subarray(beside * units, (beside + 1) * units);
      const opened = Array.from(counts.subarray(state.image * values.sizes.length, (state.image + 1) * values.sizes.length));
      let start = 0;
      list.replaceChildren();
      for (const [n, size] of values.sizes.entries()) {
        const part = own.subarray(start, start + size), with_ = other?.subarray(start, start + size);
        const open = opened[n], all = values.units[n], shared = with_ ? part.reduce((total, bit, u) => total + (bit & with_[u]), 0) : 0;
        const columns = Math.min(size, values.columns[n]), rows = Math.ceil(size / columns), canvas = make("canvas", { width: columns, height: rows, role: "img", "aria-label": `${values.names[n]}: ${open} of ${all} gates open` });
        canvas.style.width = `${Math.min(640, columns * Math.max(2, Math.min(10, Math.floor(640 / columns))))}px`;
        const context = canvas.getContext("2d");
        for (let u = 0; u < size; u++) {
          context.fillStyle = part[u] ? (with_ && with_[u] ? style("--text") : `rgb(${style("--for")})`) : with_ && with_[u] ? `rgb(${style("--against")})` : style("--ground");
          context.fillRect(u % columns, Math.floor(u / columns), 1, 1);
        }
        list.append(make("div", {}, make("span", {}, `${values.names[n]}: ${open} of ${all} open${with_ ? `, ${shared} of ${size === all ? "them" : "those drawn"} in both images (orange: here only, blue: there only)` : ""}`), canvas));
        start += size;
      }
      const power = sum([values.inputs, ...opened].map(Math.log10)), closed = opened.indexOf(0);
      line.textContent = !values.connected ? "" : closed >= 0 ? `No active path to an output: none of the gates of layer ${closed} is open.` : `Active paths to an output: inputs × open gates of every layer, about 10^${number(power, 1)}.`;
    }
    redraws.add(show);
    return show;
  },

  // Parts with signed shares of an output: pictures (a sheet), index and share of each, what the others add.
  shares: async (box, values, { state, classes }) => {
    const [index, share, rest, constant, target, gain, loss] = await Promise.all(["index", "share", "rest", "constant", "target", "gain", "loss"].map((name) => (values[name] ? array(values[name]) : null)));
    const m = values.index.shape[1], picture = new Image();
    picture.src = values.pictures.source;
    await picture.decode();
    const { height, width } = values.pictures;
    const place = (i) => (values.images ? values.images.indexOf(i) : i);
    const list = make("ul", { class: "shares" }), line = make("p", { class: "equation" }), cancel = make("p"), first = make("div");
    if (values.images) {
      const go = (i) => make("button", { type: "button", onclick: () => document.querySelector(`.strip input[value="${i}"]`)?.click() }, values.names[values.images.indexOf(i)]);
      first.append(make("div", { class: "controls" }, "Images with this reading:", ...values.images.map(go)));
    }
    box.append(first, line, cancel, list);
    function show() {
      const at = place(state.image);
      if (at < 0 || at >= values.index.shape[0]) { line.textContent = "Not computed for this image."; cancel.textContent = ""; list.replaceChildren(); return; }
      const own = Array.from({ length: m }, (_, n) => share[at * m + n]), most = largestOf(own), output = sum(own) + rest[at] + constant[at];
      const { total, parts } = written([sum(own), rest[at], constant[at]], output);
      line.replaceChildren(make("b", {}, total), ` ${values.output} of ${classes[target[at]]} = `, make("b", {}, number(parts[0])), ` of the ${own.filter((v) => v).length} shown `, parts[1] < 0 ? "− " : "+ ", make("b", {}, number(Math.abs(parts[1]))), ` of all other ${values.what} `, parts[2] < 0 ? "− " : "+ ", make("b", {}, number(Math.abs(parts[2]))), " bias");
      cancel.textContent = gain ? `All ${values.what} that speak for it add ${signed(gain[at], 3)}, all that speak against it ${signed(loss[at], 3)}: most of this cancels, and ${signed(gain[at] + loss[at], 3)} is left. A single share can therefore be larger than the output.` : "";
      list.replaceChildren(...own.map((value, n) => {
        const k = index[at * m + n], canvas = make("canvas", { width, height, role: "img", "aria-label": `${values.captions[k] ?? ""}, share ${signed(value, 3)}` });
        canvas.getContext("2d").drawImage(picture, 0, k * height, width, height, 0, 0, width, height);
        const strip = make("div", { class: "bar" });
        strip.style.width = `${100 * Math.abs(value) / most}%`;
        strip.style.background = `rgb(${style(value < 0 ? "--against" : "--for")})`;
        return value === 0 ? null : make("li", {}, canvas, strip, `${signed(value, 3)} ${values.captions[k] ?? ""}`);
      }).filter(Boolean));
    }
    redraws.add(show);
    return show;
  },

  // A group: responses (n, elements, templates) of images, the table of products, turned images (a sheet).
  orbit: async (box, values, { state }) => {
    const responses = await stack(values.responses), products = await array(values.products), G = values.names.length;
    const picture = new Image();
    picture.src = values.turned.source;
    await picture.decode();
    let element = 0;
    const slider = make("input", { type: "range", min: 0, max: G - 1, value: 0, step: 1, "aria-label": "element of the group", oninput: () => { element = +slider.value; show(); } });
    const turned = make("canvas", { role: "img" }), rows = mapCanvas("responses"), line = make("p", { role: "status" });
    const still = mapCanvas("responses of the image as it is");
    box.append(slider, line, make("div", { class: "maps" }, make("figure", {}, make("figcaption", {}, "the image, moved"), turned), make("figure", {}, make("figcaption", {}, "responses as it is"), still.canvas), make("figure", {}, make("figcaption", {}, "responses as moved: a row an element, a column a template"), rows.canvas)));
    function show() {
      if (state.image >= values.count) { line.textContent = "Not computed for this image."; return; }
      const own = responses.at(state.image), { height, width } = responses, moved = new Float64Array(own.length), limit = largestOf(own);
      for (let g = 0; g < height; g++) for (let k = 0; k < width; k++) moved[g * width + k] = own[products[g * G + element] * width + k];
      let strongest = 0;
      for (let c = 1; c < moved.length; c++) if (moved[c] > moved[strongest]) strongest = c;
      line.textContent = `Moved by ${values.names[element]}: the rows change places and nothing else, so what is read off without their order stays. The strongest response, ${number(moved[strongest], 3)}, is now in row ${Math.floor(strongest / width)}.`;
      const size = values.turned;
      turned.width = size.width; turned.height = size.height;
      turned.setAttribute("aria-label", `the image moved by ${values.names[element]}`);
      turned.getContext("2d").drawImage(picture, 0, (state.image * G + element) * size.height, size.width, size.height, 0, 0, size.width, size.height);
      still.show(own, height, width, limit, null, "responses of the image as it is");
      rows.show(moved, height, width, limit, null, `responses of the image moved by ${values.names[element]}`);
    }
    return show;
  },
};

// ---------------------------------------------------------------- the page

const theme = document.getElementById("theme");
theme?.addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  redrawAll();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);

(async () => {
  const place = document.getElementById("explorer");
  if (place) await explore(place, content.explorer);
  for (const [n, figure] of content.figures.entries()) {
    const spot = document.getElementById(`figure-${n}`);
    if (figure.kind === "maps") await mapTable(spot, figure);
    else chart(spot, figure, { name: figure.name, alt: figure.alt });
  }
  document.documentElement.dataset.ready = "yes";
})();
if (window.frameElement) {
  new ResizeObserver(() => { window.frameElement.style.height = `${document.body.scrollHeight + 8}px`; }).observe(document.body);
}
})();
