"""`Results`: what a run left in its directory, as frames, and what can be said of it. How a number is estimated is in
`statistics.py`, what the figures look like in `plots.py`.
"""

from __future__ import annotations

import html
import itertools
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec
import numpy as np

from fedlab import _html
from fedlab._polars import pl
from fedlab._words import counted
from fedlab.errors import InvalidRequest
from fedlab.lab import statistics
from fedlab.lab.arm import slug
from fedlab.lab.lineage import Lineage, trace
from fedlab.lab.record import PHASES, SCHEMAS, check_files

if TYPE_CHECKING:
    import os
    from typing import Any, Self

    import numpy.typing as npt

    from fedlab.lab.plots import Plots

Metric: TypeAlias = Literal["true_reward", "reward"]
STAGES = ("never stored", "forgotten", "not recalled", "not used")
"""Where memory failed a task, in the order in which an episode lives."""
CURVE_RESAMPLES = 1_999
"""Of the interval of each point of a curve: there are many, and they are looked at, not tested."""
TASKS = pl.col("tasks")


class Results:
    """The finished cells of a run.

    Args:
        directory: Of the run.

    Raises:
        InvalidRequest: If there is no run.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        try:
            self.manifest = msgspec.json.decode((self.directory / "manifest.json").read_bytes())
        except (OSError, msgspec.MsgspecError) as error:
            raise InvalidRequest(f"{directory} holds no run of an experiment: {error}") from None

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> Self:
        """The results of a run in a directory."""
        return cls(directory)

    @property
    def arms(self) -> list[str]:
        """Names, in the order of the experiment."""
        return [arm["name"] for arm in self.manifest["experiment"]["arms"]]

    @property
    def seeds(self) -> list[int]:
        """Of the cells that are finished, in order."""
        return sorted(self.generations["seed"].unique())

    @cached_property
    def episodes(self) -> pl.DataFrame:
        """One row for each outcome."""
        return self._read("episodes")

    @cached_property
    def generations(self) -> pl.DataFrame:
        """One row for each generation of each cell."""
        return self._read("generations")

    @cached_property
    def agents(self) -> pl.DataFrame:
        """One row for each life."""
        return self._read("agents")

    @cached_property
    def costs(self) -> pl.DataFrame:
        """Milliseconds by phase and bytes on disk, one row for each generation of each cell; no two runs agree."""
        return self._read("costs")

    @property
    def theory(self) -> dict[str, list[float]]:
        """What theory expects of arms: the mean reward of each generation. Empty where no theory speaks of them."""
        return dict(self.manifest.get("theory", {}))

    def cells(self) -> pl.DataFrame:
        """The cells of the run, and how far they are.

        Returns:
            Columns `arm`, `seed`, `state` (finished, failed or missing: under way, or the run ended before) and
            `failure` (a sentence; null unless it failed).
        """
        finished = set(self.generations.select("arm", "seed").unique().rows())
        rows = []
        for seed, arm in itertools.product(self._all_seeds, self.arms):
            file = self.directory / "failed" / f"{slug(arm)}.{seed}.txt"
            failed = (arm, seed) not in finished and file.exists()
            state = "finished" if (arm, seed) in finished else "failed" if failed else "missing"
            said = file.read_text(encoding="utf-8", errors="replace").partition("\n")[0] if failed else None
            rows.append((arm, seed, state, said))
        schema = {"arm": pl.String, "seed": pl.Int64, "state": pl.String, "failure": pl.String}
        return pl.DataFrame(rows, schema=schema, orient="row")

    @property
    def plot(self) -> Plots:
        """The figures."""
        from fedlab.lab.plots import Plots

        return Plots(self)

    def numbers(self, last: int | None = None, *, until: int | None = None) -> list[int]:
        """Of the generations.

        Args:
            last: Only so many, from the end.
            until: Only those before this one, as before a drift; the end is there.

        Raises:
            InvalidRequest: If there are not so many.
        """
        every = sorted(self.generations["generation"].unique())
        if until is not None:
            if not isinstance(until, int) or not 1 <= until <= len(every):
                raise InvalidRequest(f"until is {until!r:.40}, and there are {len(every)} generations", field="until")
            every = every[:until]
        if last is None:
            return every
        if not isinstance(last, int) or not 1 <= last <= len(every):
            before = "" if until is None else f" before generation {until}"
            raise InvalidRequest(f"last is {last!r:.40}, and there are {len(every)} generations{before}", field="last")
        return every[-last:]

    def scan(self, name: str) -> pl.LazyFrame:
        """One of the frames, read when and as far as it is needed.

        Args:
            name: `episodes`, `generations`, `agents` or `costs`.

        Raises:
            InvalidRequest: If there is no such frame.
        """
        if name not in SCHEMAS:
            raise InvalidRequest(f"there is no frame {name!r}, but {', '.join(SCHEMAS)}", field="name")
        if not (files := self._files(name)):
            return pl.LazyFrame(schema=SCHEMAS[name])
        order = [each for each in ("seed", "generation", "agent", "step") if each in SCHEMAS[name]]
        return pl.scan_parquet(files).sort(self._place, *order, maintain_order=True)

    def _files(self, name: str) -> list[Path]:
        return sorted(self.directory.glob("costs/*.parquet" if name == "costs" else f"cells/*/{name}.parquet"))

    def _read(self, name: str) -> pl.DataFrame:
        try:
            return self.scan(name).collect()
        except pl.exceptions.PolarsError:
            check_files(self._files(name))
            raise

    def summary(
        self,
        baseline: str | None = None,
        *,
        metric: Metric = "true_reward",
        last: int | None = None,
        until: int | None = None,
    ) -> pl.DataFrame:
        """Each arm in one row: its mean over seeds, and its difference to a baseline, seed by seed.

        Args:
            baseline: Name of an arm.
            metric: What an answer was worth, or what its agent saw of that.
            last: Only so many generations, from the end.
            until: Only generations before this one, as before a drift; the end is there.

        Returns:
            Columns `arm`, `seeds`, `mean`, `ci_low`, `ci_high`, `iqm` (interquartile mean), `diff`, `diff_low`,
            `diff_high`, `p`, `p_holm` (corrected for the number of arms that are compared) and `note`; intervals are
            for 95 %, each on its own. What cannot be said is null, and the note says why.

        Raises:
            InvalidRequest: If there is no such arm, metric or number of generations.
        """
        if baseline is not None:
            self._check_arm(baseline)
        values = self.by_seed(metric=metric, last=last, until=until)
        summary = pl.DataFrame(
            [self._row(arm, values, baseline) for arm in self.arms],
            schema={
                "arm": pl.String,
                "seeds": pl.Int64,
                **dict.fromkeys(("mean", "ci_low", "ci_high", "iqm", "diff", "diff_low", "diff_high", "p"), pl.Float64),
                "note": pl.String,
            },
            orient="row",
        )
        corrected = pl.Series("p_holm", statistics.holm(summary["p"].to_numpy())).fill_nan(None)
        return summary.insert_column(summary.columns.index("note"), corrected)

    def by_seed(
        self, *, metric: Metric = "true_reward", last: int | None = None, until: int | None = None
    ) -> dict[str, npt.NDArray[np.float64]]:
        """The mean over tasks of each seed, for each arm; NaN where a cell is not finished.

        Args:
            metric: As of `summary`.
            last: As of `summary`.
            until: As of `summary`.
        """
        every = self.numbers()
        chosen = [every.index(each) for each in self.numbers(last, until=until)]
        rewards, tasks = self._curves(_column(metric)), self._curves("tasks")
        return {
            arm: (rewards[arm] * tasks[arm])[:, chosen].sum(axis=1) / tasks[arm][:, chosen].sum(axis=1)
            for arm in self.arms
        }

    def curves(self, *, metric: Metric = "true_reward") -> pl.DataFrame:
        """The mean over seeds by arm and generation.

        Args:
            metric: As of `summary`.

        Returns:
            Columns `arm`, `generation`, `seeds`, `mean`, `ci_low`, `ci_high`.
        """
        return self.by_generation(self.generations.with_columns(pl.col(_column(metric)).alias("value")))

    def by_generation(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The mean over seeds of any number, by arm and generation.

        Args:
            frame: One row for each generation of each cell; columns `arm`, `seed`, `generation`, `value`.

        Returns:
            Columns `arm`, `generation`, `seeds`, `mean`, `ci_low`, `ci_high`.
        """
        rows = []
        for (arm, generation), group in frame.sort(self._place, "generation", "seed").group_by(
            "arm", "generation", maintain_order=True
        ):
            found = statistics.estimate(group["value"].cast(pl.Float64).to_numpy(), resamples=CURVE_RESAMPLES)
            rows.append((arm, generation, found.n, _known(found.mean), found.low, found.high))
        return pl.DataFrame(
            rows,
            schema={
                "arm": pl.String,
                "generation": pl.Int64,
                "seeds": pl.Int64,
                **dict.fromkeys(("mean", "ci_low", "ci_high"), pl.Float64),
            },
            orient="row",
        )

    def measures(
        self,
        *,
        threshold: float | None = None,
        drift_at: int | None = None,
        scratch: str | None = None,
        window: int = 1,
        metric: Metric = "true_reward",
    ) -> pl.DataFrame:
        """What the learning curves say: their area and, where it is asked for, the speed of learning, what a drift
        cost, and what was transferred from earlier generations.

        Args:
            threshold: Count the generations until the reward was there.
            drift_at: The first generation after a drift.
            scratch: An arm without memory, to which the transfer is compared.
            window: Generations that are taken together for threshold and drift.
            metric: As of `summary`.

        Returns:
            Columns `arm`, `measure`, `seeds`, `mean`, `ci_low`, `ci_high`, `note`.

        Raises:
            InvalidRequest: If there is no such arm or metric, or if there are not so many generations.
        """
        curves = self._curves(_column(metric))
        if scratch is not None:
            self._check_arm(scratch)
        rows = []
        for arm, curve in curves.items():
            try:
                measured = _measure(curve, threshold, drift_at, window)
            except ValueError as error:
                raise InvalidRequest(str(error)) from None
            if scratch is not None:
                measured["forward transfer"] = statistics.forward_transfer(curve, curves[scratch])
            for name, values in measured.items():
                found = _censored(name, values[np.isfinite(curve).all(axis=1)]) or statistics.estimate(values)
                rows.append((arm, name, found.n, _known(found.mean), found.low, found.high, found.note))
        return pl.DataFrame(
            rows,
            schema={
                "arm": pl.String,
                "measure": pl.String,
                "seeds": pl.Int64,
                **dict.fromkeys(("mean", "ci_low", "ci_high"), pl.Float64),
                "note": pl.String,
            },
            orient="row",
        )

    def stages(self) -> pl.DataFrame:
        """Where memory failed: of the failed tasks of each arm and generation, how many at which stage.

        Returns:
            Columns `arm`, `generation`, `stage`, `policy` (the sentence with which the log says why what would have
            helped was forgotten, one row for each; of several memories, the one forgotten last), `tasks`, `share` (of
            the failed tasks; the shares of a generation add up to 1) and `rescued` (the share of these tasks in which
            the answer was better with the forgotten memories put back; null where that was not tried). Only worlds
            that say which memories would have helped have rows here.
        """
        better = pl.col("counterfactual_reward") > pl.col("true_reward")
        return (
            self.scan("episodes")
            .filter(pl.col("stage").is_not_null())
            .group_by("arm", "generation", "stage", pl.col("stage_reason").alias("policy"))
            .agg(pl.len().cast(pl.Int64).alias("tasks"), better.mean().alias("rescued"))
            .with_columns((TASKS / TASKS.sum().over("arm", "generation")).alias("share"))
            .select("arm", "generation", "stage", "policy", "tasks", "share", "rescued")
            .collect()
            .sort(self._place, "generation", pl.col("stage").cast(pl.Enum(STAGES)), "policy")
        )

    def lineage(self, *, metric: Metric = "true_reward") -> Lineage:
        """Who built on whom: depth, most useful episodes, and the share of reward that goes back to the dead."""
        _column(metric)
        return trace(self.episodes, metric=metric)

    def cost(self) -> pl.DataFrame:
        """What a generation cost, mean over seeds: milliseconds by phase, their sum for each task, and bytes.

        Returns:
            Columns `arm`, `generation`, one for each phase, `ms_per_task`, `bytes` (of the live memories) and
            `disk_bytes`.
        """
        keys = ["arm", "seed", "generation"]
        joined = self.costs.join(self.generations.select(*keys, "tasks", "bytes"), on=keys)
        return (
            joined.with_columns((pl.sum_horizontal(PHASES) / TASKS).alias("ms_per_task"))
            .group_by("arm", "generation")
            .agg(pl.col(*PHASES, "ms_per_task", "bytes", "disk_bytes").mean())
            .sort(self._place, "generation")
        )

    def table(
        self,
        baseline: str | None = None,
        *,
        metric: Metric = "true_reward",
        last: int | None = None,
        until: int | None = None,
    ) -> str:
        """The summary as lines of text."""
        head, rows, notes = self._cells(self.summary(baseline, metric=metric, last=last, until=until), baseline)
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [head, *rows]
        ]
        return "\n".join([lines[0], "-" * len(max(lines, key=len)), *lines[1:], *notes])

    def __repr__(self) -> str:
        return f"<Results {self._shown}: {self._state()}>"

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        head, rows, notes = self._cells(self.summary(), None)
        below = "".join(f"<br>{each}" for each in map(html.escape, notes))
        return _html.table(f"Results of {self._shown}: {self._state()}", rows, head=head) + below

    @property
    def _shown(self) -> Path:
        """The directory as a reader of a saved notebook should see it: without where its author keeps it."""
        here = Path.cwd()
        return self.directory.relative_to(here) if self.directory.is_relative_to(here) else self.directory

    def _state(self) -> str:
        cells = self.generations.select("arm", "seed").unique().height
        of = f" of {len(self.arms) * len(self._all_seeds)}" if self._all_seeds else ""
        return f"{counted(len(self.arms), 'arm')}, {cells}{of} cells finished"

    def _cells(self, summary: pl.DataFrame, baseline: str | None) -> tuple[list[str], list[list[str]], list[str]]:
        """Head, rows and notes of the summary as text."""
        head = ["arm", "seeds", "mean (95 % interval)", "IQM"]
        head += [] if baseline is None else [f"difference to {baseline}", "p", "p (Holm)"]
        rows = []
        for row in summary.iter_rows(named=True):
            cells = [
                row["arm"],
                str(row["seeds"]),
                _interval(row["mean"], row["ci_low"], row["ci_high"]),
                _number(row["iqm"]),
            ]
            if baseline is not None:
                cells += [
                    _interval(row["diff"], row["diff_low"], row["diff_high"], sign="+"),
                    *("" if row[name] is None else f"{row[name]:.2g}" for name in ("p", "p_holm")),
                ]
            rows.append(cells)
        return head, rows, [f"{arm}: {note}" for arm, note in summary.select("arm", "note").rows() if note]

    def _row(self, arm: str, values: dict[str, npt.NDArray[np.float64]], baseline: str | None) -> tuple[Any, ...]:
        found = statistics.estimate(values[arm])
        iqm = statistics.interquartile_mean(values[arm])
        row = (arm, found.n, _known(found.mean), found.low, found.high, _known(iqm))
        if baseline is None or arm == baseline:
            return (*row, None, None, None, None, found.note)
        compared = statistics.compare(values[arm], values[baseline])
        notes = dict.fromkeys(note for note in (found.note, compared.note and f"difference: {compared.note}") if note)
        return (*row, _known(compared.diff), compared.low, compared.high, compared.p, "; ".join(notes))

    def _curves(self, column: str) -> dict[str, npt.NDArray[np.float64]]:
        """A column of `generations` for each arm: shape (seeds, generations), NaN where a cell is not finished."""
        numbers = self.numbers()
        every = pl.DataFrame(
            list(itertools.product(self.seeds, numbers)), schema=["seed", "generation"], orient="row"
        ).cast(pl.Int64)
        curves = {}
        for arm in self.arms:
            own = self.generations.filter(pl.col("arm") == arm)
            rows = every.join(own, on=["seed", "generation"], how="left", maintain_order="left")
            curves[arm] = rows[column].cast(pl.Float64).to_numpy().reshape(len(self.seeds), len(numbers))
        return curves

    def _check_arm(self, name: str) -> None:
        if name not in self.arms:
            raise InvalidRequest(f"there is no arm {name!r}, but {', '.join(map(repr, self.arms))}", field="baseline")

    @property
    def _all_seeds(self) -> list[int]:
        """Those of the experiment; those that are finished, where there are so many that their hash stands for them."""
        seeds = self.manifest["experiment"]["seeds"]
        return seeds if isinstance(seeds, list) else self.seeds

    @property
    def _place(self) -> pl.Expr:
        """Sorts by the order of the arms in the experiment."""
        return pl.col("arm").cast(pl.Enum(self.arms)).to_physical()


def _measure(
    curve: npt.NDArray[np.float64], threshold: float | None, drift_at: int | None, window: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Each measure with a value for each seed."""
    measured = {"area under the curve": statistics.area_under_curve(curve)}
    if threshold is not None:
        measured[f"generations to {threshold:g}"] = statistics.generations_to(curve, threshold, window=window)
    if drift_at is not None:
        found = [statistics.forgetting(row, drift_at, window=window) for row in curve]
        measured["drop after the drift"] = np.array([each.drop for each in found])
        measured["regained by the end"] = np.array([each.regained for each in found])
        measured["generations to recover"] = np.array([each.generations for each in found])
    return measured


def _censored(name: str, values: npt.NDArray[np.float64]) -> statistics.Estimate | None:
    """What can be said where some seeds never got there: a mean over the others would flatter."""
    reached = values[np.isfinite(values)]
    if not name.startswith("generations to") or len(reached) == len(values):
        return None
    after = f", after {np.median(reached):g} generations there (median)" if len(reached) else ""
    note = f"reached in {len(reached)} of {len(values)} seeds{after}: no mean"
    return statistics.Estimate(len(reached), np.nan, note=note)


def _column(metric: str) -> str:
    columns = {"true_reward": "true_reward_mean", "reward": "reward_mean"}
    if metric not in columns:
        raise InvalidRequest(f"metric is true_reward or reward, not {metric!r:.40}", field="metric")
    return columns[metric]


def _known(value: float) -> float | None:
    """NaN is null in a frame."""
    return None if np.isnan(value) else value


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.3f}" if abs(value) < 100 else f"{value:{sign},.1f}"


def _interval(value: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    between = "" if low is None or high is None else f" [{_number(low, sign)}, {_number(high, sign)}]"
    return _number(value, sign) + between
