"""The side of a bench that runs the same model in PyTorch, in a process of its own.

Hugging Face's ViT with scaled-dot-product attention and our weights; a step is forward,
loss, backward and fused AdamW, with as many threads as cores. On a GPU bfloat16 products
by autocast and torch.compile.
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
      model: transformers' ViTConfig as a dict.
      optim: lr, betas, eps and weight_decay of AdamW.
      cores: threads on a CPU.
    """
    import safetensors.numpy
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(cores)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = np.load(arrays)
    # By way of a directory: how its layers are called inside differs between versions.
    folder = tempfile.mkdtemp(dir=os.path.dirname(arrays))
    names = {n.removeprefix("weight/"): n for n in loaded.files if n.startswith("weight/")}
    weights = {name: np.ascontiguousarray(loaded[n]) for name, n in names.items()}
    safetensors.numpy.save_file(weights, f"{folder}/model.safetensors")
    with open(f"{folder}/config.json", "w") as file:
        json.dump(model, file)
    net, report = transformers.ViTForImageClassification.from_pretrained(
        folder, attn_implementation="sdpa", output_loading_info=True
    )
    if report["missing_keys"] or report["unexpected_keys"]:
        raise RuntimeError(f"not all weights were loaded: {report}")
    del weights
    net = net.to(device).train()
    _state.update(
        torch=torch,
        device=device,
        net=net,
        image=torch.from_numpy(loaded["image"]).to(device),
        target=torch.from_numpy(loaded["target"]).to(device),
        optimiser=torch.optim.AdamW(net.parameters(), fused=True, **optim),
        step=_step,
    )
    if device.type == "cuda":
        _state["step"] = torch.compile(_step)
    return {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "start_bytes": worker.resident_peak(),
    }


def results(logits: str) -> dict:
    """Logits and loss in float32; the logits go to the .npy file `logits`."""
    torch, net = _state["torch"], _state["net"]
    with torch.no_grad():
        out = net(pixel_values=_state["image"]).logits.float()
        loss = torch.nn.functional.cross_entropy(out, _state["target"])
    np.save(logits, out.cpu().numpy())
    return {"loss": float(loss)}


def _step() -> Any:
    torch = _state["torch"]
    on_gpu = _state["device"].type == "cuda"
    with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
        logits = _state["net"](pixel_values=_state["image"]).logits
    loss = torch.nn.functional.cross_entropy(logits.float(), _state["target"])
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


if __name__ == "__main__":
    functions = (start, results, run, memory)
    worker.serve({function.__name__: function for function in functions})
