"""What a run needs of its dataset's fields. Imports neither JAX nor a model: it is asked before those are."""

from alt_jax.config import Config
from alt_jax.errors import InputError
from alt_jax.run_files import Origin
from alt_jax.schema import Schema


def check(config: Config, origin: Origin, schema: Schema) -> None:
    """Refuses a run that reads ids where all fields are of kind `text`, which have none.

    Args:
      config: The experiment.
      origin: Stage and strategy.
      schema: Of the dataset.

    Raises:
      InputError: It is such a run; says which runs the dataset is good for.
    """
    if schema.tabular or origin.strategy == "plm":
        return
    if origin.stage == "finetune":
        raise InputError(
            f"All fields of {config.data.dir} are of kind 'text', which the CTR tower of --strategy {origin.strategy} "
            "does not read; choose --strategy plm, or declare a field of another kind and prepare again."
        )
    if config.loss.icl or config.loss.mtm or (config.loss.mlm and config.mlm.with_table):
        raise InputError(
            f"All fields of {config.data.dir} are of kind 'text', which the CTR tower of ICL, of MTM and of MLM with "
            "the table does not read; pretrain by MLM alone (--loss.icl 0 --loss.mtm 0 --mlm.with-table False), or "
            "declare a field of another kind and prepare again."
        )
