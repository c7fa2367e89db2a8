"""Other forms of a network that may be faster: each measured on this machine against the network as it was loaded.

A form is taken only where its answers agree and it gains `WORTH`; all are measured in turn, so that a busy moment hits
none alone. Measured on two CPU cores, one image, one thread (eager, channels last, frozen; milliseconds): resnet18
55/50/44, mobilenet_v3_small 8.8/7.6/6.8, efficientnet_b0 29/29/27, vit_b_16 449/450/444, convnet 1.8/1.2/1.5. Building
and measuring took 0.1 to 7 s: a quick network is measured before its server is ready, a slow one in a quiet moment.
`torch.compile` is not among the forms: it needs a compiler, which the image lacks unless it is built with
KEEP_COMPILER.
"""

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import nn

WORTH = 0.95  # another form holds the weights a second time while both live: 5 % is the least it must gain
REPEATS = 7
FORWARD_PASSES = 12  # at least so many are needed to build, compare and measure one form
OURS = ("container.model", "torchvision.")  # whose forward passes do the same for every input, so that a trace holds
Network = Callable[[torch.Tensor], torch.Tensor]


def fastest_form(network: nn.Module, examples: list[torch.Tensor], within: float = math.inf) -> tuple[Network, str]:
    """The fastest form of a network that gives the same answers, and a line that says which and by how much.

    Args:
        network: in eval mode.
        examples: inputs [B, …] of different batch sizes on the network's device; the first is timed.
        within: about how many seconds it may take. Further forms that there is no time for are left out; where there is
            none for any, the network comes back with an empty line.
    """
    began = time.perf_counter()
    with torch.inference_mode():
        if within < math.inf and min(_seconds(network, examples[0]) for _ in range(2)) * FORWARD_PASSES > within:
            return network, ""
        expected = [network(example) for example in examples]
        forms: dict[str, Network] = {"as loaded": network}
        wrong = []
        for name, make in FORMS.items():
            if len(forms) > 1 and time.perf_counter() - began > within / 2:  # the other half is for the measuring
                break
            form = make(network, examples[0])
            if form is None:
                continue
            if all(_agree(form(example), answer) for example, answer in zip(examples, expected, strict=True)):
                forms[name] = form
            else:
                wrong.append(name)
        seconds = measure(forms, examples[0], began + within)
    best = min(seconds, key=lambda name: seconds[name])
    if seconds[best] > seconds["as loaded"] * WORTH:
        best = "as loaded"
    figures = ", ".join(f"{name} {duration * 1e3:.2f} ms" for name, duration in seconds.items())
    left_out = f"; other answers: {', '.join(wrong)}" if wrong else ""
    return forms[best], f"the network is served {best}: {figures}{left_out}"


def channels_last(network: nn.Module, _example: torch.Tensor) -> Network | None:
    """A copy with its weights in the layout that convolutions of some CPUs and GPUs prefer."""
    if not _is_ours(network):
        return None
    return copy.deepcopy(network).to(memory_format=torch.channels_last)


def frozen(network: nn.Module, example: torch.Tensor) -> Network | None:
    """The network with its constants folded, in the CPU library's own layouts; None where that cannot be done."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; its successors were slower here, or wrong
        try:
            if isinstance(network, torch.jit.ScriptModule):
                return torch.jit.optimize_for_inference(torch.jit.freeze(network))
            if _is_ours(network):
                return torch.jit.optimize_for_inference(torch.jit.freeze(_traced(network, example)))
        except RuntimeError:
            return None
    return None


FORMS = {"frozen": frozen, "channels last": channels_last}  # what gains most comes first


def _traced(network: nn.Module, example: torch.Tensor) -> torch.jit.ScriptModule:
    return torch.jit.trace(network, example, check_trace=False)  # its answers are compared here, for other sizes too


def _is_ours(network: nn.Module) -> bool:
    return type(network).__module__.startswith(OURS)


def _agree(answer: torch.Tensor, expected: torch.Tensor) -> bool:
    return answer.shape == expected.shape and torch.allclose(answer, expected, rtol=1e-3, atol=1e-4)


def measure(forms: Mapping[str, Network], example: torch.Tensor, until: float = math.inf) -> dict[str, float]:
    """Seconds of each form's fastest run of `REPEATS`, of two where the clock passes `until` before; one warms up."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(REPEATS + 1):
        for name, form in forms.items():
            times[name].append(_seconds(form, example))
        if turn >= 2 and time.perf_counter() > until:
            break
    return {name: min(durations[1:]) for name, durations in times.items()}


def _seconds(form: Network, example: torch.Tensor) -> float:
    began = time.perf_counter()
    form(example)
    if example.is_cuda:
        torch.cuda.synchronize(example.device)
    return time.perf_counter() - began
