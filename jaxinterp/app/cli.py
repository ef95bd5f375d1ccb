"""The command `jaxinterp`: demo, train, explain, evaluate, list, report."""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg, subcommand
from tyro.constructors import PrimitiveConstructorSpec

from jaxinterp.errors import ConfigError, JaxInterpError
from jaxinterp.files import check_folder

QUICK_COMPILER = "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
Seeds = Annotated[
    tuple[int, ...],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT,INT,...",
        instance_from_str=lambda words: tuple(int(seed) for seed in words[0].split(",")),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda seeds: [",".join(map(str, seeds))] if seeds else ["that-of-the-run"],
    ),
]
DataDir = Annotated[Path | None, arg(metavar="DIR")]
RunDir = Annotated[Positional[Path], arg(metavar="RUN_DIR")]


@dataclass(frozen=True)
class Demo:
    """Train a network of each family on the digits, explain and measure them, and show them on one page."""

    run_dir: Path = Path("runs/demo")
    """Folder of report.html, and of a folder for every family."""
    smoke: bool = False
    """Every stage in seconds, on a fraction of the images."""

    def __call__(self, console: Console) -> None:
        """Run the whole of it, say where the page lies, and end with one table."""
        # Compiling takes most of the time, and LLVM's costly passes most of that.
        os.environ.setdefault("XLA_FLAGS", QUICK_COMPILER)
        # Quicker than evaluating all.
        shorter = ("epochs=30", "grid_sizes=3", "grids=12", "removal_images=120", "occlusion=5")
        fewer = ("epochs=8", "classifiers=3", "occlusion=", "path_images=120", "removal_images=40")
        least = ("epochs=20", "occlusion=", "removal_images=40")
        closed = ("kinds=lda,svm_rbf", "baselines=pixels", "occlusion=", "removal_images=40")

        def family(run: str, overrides: tuple[str, ...] = ()) -> Train:
            folder = self.run_dir / run.split("/")[0]
            return Train(run, () if self.smoke else overrides, run_dir=folder, smoke=self.smoke)

        own = family("coda/digits", shorter), family("glassbox/digits", closed)
        further = family("gated/digits-dlgn"), family("coded/digits", fewer), family("taylor/digits", least)
        # The compiler keeps one core busy: some networks are made beside the others.
        check_folder(self.run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        said = self.run_dir / "further.txt"
        beside = get_context("spawn").Process(target=made_beside, args=(further, said), daemon=True)
        beside.start()
        for train in own:
            whole(train, console)
        beside.join()
        console.print(said.read_text(encoding="utf-8"), highlight=False, markup=False, soft_wrap=True)
        if beside.exitcode:
            raise JaxInterpError(f"the networks of {said} were not finished: status {beside.exitcode}")
        side_by_side([str(train.run_dir) for train in (own[0], *further, own[1])], self.run_dir, console)


def side_by_side(folders: Sequence[str], out: Path, console: Console) -> None:
    """Write the page of several networks, and print its table."""
    from jaxinterp.app.overview import HEADER, compose, member
    from jaxinterp.figures.html import write

    members = [member(Path(folder)) for folder in folders]
    write(compose(members), out / "report.html")
    table = Table(*HEADER, box=None, pad_edge=False)
    for one in members:
        table.add_row(*one.row)
    console.print(f"report: {out / 'report.html'}", highlight=False, soft_wrap=True)
    console.print(table)


def whole(train: "Train", console: Console) -> None:
    """Train a network, measure it and write its report."""
    assert train.run_dir is not None
    train(console)
    Evaluate((train.run_dir,))(console)
    Report(train.run_dir)(console)


def made_beside(trainings: Sequence["Train"], said: Path) -> None:
    """Networks made one after another in a process of their own; what it says goes into a file.

    Raises:
        SystemExit: with one line on stderr, where a network could not be made.
    """
    with said.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file), warned_in_one_line():
        try:
            for train in trainings:
                whole(train, Console(file=file, width=100))
        except JaxInterpError as error:
            raise SystemExit(f"jaxinterp: {' '.join(str(error).split())}") from None


@dataclass(frozen=True)
class Train:
    """Train a named run; the same command resumes it."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Name of the run, see `jaxinterp list`."""
    overrides: Annotated[Positional[tuple[str, ...]], arg(metavar="KEY=VALUE")] = ()
    """Fields of the run to replace, such as temperature=500 or ranks=4,4,8."""
    run_dir: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder of the run; default runs/<run name, / as ->, then -smoke with --smoke, -seed-<seed> with --seeds."""
    data_dir: DataDir = None
    """Folder of the data sets; default $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    seeds: Seeds = ()
    """Train once with each of these seeds, each in a folder of its own."""
    smoke: bool = False
    """Every stage, small: 64 embedded digits at the run's size, one epoch, low ranks; needs no other data."""
    allow_older: bool = False
    """If the newest checkpoint is damaged, go on from the newest intact one."""
    coordinator: Annotated[str | None, arg(metavar="HOST:PORT")] = None
    """Where process 0 listens, for a run on many machines."""
    processes: Annotated[int | None, arg(metavar="INT")] = None
    """Number of processes."""
    process_id: Annotated[int | None, arg(metavar="INT")] = None
    """Number of this process, from 0."""

    def __call__(self, console: Console) -> None:
        """Train with every seed."""
        from jaxinterp.app import stages
        from jaxinterp.app.registry import paper_of
        from jaxinterp.recipe.config import override, shown

        if self.coordinator is not None or self.processes is not None or self.process_id is not None:
            from jaxinterp.train import initialize

            initialize(self.coordinator, self.processes, self.process_id)
        paper = paper_of(self.run)
        config = paper.RUNS[self.run].config
        if self.smoke:
            config = paper.smoke(config)
        config = override(config, self.overrides)
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"--seeds: got {shown(self.seeds)}, expected different seeds")
        folder = self.run_dir or Path("runs") / f"{self.run.replace('/', '-')}{'-smoke' if self.smoke else ''}"
        configs = [replace(config, seed=seed) for seed in self.seeds or (config.seed,)]  # a wrong seed stops them all
        for one in configs:
            run_dir = folder
            if self.seeds:
                own = f"seed-{one.seed}"
                run_dir = folder.with_name(f"{folder.name}-{own}") if folder.name else folder / own
            result = stages.train(self.run, one, run_dir, data_dir=self.data_dir, allow_older=self.allow_older)
            if result.interrupted:
                console.print(f"interrupted; the same command resumes {run_dir}", highlight=False, soft_wrap=True)
                raise SystemExit(130 if result.interrupted == "SIGINT" else 143)
            console.print(outcome(run_dir, result.summary), highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Explain:
    """Explain a trained run's predictions on images: contribution maps, sums, residuals, the family's own reading."""

    run_dir: RunDir
    """Folder of a trained run."""
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE")]
    """Image files of any size; each is converted and resized to the network's input."""
    out: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder to write to; default <RUN_DIR>/explanations."""
    checkpoint: Literal["last", "best"] = "last"
    """The last epoch, or the one that was best on the validation part."""

    def __call__(self, console: Console) -> None:
        """Explain every image; nothing is written unless all can be read."""
        from jaxinterp.app import stages

        out = self.out or self.run_dir / "explanations"
        for line in stages.explain(self.run_dir, self.images, out, which=self.checkpoint):
            console.print(line, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Evaluate:
    """Measure trained runs on the test split: accuracy, localization, pixel removal, completeness."""

    run_dirs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN_DIR")]
    """Folders of one run, trained with several seeds."""
    data_dir: DataDir = None
    """Folder of the data sets; default $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    results: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder in which to write <run>.json, the mean and spread over the seeds, such as experiments/results."""

    def __call__(self, console: Console) -> None:
        """Write evaluation.json into every folder, and print the means."""
        from jaxinterp.app import stages
        from jaxinterp.app.publish import ended, gather, metrics_table, one_run, publish

        one_run(self.run_dirs)  # before anything is measured
        if self.results is not None:
            ended(self.run_dirs)
            check_folder(self.results)
        for run_dir in self.run_dirs:
            stages.evaluate(run_dir, data_dir=self.data_dir)
        summary = gather(self.run_dirs)
        console.print(metrics_table(summary))
        if self.results is not None:
            console.print(f"results: {publish(summary, self.results)}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Runs:
    """List the named runs."""

    prefix: Annotated[Positional[str], arg(metavar="PREFIX")] = ""
    """Beginning of the names that are listed, such as coded; all where empty."""

    def __call__(self, console: Console) -> None:
        """Print a table: name, where in the paper, measured time, the paper's numbers."""
        from jaxinterp.app.registry import runs
        from jaxinterp.app.results import HEADLINES

        table = Table(box=None, pad_edge=False)
        table.add_column("run", no_wrap=True)
        for title in ("source", "time", "the paper's numbers"):
            table.add_column(title, overflow="fold")
        chosen = {name: run for name, run in runs().items() if name.startswith(self.prefix)}
        if not chosen:
            families = ", ".join(dict.fromkeys(name.split("/")[0] for name in runs()))
            raise ConfigError(
                f"PREFIX: got {self.prefix!r}, expected the beginning of a run's name, such as {families}"
            )
        for name, run in chosen.items():
            numbers = ", ".join(f"{key} {run.paper[key]:g}" for key in HEADLINES if key in run.paper)
            table.add_row(name, run.source, run.time, numbers)
        console.print(table)


@dataclass(frozen=True)
class Report:
    """Write report.html, one self-contained page about a trained run; it is measured first where it was not."""

    run_dir: RunDir
    """Folder of a trained run."""
    data_dir: DataDir = None
    """Folder of the data sets; default $TFDS_DATA_DIR, then ~/tensorflow_datasets."""

    def __call__(self, console: Console) -> None:
        """Write the page and say where it lies."""
        from jaxinterp.app import stages

        path = stages.report(self.run_dir, data_dir=self.data_dir)
        console.print(f"report: {path}", highlight=False, soft_wrap=True)


Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Explain, subcommand("explain")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Runs, subcommand("list")]
    | Annotated[Report, subcommand("report")]
)


def outcome(run_dir: Path, summary: Mapping[str, Mapping[str, Any]]) -> str:
    """A finished training in a line: test accuracy of the last epoch, and of the best on the validation part."""
    parts = [
        f"{which} (epoch {int(numbers['epoch'])}) {numbers['test_accuracy']:.2%}"
        for which, numbers in summary.items()
        if "test_accuracy" in numbers
    ]
    return f"{run_dir}: test accuracy {', '.join(parts)}" if parts else f"{run_dir}: trained"


def parse(arguments: Sequence[str]) -> Command:
    """The command that the arguments ask for.

    Raises:
        SystemExit: after help (status 0), or after one line on stderr about what was wrong (status 2).
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                Command,  # type: ignore[arg-type]
                prog="jaxinterp",
                description=__doc__,
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code:
            print(f"jaxinterp: {in_one_line(said.getvalue())}", file=sys.stderr)
        raise


def in_one_line(box: str) -> str:
    r"""What a parser said in a framed box, as one line: its first paragraph and its hint, without title and frame.

    Example:
        >>> in_one_line("╭─── Oops ─╮\n│ a is  │\n│ wrong │\n│ ───── │\n│ Perhaps b │\n╰───────╯")
        'a is wrong; Perhaps b'
    """
    lines = ["\0" if "───" in line or "---" in line else line.strip("│| ") for line in box.splitlines()]
    _, *said = (" ".join(paragraph.split()) for paragraph in " ".join(lines).split("\0"))
    return "; ".join(text for i, text in enumerate(said) if i == 0 or text.startswith(("Perhaps", "Available")))


@contextlib.contextmanager
def warned_in_one_line() -> Iterator[None]:
    """A warning is what it says, without the place in the source."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *place, **named: f"jaxinterp: warning: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a mistake that the user can mend is one line on stderr and status 2, never a traceback."""
    try:
        with warned_in_one_line():
            parse(sys.argv[1:] if arguments is None else arguments)(Console())
    except JaxInterpError as error:
        print(f"jaxinterp: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"jaxinterp: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxinterp: interrupted", file=sys.stderr)
        return 130
    return 0
