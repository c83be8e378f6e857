"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const SPAN_S = 300;
  const canvas = $("canvas"), context = canvas.getContext("2d", { alpha: false });
  const tint = document.createElement("canvas"), ink = tint.getContext("2d");
  const table = new Uint32Array(256).fill(0xff000000);  // label value -> colour, as ImageData has it: A B G R
  const history = new Map();  // second -> its record
  let classes = [], on = new Set(), shot = null, pixels = null, shownAt = -Infinity, pace = 0, told = { at: 0 }, pointer = null;

  // What the viewer has chosen. It stays in the address, behind the #, which is not sent to anybody.
  const chosen = () => ({ view: document.forms[0].elements.view.value, opacity: Number($("opacity").value) });

  function restore() {
    const saved = new URLSearchParams(location.hash.slice(1));
    const radio = document.querySelector(`input[name=view][value="${CSS.escape(saved.get("view") ?? "")}"]`);
    if (radio) radio.checked = true;
    if (saved.has("opacity")) $("opacity").value = saved.get("opacity");
    const off = new Set((saved.get("off") ?? "").split(","));
    on = new Set(classes.keys());
    for (const index of on) if (off.has(String(index))) on.delete(index);
  }

  function apply(save = true) {
    const { view, opacity } = chosen();
    $("percent").textContent = `${opacity} %`;
    $("opacity").disabled = view !== "overlay";
    classes.forEach(({ color }, index) => {
      const [r, g, b] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
      table[index] = on.has(index) ? (0xff000000 | (b << 16) | (g << 8) | r) >>> 0 : 0;
    });
    const options = new URLSearchParams({ view, opacity: opacity / 100 });
    if (on.size < classes.length) options.set("classes", [...on].join(","));
    $("snapshot").href = `snapshot.jpg?${options}`;
    const off = [...classes.keys()].filter((index) => !on.has(index));
    if (save) window.history.replaceState(null, "", `#view=${view}&opacity=${opacity}${off.length ? `&off=${off}` : ""}`);
    colorize();
    draw();
  }

  function colorize() {
    if (!shot) return;
    const { map, width, height } = shot;
    if (!pixels || tint.width !== width || tint.height !== height) {
      [tint.width, tint.height] = [width, height];
      pixels = ink.createImageData(width, height);
    }
    const out = new Uint32Array(pixels.data.buffer);
    for (let i = 0; i < out.length; i++) out[i] = table[map[i]];
    ink.putImageData(pixels, 0, 0);
  }

  function draw() {
    if (!shot) return;
    const { view, opacity } = chosen();
    const { frame, width, height } = shot;
    const total = view === "side" ? 2 * width : width;
    if (canvas.width !== total || canvas.height !== height) [canvas.width, canvas.height] = [total, height];
    context.globalAlpha = 1;
    context.fillRect(0, 0, total, height);
    if (view !== "mask") context.drawImage(frame, 0, 0);
    if (view === "overlay") context.globalAlpha = opacity / 100;
    if (view !== "plain") context.drawImage(tint, view === "side" ? width : 0, 0);
    canvas.dataset.number = shot.number;
    if (pointer) point(pointer);
  }

  // One picture is shown while the next is under way, and none is asked for by a page that nobody looks at.
  const request = async (after) => {
    const response = await ask(`layers?after=${after}`);
    return response.status === 204 ? null : response.formData();
  };

  async function ask(path) {
    const response = await fetch(path).catch(() => { throw new Error("no answer from lfd-run"); });
    if (!response.ok) throw new Error(await response.text());
    return response;
  }

  async function decode(form) {
    const about = JSON.parse(form.get("about"));
    const inflated = form.get("map").stream().pipeThrough(new DecompressionStream("deflate"));
    const [frame, map] = await Promise.all([createImageBitmap(form.get("frame")), new Response(inflated).arrayBuffer()]);
    return { ...about, frame, map: new Uint8Array(map) };
  }

  async function pictures() {
    for (let next = null, after = 0; ;) {
      try {
        const form = await (next ?? request(after));
        next = null;
        if (form) {
          const arrived = await decode(form);
          after = arrived.number;
          next = request(after);
          next.catch(() => {});  // it is looked at in the next turn
          await new Promise(requestAnimationFrame);
          shot?.frame.close();
          shot = arrived;
          const now = performance.now();
          // A page that nobody has looked at for a while, and a stream that was away, begin anew.
          pace = now - shownAt > 3000 ? 0 : pace + (now - shownAt - pace) * (pace ? 0.1 : 1);
          shownAt = now;
          colorize();
          draw();
          mark();
        }
      } catch (error) {
        next = null;
        mark(error.message);
        await new Promise((resolve) => setTimeout(resolve, 1000));
      }
    }
  }

  function mark(problem = shot?.stale ?? "") {
    $("banner").textContent = problem;
    $("banner").hidden = !problem;
    document.body.classList.toggle("stale", Boolean(problem));
  }

  // The class under the pointer: of 150 colours nobody knows each.
  function point(event) {
    pointer = event;
    const box = canvas.getBoundingClientRect(), scale = Math.min(box.width / canvas.width, box.height / canvas.height);
    const x = Math.floor((event.clientX - box.left - (box.width - canvas.width * scale) / 2) / scale);
    const y = Math.floor((event.clientY - box.top - (box.height - canvas.height * scale) / 2) / scale);
    const inside = shot && x >= 0 && y >= 0 && x < canvas.width && y < canvas.height;
    const value = inside ? shot.map[y * shot.width + (x % shot.width)] : -1;
    $("pointed").hidden = !inside;
    $("pointed").textContent = inside ? (classes[value]?.name ?? `no class (${value})`) : "";
  }

  // Statistics
  const number = (value, digits = 0) => (value == null ? "–" : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
  const seconds = (s) => (s < 120 ? `${Math.round(s)} s` : s < 7200 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`);

  function list(target, rows) {
    rows.forEach(([what, value], index) => {
      let row = target.children[index];
      if (!row) {
        row = target.appendChild(document.createElement("div"));
        row.append(document.createElement("dt"), document.createElement("dd"));
      }
      row.firstChild.textContent = what;
      row.lastChild.textContent = value;
    });
  }

  function legend() {
    $("legend").replaceChildren(...classes.map(({ name, color }, index) => {
      const item = document.createElement("li"), label = item.appendChild(document.createElement("label"));
      const box = document.createElement("input"), swatch = document.createElement("i");
      box.type = "checkbox";
      box.checked = on.has(index);
      box.addEventListener("change", () => { box.checked ? on.add(index) : on.delete(index); apply(); });
      swatch.style.background = color;
      const text = document.createElement("span"), share = document.createElement("b");
      text.textContent = name;
      label.append(box, swatch, text, share);
      return item;
    }));
  }

  function shares() {
    if (!shot) return;
    const counts = new Uint32Array(256);
    for (let i = 0; i < shot.map.length; i++) counts[shot.map[i]]++;
    const shown = [];
    document.querySelectorAll("#legend b").forEach((cell, index) => {
      const share = 100 * counts[index] / shot.map.length;
      cell.textContent = share ? `${share < 0.1 ? "<0.1" : share.toFixed(1)} %` : "";
      if (share >= 5) shown.push(`${classes[index].name} ${share.toFixed(0)} %`);
    });
    canvas.setAttribute("aria-label", `Live picture: ${shown.join(", ") || "no large class"}`);
  }

  function graph(now) {
    const svg = $("graph"), width = svg.clientWidth, height = svg.clientHeight;
    if (width < 100) return;  // not laid out yet
    const left = 52, right = 6, top = 8, bottom = 22, base = height - bottom;
    const records = [...history.values()].filter((r) => r.at > now - SPAN_S).sort((a, b) => a.at - b.at);
    const timed = records.filter((r) => r.mean_ms !== null);
    // Of a few outliers the line would lie on the ground: the axis ends where 98 % of the seconds do.
    const slowest = timed.map((r) => r.max_ms).sort((a, b) => a - b);
    const reach = Math.max(5, slowest[Math.floor(0.98 * (slowest.length - 1))] ?? 0);
    const unit = 10 ** Math.floor(Math.log10(reach / 2)), step = [1, 2, 5, 10].find((n) => reach / (n * unit) <= 4) * unit;
    const most = Math.ceil(reach / step) * step;
    const x = (at) => left + (width - left - right) * (1 - (now - at) / SPAN_S);
    const y = (ms) => base - (base - top) * Math.min(1, ms / most);
    const shapes = [];
    for (let ms = 0; ms <= most; ms += step) {
      shapes.push(["line", { class: "grid", x1: left, x2: width - right, y1: y(ms), y2: y(ms) }]);
      shapes.push(["text", { x: left - 6, y: y(ms) + 4, "text-anchor": "end" }, most < 1000 ? `${ms} ms` : `${ms / 1000} s`]);
    }
    for (let minute = 0; minute <= 5; minute++) {
      if (minute % (width < 420 ? 2 : 1) === 0 || !minute) {
        const anchor = minute === 0 ? "end" : minute === 5 ? "start" : "middle";
        shapes.push(["text", { x: x(now - 60 * minute), y: height - 6, "text-anchor": anchor }, minute ? `−${minute} min` : "now"]);
      }
    }
    const runs = (list, gap) => list.reduce((found, r) => {
      if (found.length && r.at - found.at(-1).at(-1).at <= gap) found.at(-1).push(r); else found.push([r]);
      return found;
    }, []);
    for (const run of runs(records.filter((r) => r.lost), 1)) {
      const from = Math.max(left, x(run[0].at));
      shapes.push(["rect", { class: "gone", x: from, y: top, width: x(run.at(-1).at + 1) - from, height: base - top }]);
    }
    for (const run of runs(timed, 2)) {
      const along = (key, list) => list.map((r) => `${x(r.at + 0.5).toFixed(1)},${y(r[key]).toFixed(1)}`).join("L");
      shapes.push(["path", { class: "band", d: `M${along("max_ms", run)}L${along("mean_ms", [...run].reverse())}Z` }]);
      shapes.push(["path", { class: "line", d: `M${along("mean_ms", run)}` }]);
    }
    for (const r of records.filter((r) => r.dropped)) {
      const at = x(r.at + 0.5), tall = Math.min(40, 4 + 3 * r.dropped);
      shapes.push(["line", { class: "drop", x1: at, x2: at, y1: base, y2: base - tall }, `${r.dropped} dropped`]);
    }
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren(...shapes.map(([name, attributes, text]) => {
      const shape = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, value);
      if (text && name === "text") shape.textContent = text;
      else if (text) shape.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "title")).textContent = text;
      return shape;
    }));
    const last = timed.at(-1), dropped = records.reduce((sum, r) => sum + r.dropped, 0);
    svg.setAttribute("aria-label", last ? `Latency now ${number(last.mean_ms)} ms; in the last ${seconds(records.length)} at most ${number(Math.max(...slowest))} ms and ${dropped} frames dropped` : "No latency yet");
  }

  function show(stats) {
    const { latency, server } = stats;
    if (JSON.stringify(classes) !== JSON.stringify(stats.classes)) {  // at first, and when another model runs here
      if (!classes.length) $("opacity").value = 100 * stats.opacity;
      classes = stats.classes;
      restore();
      legend();
      apply(false);
    }
    $("title").textContent = [stats.model, stats.source].filter(Boolean).join(" on ") || "lfd-run";
    document.title = `${stats.state === "live" ? "" : `${stats.state}: `}${$("title").textContent} · lfd-run`;
    const state = $("state");
    state.className = `state ${{ live: "live", lost: "bad" }[stats.state] ?? ""}`;
    const text = [stats.state, stats.cause].filter(Boolean).join(": ");
    if (state.textContent !== text) state.textContent = text;  // read out when it changes, not each second
    list($("numbers"), [
      ["frames/s, model", number(stats.fps, 1)],
      ["frames/s, this page", pace && performance.now() - shownAt < 3000 && !shot.stale ? number(1000 / pace, 1) : "–"],
      ["latency p50, ms", number(latency?.p50_ms, 1)],
      ["latency p95, ms", number(latency?.p95_ms, 1)],
      ["inference, ms", number(stats.infer_ms, 1)],
      ["frames shown", number(stats.shown)],
      ["dropped", number(stats.dropped)],
      ["reconnects", number(stats.reconnects)],
    ]);
    const size = shot ? [shot.width, shot.height] : stats.resolution;  // a camera may come back with another one
    const losses = Object.entries(stats.losses).map(([cause, times]) => `${cause} ${times}×`).join(", ");
    list($("run"), [
      ["Model", stats.model || "–"],
      ["Backend", stats.backend || "–"],
      ["Source", stats.source || "–"],
      ["Frames", `${size.join(" × ")}, ${stats.live ? "live: late ones are dropped" : "from a file: every one"}`],
      ["Running", seconds(stats.uptime_s)],
      ["Lost", losses || "never"],
      ["Viewers", `${server.connections} of ${server.most_connections} connections`],
    ]);
    if (stats.uptime_s < told.uptime_s) history.clear();  // another run
    told = { time: stats.time, uptime_s: stats.uptime_s, at: performance.now() };
    for (const record of stats.history) history.set(record.at, record);
    for (const at of history.keys()) if (at < stats.time - SPAN_S) history.delete(at);
    graph(stats.time);
    shares();
  }

  async function statistics() {
    for (;;) {
      try {
        // What was missed is on the server: browsers let a page in the background ask once a minute.
        const missed = told.at ? Math.ceil((performance.now() - told.at) / 1000) + 2 : SPAN_S;
        const response = await ask(`stats.json?history=${Math.min(SPAN_S, missed)}`);
        show(await response.json());
      } catch (error) {
        $("state").className = "state bad";
        if ($("state").textContent !== error.message) $("state").textContent = error.message;
      }
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }

  const every = (checked) => {
    on = new Set(checked ? classes.keys() : []);
    document.querySelectorAll("#legend input").forEach((box) => { box.checked = checked; });
    apply();
  };
  document.forms[0].addEventListener("input", () => apply());
  document.forms[0].addEventListener("submit", (event) => event.preventDefault());
  $("all").addEventListener("click", () => every(true));
  $("none").addEventListener("click", () => every(false));
  $("full").hidden = !document.fullscreenEnabled;  // telephones may have none
  $("full").addEventListener("click", () => (document.fullscreenElement ? document.exitFullscreen() : $("stage").requestFullscreen()));
  for (const kind of ["pointermove", "pointerdown"]) canvas.addEventListener(kind, point);
  canvas.addEventListener("pointerleave", () => { [pointer, $("pointed").hidden] = [null, true]; });
  addEventListener("resize", () => told.at && graph(told.time + (performance.now() - told.at) / 1000));
  pictures();
  statistics();
})();
