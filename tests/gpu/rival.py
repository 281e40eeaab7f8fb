"""Times PyTorch eager and torch.compile on the operations that dd2-gpu-check has timed, on the same GPU.

usage: rival.py REPORT.json RIVAL.json. For every line of REPORT's "kernels" RIVAL gets {"eager_ms", "compiled_ms"}
(null: torch.compile did not work), and "torch" says which versions. Times are medians between CUDA events.
"""
import json
import pathlib
import statistics
import sys

import torch
import torch.nn.functional as F

WARM_UPS, REPEATS = 3, 21


def median_ms(work):
    times = []
    for turn in range(WARM_UPS + REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        if turn >= WARM_UPS:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def score(case):
    """method 1.3, 1.4: x, u [draws, rows, C], t [draws, rows, 1], logits [rows, codes] shared by the draws."""
    shape = (case["draws"], case["rows"], case["channels"])
    x, u = (torch.randn(shape, device="cuda") for _ in range(2))
    t = torch.rand((*shape[:2], 1), device="cuda") * 0.98 + 0.02
    logp = torch.randn(case["rows"], case["codes"], device="cuda") * 2
    logp = logp.to(torch.bfloat16) if case["bf16"] else logp
    codebook = torch.randn(case["codes"], case["channels"], device="cuda")

    def mean(x, t, logp, codebook, u):
        scale, square = (1 - t) / t.square(), ((1 - t) / t).square() / 2
        logits = (scale * x) @ codebook.t() + logp - square * codebook.square().sum(1)
        posterior = logits.softmax(-1)
        mu = posterior @ codebook
        if not case["vjp"]:
            return mu
        moment = (posterior * (u @ codebook.t())) @ codebook
        return mu, scale * (moment - mu * (mu * u).sum(-1, keepdim=True))
    return mean, (x, t, logp, codebook, u)


def rows_of(case):
    """The residual stream and its like: fp32. One modulation row for `repeats` rows: [sequences, repeats, width]."""
    return torch.randn(case["rows"] // case["repeats"], case["repeats"], case["width"], device="cuda")


def modulation_of(case):
    """Shift, scale, gate of the sequences, and of the head a bias; VAR's linear layer has added its own."""
    rows = torch.randn(case["rows"] // case["repeats"], 1, 3 * case["width"], device="cuda")
    return rows, torch.randn_like(rows[0, 0]) if case["repeats"] == 1 else None


def parts(modulation, bias):
    return (modulation if bias is None else modulation + bias).chunk(3, -1)


def product_type(case):
    """Of what matrix products take and give."""
    return torch.bfloat16 if case["bf16"] else torch.float32


def modulated_norm(case):
    kind = product_type(case)

    def forward(x, modulation, bias):
        shift, scale, _ = parts(modulation, bias)
        return (F.layer_norm(x, x.shape[-1:], eps=1e-5) * (1 + scale) + shift).to(kind)
    return forward, (rows_of(case), *modulation_of(case))


def modulated_norm_backward(case):
    """Autograd's backward of the above; the residual's gradient is added as ours does."""
    forward, (x, modulation, bias) = modulated_norm(case)
    x.requires_grad_(True)
    modulation.requires_grad_(True)
    return forward, (x, modulation, bias), (rows_of(case).to(product_type(case)), rows_of(case))


def gated_residual(case):
    def forward(x, branch, branch_bias, modulation, bias):
        return x + parts(modulation, bias)[2] * (branch if branch_bias is None else branch + branch_bias)
    modulation, bias = modulation_of(case)
    branch_bias = None if bias is None else torch.randn(case["width"], device="cuda")
    return forward, (rows_of(case), rows_of(case).to(product_type(case)), branch_bias, modulation, bias)


def gated_residual_backward(case):
    forward, (x, branch, branch_bias, modulation, bias) = gated_residual(case)
    branch.requires_grad_(True)
    modulation.requires_grad_(True)
    return forward, (x, branch, branch_bias, modulation, bias), (rows_of(case),)


def unit_length(case):
    """Queries and keys of length 1, the queries times a temperature, in what attention takes."""
    kind = product_type(case)

    def forward(qkv, temperature):
        q, k, _ = qkv.unbind(1)
        return (F.normalize(q.float(), dim=-1) * temperature).to(kind), F.normalize(k.float(), dim=-1).to(kind)
    shape = (case["heads"], case["width"])
    return forward, (torch.randn(case["rows"], 3, *shape, device="cuda").to(kind), torch.randn(shape[0], 1, device="cuda"))


def unit_length_backward(case):
    forward, (qkv, temperature) = unit_length(case)
    qkv.requires_grad_(True)
    temperature.requires_grad_(True)
    return forward, (qkv, temperature), ([torch.randn_like(qkv[:, 0]) for _ in range(2)],)


def time_forward(kernel, case, compiled):
    with torch.no_grad():
        function, arguments = kernel(case)
        function = torch.compile(function) if compiled else function
        return median_ms(lambda: function(*arguments))


def time_backward(kernel, case, compiled):
    function, arguments, gradients = kernel(case)
    function = torch.compile(function) if compiled else function
    wanted = [value for value in arguments if value is not None and value.requires_grad]
    output = function(*arguments)

    def backward():
        found = torch.autograd.grad(output, wanted, gradients[0], retain_graph=True)
        return found[0] + gradients[1] if len(gradients) > 1 else found
    return median_ms(backward)


def time_adam(case, compiled):
    """PyTorch's fused Adam and an EMA on one flat tensor."""
    parameter = torch.nn.Parameter(torch.randn(case["count"], device="cuda"))
    parameter.grad = torch.randn_like(parameter) * 1e-3
    ema = parameter.detach().clone()
    adam = torch.optim.Adam([parameter], lr=1e-4, betas=(0.9, 0.95), fused=True)

    def step():
        adam.step()
        ema.lerp_(parameter.detach(), 0.001)
    return median_ms(torch.compile(step) if compiled else step)


FORWARD = {"score": score, "modulated_norm": modulated_norm, "gated_residual": gated_residual,
           "unit_length": unit_length}
BACKWARD = {"modulated_norm_backward": modulated_norm_backward,
            "gated_residual_backward": gated_residual_backward,
            "unit_length_backward": unit_length_backward}


def time_case(case, compiled):
    torch._dynamo.reset()
    kernel = case["kernel"]
    if kernel == "adam":
        return time_adam(case, compiled)
    if kernel == "normal":
        draw = (lambda count: torch.randn(count, device="cuda"))
        draw = torch.compile(draw) if compiled else draw
        return median_ms(lambda: draw(case["count"]))
    if kernel in FORWARD:
        return time_forward(FORWARD[kernel], case, compiled)
    return time_backward(BACKWARD[kernel], case, compiled)


def main():
    report, output = (pathlib.Path(name) for name in sys.argv[1:3])
    torch.backends.cuda.matmul.allow_tf32 = False  # fp32 as ours
    lines = []
    for line in json.loads(report.read_text())["kernels"]:
        found = {"eager_ms": None, "compiled_ms": None}
        for compiled, name in ((False, "eager"), (True, "compiled")):
            try:
                found[f"{name}_ms"] = time_case(line["case"], compiled)
            except Exception as error:  # a compiler that is missing must not cost the rest of the report
                found[f"{name}_error"] = (str(error).splitlines() or [repr(error)])[0]
        lines.append(found)
        print(line["case"], found, file=sys.stderr, flush=True)
        torch.cuda.empty_cache()
    output.write_text(json.dumps({"torch": torch.__version__, "lines": lines}))
    if any("eager_error" in line for line in lines):
        sys.exit("rival: eager PyTorch did not do all kernels")


if __name__ == "__main__":
    main()
