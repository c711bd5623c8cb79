import ast
import dataclasses
import functools
from pathlib import Path

import pytest
from pydantic import ValidationError

import alt_jax
from alt_jax.config import (
    Config,
    DataConfig,
    FinetuneConfig,
    JointConfig,
    LossConfig,
    MaskConfig,
    PretrainConfig,
    load_config,
)
from alt_jax.errors import InputError

PACKAGE = Path(alt_jax.__file__).parent
SHIPPED = sorted((PACKAGE.parent / "configs").glob("*.py"))


def config_file(folder: Path, body: str) -> Path:
    path = folder / "experiment.py"
    path.write_text(f"from alt_jax.config import *\n\n\n{body}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_config_loads_and_survives_json(path: Path) -> None:
    config = load_config(path)
    assert Config.from_json(config.to_json(), "config.json") == config


def test_there_are_shipped_configs() -> None:
    assert SHIPPED


def test_json_keeps_every_value(tiny_config: Config) -> None:
    assert Config.from_json(tiny_config.to_json(), "config.json") == tiny_config


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def get_config():\n    return Config(los=LossConfig())", r"did you mean 'loss'\?"),
        ("def get_config():\n    return Config(pretrain=PretrainConfig(batchsize=8))", r"did you mean 'batch_size'\?"),
        ("def get_config():\n    return Config(loss=LossConfig(mlm=-1))", r"mlm: .*greater than or equal to 0"),
        ("def get_config():\n    return Config(loss=LossConfig(mlm='much'))", r"mlm: .*valid number"),
        ("def get_config():\n    return Config(text=TextConfig(dtype='float16'))", r"dtype: .*'bfloat16'"),
        ("def get_config():\n    return 3", r"get_config\(\)"),
        ("other = 1", r"get_config\(\)"),
        ("get_config = 3", r"get_config\(\)"),
        ("def get_config(:", r"cannot be run: SyntaxError"),
        ("import no_such_module", r"cannot be run: ModuleNotFoundError"),
        ("def get_config():\n    return [][1]", r"cannot be run: IndexError"),
        ("def get_config():\n    return open('/no/such/file')", r"cannot be run: FileNotFoundError"),
    ],
)
def test_bad_file_is_refused_in_one_sentence(tmp_path: Path, body: str, said: str) -> None:
    path = config_file(tmp_path, body)
    with pytest.raises(InputError, match=said) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_config(tmp_path / "none.py")


@pytest.mark.parametrize(
    "make",
    [
        lambda: LossConfig(icl=-0.1),
        lambda: LossConfig(icl=float("nan")),
        lambda: LossConfig(icl=float("inf")),
        lambda: MaskConfig(rate=0.0),
        lambda: MaskConfig(rate=1.0),
        lambda: PretrainConfig(batch_size=0),
        lambda: PretrainConfig(epochs=-1),
        lambda: PretrainConfig(learning_rate=0.0),
        lambda: PretrainConfig(learning_rate=float("inf")),
        lambda: PretrainConfig(warmup=1.0),
        lambda: PretrainConfig(checkpoint_every=-1),
        lambda: FinetuneConfig(patience=0),
        lambda: JointConfig(alpha=float("nan")),
        lambda: JointConfig(alpha=0.0, fusion="sigmoid"),
        lambda: JointConfig(alpha=0.4, fusion="average"),
        lambda: DataConfig(positive_above=float("nan")),
        lambda: DataConfig(min_count=0),
        lambda: Config(seed=-1),
        lambda: Config(seed=2**32),
    ],
)
def test_out_of_range_is_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValidationError):
        make()


def test_json_of_another_version_is_refused() -> None:
    for text, said in (
        ("{}}", "config.json"),
        ('{"los": {}}', "did you mean 'loss'"),
        ('{"loss": {"icl": -1}}', "loss.icl"),
    ):
        with pytest.raises(InputError, match=said):
            Config.from_json(text, "config.json")


def test_differences_names_both_values() -> None:
    one, other = Config(), Config(loss=LossConfig(mlm=0.0), seed=3)
    assert one.differences(other) == {"loss.mlm": (1.0, 0.0), "seed": (0, 3)}
    assert one.differences(one) == {}


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1  # type: ignore[misc]


@functools.cache
def read_attributes() -> set[str]:
    """Names read as an attribute of something, anywhere in the package but in config.py and cli.py."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).name in ("config.py", "cli.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
    return found


@pytest.mark.parametrize("name", [*Config().flat(), "data.fields.column", "data.fields.name"])
def test_every_value_is_read(name: str) -> None:
    """A value that nobody reads would be an experiment that cannot be run (as in the released code)."""
    group, _, leaf = name.rpartition(".")
    strategies = ("finetune.ctr", "finetune.plm", "finetune.joint")  # read by getattr(config.finetune, strategy)
    parts = {leaf, *group.split(".")[:1]} - {""} if group in strategies else {leaf, *group.split(".")} - {""}
    assert parts <= read_attributes()
