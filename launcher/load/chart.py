"""The picture of a load test; the launcher's only module that imports matplotlib."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from launcher.load.advice import Target
from launcher.load.stages import Load

INK, WARM, GREY = "#1f5fa8", "#c2571a", "#777777"


def draw(load: Load, target: Target, title: str, path: Path) -> None:
    """Write throughput and latency over the requests under way, with the knee and the target, as a PNG."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    throughput, latency = figure.subplots(1, 2)
    at_once = [stage.concurrency for stage in load.stages]
    throughput.plot(at_once, [stage.requests_per_second for stage in load.stages], "o-", color=INK)
    throughput.set(ylabel="answers per second", ylim=(0, None))
    if target.requests_per_second:
        throughput.axhline(target.requests_per_second, color=GREY, linestyle=":", label="target")
    for name, style in (("p50_ms", "o-"), ("p90_ms", "s--"), ("p99_ms", "^:")):
        values = [getattr(stage, name) for stage in load.stages]
        latency.plot(at_once, values, style, color=WARM, label=name.removesuffix("_ms"))
    if target.p99_ms:
        latency.axhline(target.p99_ms, color=GREY, linestyle=":", label="target p99")
    latency.set(ylabel="milliseconds", ylim=(0, None))
    for axes in (throughput, latency):
        axes.set_xscale("log", base=2)
        axes.set_xticks(at_once, [str(number) for number in at_once])
        axes.set_xlabel("requests under way")
        axes.axvline(load.knee.concurrency, color=GREY, linewidth=0.8, label="knee")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
