"""The web page at `/`: jobs with live logs and metrics, endpoints with a form to invoke them.

One file without dependencies. Whatever comes from a job is set as text, never as markup.
"""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Local SageMaker</title>
<style>
  body { font: 15px/1.4 system-ui, sans-serif; margin: 0; height: 100vh; display: grid;
         grid-template-columns: 30rem 1fr }
  nav { overflow: auto; border-right: 1px solid #ccc; padding: 1rem } main { overflow: auto; padding: 1rem 1.5rem }
  h1 { font-size: 1.2rem; margin: 0 0 1rem } h2 { font-size: 1rem; margin: 1.2rem 0 .3rem }
  .item { display: flex; gap: .6rem; width: 100%; padding: .35rem .5rem; border: 0; background: none; text-align: left;
          font: inherit; cursor: pointer; border-radius: 4px }
  .item:hover, .item[aria-current=true] { background: #e8eef7 }
  .item b { flex: 1; font-weight: 500; overflow-wrap: anywhere } .item span { white-space: nowrap }
  .Completed, .InService { color: #177a2b } .Failed { color: #b3261e }
  .InProgress, .Creating, .Updating { color: #8a5a00 }
  pre { background: #f6f7f9; padding: .8rem; overflow: auto; max-height: 60vh; font-size: 13px; white-space: pre-wrap }
  figure { display: inline-block; margin: 0 1.5rem 1rem 0 } figcaption { font-size: 13px } svg { background: #f6f7f9 }
  textarea { width: 100%; height: 6rem; font: 13px monospace } label { display: block; margin: .6rem 0 .2rem }
  .detail { overflow-wrap: anywhere }
</style>
<nav>
  <h1>Local SageMaker <small id="runtime"></small></h1>
  <h2>Jobs</h2><div id="jobs"></div>
  <h2>Endpoints</h2><div id="endpoints"></div>
</nav>
<main>
  <h1 id="title">Choose a job or an endpoint</h1>
  <p id="detail" class="detail"></p>
  <form id="invoke" hidden>
    <label for="type">Content type</label>
    <input id="type" name="type" value="application/json" size="40">
    <label for="body">Body</label>
    <textarea id="body" name="body">[[0]]</textarea>
    <label for="file">or a file</label>
    <input id="file" name="file" type="file">
    <p><button id="send">Invoke</button> <span id="took"></span></p>
    <pre id="answer" hidden></pre>
  </form>
  <section id="metrics"></section>
  <pre id="logs" hidden></pre>
</main>
<script>
"use strict";
const at = id => document.getElementById(id);
const get = path => fetch("/_local/" + path).then(answer => answer.json());
let chosen = null;  // {kind, name}; it stands in the address, so that a reload keeps it

function choose() {
  const [kind, name] = decodeURIComponent(location.hash.slice(1)).split("/");
  chosen = name ? {kind, name} : null;
  at("answer").hidden = true;
  refresh();
}

function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function row(item, kind) {
  const isChosen = chosen && chosen.kind === kind && chosen.name === item.name;
  const button = make("button", "", {class: "item", type: "button", "aria-current": isChosen});
  button.append(make("b", item.name), make("span", kind === "endpoint" ? "" : kind.replace("-job", "")),
                make("span", item.status, {class: item.status}));
  button.onclick = () => { location.hash = `${kind}/${item.name}`; };
  if (isChosen) {
    at("title").textContent = `${item.name}: ${item.status}`;
    at("detail").textContent = item.detail;
  }
  return button;
}

function chart(name, points) {
  const figure = make("figure", ""), width = 260, height = 90;
  const values = points.map(point => point[1]), times = points.map(point => point[0]);
  const [low, high, first, last] = [Math.min(...values), Math.max(...values), times[0], times[times.length - 1]];
  const x = time => 5 + (width - 10) * (last > first ? (time - first) / (last - first) : 0.5);
  const y = value => height - 5 - (height - 10) * (high > low ? (value - low) / (high - low) : 0.5);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  svg.setAttribute("width", width); svg.setAttribute("height", height);
  line.setAttribute("points", points.map(([time, value]) => `${x(time)},${y(value)}`).join(" "));
  line.setAttribute("fill", "none"); line.setAttribute("stroke", "#1f5fbf"); line.setAttribute("stroke-width", "2");
  svg.append(line);
  figure.append(make("figcaption", `${name} ${values[values.length - 1].toPrecision(4)}`), svg);
  return figure;
}

async function refresh() {
  const overview = await get("overview");
  at("runtime").textContent = `(${overview.runtime})`;
  at("jobs").replaceChildren(...overview.jobs.map(job => row(job, job.kind)));
  at("endpoints").replaceChildren(...overview.endpoints.map(endpoint => row(endpoint, "endpoint")));
  at("invoke").hidden = !chosen || chosen.kind !== "endpoint";
  if (!chosen) return;
  const name = encodeURIComponent(chosen.name), logs = at("logs");
  const metrics = chosen.kind === "training-job" ? (await get("metrics/" + name)).metrics : {};
  at("metrics").replaceChildren(...Object.entries(metrics).map(([metric, points]) => chart(metric, points)));
  const wasAtEnd = logs.scrollTop + logs.clientHeight >= logs.scrollHeight - 20;
  logs.textContent = (await get(`logs/${chosen.kind}/${name}`)).lines.join("\\n");
  logs.hidden = !logs.textContent;
  if (wasAtEnd) logs.scrollTop = logs.scrollHeight;
}

at("invoke").onsubmit = async event => {
  event.preventDefault();
  const began = performance.now(), file = at("file").files[0];
  const answer = await fetch("/_local/invoke/" + encodeURIComponent(chosen.name),
    {method: "POST", headers: {"Content-Type": at("type").value}, body: file || at("body").value});
  const reply = await answer.json();
  at("took").textContent = `${(performance.now() - began).toFixed(1)} ms`;
  at("answer").textContent = answer.ok ? reply.body : reply.message;
  at("answer").hidden = false;
};

window.onhashchange = choose;
choose();
setInterval(refresh, 1500);
</script>
</html>
"""
