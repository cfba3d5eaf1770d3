"""`Results`: what a run left in its directory, as frames."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fedlab._polars import pl
from fedlab.errors import InvalidRequest
from fedlab.lab.record import SCHEMAS

if TYPE_CHECKING:
    import os
    from typing import Self


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

    def _read(self, name: str) -> pl.DataFrame:
        pattern = "costs/*.parquet" if name == "costs" else f"cells/*/{name}.parquet"
        files = sorted(self.directory.glob(pattern))
        if not files:
            return pl.DataFrame(schema=SCHEMAS[name])
        order = [each for each in ("seed", "generation", "agent", "step") if each in SCHEMAS[name]]
        frame = pl.scan_parquet(files)
        place = pl.col("arm").cast(pl.Enum(self.arms)).to_physical()
        return frame.sort(place, *order, maintain_order=True).collect()
