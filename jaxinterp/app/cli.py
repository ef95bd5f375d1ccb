"""The command `jaxinterp`: its commands with their options, and how errors are shown."""

import difflib
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional, arg, subcommand

from jaxinterp import __version__
from jaxinterp.app.cache import keep_programs
from jaxinterp.app.code import names_file
from jaxinterp.app.console import command_of, errors_in_one_line, fits, open_console, show, show_table, table_of
from jaxinterp.checks import require, require_at_least, require_one_of
from jaxinterp.files import check_folder, write_text
from jaxinterp.recipe.overrides import override

PAPER_NUMBERS = ("test_accuracy", "test_accuracy_highest", "localization_3x3_median", "removal_curve_mean")
FAMILIES = ("coda", "gated", "coded", "taylor", "glassbox")  # that have presets
MAX_SEEDS = 1000  # of one range
FOLDER_OPTIONS = ("--run-dir", "--data-dir", "--out", "--results")
DataDir = Annotated[Path | None, arg(metavar="DIR")]
RunDir = Annotated[Positional[Path], arg(metavar="RUN_DIR")]
MaybeRunDir = Annotated[Positional[Path | None], arg(metavar="RUN_DIR")]
Net = Annotated[str, arg(metavar="MODULE:FUNCTION")]


@dataclass(frozen=True)
class Own:
    """A network of your own in place of a trained run."""

    net: Net = ""
    """A function of yours that returns a network, module:function or file.py:function, see docs/own_runs.md; or an
    exported network, by its file or by its name in the package."""
    data: Annotated[str, arg(metavar="NAME")] = ""
    """The data set that it is measured on, such as digits."""
    image_size: int | None = None
    """Side of its images in pixels; the data's own if not given."""
    channels: Literal[1, 3] | None = None
    """Their channels; the data's own if not given."""

    def folder(self, run_dir: Path | None, data_dir: Path | None, out: Path | None = None) -> Path:
        """Return the run folder that is meant: the one given, or one that is written for the network."""
        from jaxinterp.app.network import OwnNet, write_run
        from jaxinterp.app.presets import look

        if not self.net:
            self.require_unused(out)
            require(run_dir is not None, "RUN_DIR", "nothing", "the folder of a trained run, or --net module:function")
            assert run_dir is not None
            return run_dir
        require(run_dir is None, "RUN_DIR", run_dir, "nothing beside --net")
        require(self.data, "--data", "nothing", "a data set to measure the network on, such as digits")
        net, images = OwnNet(self.net), look(self.data, data_dir, "test")
        folder = out or Path("runs") / net.stem
        check_folder(folder)
        write_run(net, replace(images, channels=self.channels or images.channels), self.image_size, folder, data_dir)
        return folder

    def require_unused(self, out: Path | None = None) -> None:
        """Raise for options that go with --net where there is none."""
        given = {"data": self.data, "image-size": self.image_size, "channels": self.channels, "out": out}
        for name, value in given.items():
            require(not value, f"--{name}", value, "no such option without --net: a run has its own")


@dataclass(frozen=True)
class Demo:
    """Explain digits by trained networks of each family, then train one of each; all on one page."""

    run_dir: Path = Path("runs/demo")
    """Folder of report.html, of a picture for each network, and of a folder for every family that is trained."""
    smoke: bool = False
    """Every stage in seconds, on a fraction of the images."""

    def __call__(self, console: Console) -> None:
        """Run the demo and print where the page lies, and one table."""
        from jaxinterp.app.demo import demo

        demo(self.run_dir, self.smoke, console)


@dataclass(frozen=True)
class Train:
    """Train a run; the same command resumes it. A preset is also evaluated and reported."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A named run, see `jaxinterp list`; a file of your own, run.toml or run.py:NAME; or with --data a family, such as
    coda, or one of its presets, such as coda/small."""
    overrides: Annotated[Positional[tuple[str, ...]], arg(metavar="PART.FIELD=VALUE")] = ()
    """Fields of the run to replace, such as train.epochs=4 or model.ranks=4,4,8; --train.epochs 4 works too."""
    run_dir: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder of the run; default runs/<run name, / as ->, then -smoke with --smoke, -seed-<seed> with --seeds."""
    data: Annotated[str, arg(metavar="NAME")] = ""
    """Images whose sizes a preset fits, such as digits."""
    data_dir: DataDir = None
    """Folder of the data sets; default $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    report: bool = False
    """Evaluate and report after training, as presets do."""
    seeds: Annotated[str, arg(metavar="INT,INT,...")] = ""
    """Train once with each of these seeds, such as 0,1,2 or 0-4, each in a folder of its own."""
    smoke: bool = False
    """Every stage, small: 64 embedded digits at the run's size, one epoch, low ranks; needs no other data."""
    allow_older: bool = False
    """If the newest checkpoint is damaged or missing, go on from the newest intact one."""
    coordinator: Annotated[str | None, arg(metavar="HOST:PORT")] = None
    """Where process 0 listens, for a run on many machines."""
    processes: Annotated[int | None, arg(metavar="INT")] = None
    """Number of processes."""
    process_id: Annotated[int | None, arg(metavar="INT")] = None
    """Number of this process, from 0."""

    def __call__(self, console: Console) -> list[Path]:
        """Train with every seed; return the folders."""
        folders = self.train(console)
        from jaxinterp.app.presets import is_preset

        if self.report or is_preset(self.run):
            self.finish(folders, console)
        return folders

    def train(self, console: Console) -> list[Path]:
        """Train with every seed, and no more; return the folders."""
        from jaxinterp.app import stages
        from jaxinterp.app.presets import is_preset, preset
        from jaxinterp.app.registry import family_of
        from jaxinterp.app.run_file import stem
        from jaxinterp.app.training import run_of
        from jaxinterp.data import NAMES, is_own

        if self.coordinator is not None or self.processes is not None or self.process_id is not None:
            from jaxinterp.train import initialize

            initialize(self.coordinator, self.processes, self.process_id)
        name, words, fitted = self.run, self.data, None
        if is_preset(name) and words:
            bare = not is_own(words) and words not in NAMES and Path(words).is_dir()
            require(not bare, "--data", words, f"folder:{words}")
            fitted = preset(name, words, self.data_dir)
            name, run = fitted.name, fitted.run
            place = (words.partition(":")[2] if is_own(words) else words).rstrip("/").split("/")[-1]
            label = f"{name}-{re.sub(r'[^A-Za-z0-9.]+', '-', place)}"
        else:
            run, label = run_of(name, words, self.data_dir), name
        run = override(family_of(run).smoke(run) if self.smoke else run, self.overrides)
        if fitted is not None:
            show(console, fitted._replace(run=run).line)
        folder = self.run_dir or Path("runs") / f"{stem(label)}{'-smoke' if self.smoke else ''}"
        folders = {folder.parent / f"{folder.name}-seed-{seed}": run.with_seed(seed) for seed in self._seeds()}
        folders = folders or {folder: run}
        for run_dir, one in folders.items():
            result = stages.train(name, one, run_dir, data_dir=self.data_dir, allow_older=self.allow_older)
            if result.interrupted:
                show(console, f"interrupted; the same command resumes {run_dir}")
                raise SystemExit(130 if result.interrupted == "SIGINT" else 143)
            show(console, stages.outcome(run_dir, result.summary))
        return list(folders)

    def _seeds(self) -> list[int]:
        """Return the numbers of --seeds."""
        wanted = "integers in [0, 2**32), separated by commas, or the first and the last, such as 0-4"
        seeds = list[int]()
        for text in self.seeds.split(",") if self.seeds else ():
            ends = text.split("-")
            natural = len(ends) < 3 and all(end.isdecimal() and int(end) < 2**32 for end in ends)
            require(natural and int(ends[0]) <= int(ends[-1]) < int(ends[0]) + MAX_SEEDS, "--seeds", self.seeds, wanted)
            seeds += range(int(ends[0]), int(ends[-1]) + 1)
        require(len(set(seeds)) == len(seeds), "--seeds", self.seeds, "different seeds")
        fixed = [text for text in self.overrides if text.startswith("train.seed=")]
        require(not fixed, "--seeds", f"{self.seeds} beside {' '.join(fixed)}", "one of the two")
        return seeds

    def to_the_end(self, console: Console) -> None:
        """Train, evaluate and report."""
        self.finish(self.train(console), console)

    def finish(self, folders: Sequence[Path], console: Console) -> None:
        """Evaluate and report what was trained."""
        if self.process_id:
            return  # the first process does the rest
        Evaluate(tuple(folders), data_dir=self.data_dir)(console)
        for folder in folders:
            Report(folder, data_dir=self.data_dir)(console)


@dataclass(frozen=True)
class Plan:
    """Compile a run for a machine that is not here: does it fit, how long at least, which batch is the largest.

    Nothing is run, and no data set or weight is read. Leaves with status 1 if the run does not fit.
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A named run, a run's folder, a file of your own, or with --data a preset, as for train."""
    overrides: Annotated[Positional[tuple[str, ...]], arg(metavar="PART.FIELD=VALUE")] = ()
    """Fields of the run to replace, such as train.batch_size=256; --train.batch_size 256 works too."""
    device: Annotated[str, arg(metavar="DEVICE[:SHAPE]")] = "tpu-v5e:2x2"
    """The machine: tpu-v4:2x2x1, tpu-v5e:2x2, tpu-v6e:4x4, h200:8, h100:1, a100:1, or cpu."""
    data: Annotated[str, arg(metavar="NAME")] = ""
    """Images whose sizes a preset fits, such as digits."""
    data_dir: DataDir = None
    """Folder of the data sets; default $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    quick: bool = False
    """Do not look for the largest batch, which takes two or three more compilations."""
    json: bool = False
    """Print the figures as JSON instead of a table."""

    def __call__(self, console: Console) -> None:
        """Print a column for each stage, and what follows from it."""
        from jaxinterp.app.plan import plan

        run = override(configuration(self.run, self.data, self.data_dir), self.overrides)
        stderr = Console(stderr=True, soft_wrap=True)
        name = " ".join([self.run, *self.overrides])
        found = plan(
            run, self.device, name=name, data_dir=self.data_dir, largest=not self.quick, log=lambda x: show(stderr, x)
        )
        if self.json:
            show(console, found.to_json())
        else:
            header, *rows = found.rows()
            show_table(console, table_of(header, rows))
            for line in found.lines():
                show(console, line)
        if not found.fits:
            raise SystemExit(1)


@dataclass(frozen=True)
class Explain:
    """Explain predictions on images: contribution maps, sums, residuals, the family's own reading."""

    paths: Annotated[Positional[tuple[Path, ...]], arg(metavar="[RUN_DIR] IMAGE")]
    """Folder of a trained run, then image files of any size: each is converted and resized to the network's input.
    Without a folder, a pretrained network that fits the images explains them."""
    out: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder to write to; default <RUN_DIR>/explanations, or explanations."""
    checkpoint: Literal["last", "best"] = "last"
    """The last epoch, or the one that was best on the validation part."""
    open: bool = False
    """Write explorer.html too, a page on which the contributions can be explored, and open it in a browser."""
    own: Annotated[Own, tyro.conf.OmitArgPrefixes] = Own()
    data_dir: DataDir = None
    """Folder of the data sets; default $TFDS_DATA_DIR, then ~/tensorflow_datasets."""

    def __call__(self, console: Console) -> None:
        """Explain every image; nothing is written unless all can be read."""
        from jaxinterp.app import stages
        from jaxinterp.data.own_files import extensions
        from jaxinterp.recipe.run_folder import near_runs, read_name

        require(self.paths, "IMAGE", "nothing", "the folder of a trained run, then image files; or image files alone")
        first, *rest = self.paths
        in_run = not self.own.net and not first.is_file() and first.suffix.lower() not in extensions()
        images = rest if in_run else list(self.paths)
        if not images:
            known = first.is_dir() or near_runs(first)
            require(known, "IMAGE", f"{first}, which is not there", "an image file, or a run folder and image files")
            read_name(first)  # which says what is wrong with the folder
        require(images, "IMAGE", "nothing", f"image files after {first}")
        if not self.own.net:
            self.own.require_unused()
        out = self.out or (first if in_run else Path()) / "explanations"
        check_folder(out)
        trained = stages.trained(first, self.checkpoint) if in_run else self._elsewhere(images, console)
        for line in stages.explain(trained, images, out, which=self.checkpoint):
            show(console, line)
        if self.open:
            from jaxinterp.app.view import open_page

            page = out / "explorer.html"
            show(
                console, f"writing {page}: maps by other methods too, to be compared; this takes longer than the above"
            )
            show(console, open_page(stages.explore(trained, images, page, self.checkpoint)))

    def _elsewhere(self, images: Sequence[Path], console: Console) -> Any:
        """Return a network of one's own, or a pretrained one that fits the images."""
        from jaxinterp.app.network import OwnNet
        from jaxinterp.app.presets import look
        from jaxinterp.app.pretrained import choose
        from jaxinterp.data.images import read_images

        own = self.own
        if ":" not in own.net:
            found = choose(images, name=own.net)
            show(console, f"explained by {found.name}")
            return found
        net, side, channels = OwnNet(own.net), own.image_size, own.channels
        names: tuple[str, ...] = ()
        if own.data:
            seen = look(own.data, self.data_dir, "test")
            side, channels, names = side or seen.side, channels or seen.channels, seen.names
        read_images(images, 1, 1, 3)  # which names a file that is none
        require(side, "--image-size", "nothing", "the side of the network's images in pixels; or --data")
        assert side is not None
        return net.trained((side, side, channels or 3), names)


@dataclass(frozen=True)
class Evaluate:
    """Measure trained runs on the test split: accuracy, localization, pixel deletion, completeness."""

    run_dirs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN_DIR")] = ()
    """Folders of one run, trained with several seeds."""
    own: Annotated[Own, tyro.conf.OmitArgPrefixes] = Own()
    out: Annotated[Path | None, arg(metavar="DIR")] = None
    """With --net: folder to write to; default runs/<module>-<function>."""
    data_dir: DataDir = None
    """Folder of the data sets; default $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    results: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder in which to write <run>.json, the mean and spread over the seeds; overrides stand in its name."""
    held_out: bool = False
    """Measure on the training images that were held out instead, as one does to choose; goes to held_out.json."""

    def __call__(self, console: Console) -> None:
        """Write evaluation.json into every folder, and print the means."""
        from jaxinterp.app import stages
        from jaxinterp.app.publish import gather, metrics_table, one_run, require_finished, results_file, unfinished
        from jaxinterp.app.results import write_results

        require(not (self.own.net and self.run_dirs), "RUN_DIR", self.run_dirs, "nothing beside --net")
        if self.held_out:
            require(
                not self.own.net, "--held-out", "a network of your own", "a run, which holds images out of training"
            )
            require(
                self.results is None, "--results", self.results, "nothing beside --held-out, which publishes nothing"
            )
        run_dirs: tuple[Path, ...] = self.run_dirs
        if self.own.net or not run_dirs:
            run_dirs = (self.own.folder(None, self.data_dir, self.out),)
        else:
            self.own.require_unused(self.out)
        name, (first, *_), _ = one_run(run_dirs)  # before anything is measured
        file = None if self.results is None else results_file(self.results, name, first)
        if self.results is not None:
            require_finished(run_dirs)
            check_folder(self.results)
        measure = stages.evaluate_held_out if self.held_out else stages.evaluate
        for run_dir in run_dirs:
            measure(run_dir, data_dir=self.data_dir)
        summary = gather(run_dirs, self.results, self.held_out)
        show_table(console, metrics_table(summary, unfinished(run_dirs, self.held_out)))
        if file is not None:
            write_results(file, summary)
            show(console, f"results: {file}")


@dataclass(frozen=True)
class Audit:
    """Measure post-hoc methods against a trained run's exact decomposition, and metrics against how it ranks them."""

    run_dir: MaybeRunDir = None
    """Folder of a trained run; audit.json and audit.html are written into it."""
    own: Annotated[Own, tyro.conf.OmitArgPrefixes] = Own()
    out: Annotated[Path | None, arg(metavar="DIR")] = None
    """With --net: folder to write to; default runs/<module>-<function>."""
    methods: Annotated[str, arg(metavar="NAME,NAME,...")] = ""
    """Methods, by the names that an audit prints, such as gradient,lrp_epsilon; all that fit the network if empty."""
    images: int = 64
    """Use the first test images up to this number."""
    json: bool = False
    """Print the numbers as JSON instead of a table."""
    data_dir: DataDir = None
    """Folder of the data sets; default $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    results: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder in which to write audit_<run>.json; overrides stand in its name."""

    def __call__(self, console: Console) -> None:
        """Write the audit and its page, and print it."""
        from jaxinterp.app import stages
        from jaxinterp.app.publish import audit_results, require_finished, results_file
        from jaxinterp.app.registry import run_in
        from jaxinterp.app.results import write_results

        require_at_least("--images", self.images, 1)
        run_dir = self.own.folder(self.run_dir, self.data_dir, self.out)
        name, _, run = run_in(run_dir)  # before anything is measured
        file = None if self.results is None else results_file(self.results, name, run, "audit_")
        if self.results is not None:
            require_finished([run_dir])
            check_folder(self.results)
        methods = tuple(self.methods.split(",")) if self.methods else None
        stderr = Console(stderr=True, soft_wrap=True)
        found = stages.audit(run_dir, methods, self.images, self.data_dir, lambda line: show(stderr, line))
        show(console, found.to_json() if self.json else repr(found))
        if not self.json:
            show(console, f"audit: {run_dir / 'audit.html'}, audit.json")
        if file is not None:
            write_results(file, audit_results(run_dir, found, self.methods, self.images, self.results))
            if not self.json:
                show(console, f"results: {file}")


@dataclass(frozen=True)
class Export:
    """Write a trained run's network to one file, which jaxinterp.load reads, and its card beside it."""

    run_dir: RunDir
    """Folder of a trained run."""
    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """The file, .safetensors or .npz; in a folder with an index of networks it is entered there."""
    checkpoint: Literal["last", "best"] = "last"
    """The last epoch, or the one that was best on the validation part."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the weights in the file; what is loaded computes in float32."""

    def __call__(self, console: Console) -> None:
        """Write both, and print a line."""
        from jaxinterp.app.weights import export

        card = export(self.run_dir, self.file, self.checkpoint, self.dtype)
        show(console, f"{self.file}, {self.file.with_suffix('.md').name}: {card.summary}")


@dataclass(frozen=True)
class Claims:
    """Print the papers' claims as they were tested at a laptop's budget, each with its verdict."""

    row: Annotated[Positional[str], arg(metavar="[ROW]")] = ""
    """One of the rows, to be printed whole; all, a line each, if empty."""
    json: bool = False
    """Print the rows as JSON."""

    def __call__(self, console: Console) -> None:
        """Print a table, or all that is known of one row."""
        from jaxinterp.app.claims import claims

        rows = {row["row"]: row for row in claims()}
        if self.row:
            require_one_of("ROW", self.row, rows)
        chosen = {self.row: rows[self.row]} if self.row else rows
        if self.json:
            show(console, json.dumps(list(chosen.values()), indent=2, ensure_ascii=False))
        elif self.row:
            for key, text in chosen[self.row].items():
                show(console, f"{key}: {text}")
        else:
            table = [[name, row["claim"], row["ours"], row["verdict"]] for name, row in rows.items()]
            show_table(console, table_of(("row", "claim", "ours", "verdict"), table))


@dataclass(frozen=True)
class Runs:
    """List the named runs."""

    prefix: Annotated[Positional[str], arg(metavar="PREFIX")] = ""
    """Beginning of the names that are listed, such as coded; all if empty."""

    def __call__(self, console: Console) -> None:
        """Print a table: name, where in the paper, measured time, the paper's numbers; and the presets."""
        from jaxinterp.app.presets import PRESETS
        from jaxinterp.app.registry import runs

        table = table_of(("run", "source", "time", "the paper's numbers"), ())
        table.columns[0].no_wrap = True
        chosen = {name: run for name, run in runs().items() if name.startswith(self.prefix)}
        presets = [name for name in PRESETS if name.startswith(self.prefix)]
        families = ", ".join(dict.fromkeys(name.split("/")[0] for name in runs()))
        require(chosen or presets, "PREFIX", self.prefix, f"the beginning of a run's name, such as {families}")
        for name, run in chosen.items():
            numbers = ", ".join(f"{key} {run.paper[key]:g}" for key in PAPER_NUMBERS if key in run.paper)
            table.add_row(name, run.source, run.time, numbers)
        for name in presets:
            table.add_row(name, "a preset, which fits the images of --data", "said when it starts", "")
        show_table(console, table)


@dataclass(frozen=True)
class Compare:
    """Compare trained runs of different settings: only the settings that differ, then measurements.

    A row for each run; in a terminal that is too narrow for it, a column for each.
    """

    run_dirs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN_DIR")]
    """Folders of runs, evaluated or not."""
    measures: Annotated[str, arg(metavar="NAME,NAME,...")] = ""
    """Measurements of the table; a few if empty."""
    csv: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write all measurements to this CSV file too."""
    json: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write all measurements to this JSON file too."""

    def __call__(self, console: Console) -> None:
        """Print the table."""
        from jaxinterp.app.compare import chosen, compare

        found = compare(self.run_dirs)
        names = chosen(found, self.measures)
        if self.csv is not None:
            write_text(self.csv, found.to_csv())
        if self.json is not None:
            write_text(self.json, json.dumps(found.to_dict(), indent=2) + "\n")
        rows = [found.header(names), *found.cells(names)]
        across, down = (table_of(lines[0], lines[1:]) for lines in (rows, list(zip(*rows, strict=True))))
        show_table(console, across if fits(console, across) else down)


@dataclass(frozen=True)
class Show:
    """Show the keys of a run: values, types and meanings."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A named run, a run's folder, a file of your own, or with --data a preset, as for train."""
    data: Annotated[str, arg(metavar="NAME")] = ""
    """Images whose sizes a preset fits, such as digits."""
    data_dir: DataDir = None
    """Folder of the data sets; default $TFDS_DATA_DIR, then ~/tensorflow_datasets."""

    def __call__(self, console: Console) -> None:
        """Print a table of the keys."""
        from jaxinterp.app.keys import HEADER, key_rows

        show_table(console, table_of(HEADER, key_rows(configuration(self.run, self.data, self.data_dir))))


@dataclass(frozen=True)
class Report:
    """Write report.html, one self-contained page about a trained run; evaluate the run first if it was not."""

    run_dir: MaybeRunDir = None
    """Folder of a trained run."""
    own: Annotated[Own, tyro.conf.OmitArgPrefixes] = Own()
    out: Annotated[Path | None, arg(metavar="DIR")] = None
    """With --net: folder to write to; default runs/<module>-<function>."""
    data_dir: DataDir = None
    """Folder of the data sets; default $TFDS_DATA_DIR, then ~/tensorflow_datasets."""

    def __call__(self, console: Console) -> None:
        """Write the page and print its path."""
        from jaxinterp.app import stages

        path = stages.report(self.own.folder(self.run_dir, self.data_dir, self.out), data_dir=self.data_dir)
        show(console, f"report: {path}")


@dataclass(frozen=True)
class View:
    """Open the report of a trained run, or the explorer of a saved attribution, in a browser."""

    path: Annotated[Positional[Path], arg(metavar="RUN_DIR|FILE")]
    """Folder of a trained run, whose report is written if it has none or an older one; an .npz file, as
    Attribution.save writes it; or a page."""
    data_dir: DataDir = None
    """Folder of the data sets; default $TFDS_DATA_DIR, then ~/tensorflow_datasets."""

    def __call__(self, console: Console) -> None:
        """Write the page if there is none, open it, and print its path."""
        from jaxinterp.app.view import open_page, page_of

        show(console, open_page(page_of(self.path, self.data_dir)))


@dataclass(frozen=True)
class GetData:
    """Download data sets from their official places, each file checked by its md5 sum."""

    action: Annotated[Positional[Literal["get"]], arg(metavar="get")]
    """What to do."""
    names: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME")]
    """mnist, fashion_mnist, cifar10 or cifar100."""
    data_dir: DataDir = None
    """Folder of the data sets; default $TFDS_DATA_DIR, then ~/tensorflow_datasets."""

    def __call__(self, console: Console) -> None:
        """Download what is not there yet, and print the files."""
        from jaxinterp.data.official import download

        require(self.names, "NAME", "nothing", "mnist, fashion_mnist, cifar10 or cifar100")
        for name in self.names:
            show(console, f"{name}: {', '.join(map(str, download(name, self.data_dir)))}")


Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Plan, subcommand("plan")]
    | Annotated[Explain, subcommand("explain")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Audit, subcommand("audit")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Runs, subcommand("list")]
    | Annotated[Claims, subcommand("claims")]
    | Annotated[Show, subcommand("show")]
    | Annotated[Report, subcommand("report")]
    | Annotated[View, subcommand("view")]
    | Annotated[GetData, subcommand("data")]
)


def configuration(name: str, data: str, data_dir: Path | None) -> Any:
    """Return the run of a folder, or of a name as `run_of` takes it; a mistyped folder is refused as one."""
    from jaxinterp.app.presets import is_preset
    from jaxinterp.app.registry import run_in, runs
    from jaxinterp.app.training import run_of
    from jaxinterp.recipe.run_folder import near_runs

    folder = Path(name)
    known = name in runs() or is_preset(name)
    meant = (folder / "config.json").exists() or (not known and near_runs(folder))
    return run_in(folder)[2] if meant and not data else run_of(name, data, data_dir)


def assignments(words: Sequence[str], kind: type = Train) -> list[str]:
    """Write options of a run's fields as assignments, all of them at the end; a command's own options stay.

    Example:
        >>> assignments(["train", "coda/mnist", "--train.epochs", "4", "--model.ranks", "4", "8", "--smoke"])
        ['train', 'coda/mnist', '--smoke', 'train.epochs=4', 'model.ranks=4,8']

    Options of no such name are taken for fields too, whose error gives the whole name:

        >>> assignments(["train", "coda/mnist", "--epochs", "4"])
        ['train', 'coda/mnist', 'epochs=4']
    """
    options = [field.name.replace("_", "-") for field in fields(kind)]
    others, written, growing = list[str](), list[str](), False
    for word in words:
        field = re.fullmatch(r"(--)?(\w+(?:\.\w+)+)(=.*)?", word)
        bare = re.fullmatch(r"(--)([a-z][\w-]+)(=.*)?", word)
        if bare is not None and not difflib.get_close_matches(
            bare[2].replace("_", "-"), ["help", *options], cutoff=0.7
        ):
            field = bare
        first = growing and written[-1].endswith("=")
        ends = "/" in word or word in FAMILIES or names_file(word)  # names a run
        if growing and "=" not in word and re.match(r"-\d|[^-]", word) and (first or not ends):
            written[-1] += word if first else f",{word}"
        elif field is not None and any(field.group(1, 3)):
            growing = field[3] is None  # --part.field VALUE ...; the name of a run ends it
            written.append(field[2] + (field[3] or "="))
        else:
            growing = False
            others.append(word)
    return others + written


def join_seeds(words: Sequence[str]) -> list[str]:
    """Join the numbers that follow --seeds.

    Example:
        >>> join_seeds(["--seeds", "0", "1", "2", "--smoke"]), join_seeds(["--seeds", "0-2"])
        (['--seeds', '0,1,2', '--smoke'], ['--seeds', '0-2'])
    """
    joined = list[str]()
    for word in words:
        more = len(joined) > 1 and joined[-2] == "--seeds" and word.isdecimal() and re.fullmatch(r"[\d,-]+", joined[-1])
        if more:
            joined[-1] += f",{word}"
        else:
            joined.append(word)
    return joined


def parse(kind: Any, words: Sequence[str], prog: str, description: str | None = __doc__) -> Any:
    """Return the command that the words ask for; leave after help, which begins with the description."""
    for word in words:
        require(not re.fullmatch(r"--[\w-]+=", word), word.rstrip("="), "nothing", "a value")
    for option, word in pairwise(words):
        require(word or option not in FOLDER_OPTIONS, option, "nothing", "a folder")
    given = [word.partition("=")[0].replace("_", "-") for word in words if re.match(r"--[\w-]+(=|$)", word)]
    for option, count in Counter(given).items():
        require(count == 1, option, f"it {count} times", "it once")
    with_fields = {"train": Train, "plan": Plan}.get("train" if kind is Train else "".join(words[:1]))
    arguments = list(words) if with_fields is None else assignments(join_seeds(words), with_fields)
    return command_of(kind, arguments, prog, description, tyro.conf.FlagCreatePairsOff)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command `jaxinterp`."""
    words = sys.argv[1:] if arguments is None else arguments
    if list(words) == ["--version"]:
        print(f"jaxinterp {__version__}")
        return
    with errors_in_one_line():
        command, console = parse(Command, words, "jaxinterp"), open_console()
        keep_programs(Console(stderr=True, soft_wrap=True))
        command(console)


def run_experiment(file: str, arguments: Sequence[str] | None = None) -> None:
    """Run a file of named runs as a script: train, evaluate and report one of its runs."""
    from jaxinterp.app.registry import FOLDERS, runs_of

    words, path = sys.argv[1:] if arguments is None else arguments, Path(file).resolve()
    FOLDERS.insert(0, path.parent)
    with errors_in_one_line():
        names = list(runs_of(path.stem))
        script = (
            f"Train, evaluate and report one of the runs of this file; the same command resumes it.\n\n{path.name}: "
        )
        command = parse(Train, words, path.name, script + ", ".join(names))
        require_one_of("RUN", command.run, names, f"a run of {path.name}, such as {names[0]}")
        command.to_the_end(open_console())
