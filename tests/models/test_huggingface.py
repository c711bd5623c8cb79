import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file
from text_families import CONFIGS, FAMILIES, drawn

from alt_jax.errors import InputError
from alt_jax.models import huggingface
from alt_jax.models.modernbert import GLOBAL, LOCAL
from alt_jax.models.text import read_config, text_tower


def make_config(model_type="bert", **changes):
    sizes = {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "max_position_embeddings": 10,
        "type_vocab_size": 2 if model_type == "bert" else 1,
    }
    return read_config({"model_type": model_type} | sizes | changes, "test")


@functools.cache
def shapes(config):
    tokens = jnp.zeros((1, 2), jnp.int32)
    return jax.eval_shape(text_tower(config).init, jax.random.key(0), tokens, jnp.ones((1, 2), bool))["params"]


def make_params(config, seed=0):
    # Biases and scales too, so that no two tensors can be taken for each other.
    leaves, structure = jax.tree.flatten(shapes(config))
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(structure, [rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves])


def assert_same(left, right, **tolerance):
    left, right = traverse_util.flatten_dict(left), traverse_util.flatten_dict(right)
    assert left.keys() == right.keys()
    for path, leaf in left.items():
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, right[path], rtol=0, **({"atol": 0} | tolerance))


@pytest.fixture
def config():
    return make_config()


@pytest.fixture
def params(config):
    return make_params(config)


@pytest.fixture
def folder(tmp_path, config, params):
    """A whole BERT folder."""
    huggingface.save(tmp_path / "bert", config, params)
    return tmp_path / "bert"


def rewrite(folder, change):
    """Puts `change(tensors)` in the place of the folder's tensors."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
@pytest.mark.parametrize("changes", [{}, {"hidden_size": 4, "num_hidden_layers": 1, "hidden_act": "relu"}])
def test_round_trip(tmp_path, model_type, changes):
    config = make_config(model_type, **changes)
    params = make_params(config)
    huggingface.save(tmp_path / "out", config, params)
    assert huggingface.load_config(tmp_path / "out") == config
    assert_same(huggingface.load_weights(tmp_path / "out", config), params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@FAMILIES
def test_round_trip_of_every_family(tmp_path, config):
    params = drawn(config)["params"]
    huggingface.save(tmp_path / "out", config, params)
    assert huggingface.load_config(tmp_path / "out") == config
    loaded = huggingface.load_weights(tmp_path / "out", config)
    assert_same(loaded, params)
    huggingface.save(tmp_path / "again", config, loaded)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_device_arrays_are_saved_too(tmp_path, config, params):
    huggingface.save(tmp_path / "out", config, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params))
    assert_same(huggingface.load_weights(tmp_path / "out", config), params, atol=0.02)


def test_the_file_has_the_names_and_layout_of_torch(folder, params):
    tensors = load_file(folder / "model.safetensors")
    query = params["encoder"]["layer"]["1"]["attention"]["self"]["query"]
    np.testing.assert_array_equal(tensors["encoder.layer.1.attention.self.query.weight"], query["kernel"].T)
    np.testing.assert_array_equal(tensors["encoder.layer.1.attention.self.query.bias"], query["bias"])
    assert tensors["encoder.layer.0.intermediate.dense.weight"].shape == (12, 8)
    assert tensors["embeddings.word_embeddings.weight"].shape == (20, 8)
    norm = params["embeddings"]["LayerNorm"]
    np.testing.assert_array_equal(tensors["embeddings.LayerNorm.weight"], norm["scale"])


@FAMILIES
def test_transformers_reads_the_config(tmp_path, config):
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    small = {
        "hidden_dropout_prob": 0.0,
        "layer_norm_eps": 1e-6,
        "dropout": 0.2,
        "sinusoidal_pos_embds": True,
        "mlp_dropout": 0.3,
        "attention_bias": True,
        "norm_eps": 1e-6,
    }
    config = dataclasses.replace(config, **{name: value for name, value in small.items() if name in vars(config)})
    huggingface.save(tmp_path / "out", config, drawn(config)["params"])
    theirs = AutoConfig.from_pretrained(tmp_path / "out")
    assert theirs.model_type == config.model_type
    assert theirs.architectures == [MODEL_MAPPING_NAMES[config.model_type]]
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    thetas = [written.pop(name, 0.0) for name in ("global_rope_theta", "local_rope_theta")]
    assert {name: getattr(theirs, name) for name in written} == written
    if config.model_type == "modernbert":
        assert [theirs.rope_parameters[kind]["rope_theta"] for kind in (GLOBAL, LOCAL)] == thetas
        assert theirs.sliding_window == config.local_attention // 2


def test_tokenizer_is_saved_along(tmp_path, config, params):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[UNK]": 1, "toy": 2, "story": 3}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    huggingface.save(tmp_path / "out", config, params, tokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("toy story")["input_ids"] == [2, 3]


@pytest.mark.parametrize("prefix", ["bert.", "roberta."])
def test_prefix_and_heads_and_buffers(folder, config, params, prefix):
    one = np.ones(1, np.float32)
    heads = {
        f"{prefix}pooler.dense.weight": one,
        f"{prefix}embeddings.position_ids": np.arange(10)[None],
        "cls.predictions.decoder.weight": one,
        "cls.seq_relationship.bias": one,
        "lm_head.layer_norm.weight": one,
        "classifier.out_proj.bias": one,
    }
    rewrite(folder, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()} | heads)
    assert_same(huggingface.load_weights(folder, config), params)


@pytest.mark.parametrize(
    ("family", "prefix", "heads"),
    [
        (
            "electra",
            "electra.",
            [
                "discriminator_predictions.dense.weight",
                "discriminator_predictions.dense_prediction.bias",
                "generator_predictions.LayerNorm.weight",
                "generator_lm_head.bias",
            ],
        ),
        (
            "distilbert",
            "distilbert.",
            ["vocab_transform.weight", "vocab_layer_norm.bias", "vocab_projector.bias", "pre_classifier.weight"],
        ),
        ("modernbert", "model.", ["head.dense.weight", "head.norm.weight", "decoder.bias", "classifier.weight"]),
    ],
)
def test_prefix_and_heads_of_other_families(tmp_path, family, prefix, heads):
    config = CONFIGS[family]
    params = drawn(config)["params"]
    huggingface.save(tmp_path / "out", config, params)
    one = np.ones(1, np.float32)
    rewrite(
        tmp_path / "out",
        lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()} | dict.fromkeys(heads, one),
    )
    assert_same(huggingface.load_weights(tmp_path / "out", config), params)
    rewrite(tmp_path / "out", lambda tensors: tensors | {"pooler.dense.weight": one})
    refusal(tmp_path / "out", config, "beyond what the text tower knows, pooler.dense.weight;", config.architecture)


@pytest.mark.parametrize(
    ("family", "name", "changes", "shapes"),
    [
        ("electra", "embeddings_project.weight", {"embedding_size": 14}, "[20, 12] instead of [20, 14]"),
        ("distilbert", "transformer.layer.0.ffn.lin1.bias", {"intermediate_size": 20}, "[24] instead of [20]"),
        ("modernbert", "layers.1.attn_norm.weight", {"intermediate_size": 20}, "[48, 16] instead of [40, 16]"),
    ],
)
def test_tensors_of_other_families_are_accounted_for(tmp_path, family, name, changes, shapes):
    config, folder = CONFIGS[family], tmp_path / "out"
    huggingface.save(folder, config, drawn(config)["params"])
    refusal(folder, dataclasses.replace(config, **changes), "has the wrong shape in", shapes)
    whole = load_file(folder / "model.safetensors")
    rewrite(folder, lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name})
    refusal(folder, config, f"model.safetensors lacks {name};")
    rewrite(folder, lambda _: whole | {"adapter.down.weight": np.ones(2, np.float32)})
    refusal(folder, config, "beyond what the text tower knows, adapter.down.weight;")


@pytest.mark.parametrize("name", ["layers.0.attn_norm.weight", "layers.0.attn.Wo.bias", "final_norm.bias"])
def test_what_this_modernbert_does_not_have_is_left_over(tmp_path, name):
    config = CONFIGS["modernbert"]
    huggingface.save(tmp_path / "out", config, drawn(config)["params"])
    rewrite(tmp_path / "out", lambda tensors: tensors | {name: np.ones(16, np.float32)})
    refusal(tmp_path / "out", config, f"beyond what the text tower knows, {name};")


def test_heads_and_buffers_without_prefix(folder, config, params):
    heads = {"pooler.dense.bias": np.ones(1, np.float32), "embeddings.position_ids": np.arange(10)[None]}
    rewrite(folder, lambda tensors: tensors | heads)
    assert_same(huggingface.load_weights(folder, config), params)


def test_legacy_names(folder, config, params):
    def old(name):
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    rewrite(folder, lambda tensors: {old(name): tensor for name, tensor in tensors.items()})
    assert "embeddings.LayerNorm.gamma" in load_file(folder / "model.safetensors")
    assert_same(huggingface.load_weights(folder, config), params)


@pytest.mark.parametrize(
    ("dtype", "atol"), [(np.float16, 2e-3), (ml_dtypes.bfloat16, 2e-2), (np.float64, 0)], ids=["f16", "bf16", "f64"]
)
def test_other_precisions(folder, config, params, dtype, atol):
    rewrite(folder, lambda tensors: {name: tensor.astype(dtype) for name, tensor in tensors.items()})
    assert_same(huggingface.load_weights(folder, config), params, atol=atol)


@pytest.fixture
def sharded(folder):
    """The same folder with the weights in two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + (index % 2)}-of-00002.safetensors" for index, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


def test_shards(sharded, config, params):
    assert_same(huggingface.load_weights(sharded, config), params)


def refusal(folder, config, *parts):
    """The message of the InputError that loading raises: one sentence that holds all of `parts`."""
    with pytest.raises(InputError) as caught:
        huggingface.load_weights(folder, config)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    for part in (str(folder), *parts):
        assert part in message


def test_missing_shard(sharded, config):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    refusal(sharded, config, "model-00002-of-00002.safetensors", "not in the folder")


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {"a": 1}}', '{"weight_map": []}'])
def test_index_without_a_map(sharded, config, content):
    (sharded / "model.safetensors.index.json").write_text(content)
    refusal(sharded, config, "weight_map")


def test_index_that_leaves_the_folder(sharded, config):
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../bert/config.json"}}')
    refusal(sharded, config, "not in the folder")


def test_a_tensor_in_two_shards(sharded, config):
    first, second = sorted(sharded.glob("model-*.safetensors"))
    save_file(load_file(first) | load_file(second), second)
    refusal(sharded, config, "is also in model-00001-of-00002.safetensors")


def test_missing_tensors(folder, config):
    rewrite(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if "layer.1" not in name})
    refusal(folder, config, "model.safetensors lacks encoder.layer.1.attention", " and 13 more", "model_type and size")


def test_left_over_tensors(folder, config):
    rewrite(folder, lambda tensors: tensors | {"adapter.down.weight": np.ones(2, np.float32)})
    refusal(folder, config, "beyond what the text tower knows, adapter.down.weight;")


def test_a_checkpoint_with_more_layers_than_its_config(folder):
    refusal(folder, make_config(num_hidden_layers=1), "encoder.layer.1.")


def test_wrong_shape(folder):
    refusal(
        folder,
        make_config(intermediate_size=16),
        "encoder.layer.0.intermediate.dense.weight [12, 8] instead of [16, 8]",
    )


def test_not_finite(folder, config):
    name = "encoder.layer.0.output.dense.bias"
    rewrite(folder, lambda tensors: tensors | {name: np.full(8, np.nan, np.float32)})
    refusal(folder, config, f"{name} holds NaN")


def test_quantised(folder, config):
    name = "encoder.layer.0.output.dense.weight"
    rewrite(folder, lambda tensors: tensors | {name: np.zeros((8, 12), np.int8)})
    refusal(folder, config, f"{name} is of type I8")


def test_legacy_and_new_name_at_once(folder, config):
    rewrite(folder, lambda tensors: tensors | {"embeddings.LayerNorm.beta": np.zeros(8, np.float32)})
    refusal(folder, config, "two tensors stand for embeddings.LayerNorm.bias")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated(folder, config, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refusal(folder, config, "model.safetensors is not a whole safetensors file")


def test_pickled_weights_are_not_opened(folder, config):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refusal(folder, config, "no model.safetensors", "pickled", "save_pretrained")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "could not be read"), ("{", "is not JSON"), ("[]", "JSON object"), ("{}", "model_type None")],
)
def test_bad_config_file(folder, content, message):
    path = folder / "config.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=f"{re.escape(str(path))}.*{message}"):
        huggingface.load_config(folder)


def test_save_refuses_a_taken_folder(folder, config, params):
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="already exists"):
        huggingface.save(folder, config, make_params(config, seed=1))
    assert (folder / "model.safetensors").read_bytes() == before


def test_save_into_an_empty_folder_and_a_new_parent(tmp_path, config, params):
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "new" / "deep"):
        huggingface.save(target, config, params)
        assert_same(huggingface.load_weights(target, config), params)


def test_save_refuses_other_parameters(tmp_path, config, params):
    with pytest.raises(InputError, match="do not fit the text tower's config, starting with encoder/layer/1"):
        huggingface.save(tmp_path / "out", make_config(num_hidden_layers=1), params)
    with pytest.raises(InputError, match="starting with embeddings/word_embeddings/embedding"):
        huggingface.save(tmp_path / "out", make_config(vocab_size=21), params)
    assert not any(tmp_path.iterdir())


def test_failed_save_leaves_nothing(tmp_path, config, params, monkeypatch):
    def full(*_args, **_keys):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface.safetensors.numpy, "save_file", full)
    with pytest.raises(InputError, match="No space left on device"):
        huggingface.save(tmp_path / "out", config, params)
    assert not any(tmp_path.iterdir())


def test_resolve_a_folder(folder):
    assert huggingface.resolve(str(folder)) == folder


@pytest.mark.parametrize("name", ["./no/such", "/no/such", "~/no-such-folder", "a/b/c", "a b", ""])
def test_resolve_what_is_no_folder_and_no_hub_name(name, monkeypatch):
    monkeypatch.setattr(huggingface.huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(InputError, match="There is no folder"):
        huggingface.resolve(name)


def test_resolve_a_file(folder):
    with pytest.raises(InputError, match="is a file"):
        huggingface.resolve(str(folder / "config.json"))


def test_resolve_a_hub_name(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface.huggingface_hub, "snapshot_download", snapshot_download)
    assert huggingface.resolve("someone/bert-small") == tmp_path
    [(name, patterns)] = asked
    assert name == "someone/bert-small"
    assert not any(pattern.endswith((".bin", ".h5", "*")) for pattern in patterns)


def test_resolve_without_a_network(monkeypatch):
    def snapshot_download(*_args, **_keys):
        raise ConnectionError("unreachable\nfor long")

    monkeypatch.setattr(huggingface.huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(InputError, match=r"someone/bert-small is not a local folder .*ConnectionError") as caught:
        huggingface.resolve("someone/bert-small")
    assert "\n" not in str(caught.value)
