"""A run and its directory: which cells are finished, who works on the others, and how results get to the disk.

`manifest.json` says what is run. A cell is finished when `cells/NAME` is there, which appears whole or not at all.
`costs/` and `timings.json` differ from run to run. `failed/` tells of cells that failed, `hub/` has the hubs that stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import shutil
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import filelock
import msgspec

from fedlab._words import counted
from fedlab.errors import ExperimentFailed, FedlabError, InvalidRequest
from fedlab.lab.calm import calm
from fedlab.lab.cell import Cell, embedder_of, seeded, tasks_of
from fedlab.lab.manifest import differences, manifest
from fedlab.lab.results import Results
from fedlab.lab.vectors import Vectors
from fedlab.lab.workers import Workers, run_leashed
from fedlab.net import connect

with warnings.catch_warnings():
    # In a notebook without widgets it says so, and where it is installed; its bar is text then.
    warnings.filterwarnings("ignore", message="IProgress not found")
    from tqdm.auto import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from concurrent.futures import Executor

    from fedlab.lab.arm import Arm
    from fedlab.lab.experiment import Experiment


class Failure(NamedTuple):
    """Why a cell has no results.

    Args:
        message: A sentence.
        trace: Of where it happened.
        cause: The same for cells that failed for the same reason.
    """

    message: str
    trace: str
    cause: str


Outcome: TypeAlias = dict[str, bytes] | Failure

ALIKE = 3
"""So many cells, and one of each arm, that fail for one reason before any succeeds end a run: so would the others."""


class Run:
    """An experiment in a directory.

    Args:
        experiment: What is run.
        directory: Where.
        hub: URL of a live hub.
        keep_hubs: Whether the cells' own hubs stay.
    """

    def __init__(
        self, experiment: Experiment, directory: str | os.PathLike[str], *, hub: str | None, keep_hubs: bool
    ) -> None:
        self.experiment = experiment
        self.directory = Path(directory).absolute()
        self._hub = hub
        self._keep_hubs = keep_hubs
        self._succeeded = 0

    async def go(self, workers: int | Executor, *, progress: bool) -> Results:
        """Run what is not finished, and read the results.

        Raises:
            InvalidRequest: If the directory holds another experiment, or another process is at it.
            ExperimentFailed: If cells failed.
        """
        with self._locked():
            self._check_manifest()
            todo = [each for each in self._cells if not (self.directory / "cells" / self._name(*each)).exists()]
            began = time.time()
            await self._check_shared(todo)
            done = len(self._cells) - len(todo)
            rounds = self.experiment.generations
            with tqdm(
                total=len(self._cells) * rounds,
                initial=done * rounds,
                unit="generation",
                disable=not (progress and _is_watched()),
            ) as bar:
                if isinstance(workers, int) and workers == 1:
                    failures = await self._here(todo, bar)
                else:
                    failures = await self._elsewhere(todo, bar, workers)
            self._note_time(began, self._succeeded)
        if failures:
            raise self._failed([each.message for each in failures], done + self._succeeded)
        return Results.open(self.directory)

    def _failed(self, failures: Sequence[str], finished: int) -> ExperimentFailed:
        cells = len(self._cells)
        what = f"{len(failures)} of {counted(cells, 'cell')} failed"
        if untried := cells - finished - len(failures):
            what += f" for one reason, and the other {untried} were not tried"
        elif finished:
            what += f", the others are finished in {self.directory}"
        more = " …" if len(failures) > 1 else ""
        return ExperimentFailed(f"{what}. Run it again to try them again. {failures[0]}{more}", cells=list(failures))

    def _is_hopeless(self, failures: Collection[Failure]) -> bool:
        """Whether all cells fail for one reason."""
        enough = max(ALIKE, len(self.experiment.arms))
        return not self._succeeded and len(failures) >= enough and len({each.cause for each in failures}) == 1

    @property
    def _cells(self) -> list[tuple[Arm, int]]:
        return [(arm, seed) for seed in self.experiment.seeds for arm in self.experiment.arms]

    def _name(self, arm: Arm, seed: int) -> str:
        return f"{arm.slug}.{seed}"

    async def _here(self, todo: Sequence[tuple[Arm, int]], bar: Any) -> list[Failure]:
        """One cell after the other, in this process."""
        failures = []
        for arm, seed in todo:
            outcome = await attempt_cell(
                self.experiment, arm, seed, hub=self._hub, keep=self._kept(arm, seed), progress=bar.update
            )
            if failure := self._finish(arm, seed, outcome):
                failures.append(failure)
            if self._is_hopeless(failures):
                break
        return failures

    async def _elsewhere(self, todo: Sequence[tuple[Arm, int]], bar: Any, workers: int | Executor) -> list[Failure]:
        """All cells to an executor, each as bytes: also what was defined in a notebook travels so."""
        if todo:
            await self._warm()
        failures: dict[asyncio.Future[Outcome], Failure] = {}
        futures: dict[asyncio.Future[Outcome], tuple[Arm, int]] = {}
        executor = _executor(workers)
        try:
            for arm, seed in todo:
                work = _packed((self.experiment, arm, seed, self._hub, self._kept(arm, seed)))
                futures[asyncio.wrap_future(executor.submit(run_cell, work))] = arm, seed
            waiting = set(futures)
            while waiting and not self._is_hopeless(failures.values()):
                finished, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for each in finished:
                    if failure := self._finish(*futures[each], _result(each, *futures[each])):
                        failures[each] = failure
                    bar.update(self.experiment.generations)
        finally:
            await _end(executor, futures)
        return [failures[each] for each in futures if each in failures]

    async def _check_shared(self, todo: Sequence[tuple[Arm, int]]) -> None:
        """Look for what all cells need, once: the live hub, and the model."""
        if self._hub and todo:
            async with connect(self._hub) as connection:
                await connection.info()
        for arm, seed in {arm.name: (arm, seed) for arm, seed in reversed(todo)}.values():
            try:
                world = seeded(self.experiment.world, seed)
                tasks = tasks_of(self.experiment, world, seed, 0)
                embedder, similar = embedder_of(self.experiment, arm, world, tasks, live=self._hub is not None)
            except Exception:  # noqa: S112  # what a world or a learner raises it raises again in its cell
                continue
            if similar and getattr(world, "dimension", None) is None:
                with Vectors(embedder) as vectors:
                    await vectors.learn_tasks(tasks[:1])
                break

    async def _warm(self) -> None:
        """Embed all texts once, here, so that no worker needs the model."""
        for arm, seed in self._cells:
            # What a world or a learner of one's own raises here it raises again in its cell, which is then named.
            with contextlib.suppress(Exception):
                await self._warm_cell(arm, seed)

    async def _warm_cell(self, arm: Arm, seed: int) -> None:
        world = seeded(self.experiment.world, seed)
        every = [tasks_of(self.experiment, world, seed, each) for each in range(self.experiment.generations)]
        embedder, similar = embedder_of(self.experiment, arm, world, every[0], live=self._hub is not None)
        if similar and getattr(world, "dimension", None) is None:
            with Vectors(embedder) as vectors:
                await vectors.learn_tasks(task for tasks in every for task in tasks)
                # A copy: what `prepare` puts there does not travel to another process.
                if (prepare := getattr(copy.copy(arm.learner), "prepare", None)) is not None:
                    prepare(world, vectors.embed)

    def _kept(self, arm: Arm, seed: int) -> Path | None:
        """Where a cell's hub stays; what an interrupted attempt left is gone first."""
        return self.directory / "hub" / self._name(arm, seed) if self._keep_hubs and not self._hub else None

    def _finish(self, arm: Arm, seed: int, outcome: Outcome) -> Failure | None:
        """Write what came of a cell; why not, if it failed."""
        name = self._name(arm, seed)
        failed = self.directory / "failed" / f"{name}.txt"
        if not isinstance(outcome, Failure):
            try:
                self._write_cell(name, outcome)
            except OSError as error:
                last = self.experiment.generations - 1
                message = f"arm {arm.name!r}, seed {seed}, generation {last}: its results can not be written: {error}"
                outcome = _failure(message, error)
            else:
                failed.unlink(missing_ok=True)
                self._succeeded += 1
                return None
        with contextlib.suppress(OSError):  # a full disk
            failed.parent.mkdir(exist_ok=True)
            failed.write_text(f"{outcome.message}\n\n{outcome.trace}")
        return outcome

    def _write_cell(self, name: str, files: dict[str, bytes]) -> None:
        new = self.directory / "new" / name
        shutil.rmtree(new, ignore_errors=True)
        try:
            new.mkdir(parents=True)
            (self.directory / "costs").mkdir(exist_ok=True)
            _write(self.directory / "costs" / f"{name}.parquet", files["costs"])
            for each, content in files.items():
                if each != "costs":
                    _write(new / f"{each}.parquet", content)
            (self.directory / "cells").mkdir(exist_ok=True)
            new.rename(self.directory / "cells" / name)
            _sync(self.directory / "cells")
        finally:
            shutil.rmtree(new, ignore_errors=True)
            with contextlib.suppress(OSError):
                new.parent.rmdir()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise InvalidRequest(f"{self.directory} is a file; a run lives in a directory") from None
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            with filelock.FileLock(self.directory / "run.lock", blocking=False, thread_local=False):
                yield
        except filelock.Timeout:
            raise InvalidRequest(f"another process is running the experiment in {self.directory}") from None

    def _check_manifest(self) -> None:
        file = self.directory / "manifest.json"
        new = manifest(self.experiment, self._hub)
        if not file.exists():
            others = [each.name for each in self.directory.iterdir() if each.name != "run.lock"]
            if others:
                raise InvalidRequest(f"{self.directory} holds no run, but {others[0]!r}: choose an empty directory")
            try:
                _write(file, msgspec.json.format(msgspec.json.encode(new), indent=1))
            except OSError as error:
                raise self._unwritable(error) from None
            return
        try:
            old = msgspec.json.decode(file.read_bytes())
        except msgspec.MsgspecError as error:
            raise InvalidRequest(f"{file} is damaged ({error}): run the experiment in another directory") from None
        compared = [{name: each.get(name) for name in ("experiment", "hub", "data_hash")} for each in (old, new)]
        # As JSON has it: a tuple is a list there.
        if found := differences(compared[0], msgspec.json.decode(msgspec.json.encode(compared[1]))):
            raise InvalidRequest(
                f"{self.directory} holds another experiment: {'; '.join(found[:5])}"
                f"{'' if len(found) <= 5 else f' and {len(found) - 5} more'}. Run this one in another directory",
                differences=found,
            )
        self._warn_of_code(old.get("code", {}), new["code"])

    def _warn_of_code(self, old: dict[str, str], new: dict[str, str]) -> None:
        """Say what was written anew since the run was begun: its mending is a reason to go on, and the finished cells
        stay as they are.
        """
        changed = [name for name in new if name in old and old[name] != new[name]]
        if changed and any(self.directory.glob("cells/*")):
            warnings.warn(
                f"{', '.join(changed[:5])}{' …' if len(changed) > 5 else ''}: not the code with which the run in"
                f" {self.directory} was begun. Its finished cells stay as they are; for all of them anew, run the"
                " experiment in another directory",
                stacklevel=2,
            )

    def _unwritable(self, error: OSError) -> ExperimentFailed:
        return ExperimentFailed(f"nothing was run: {self.directory} can not be written: {error}", cells=[])

    def _note_time(self, began: float, cells: int) -> None:
        file = self.directory / "timings.json"
        held = msgspec.json.decode(file.read_bytes()) if file.exists() else []
        held.append({"began": round(began, 3), "seconds": round(time.time() - began, 3), "cells": cells})
        with contextlib.suppress(OSError):  # a full disk
            _write(file, msgspec.json.encode(held))


async def attempt_cell(
    experiment: Experiment,
    arm: Arm,
    seed: int,
    *,
    hub: str | None = None,
    keep: Path | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Outcome:
    """One cell's files, or why there are none; see `Cell.run`."""
    cell = Cell(experiment, arm, seed)
    try:
        if keep is not None:
            shutil.rmtree(keep, ignore_errors=True)
        with calm():
            return await cell.run(hub=hub, keep=keep, progress=progress)
    except Exception as error:  # a world or a learner of one's own may raise anything
        what = error.message if isinstance(error, FedlabError) else f"{type(error).__name__}: {error}"
        message = f"arm {arm.name!r}, seed {seed}, generation {cell.generation}: {what}"
        return _failure(message, error)


def run_cell(work: bytes) -> Outcome:
    """One cell, in whatever process or thread an executor has for it."""
    import cloudpickle

    experiment, arm, seed, hub, keep = cloudpickle.loads(work)
    return run_leashed(attempt_cell(experiment, arm, seed, hub=hub, keep=keep))


def _is_watched() -> bool:
    """Whether somebody sees a bar: in a terminal, or in a notebook, whose streams are no terminals."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return sys.stderr.isatty() or "IPKernelApp" in getattr(shell, "config", {})


def _packed(work: object) -> bytes:
    import cloudpickle

    packed: bytes = cloudpickle.dumps(work)
    return packed


def _result(future: asyncio.Future[Outcome], arm: Arm, seed: int) -> Outcome:
    """What came of a cell; where its process died, that."""
    if (error := future.exception()) is None:
        return future.result()
    return _failure(f"arm {arm.name!r}, seed {seed}: its worker failed: {type(error).__name__}: {error}", error)


def _failure(message: str, error: BaseException) -> Failure:
    """What a cell failed with. A cause is the kind of an error and where it was raised: texts name what differs."""
    where = traceback.extract_tb(error.__traceback__)[-1:]
    cause = [type(error).__name__, *(f"{each.filename}:{each.lineno}" for each in where)]
    return Failure(message, "".join(traceback.format_exception(error)), " ".join(cause))


def _executor(workers: int | Executor) -> Executor | Workers:
    """The executor that was given, or processes of our own."""
    if not isinstance(workers, int):
        if not callable(getattr(workers, "submit", None)):
            raise InvalidRequest(f"workers is a number or an executor, not {workers!r:.80}", field="workers")
        return workers
    if workers < 1:
        raise InvalidRequest(f"workers is a number from 1 or an executor, not {workers!r:.40}", field="workers")
    return Workers(workers)


async def _end(executor: Executor | Workers, futures: Collection[asyncio.Future[Outcome]]) -> None:
    """Have what waits not begin, and processes of our own end; an executor that was given stays open."""
    if isinstance(executor, Workers):
        await executor.close()
    for each in futures:
        if not each.cancel() and not each.cancelled():
            each.exception()  # seen: nobody wants to hear that it was interrupted


def _write(file: Path, content: bytes) -> None:
    """Replace a file: whole or not at all."""
    new = file.with_name(f"{file.name}.new")
    try:
        with new.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
