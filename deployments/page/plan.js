// The plan as a picture: weights by rank and component, memory through a request.

const SVG = "http://www.w3.org/2000/svg";
const NUM_COLORS = 6;

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value.toLocaleString("en", { maximumSignificantDigits: 3 })} ${units[unit]}`;
}

export function seconds(value) {
  if (value === null || value === undefined) return "unknown";
  if (value >= 90) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  return `${value.toLocaleString("en", { maximumSignificantDigits: 3 })} s`;
}

export function showPlan(plan) {
  const at = (id) => document.getElementById(id);
  at("plan").hidden = false;
  at("plan-facts").replaceChildren(...facts(plan));
  at("plan-weights").replaceChildren(weights(plan));
  at("plan-legend").replaceChildren(...legend(plan));
  at("timeline-title").textContent = plan.device === "cuda" ? "Predicted GPU memory through a request" : "Predicted host memory through a request";
  at("plan-timeline").replaceChildren(timeline(plan));
  at("plan-components").replaceChildren(
    ...plan.components.map((part) =>
      row(part.name, bytes(part.payload_bytes), residency(part), part.ranks.join(", "), part.reason),
    ),
  );
  at("plan-rejected").replaceChildren(...plan.rejected.map((option) => row(option.option, option.reason)));
}

function facts(plan) {
  const { group, memory, predicted } = plan;
  const list = [
    ["Pipeline", plan.pipeline_class],
    ["Ranks", `${group.num_ranks} on ${plan.gpu_type ?? plan.device}`],
    ["CFG × sequence × FSDP", `${group.cfg_degree} × ${group.sequence_degree} × ${group.fsdp_degree}`],
    ["Weights", `${bytes(plan.payload_bytes)}, ${plan.dtype}`],
    ["Predicted step", seconds(predicted.step_s)],
    ["Predicted request", seconds(predicted.request_s)],
    ["Predicted host peak", bytes(memory.host_peak_bytes)],
  ];
  if (plan.device === "cuda") list.push(["Predicted GPU peak", bytes(Math.max(...memory.gpu_peak_bytes))]);
  return list.map(([name, value]) => {
    const item = document.createElement("div");
    item.append(element("dt", name), element("dd", value));
    return item;
  });
}

const residency = (part) =>
  part.num_resident_blocks === null ? part.residency : `${part.residency}, ${part.num_resident_blocks} of ${part.num_blocks} blocks`;

/** Bytes of a component on a rank: on its device, and waiting in host memory. */
function shares(part, group) {
  if (part.residency === "offload") return [0, part.payload_bytes];
  if (part.residency === "sharded") return [part.payload_bytes / group.fsdp_degree, 0];
  if (part.residency === "layerwise" && part.num_blocks) {
    const resident = (part.payload_bytes * (part.num_resident_blocks ?? 0)) / part.num_blocks;
    return [resident, part.payload_bytes - resident];
  }
  return [part.payload_bytes, 0];
}

function weights(plan) {
  const [left, width, pitch] = [64, 480, 34];
  const { group, memory } = plan;
  const capacity = memory.gpu_capacity_bytes;
  const peaks = memory.gpu_peak_bytes;
  const ranks = [...Array(group.num_ranks).keys()].map((rank) =>
    plan.components.filter((part) => part.ranks.includes(rank)).map((part) => [part, ...shares(part, group)]),
  );
  const totals = ranks.map((parts) => parts.reduce((sum, [, device, host]) => sum + device + host, 0));
  const scale = (width - left - 8) / Math.max(1, ...totals, ...peaks, ...capacity);
  const picture = svg(width, pitch * group.num_ranks + 4, `Weights of ${plan.components.length} components on ${group.num_ranks} ranks`);
  ranks.forEach((parts, rank) => {
    const y = rank * pitch + 4;
    picture.append(shape("text", { x: 0, y: y + 16 }, `rank ${rank}`));
    let x = left;
    for (const [part, device, host] of parts) {
      for (const [amount, where] of [[device, ""], [host, "host"]]) {
        if (!amount) continue;
        const box = shape("rect", { x, y, width: Math.max(1, amount * scale - 1), height: 24, rx: 2, class: `${color(plan, part)} ${where}` });
        box.append(shape("title", {}, `${part.name}: ${bytes(amount)}${where ? " in host memory" : ""}`));
        picture.append(box);
        x += amount * scale;
      }
    }
    if (peaks[rank]) picture.append(mark(left + peaks[rank] * scale, y, "peak", `predicted peak ${bytes(peaks[rank])}`));
    if (capacity[rank]) picture.append(mark(left + capacity[rank] * scale, y, "limit", `capacity ${bytes(capacity[rank])}`));
  });
  return picture;
}

function mark(x, y, kind, text) {
  const line = shape("line", { x1: x, x2: x, y1: y - 3, y2: y + 27, class: kind });
  line.append(shape("title", {}, text));
  return line;
}

function legend(plan) {
  const items = plan.components.map((part) => {
    const item = element("li", "");
    const swatch = document.createElement("i");
    swatch.className = color(plan, part);
    item.append(swatch, `${part.name} ${bytes(part.payload_bytes)}, ${residency(part)}`);
    return item;
  });
  if (plan.components.some((part) => shares(part, plan.group)[1])) items.push(element("li", "pale: in host memory"));
  if (plan.device === "cuda") items.push(element("li", "line: predicted peak; dashed: capacity"));
  return items;
}

const color = (plan, part) => `c${Math.min(plan.components.indexOf(part), NUM_COLORS - 1)}`;

function timeline(plan) {
  const [width, height, floor] = [480, 190, 160];
  const moments = plan.memory.timeline;
  const values = moments.map((moment) => (plan.device === "cuda" ? moment.gpu_bytes : [moment.host_bytes]));
  const most = Math.max(1, ...values.flat());
  const pitch = width / Math.max(1, moments.length);
  const picture = svg(width, height, moments.map((moment, index) => `${moment.stage}: ${bytes(Math.max(...values[index]))}`).join("; "));
  moments.forEach((moment, index) => {
    const bar = (pitch - 16) / values[index].length;
    values[index].forEach((value, rank) => {
      const tall = (value / most) * (floor - 24);
      const box = shape("rect", { x: index * pitch + 8 + rank * bar, y: floor - tall, width: Math.max(1, bar - 2), height: tall, rx: 2, class: "c1" });
      box.append(shape("title", {}, `${moment.stage}${values[index].length > 1 ? `, rank ${rank}` : ""}: ${bytes(value)}`));
      picture.append(box);
    });
    const top = Math.max(...values[index]);
    const middle = (index + 0.5) * pitch;
    picture.append(shape("text", { x: middle, y: floor - (top / most) * (floor - 24) - 6, "text-anchor": "middle" }, bytes(top)));
    picture.append(shape("text", { x: middle, y: floor + 18, "text-anchor": "middle" }, moment.stage));
  });
  picture.append(shape("line", { x1: 0, x2: width, y1: floor, y2: floor, class: "axis" }));
  return picture;
}

function svg(width, height, label) {
  return shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
}

function shape(name, attributes, text = "") {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
}

function element(name, text) {
  const node = document.createElement(name);
  node.textContent = text;
  return node;
}

function row(...cells) {
  const line = document.createElement("tr");
  line.append(...cells.map((cell) => element("td", cell)));
  return line;
}
