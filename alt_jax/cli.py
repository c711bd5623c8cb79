"""The command line. Thin: it reads arguments, calls a stage and turns errors into one sentence and an exit code."""

import contextlib
import dataclasses
import difflib
import errno
import inspect
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import tyro
from pydantic import ValidationError

from alt_jax import __version__, console, programs
from alt_jax.config import Config, first_problem, load_config
from alt_jax.errors import STOPPED, InputError, Stopped
from alt_jax.options import (
    AblateOptions,
    DemoOptions,
    EvaluateOptions,
    ExportOptions,
    FinetuneOptions,
    InspectOptions,
    ListOptions,
    Names,
    PredictOptions,
    PrepareOptions,
    PretrainOptions,
    ReportOptions,
    ServeOptions,
    Values,
)
from alt_jax.serving.limits import Limits

USAGE = """\
usage: alt-jax COMMAND …

  demo                                                the whole story on generated data, no network
  prepare  CONFIG [--engine local|beam]               raw ratings or clicks to a prepared dataset
  pretrain CONFIG --run-dir D [--init-from D0]        align the CTR tower and the text tower
  finetune CONFIG --strategy ctr|plm|joint --init-from D|none --run-dir E
  evaluate E… [--split test] [--json]                 AUC, logloss, GAUC, ECE of one, or of the mean
  predict  E|EXPORT rows.csv|parquet -o scores.parquet
  export   E OUT                                      weights, StableHLO, ONNX, Hugging Face folder
  serve    E|EXPORT [--port 8000]                     scores over HTTP, many requests at a time
  ablate   CONFIG --study S --run-dir D [--seeds 3]   a study: runs side by side, a table, a figure
  inspect  DATASET|E|EXPORT [--rows 3]                what is in there, on one screen
  report   RUN… [-o OUT.html] [--price USD_PER_HOUR]  one HTML page about runs and studies
  list     towers|texts|datasets|protocols|presets|studies   names that configs may use, one a line

CONFIG is a Python file with get_config(), see configs/. Any of its values can be overridden, e.g.
--loss.mlm 0 --data.raw ml-1m.zip --seed 1. `alt-jax COMMAND --help` shows a command's options, and
`alt-jax COMMAND CONFIG --help` those that come from the config, too.

example: alt-jax evaluate runs/joint --json

exit codes: 0 done · 2 the input is wrong · 75 stopped by a signal after saving (start again)
"""
# What a file system says where it is full, broken or not ours to write to.
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
# Commands that take up what they were doing when they are started again.
_GOES_ON = ("demo", "prepare", "pretrain", "finetune", "export", "ablate")
T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits with its code; with that of SIGPIPE where the reader of its output has gone."""
    try:
        code = run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # `alt-jax ablate --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's own flush at the end complains
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Runs a command.

    Returns:
      The exit code: 0 done, 2 the user's input is wrong, 75 stopped by a signal after saving.
    """
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name in ("", "-h", "--help", "--version"):
        print(f"alt-jax {__version__}" if name == "--version" else USAGE.rstrip())
        return 0 if name else 2
    try:
        console.use(_log_format(rest))
        if name not in _COMMANDS:
            raise InputError(f"there is no such command; `alt-jax --help` shows {', '.join(_COMMANDS)}.")
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # progress is read while it happens, also through a pipe
        programs.keep()  # before jax is imported
        with _stoppable(name):
            _COMMANDS[name](rest)
    except InputError as error:
        console.error(f"alt-jax {name}: {error}", exit_code=2)
        return 2
    except Stopped as stopped:
        console.error(f"alt-jax {name}: {stopped}; start the same command again to go on.", exit_code=STOPPED)
        return STOPPED
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        where = error.filename or "a file"
        console.error(
            f"alt-jax {name}: {where} cannot be written or read ({error.strerror}); mend that, and start the same "
            "command again to go on.",
            exit_code=2,
        )
        return 2
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    return 0


class _Signalled(BaseException):
    """A signal came. Neither an Exception nor a SystemExit: what a library or a config file raises is caught."""


@contextlib.contextmanager
def _stoppable(name: str) -> Iterator[None]:
    """Has SIGTERM and Ctrl-C end a command that can be started again as an exception would: nothing half-written stays.

    Training, which saves first, takes the signals over (`alt_jax.signals`).
    """
    if name not in _GOES_ON:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # another one would break off the clearing away
        raise _Signalled(signal.Signals(number))

    def again(dropped: "sys.UnraisableHookArgs") -> None:
        """Python drops what is raised in a finaliser or a callback of the garbage collector: the signal comes again."""
        if not isinstance(dropped.exc_value, _Signalled):
            hook(dropped)
            return
        for each in before:
            signal.signal(each, end)
        threading.Timer(0.01, os.kill, (os.getpid(), dropped.exc_value.args[0])).start()  # when the callback is over

    numbers = (signal.SIGTERM, signal.SIGINT)  # the latter is ignored in the background of a script, and stays so
    before = {number: old for number in numbers if (old := signal.getsignal(number)) is not signal.SIG_IGN}
    hook = sys.unraisablehook
    for number in before:
        signal.signal(number, end)
    sys.unraisablehook = again
    try:
        yield
    except _Signalled as stop:
        raise Stopped(f"stopped by {stop.args[0].name}") from None
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        sys.unraisablehook = hook


def _parse(kind: type[T], arguments: list[str], prog: str) -> T:
    said = io.StringIO()  # tyro draws a box around an error; a sentence is easier to read and to search for
    try:
        with contextlib.redirect_stderr(said):
            # Else comments are searched for help, which nobody reads here, and which takes its time.
            shown = {"-h", "--help"}.intersection(arguments)
            quick = () if shown else (tyro.conf.HelptextFromCommentsOff,)
            return tyro.cli(kind, args=arguments, prog=prog, config=(tyro.conf.FlagCreatePairsOff, *quick))
    except ValidationError as error:
        raise InputError(f"--{first_problem(error)}") from None
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(_why_refused(kind, arguments, prog, said.getvalue(), stop)) from None


def _why_refused(kind: type[Any], arguments: list[str], prog: str, said: str, error: BaseException) -> str:
    """One sentence for refused arguments: which option does not exist, which value does not fit, or tyro's words."""
    flags = [argument.split("=")[0].replace("_", "-") for argument in arguments if argument.startswith("--")]
    known = _option_names(kind)
    for flag in flags:
        if flag not in known and not flag.startswith(("--data.fields", "--data.linked", "--tyro")):
            near = difflib.get_close_matches(flag, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"`{prog} --help` shows all."
            return f"there is no option {flag}; {hint}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ValidationError):
            # The error names the value but not its group: of two options that end alike, the last is not more likely.
            leaf, found, problem = first_problem(cause).partition(": ")
            if not found:
                return f"--{leaf}"
            named = [flag for flag in dict.fromkeys(flags) if flag.split(".")[-1].lstrip("-") == leaf.replace("_", "-")]
            return f"{' or '.join(named) or leaf}: {problem}"
        cause = cause.__cause__ or cause.__context__
    return f"{_first_section(said)}; `{prog} --help` shows all options."


def _first_section(box: str) -> str:
    """The words between the title and the first rule of an error box, on one line."""
    lines = [line.strip("│").rstrip() for line in box.splitlines() if line.strip("│ ")]
    bounds = [i for i, line in enumerate(lines) if line[0] in "╭╰" or not line.strip(" ─-")]
    if len(bounds) < 2:
        return " ".join(box.split())
    body = [line.strip() for line in lines[bounds[0] + 1 : bounds[1]]]
    if body[0].startswith("Missing from"):
        # Pairs follow: an option and its help, or for a positional argument its kind and its name.
        options = [line for line in body[1:] if line.startswith("-")]
        names = [line.removesuffix(" (required)") for line in body[1:] if line.endswith("(required)")]
        return f"give {', '.join(options or names)}"
    return " ".join(body).rstrip(".")


def _option_names(kind: type[Any]) -> list[str]:
    """The long options of a command, as tyro spells them."""
    inside = {
        "config": list(Config().flat()),
        "limits": [field.name for field in dataclasses.fields(Limits)],
        "data": ["data.dir"],
    }
    own = [field.name for field in dataclasses.fields(kind)]
    names = [name for group in own for name in inside.get(group, [group])] + ["help"]
    return [f"--{name.replace('_', '-')}" for name in names]


def _configured(kind: type[T], arguments: list[str], command: str) -> T:
    """Reads CONFIG, then the flags that override its values."""
    path, flags = (arguments[0], arguments[1:]) if arguments else ("", [])
    if path in ("-h", "--help"):
        return _parse(_without_values(kind, command), ["--help"], f"alt-jax {command} CONFIG")
    if not path or path.startswith("-"):
        raise InputError(f"give a config file first, e.g. alt-jax {command} configs/movielens_100k.py.")
    config = load_config(Path(path))
    if "--preset" in _option_names(kind):
        from alt_jax import presets

        name = (_given(flags, "--preset") or [""])[-1]
        config = presets.apply(config, name) if name else config
    with_default = dataclasses.make_dataclass(
        kind.__name__, [("config", Values, config)], bases=(kind,), frozen=True, kw_only=True
    )
    with_default.__doc__ = kind.__doc__
    return _parse(with_default, flags, f"alt-jax {command} {path}")


def _without_values(kind: type[T], command: str) -> type[T]:
    """The command's own options, for a help that fits a screen: the values of a config are ten times as many."""
    fields = [("config", tyro.conf.Suppress[Config], Config())]
    own = dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,), frozen=True, kw_only=True)
    own.__doc__ = (
        f"{inspect.cleandoc(kind.__doc__ or '')}\n\nCONFIG is a Python file with get_config(), see configs/. Its "
        f"values are options, too:\n\n`alt-jax {command} CONFIG --help` shows them."
    )
    return own


def _given(flags: list[str], option: str) -> list[str]:
    """The values that an option is given, in order, before the others are read: they override a preset."""
    own = [i for i, flag in enumerate(flags) if flag == option or flag.startswith(f"{option}=")]
    return [flags[i].partition("=")[2] or "".join(flags[i + 1 : i + 2]) for i in own]


def _log_format(flags: list[str]) -> console.Format:
    """What is said of refused options has that format too."""
    given = _given([flag.replace("--log_format", "--log-format") for flag in flags], "--log-format")
    return "json" if given[-1:] == ["json"] else "text"


def _prepare(arguments: list[str]) -> None:
    at = arguments.index("--") if "--" in arguments else len(arguments)
    options, given = _configured(PrepareOptions, arguments[:at], "prepare"), arguments[at + 1 :]
    if options.engine == "local" and (options.runner or given):
        raise InputError(f"{'--runner' if options.runner else given[0]} is for --engine beam; add that.")
    from alt_jax import preflight

    preflight.prepare(options.config)
    from alt_jax.data.prepare import prepare

    if options.engine == "local":
        prepare(options.config)
        return
    try:
        from alt_jax.data.beam import engine
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "apache_beam":
            raise
        raise InputError("--engine beam needs Apache Beam; install it with pip install 'alt-jax[beam]'.") from None
    prepare(options.config, engine(options.runner, given))


def _pretrain(arguments: list[str]) -> None:
    options = _configured(PretrainOptions, arguments, "pretrain")
    init_from = None if options.init_from == "none" else Path(options.init_from)
    if options.cluster == "none":
        from alt_jax import preflight, run_files

        origin = run_files.Origin("pretrain", init_from=_name(init_from))
        preflight.train(options.config, origin, options.run_dir)
    from alt_jax import cluster, stages

    cluster.join(options.cluster, options.cluster_wait, saves=True)
    stages.pretrain(options.config, options.run_dir, init_from)


def _finetune(arguments: list[str]) -> None:
    options = _configured(FinetuneOptions, arguments, "finetune")
    init_from = None if options.init_from == "none" else Path(options.init_from)
    if options.cluster == "none":
        from alt_jax import preflight, run_files

        origin = run_files.Origin("finetune", options.strategy, _name(init_from))
        preflight.train(options.config, origin, options.run_dir)
    from alt_jax import cluster, stages

    cluster.join(options.cluster, options.cluster_wait, saves=True)
    result = stages.finetune(options.config, options.strategy, init_from, options.run_dir)
    console.result(stages.format_report(result["test"], "test"), f"{options.run_dir} is finished", result=result)


def _name(folder: Path | None) -> str | None:
    """What a run remembers of the folder that it starts from."""
    return None if folder is None else str(folder)


def _evaluate(arguments: list[str]) -> None:
    options = _parse(EvaluateOptions, arguments, "alt-jax evaluate")
    if options.cluster == "none" or not options.run_dir:
        from alt_jax import preflight

        preflight.evaluate(options.run_dir, options.data)
    from alt_jax import cluster, stages

    cluster.join(options.cluster, options.cluster_wait, saves=False)
    if not options.json:
        print(f"evaluate · {options.split} · {', '.join(map(str, options.run_dir))}")
    found = stages.evaluate(options.run_dir, options.split, options.data)
    print(stages.to_json(found) if options.json else stages.format_report(found, options.split))


def _predict(arguments: list[str]) -> None:
    options = _parse(PredictOptions, arguments, "alt-jax predict")
    from alt_jax import preflight

    keep = [column for column in options.keep.split(",") if column]
    preflight.predict(options.model, options.rows, options.output, options.data, keep, options.history)
    from alt_jax.scorer import predict

    print(f"predict · {options.model} · {options.rows} → {options.output}")
    rows = predict(options.model, options.rows, options.output, options.data, keep=keep, history=options.history)
    print(f"scored {rows:,} rows to {options.output}")


def _export(arguments: list[str]) -> None:
    options = _parse(ExportOptions, arguments, "alt-jax export")
    from alt_jax import preflight

    preflight.export(options.run_dir, options.out, options.data)
    from alt_jax.export import export

    print(f"export · {options.run_dir} → {options.out}")
    if export(options.run_dir, options.out, options.data):
        print(f"exported {options.run_dir} to {options.out}")
    else:
        print(f"{options.out} holds the export of {options.run_dir}, and is left as it is; remove it to write it anew")


def _serve(arguments: list[str]) -> None:
    options = _parse(ServeOptions, arguments, "alt-jax serve")
    from alt_jax import preflight

    preflight.serve(options.model, options.port, options.data)
    try:
        from alt_jax.serving.server import serve
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("starlette", "uvicorn", "prometheus_client"):
            raise
        raise InputError(f"serve needs {error.name}; install it with pip install 'alt-jax[serve]'.") from None
    serve(options.model, options.host, options.port, options.limits, options.data)


def _ablate(arguments: list[str]) -> None:
    options = _configured(AblateOptions, arguments, "ablate")
    index, _, count = options.task.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise InputError(f"--task {options.task} should be i/N with i from 0 to N - 1, e.g. 0/4.")
    if options.seeds < 1 or options.jobs < 1:
        raise InputError("--seeds and --jobs must be at least 1.")
    if options.pretrainings < 0:
        raise InputError("--pretrainings must be at least 0.")
    from alt_jax import preflight, studies

    study = studies.get(options.study)
    if options.arms:
        study = study.only(options.arms)
    if options.strategies:
        study = dataclasses.replace(study, strategies=options.strategies)
    preflight.ablate(options.config, study, options.run_dir)
    from alt_jax.ablate import ablate

    task = int(index), int(count)
    table = ablate(
        options.config,
        study,
        seeds=options.seeds,
        folder=options.run_dir,
        jobs=options.jobs,
        task=task,
        pretrainings=options.pretrainings,
    )
    curves = ", curves.png" if (options.run_dir / "curves.png").is_file() else ""
    also = f"in {options.run_dir}: table.json, table.csv, table.png{curves}"
    console.result(f"\n{table}\nalso {also}", also, table=table)


def _inspect(arguments: list[str]) -> None:
    options = _parse(InspectOptions, arguments, "alt-jax inspect")
    from alt_jax import preflight

    preflight.inspect(options.folder, options.rows)
    os.environ["JAX_PLATFORMS"] = "cpu"  # an accelerator may be in use by the very run that is looked at
    from alt_jax.inspect import inspect

    print(inspect(options.folder, options.rows, options.split, options.data))


def _report(arguments: list[str]) -> None:
    options = _parse(ReportOptions, arguments, "alt-jax report")
    from alt_jax import preflight

    preflight.report(options.run_dir, options.output, options.price)
    from alt_jax.report.build import report

    print(f"wrote {report(options.run_dir, options.output, options.price, options.data)}")


def _list(arguments: list[str]) -> None:
    options = _parse(ListOptions, arguments, "alt-jax list")
    print("\n".join(_names(options.what)))


def _names(what: Names) -> Iterable[str]:
    match what:  # towers are JAX modules; all else is quick
        case "towers":
            from alt_jax.models import interactions

            return interactions.names()
        case "texts":
            from alt_jax.models import text

            return text.names()
        case "datasets":
            from alt_jax.data import sources

            return sources.names()
        case "protocols":
            from alt_jax.data import protocol_presets

            return protocol_presets.PROTOCOLS
        case "presets":
            from alt_jax import presets

            return presets.PRESETS
        case "studies":
            from alt_jax import studies

            return studies.STUDIES


def _demo(arguments: list[str]) -> None:
    options = _parse(DemoOptions, arguments, "alt-jax demo")
    from alt_jax.demo import demo

    demo(options.dir, options.seed)


_COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": _demo,
    "prepare": _prepare,
    "pretrain": _pretrain,
    "finetune": _finetune,
    "evaluate": _evaluate,
    "predict": _predict,
    "export": _export,
    "serve": _serve,
    "ablate": _ablate,
    "inspect": _inspect,
    "report": _report,
    "list": _list,
}
