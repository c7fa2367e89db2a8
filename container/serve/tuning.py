"""Other forms of a network that may be faster: each measured on this machine against the network as it was loaded.

A form is taken only where its answers agree and it gains `WORTH`; all are measured in turn, so that a busy moment hits
none alone. Measured on two CPU cores, one image, one thread (eager, channels last, frozen; milliseconds): resnet18
55/50/44, mobilenet_v3_small 8.8/7.6/6.8, efficientnet_b0 29/29/27, vit_b_16 449/450/444, convnet 1.8/1.2/1.5. Building
and measuring took 0.1 to 7 s, so that it is done beside the first answers. `torch.compile` is not among the forms: it
needs a compiler, which the image lacks unless it is built with KEEP_COMPILER.
"""

import copy
import time
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import nn

WORTH = 0.95  # another form holds the weights a second time while both live: 5 % is the least it must gain
REPEATS = 7
OURS = ("container.model", "torchvision.")  # whose forward passes do the same for every input, so that a trace holds
Network = Callable[[torch.Tensor], torch.Tensor]


def fastest_form(network: nn.Module, examples: list[torch.Tensor]) -> tuple[Network, str]:
    """The fastest form of a network that gives the same answers, and a line that says which and by how much.

    Args:
        network: in eval mode.
        examples: inputs [B, …] of different batch sizes on the network's device; the first is timed.
    """
    with torch.inference_mode():
        expected = [network(example) for example in examples]
        forms: dict[str, Network] = {"as loaded": network}
        wrong = []
        for name, make in FORMS.items():
            form = make(network, examples[0])
            if form is None:
                continue
            if all(_agree(form(example), answer) for example, answer in zip(examples, expected, strict=True)):
                forms[name] = form
            else:
                wrong.append(name)
        seconds = measure(forms, examples[0])
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
                return torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(network, example)))
        except RuntimeError:
            return None
    return None


FORMS = {"channels last": channels_last, "frozen": frozen}


def _is_ours(network: nn.Module) -> bool:
    return type(network).__module__.startswith(OURS)


def _agree(answer: torch.Tensor, expected: torch.Tensor) -> bool:
    return answer.shape == expected.shape and torch.allclose(answer, expected, rtol=1e-3, atol=1e-4)


def measure(forms: Mapping[str, Network], example: torch.Tensor) -> dict[str, float]:
    """Seconds of each form's fastest run of `REPEATS`, after two that warm up."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(REPEATS + 2):
        for name, form in forms.items():
            began = time.perf_counter()
            form(example)
            if example.is_cuda:
                torch.cuda.synchronize(example.device)
            times[name].append(time.perf_counter() - began)
    return {name: min(durations[2:]) for name, durations in times.items()}
