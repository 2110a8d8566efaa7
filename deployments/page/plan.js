// The plan as a picture: weights by rank and component, memory through a request.

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
  const [shown, unit] = value < 0.1 ? [value * 1000, "ms"] : [value, "s"];
  return `${shown.toLocaleString("en", { maximumSignificantDigits: 3 })} ${unit}`;
}

export function showPlan(plan) {
  const at = (id) => document.getElementById(id);
  at("plan").hidden = false;
  at("plan-facts").replaceChildren(...facts(plan));
  at("plan-weights").replaceChildren(...weights(plan));
  at("plan-legend").replaceChildren(...legend(plan));
  at("timeline-title").textContent = plan.device === "cuda" ? "Predicted GPU memory through a request" : "Predicted host memory through a request";
  at("plan-timeline").replaceChildren(...timeline(plan));
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
  const { group, memory } = plan;
  const ranks = [...Array(group.num_ranks).keys()].map((rank) =>
    plan.components.filter((part) => part.ranks.includes(rank)).map((part) => [part, ...shares(part, group)]),
  );
  const totals = ranks.map((parts) => parts.reduce((sum, [, device, host]) => sum + device + host, 0));
  const most = Math.max(1, ...totals, ...memory.gpu_peak_bytes, ...memory.gpu_capacity_bytes);
  return ranks.map((parts, rank) => {
    const track = element("div", "", "track");
    for (const [part, device, host] of parts) {
      if (device) track.append(bar(device / most, `part ${color(plan, part)}`, `${part.name}: ${bytes(device)}`));
      if (host) track.append(bar(host / most, `part host ${color(plan, part)}`, `${part.name}: ${bytes(host)} in host memory`));
    }
    const [peak, capacity] = [memory.gpu_peak_bytes[rank], memory.gpu_capacity_bytes[rank]];
    if (peak) track.append(mark(peak / most, "peak", `predicted peak ${bytes(peak)}`));
    if (capacity) track.append(mark(capacity / most, "limit", `capacity ${bytes(capacity)}`));
    return chartRow(`rank ${rank}`, [track], bytes(totals[rank]));
  });
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
  const moments = plan.memory.timeline;
  const values = moments.map((moment) => (plan.device === "cuda" ? moment.gpu_bytes : [moment.host_bytes]));
  const most = Math.max(1, ...values.flat());
  return moments.map((moment, index) => {
    const tracks = values[index].map((value, rank) => {
      const track = element("div", "", values[index].length > 1 ? "track thin" : "track");
      track.append(bar(value / most, "part c1", `${moment.stage}, rank ${rank}: ${bytes(value)}`));
      return track;
    });
    return chartRow(moment.stage, tracks, bytes(Math.max(...values[index])));
  });
}

/** One line of a chart: its name, its bars, its number. Widths are set by script: the policy forbids them in markup. */
function chartRow(name, tracks, number) {
  const line = element("div", "", "chart-row");
  const middle = element("div", "");
  middle.append(...tracks);
  line.append(element("span", name, "name"), middle, element("span", number, "number"));
  return line;
}

function bar(share, kind, text) {
  const node = element("div", "", kind);
  node.style.width = `${share * 100}%`;
  node.title = text;
  return node;
}

function mark(share, kind, text) {
  const node = element("div", "", `mark ${kind}`);
  node.style.insetInlineStart = `${share * 100}%`;
  node.title = text;
  return node;
}

function element(name, text, kind = "") {
  const node = document.createElement(name);
  node.textContent = text;
  if (kind) node.className = kind;
  return node;
}

function row(...cells) {
  const line = document.createElement("tr");
  line.append(...cells.map((cell) => element("td", cell)));
  return line;
}
