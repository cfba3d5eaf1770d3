"""A tenant from hub to hub by way of a file: export what lives, import what is new. One way for a `Hub` and for a
connection that waits for its answers. How a file is written is `files.py`'s business.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from fedlab._words import counted
from fedlab.batches import batches
from fedlab.episode import Episode, check_name
from fedlab.errors import FedlabError, IdConflict, IncompatibleHub, UnknownTenant
from fedlab.hub import files
from fedlab.hub.core import HubCore
from fedlab.hub.values import TransferReport

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from fedlab.hub.values import HubInfo

PAGE_ROWS, PAGE_BYTES = 5_000, 1 << 23
"""Most rows, and about the bytes, that are read from a hub at once."""


class Place(Protocol):
    """What a transfer asks of a hub."""

    def info(self) -> HubInfo: ...  # noqa: D102
    def put(self, episodes: list[Episode]) -> int: ...  # noqa: D102
    def episodes(  # noqa: D102
        self,
        tenant_id: str,
        *,
        ids: list[str] | None = None,
        after: int = 0,
        limit: int | None = None,
        vectors: bool = False,
        sources: bool = False,
    ) -> pl.DataFrame: ...


class TransferMethods(HubCore):
    """What a hub writes to a file, and takes from one."""

    def export_tenant(self, tenant_id: str, path: str | Path) -> TransferReport:
        """Write a tenant's live episodes to a file, with their vectors, sources, metadata and times.

        An episode stored meanwhile is not in it; one that is forgotten meanwhile may be.

        Args:
            tenant_id: Whose episodes.
            path: Ends in `.parquet` or `.jsonl`; a file that is there is replaced when the new one is whole.
        """
        return export_tenant(self, tenant_id, path)  # type: ignore[arg-type]  # a Hub has the methods of a Place

    def import_tenant(
        self, path: str | Path, tenant_id: str | None = None, *, embed_again: bool = False
    ) -> TransferReport:
        """Store the episodes of an exported file. May be repeated: what is there already is not stored twice.

        Args:
            path: What `export_tenant` wrote, on any hub.
            tenant_id: Whose they are from now on; whose they were if not given.
            embed_again: Have this hub make the vectors, instead of taking those of the file.

        Raises:
            InvalidRequest: If the file is damaged or none; then nothing of it was stored.
            IncompatibleHub: If its vectors are of another embedder than the hub's; the same.
        """
        return import_tenant(self, path, tenant_id, embed_again=embed_again)  # type: ignore[arg-type]  # as above


def export_tenant(hub: Place, tenant_id: str, path: str | Path) -> TransferReport:
    """As the method of `Hub`."""
    path = Path(path)
    info = hub.info()
    header = files.Header(
        hub_id=info.hub_id, seq=info.seq, tenant_id=tenant_id, embedder=info.embedder, dimension=info.dimension
    )
    count = files.write(path, header, _live(hub, tenant_id, info.seq))
    return TransferReport(what="exported", path=str(path), tenant_id=tenant_id, episodes=count)


def _live(hub: Place, tenant_id: str, seq: int) -> Iterator[Episode]:
    """Every episode of a tenant that was stored up to a seq, page by page."""
    after, limit = 0, 100
    while True:
        frame = hub.episodes(tenant_id, after=after, limit=limit, vectors=True, sources=True)
        vectors = frame["vector"].to_numpy().astype("<f2")
        for row, vector in zip(frame.drop("vector").iter_rows(named=True), vectors, strict=True):
            after = row.pop("seq")
            if after > seq:
                return
            row["metadata"] = msgspec.json.decode(row["metadata"])
            yield Episode(**row, vector=vector)
        if frame.height < limit:
            return
        limit = max(1, min(PAGE_ROWS, limit * PAGE_BYTES // max(1, int(frame.estimated_size()))))


def import_tenant(
    hub: Place, path: str | Path, tenant_id: str | None = None, *, embed_again: bool = False
) -> TransferReport:
    """As the method of `Hub`."""
    path = Path(path)
    header = files.read_header(path)
    tenant_id = check_name(header.tenant_id if tenant_id is None else tenant_id, "tenant_id")
    info = hub.info()
    if not embed_again and (header.embedder, header.dimension) != (info.embedder, info.dimension):
        raise IncompatibleHub(
            f"{path} has vectors of {header.embedder!r} ({header.dimension}) and the hub's are of {info.embedder!r}"
            f" ({info.dimension}), which can not be compared: import it with embed_again=True",
            held=info.embedder,
        )
    for _ in files.read(path, header):
        pass  # read to its end before anything is stored
    changed = {"tenant_id": tenant_id, "session_id": ""} | ({"vector": None} if embed_again else {})
    new, known, refused = 0, 0, dict[str, str]()
    for batch in batches(msgspec.structs.replace(each, **changed) for each in files.read(path, header)):
        try:
            stored, found = _store(hub, tenant_id, batch, refused)
        except FedlabError as error:
            raise type(error)(
                f"{error.message} ({new + known + len(refused):,} of {counted(header.episodes, 'episode')} of {path}"
                " are done: import it again to go on)",
                **error.details,
            ) from error
        new, known = new + stored, known + found
    return TransferReport(
        what="imported",
        path=str(path),
        tenant_id=tenant_id,
        episodes=header.episodes,
        new=new,
        known=known,
        refused=refused,
    )


def _store(hub: Place, tenant_id: str, batch: list[Episode], refused: dict[str, str]) -> tuple[int, int]:
    """Put what the hub takes of a batch; how many are new, how many it had. The others go to `refused`."""
    try:
        known = set(hub.episodes(tenant_id, ids=[each.id for each in batch])["id"])
    except UnknownTenant:
        known = set()
    while batch:
        try:
            hub.put(batch)
            break
        except IdConflict as conflict:
            gone = "erased" if conflict.details.get("erased") else "forgotten" if conflict.forgotten else ""
            ids = {each.id for each in batch} & set(conflict.ids)
            if not ids:
                raise
            refused.update(dict.fromkeys(ids, gone or "other content"))
            batch = [each for each in batch if each.id not in ids]
    found = sum(each.id in known for each in batch)
    return len(batch) - found, found
