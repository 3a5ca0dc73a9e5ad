"""The `nni-gumbel` command: words in, words out; what is done is done in `pipeline`.

Each subcommand imports what it needs when it runs. A trial comes first and imports nothing before its
own module: it must ask NNI for its parameters before anything slow is loaded.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from nni_gumbel.pipeline.export import Export
    from nni_gumbel.pipeline.records import Records

# What the shell shows for a program that Ctrl-C has ended.
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 2 for a mistake, which is told in one line on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["trial"] and not {"-h", "--help"} & set(words[1:]):
        from nni_gumbel.pipeline.launch import main as run_trial

        return run_trial(words[1:])
    from nni_gumbel.errors import UsageError, first_line
    from nni_gumbel.pipeline.start import COMMANDS, nnictl

    try:
        if words and words[0] in COMMANDS:
            return nnictl(words)
        parsed = _parser().parse_args(words)
        return parsed.run(parsed)
    except UsageError as error:
        print(f"nni-gumbel: {first_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    import argparse

    from nni_gumbel import __version__
    from nni_gumbel.errors import UsageError
    from nni_gumbel.pipeline.command import LOGGER_HELP, words_parser
    from nni_gumbel.pipeline.loggers import FIELD as LOGGER_FIELD
    from nni_gumbel.pipeline.loggers import LOGGERS
    from nni_gumbel.pipeline.start import COMMANDS

    class OneLineParser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UsageError(f"{message}; see `{self.prog} --help`")

    parser = OneLineParser(
        prog="nni-gumbel",
        description="Neural architecture search with the Gumbel-softmax, run by NNI.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30),
    )
    parser.add_argument("--version", action="version", version=f"nni-gumbel {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, line: str, run: object, **more: object) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=line, description=line, **more)
        command.set_defaults(run=run)
        return command

    add("register", "make the tuner GumbelSearch known to NNI, once an environment", _register)
    init = add("init", "write an experiment.yml and a search space to start from", _init)
    init.add_argument("directory", metavar="DIR", help="made if it is not there; nothing is overwritten")
    doctor = add("doctor", "check this machine and an experiment before it starts", _doctor)
    doctor.add_argument("experiment", metavar="experiment.yml", nargs="?", help="also check this experiment")
    doctor.add_argument("--remote", action="store_true", help="also log in to the hosts of its machineList")
    doctor.add_argument(
        "--port",
        type=int,
        default=8080,
        help="of the manager, that hosts are to reach (default: %(default)s)",
    )
    inspect = add("inspect", "show what a search space holds: networks, costs, execution", _inspect)
    inspect.add_argument("space", metavar="module:MySpace", help="a class that is found from here")
    inspect.add_argument("arguments", metavar="key=value", nargs="*", help="arguments of its constructor")
    inspect.add_argument(
        "--input", metavar="1,28,28", action="append", required=True,
        help="shape of an input, once for each that it takes; 2:int for whole numbers",
    )  # fmt: skip
    inspect.add_argument("--batch", type=int, default=2, help="how many inputs (default: %(default)s)")
    for name, line in COMMANDS.items():  # for the list of commands: their words are nnictl's
        add(name, line, None)
    wait = add("wait", "follow an experiment until it ends and show the networks found", _wait)
    wait.add_argument("id", metavar="ID", nargs="?", help="the experiment's id (default: the newest)")
    wait.add_argument("--timeout", metavar="SECONDS", type=float, help="give up waiting after this time")
    export = add("export", "write the best network trained so far, or another one, as a folder", _export)
    report = add(
        "report", "write what an experiment has found as one page, with pictures and tables", _report
    )
    for command, folder in ((export, "gumbel-export/ID"), (report, "gumbel-report/ID")):
        command.add_argument("id", metavar="ID", nargs="?", help="its id or folder (default: the newest)")
        command.add_argument("-o", "--output", metavar="DIR", help=f"where to (default: {folder} from here)")
    export.add_argument("--max-params", metavar="N", type=int, help="among networks of at most N parameters")
    export.add_argument("--max-flops", metavar="N", type=int, help="of at most N multiply-adds")
    export.add_argument("--max-latency-ms", metavar="MS", type=float, help="of at most so many milliseconds")
    export.add_argument("--network", metavar="NAME", help="that of this name, as `nni-gumbel wait` shows it")
    export.add_argument("--trial", metavar="T", help="the network and the weights of this training")
    train = add("train", "train a network that was found again: longer, or on other data", _train)
    train.add_argument("bundle", metavar="BUNDLE", help="the folder of an export or of a training")
    train.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        required=True,
        help="where to; one that was interrupted there goes on",
    )
    train.add_argument("--data", metavar="NAME", help="the data, as after `nni-gumbel trial`")
    train.add_argument(
        "--data-dir", metavar="DIR", default="data", help="of downloads (default: %(default)s)"
    )
    train.add_argument("--evaluator", metavar="module:function", help="your own loss, metric or task")
    train.add_argument("--epochs", metavar="N", type=int, help="(default of this and the next: the bundle's)")
    train.add_argument("--batch-size", metavar="N", type=int, help="examples in a batch")
    train.add_argument("--learning-rate", metavar="RATE", type=float, help="the largest one")
    train.add_argument("--weight-decay", metavar="DECAY", type=float, help="of the weights")
    train.add_argument("--optimizer", metavar="NAME", help="a recipe of `nni-gumbel settings`")
    train.add_argument("--precision", metavar="WORD", help="32-true, bf16-mixed or 16-mixed")
    train.add_argument("--trainer", metavar="JSON", help="further flags of Lightning's Trainer")
    train.add_argument(LOGGER_FIELD, metavar="NAME", nargs="+", choices=LOGGERS, default=(), help=LOGGER_HELP)
    train.add_argument("--seeds", metavar="N", type=int, default=1, help="trainings (default: %(default)s)")
    train.add_argument("--from-weights", action="store_true", help="go on from the weights of the bundle")
    compare = add("compare", "write experiments side by side as one page", _compare)
    compare.add_argument("ids", metavar="ID", nargs="+", help="the experiments' ids or folders, two or more")
    compare.add_argument(
        "-o", "--output", metavar="DIR", help="folder of the page (default: gumbel-report/ID-ID)"
    )
    settings = add("settings", "print every setting of an experiment: default, range, meaning", _settings)
    settings.add_argument("--markdown", action="store_true", help="as the text of examples/SETTINGS.md")
    settings.add_argument("--schema", action="store_true", help="as the JSON schema that editors check by")
    words = words_parser()
    line = "what NNI runs as trialCommand, not started by hand"
    add("trial", line, None, parents=[words], epilog=words.epilog)
    return parser


def _register(_: argparse.Namespace) -> int:
    from nni_gumbel.pipeline.manager import NAME, register

    register()
    print(f"{NAME} is registered: experiment.yml can say `tuner: {{name: {NAME}}}`.")
    return 0


def _init(arguments: argparse.Namespace) -> int:
    from nni_gumbel.pipeline.start import write_starter

    for path in write_starter(arguments.directory):
        print(f"wrote {path}")
    print(
        f"\nNext:\n  cd {arguments.directory}\n  nni-gumbel register\n  nni-gumbel doctor experiment.yml\n"
        "  nni-gumbel create --config experiment.yml\n  nni-gumbel wait"
    )
    return 0


def _settings(arguments: argparse.Namespace) -> int:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from nni_gumbel.pipeline.settings import experiment_schema, setting_rows, settings_markdown
    from nni_gumbel.search.settings import COUPLINGS

    if arguments.markdown or arguments.schema:
        print(settings_markdown() if arguments.markdown else experiment_schema())
        return 0
    console = _console(100)
    for title, basic in (("basic", True), ("expert", False)):
        table = Table(box=SIMPLE_HEAD, expand=True)
        table.add_column(f"{title} setting", no_wrap=True, min_width=21)
        table.add_column("default", no_wrap=True, min_width=11)
        table.add_column(Text("meaning (range) [coupling]"), ratio=1)
        for name, default, allowed, meaning, coupled in setting_rows(basic):
            text = f"{meaning} ({allowed})" + (f" [{coupled}]" if coupled else "")
            table.add_row(name, default, Text(text))
        console.print(table)
    table = Table(box=SIMPLE_HEAD, expand=True)
    table.add_column("coupling", min_width=21)
    table.add_column("rule of the settings that have this word in brackets", ratio=1)
    for word, rule in COUPLINGS.items():
        table.add_row(word, rule)
    console.print(table)
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from nni_gumbel.names import ignore_what_nni_wonders_about

    ignore_what_nni_wonders_about()
    from nni_gumbel.pipeline.inspection import example_of, inspect_space, rendered
    from nni_gumbel.results.space import SpaceReference

    reference = SpaceReference.parse(arguments.space, arguments.arguments)
    example = example_of(arguments.input, arguments.batch)
    console = _console(100)
    for part in rendered(inspect_space(reference, example)):
        console.print(part)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from rich.text import Text

    from nni_gumbel.errors import UsageError
    from nni_gumbel.pipeline.doctor import examine

    console, failed = _console(), 0
    colours = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}
    if arguments.remote and arguments.experiment is None:
        raise UsageError("--remote: its hosts stand in the experiment's YAML; give it, as experiment.yml")
    for finding in examine(arguments.experiment, arguments.port if arguments.remote else None):
        level = Text(f"{finding.level:<6}", style=colours[finding.level])
        # One line each, however long: it can be searched and copied.
        console.print(Text.assemble(level, f"{finding.subject}: {finding.text}"), soft_wrap=True)
        failed += finding.level == "FAIL"
    console.print(f"{failed} to mend." if failed else "Nothing to mend.", soft_wrap=True)
    return int(failed > 0)


def _wait(arguments: argparse.Namespace) -> int:
    import time
    from urllib.parse import urlsplit

    from nni_gumbel.errors import UsageError
    from nni_gumbel.pipeline.manager import find_experiment
    from nni_gumbel.pipeline.start import is_open_to_others
    from nni_gumbel.pipeline.watch import exported, follow

    if arguments.timeout is not None and not arguments.timeout > 0:
        raise UsageError(f"--timeout: {arguments.timeout:g} is no time to wait; give seconds, more than 0")
    console = _console(120)
    experiment = find_experiment(arguments.id)
    spinner = console.status("looking")
    told, told_at = "", 0.0

    def show(line: str, seconds: float) -> None:
        nonlocal told, told_at
        clock = f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
        if console.is_terminal:
            spinner.update(f"{line}, {clock}")
        elif line != told or time.monotonic() - told_at > 60:
            told, told_at = line, time.monotonic()
            console.print(f"[{clock}] {line}", soft_wrap=True, markup=False)

    def warn(line: str) -> None:
        console.print(f"warning: {line}", soft_wrap=True, markup=False, style="yellow")

    try:
        console.print(f"experiment {experiment.id}, portal {experiment.portal}", soft_wrap=True)
        port = urlsplit(experiment.portal).port
        if port and not experiment.has_ended and is_open_to_others(port):
            warn(
                f"whoever reaches port {port} of this machine can start commands here, for NNI has no login; stop the "
                f"experiment and go on with `nni-gumbel resume {experiment.id}`, which listens on this machine alone"
            )
        with spinner:
            records = follow(experiment, show=show, warn=warn, timeout=arguments.timeout)
            export = exported(experiment, records)
    except KeyboardInterrupt:
        again, end = f"`nni-gumbel wait {experiment.id}`", f"`nnictl stop {experiment.id}`"
        goes_on = f"experiment {experiment.id} goes on; {again} follows it, {end} ends it"
        print(f"nni-gumbel: {goes_on}", file=sys.stderr)
        return _INTERRUPTED
    _print_networks(console, records, *export)
    console.print(f"portal   {experiment.portal}", soft_wrap=True)
    console.print(f"to end   nnictl stop {experiment.id}", soft_wrap=True)
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from nni_gumbel.errors import UsageError
    from nni_gumbel.pipeline.retraining import train_again

    if arguments.data is None and arguments.evaluator is None:
        raise UsageError("--data: it is missing; name the data, or an --evaluator that brings its own")
    try:
        done = train_again(
            arguments.bundle, arguments.output, data=arguments.data, data_dir=arguments.data_dir,
            evaluator=arguments.evaluator, loggers=arguments.logger, seeds=arguments.seeds,
            from_weights=arguments.from_weights, train_epochs=arguments.epochs, batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate, weight_decay=arguments.weight_decay, optimizer=arguments.optimizer,
            precision=arguments.precision, trainer=arguments.trainer,
        )  # fmt: skip
    except (SystemExit, KeyboardInterrupt):  # after a signal; the first is Lightning's
        print("nni-gumbel: interrupted; the same command goes on where it was", file=sys.stderr)
        return _INTERRUPTED
    return _print_export(done)


def _export(arguments: argparse.Namespace) -> int:
    import logging
    import warnings

    from nni_gumbel.pipeline.export import Wish, export_of

    limits = arguments.max_params, arguments.max_flops, arguments.max_latency_ms
    wish = Wish(*limits, arguments.trial, arguments.network)
    log = logging.getLogger("nni_gumbel")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporters, about their own code
        log.setLevel(logging.ERROR)  # what is warned of is shown below
        try:
            done = export_of(arguments.id, arguments.output, wish)
        finally:
            log.setLevel(level)
    return _print_export(done)


def _print_export(done: Export) -> int:
    from nni_gumbel.results.report import mean_and_std

    console, network = _console(120), done.choice.network
    console.print(done.choice.reason, soft_wrap=True, markup=False)
    test = mean_and_std(network.test_mean, network.test_std)
    console.print(f"test     {test}, seeds: {len(network.runs)}", soft_wrap=True, markup=False)
    for warning in done.warnings:
        console.print(f"warning: {warning}", soft_wrap=True, markup=False, style="yellow")
    console.print(f"export   {done.folders[0]}", soft_wrap=True, markup=False)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from nni_gumbel.names import ignore_what_nni_wonders_about

    ignore_what_nni_wonders_about()
    from nni_gumbel.pipeline.report import report

    print(report(arguments.id, arguments.output))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from nni_gumbel.names import ignore_what_nni_wonders_about

    ignore_what_nni_wonders_about()
    from nni_gumbel.pipeline.compare import compare

    print(compare(arguments.ids, arguments.output))
    return 0


def _console(columns_of_a_log: int = 80) -> Console:
    """Where lines and tables are printed; as wide as the terminal, or as a log may be."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = columns_of_a_log
    return console


def _print_networks(console: Console, records: Records, name: str, export: Path, warning: str | None) -> None:
    """Those of a finished experiment, and where its export, of the network of this name, and its report lie."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from nni_gumbel.pipeline.task import REPORT_FOLDER
    from nni_gumbel.results.page import PAGE
    from nni_gumbel.results.report import baseline_line, network_table

    chosen = next((each for each in records.networks if each.name == name), None)
    # The choices, as many as a network has layers, and the baseline have lines of their own: the table fits a terminal.
    (heading, _, *titles), *rows = network_table(records.networks, records.metric, chosen)
    table = Table(heading, *titles, box=SIMPLE_HEAD)
    for network, (name, _, *row) in zip(records.networks, rows):
        table.add_row(name, *row, style="bold" if network is chosen else None)
    console.print(table)
    lines = [f"{name}: {choices}" for name, choices, *_ in rows]
    lines += filter(None, (baseline_line(network, records.metric) for network in records.networks))
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
    if warning is not None:
        console.print(f"warning: {warning}", soft_wrap=True, markup=False, style="yellow")
    console.print(f"\nexport   {export}", soft_wrap=True, markup=False)
    report = export.parents[1] / REPORT_FOLDER / export.name / PAGE
    if report.is_file():
        console.print(f"report   {report}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    sys.exit(main())
