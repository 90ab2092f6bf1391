"""The side of a bench that runs the same model in PyTorch, in a process of its own.

Hugging Face's ViT, ViTMAE or DiT (diffusers) with scaled-dot-product attention and our
weights; a step is
forward, loss, backward and fused AdamW, with as many threads as cores. On a GPU
bfloat16 products by autocast and torch.compile.
"""

import json
import os
import tempfile
import time
from typing import Any

import numpy as np

from pit_jax.perf import worker

_state: dict[str, Any] = {}


def start(arrays: str, model: dict, optim: dict, cores: int) -> dict:
    """Builds model and optimiser.

    Args:
      arrays: the .npz file that our side wrote.
      model: transformers' config.json as a dict; its "architectures" names the class.
      optim: lr, betas, eps and weight_decay of AdamW.
      cores: threads on a CPU.
    """
    import torch

    torch.set_num_threads(cores)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = np.load(arrays)
    names = {n.removeprefix("weight/"): n for n in loaded.files if n.startswith("weight/")}
    weights = {name: np.ascontiguousarray(loaded[n]) for name, n in names.items()}
    diffusion = model["architectures"] == ["DiTTransformer2DModel"]
    build = _diffusers if diffusion else _transformers
    net, versions = build(model, weights, os.path.dirname(arrays))
    del weights
    net = net.to(device).train()
    given = {"pixel_values": "image", "noise": "noise"}
    if diffusion:
        given = {"hidden_states": "image", "timestep": "time", "class_labels": "label"}
    inputs = {ours: loaded[name] for ours, name in given.items() if name in loaded.files}
    target = torch.from_numpy(loaded["target"]).to(device) if "target" in loaded.files else None
    _state.update(
        torch=torch,
        device=device,
        net=net,
        diffusion=diffusion,
        inputs={name: torch.from_numpy(x).to(device) for name, x in inputs.items()},
        target=target,
        optimiser=torch.optim.AdamW(net.parameters(), fused=True, **optim),
        step=_step,
    )
    if device.type == "cuda":
        _state["step"] = torch.compile(_step)
    return {
        "versions": {"torch": torch.__version__} | versions,
        "start_bytes": worker.resident_peak(),
    }


def _transformers(model: dict, weights: dict, folder: str) -> tuple[Any, dict]:
    """The class that `model` names with these weights, and the library's version."""
    import safetensors.numpy
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # By way of a directory: how its layers are called inside differs between versions.
    folder = tempfile.mkdtemp(dir=folder)
    safetensors.numpy.save_file(weights, f"{folder}/model.safetensors")
    with open(f"{folder}/config.json", "w") as file:
        json.dump(model, file)
    net, report = getattr(transformers, model["architectures"][0]).from_pretrained(
        folder, attn_implementation="sdpa", output_loading_info=True
    )
    if report["missing_keys"] or report["unexpected_keys"]:
        raise RuntimeError(f"not all weights were loaded: {report}")
    return net, {"transformers": transformers.__version__}


def _diffusers(model: dict, weights: dict, folder: str) -> tuple[Any, dict]:
    """The same for diffusers' DiT, made to compute what ours does."""
    import diffusers

    from pit_jax.weights import diffusers_dit

    del folder
    fields = {name: value for name, value in model.items() if name != "architectures"}
    net = diffusers.DiTTransformer2DModel(**fields)
    diffusers_dit.put_into(net, weights)
    for block in net.transformer_blocks:  # labels come dropped
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    return net, {"diffusers": diffusers.__version__}


def results(outputs: str) -> dict:
    """Outputs and loss in float32; the outputs go to the .npy file of that name."""
    torch = _state["torch"]
    with torch.no_grad():
        found, loss = _forward()
    np.save(outputs, found.float().cpu().numpy())
    return {"loss": float(loss)}


def _forward() -> tuple[Any, Any]:
    """Logits, reconstruction or prediction, and the loss."""
    out = _state["net"](**_state["inputs"])
    if _state["diffusion"]:
        return out.sample, _state["torch"].nn.functional.mse_loss(out.sample, _state["target"])
    if _state["target"] is None:  # a masked autoencoder makes its own loss
        return out.logits, out.loss
    loss = _state["torch"].nn.functional.cross_entropy(out.logits.float(), _state["target"])
    return out.logits, loss


def _step() -> Any:
    torch = _state["torch"]
    on_gpu = _state["device"].type == "cuda"
    with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
        _, loss = _forward()
    loss.backward()
    return loss


def run(count: int) -> list[float]:
    """Seconds of each of `count` training steps."""
    torch, optimiser = _state["torch"], _state["optimiser"]
    seconds = []
    for _ in range(count):
        begin = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        loss = _state["step"]()
        optimiser.step()
        loss.item()
        if _state["device"].type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return seconds


def memory() -> int:
    """Peak bytes: of the GPU, on a CPU of the process."""
    if _state["device"].type == "cuda":
        return _state["torch"].cuda.max_memory_allocated()
    return worker.resident_peak()


def matmul_peak() -> float:
    """FLOP/s of one large matrix product, as bench_ours measures it; the best of several."""
    torch, device = _state["torch"], _state["device"]
    on_gpu = device.type == "cuda"
    n, dtype = (8192, torch.bfloat16) if on_gpu else (2048, torch.float32)
    a, b = (torch.randn((n, n), dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(24):
        begin = time.perf_counter()
        a @ b
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * n**3 / best


if __name__ == "__main__":
    functions = (start, results, run, memory, matmul_peak)
    worker.serve({function.__name__: function for function in functions})
