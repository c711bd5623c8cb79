"""Text towers from and to Hugging Face folders: `config.json`, safetensors weights, tokenizer files.

Every tensor of a checkpoint is accounted for: it fills a parameter, or it is on the list of heads and buffers that the
tower does not have, or the checkpoint is refused. Pickled weights are never opened.
"""

import functools
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from alt_jax.errors import InputError, shortened
from alt_jax.models.encoder import EncoderConfig
from alt_jax.models.text import read_config, text_tower

if TYPE_CHECKING:
    import transformers

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DOWNLOAD = (
    _CONFIG,
    "model*.safetensors",
    _INDEX,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
# Buffers that older versions of transformers saved.
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
_LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_DTYPES: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# The last word of a Flax parameter's path and of its tensor's name; only the first differs between the two.
_LEAVES = {"embedding": "weight", "kernel": "weight", "scale": "weight", "bias": "bias"}
_SHOWN = 3


def resolve(name_or_folder: str) -> Path:
    """Finds a model's folder: a local one, or a name on the Hugging Face hub, fetched into its cache.

    Only the config, the tokenizer's files and safetensors weights are fetched.

    Args:
        name_or_folder: A path, or a name such as `google-bert/bert-base-uncased`.

    Returns:
        The local folder.

    Raises:
        InputError: No such folder, and the hub does not give such a model.
    """
    folder = Path(name_or_folder).expanduser()
    if name_or_folder and folder.is_dir():
        return folder
    if name_or_folder and folder.exists():
        raise InputError(f"{name_or_folder} is a file; give the folder that holds the model's config.json.")
    if name_or_folder.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name_or_folder):
        raise InputError(f"There is no folder {name_or_folder!r}; give a model's folder or its name on the hub.")
    try:
        return Path(huggingface_hub.snapshot_download(name_or_folder, allow_patterns=list(_DOWNLOAD)))
    except Exception as error:  # whatever the client and the network below it raise, the remedy is the same
        raise InputError(
            f"{name_or_folder} is not a local folder and could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}); check the name and the network, or give the path of a downloaded folder."
        ) from error


def load_config(folder: Path) -> EncoderConfig:
    """Reads `config.json`.

    Args:
        folder: A model's folder.

    Returns:
        The encoder's configuration.

    Raises:
        InputError: The file is missing, is not a JSON object, or describes a model that is not supported.
    """
    path = folder / _CONFIG
    return read_config(_read_json(path), str(path))


def load_weights(folder: Path, config: EncoderConfig) -> dict[str, Any]:
    """Reads the tower's parameters from `model.safetensors`, or from the shards that its index lists.

    Args:
        folder: A model's folder.
        config: The configuration that the parameters must fit.

    Returns:
        The tree under "params" of `text_tower(config)`, with NumPy float32 leaves. Half precision is widened.

    Raises:
        InputError: Weights are missing, damaged, of another shape, not finite, or left over.
    """
    found: dict[str, np.ndarray] = {}
    origin: dict[str, Path] = {}
    for path in _weight_files(folder):
        for name, tensor in _read_tensors(path, config).items():
            if name in found:
                raise InputError(f"{path}: the tensor {name} is also in {origin[name].name}; save the model again.")
            found[name], origin[name] = tensor, path
    place = str(next(iter(origin.values()), folder)) if len(set(origin.values())) <= 1 else str(folder / _INDEX)

    expected = _tensor_shapes(config)
    _refuse("lacks", expected.keys() - found.keys(), place, "use a checkpoint of the same model_type and size")
    _refuse(
        "has, beyond what the text tower knows,",
        found.keys() - expected.keys(),
        place,
        f"use a plain {config.architecture} whose {_CONFIG} belongs to these weights",
    )
    wrong = {
        f"{name} {list(found[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if found[name].shape != shape
    }
    _refuse("has the wrong shape in", wrong, place, f"use the {_CONFIG} that belongs to these weights")

    flat = {}
    for path_in_tree, name in _tensor_names(config).items():
        tensor = found.pop(name).astype(np.float32)
        if not np.isfinite(tensor).all():
            raise InputError(f"{place}: the tensor {name} holds NaN or infinity; fetch or train the model again.")
        flat[path_in_tree] = np.ascontiguousarray(tensor.T) if path_in_tree[-1] == "kernel" else tensor
    return traverse_util.unflatten_dict(flat)


def save(
    folder: Path,
    config: EncoderConfig,
    params: Mapping[str, Any],
    tokenizer: "transformers.PreTrainedTokenizerBase | None" = None,
) -> None:
    """Writes a folder that transformers' `AutoModel.from_pretrained` and `load_weights` can read.

    It is written beside its final place and then renamed, so a folder of that name is always whole.

    Args:
        folder: Where to; it must not exist yet, or be empty.
        config: The tower's configuration.
        params: The tree under "params" of `text_tower(config)`.
        tokenizer: Saved along with the weights if given.

    Raises:
        InputError: The folder is taken, cannot be written, or the parameters do not fit the configuration.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} already exists and is not empty; give a new folder to export to.")
    tensors = _tensors(config, params, str(folder))
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / _CONFIG).write_text(json.dumps(config.to_hf(), indent=2) + "\n", encoding="utf-8")
        # transformers refuses safetensors files that do not say which framework's layout they follow.
        safetensors.numpy.save_file(tensors, partial / _WEIGHTS, metadata={"format": "pt"})
        shutil.copymode(partial / _CONFIG, partial / _WEIGHTS)  # safetensors lets nobody else read its files
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        partial.rename(folder)
    except OSError as error:
        raise InputError(f"{folder} could not be written ({error.strerror or error}); give another folder.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _tensor_names(config: EncoderConfig) -> dict[tuple[str, ...], str]:
    """Each parameter's path in the tree and its tensor's name in a checkpoint."""
    return {path: ".".join((*path[:-1], _LEAVES[path[-1]])) for path in _param_shapes(config)}


def _tensor_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """The tensors a checkpoint must hold, by name, in its own layout (kernels are stored [out, in])."""
    shapes = _param_shapes(config)
    return {
        name: shapes[path][::-1] if path[-1] == "kernel" else shapes[path]
        for path, name in _tensor_names(config).items()
    }


@functools.lru_cache
def _param_shapes(config: EncoderConfig) -> Mapping[tuple[str, ...], tuple[int, ...]]:
    """The tower's parameters, asked of the tower itself so that the two cannot drift apart."""
    tree = jax.eval_shape(
        text_tower(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
    )
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree["params"]).items()}


def _tensors(config: EncoderConfig, params: Mapping[str, Any], place: str) -> dict[str, np.ndarray]:
    """The parameters under the names and in the layout of a checkpoint."""
    shapes, names = _param_shapes(config), _tensor_names(config)
    flat = traverse_util.flatten_dict(dict(params))
    same = flat.keys() == shapes.keys() and all(np.shape(flat[path]) == shape for path, shape in shapes.items())
    if not same:
        odd = flat.keys() ^ shapes.keys() or {p for p, shape in shapes.items() if np.shape(flat[p]) != shape}
        raise InputError(
            f"{place}: the parameters do not fit the text tower's config, starting with {'/'.join(min(odd))}; "
            "export with the config that they were trained with."
        )
    arrays = {path: np.asarray(leaf, dtype=np.float32) for path, leaf in flat.items()}
    # safetensors writes the memory as it lies, so a transposed view has to become a copy.
    return {
        name: np.ascontiguousarray(arrays[path].T if path[-1] == "kernel" else arrays[path])
        for path, name in names.items()
    }


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    index = folder / _INDEX
    if not index.is_file():
        raise InputError(
            f"{folder} holds no {_WEIGHTS}, and other formats are not read since pickled weights can run code; where "
            f"torch is installed, convert once with transformers: AutoModel.from_pretrained(OLD).save_pretrained(NEW)."
        )
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise InputError(f"{index}: the weight_map of tensor names to files is missing; fetch the model again.")
    files = [folder / shard for shard in sorted(set(shards.values()))]
    present = set(folder.iterdir())
    for path in files:
        if path not in present:
            listed = shortened(path.name)
            raise InputError(f"{index} lists the file {listed}, which is not in the folder; fetch the model again.")
    return files


def _read_tensors(path: Path, config: EncoderConfig) -> dict[str, np.ndarray]:
    """The encoder's tensors of one file, under the names that today's encoder has for them.

    What checkpoints carry beside the encoder (pooler, task heads, old buffers) is left out.
    """
    try:
        # Not safetensors.numpy.load_file: versions differ on whether it knows bfloat16.
        stored = safetensors.deserialize(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); fetch it again.") from error
    prefix = next((p for p in config.prefixes if any(name.startswith(p) for name, _ in stored)), "")
    tensors: dict[str, np.ndarray] = {}
    for stored_name, content in stored:
        name = stored_name.removeprefix(prefix)
        if name.split(".")[0] in config.heads or name in _BUFFERS:
            continue
        for old, new in _LEGACY.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        if name in tensors:
            raise InputError(f"{path}: two tensors stand for {name}; save the model again.")
        if content["dtype"] not in _DTYPES:
            raise InputError(
                f"{path}: the tensor {stored_name} is of type {content['dtype']}; use weights in "
                "float32, float16 or bfloat16."
            )
        tensors[name] = np.frombuffer(content["data"], _DTYPES[content["dtype"]]).reshape(content["shape"])
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} could not be read ({error.strerror}); give a model's folder.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); fetch the model again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a JSON object; fetch the model again.")
    return content


def _refuse(fault: str, names: set[str], place: str, remedy: str) -> None:
    """Raises an `InputError` that shows the first few of `names`, if there are any."""
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise InputError(f"{place} {fault} {', '.join(sorted(names)[:_SHOWN])}{more}; {remedy}.")
