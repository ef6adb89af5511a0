"""Objects in a bucket by their keys: read, written whole, deleted. The only place that knows obstore."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import InfrastructureError, PipelineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pipeline.access import Access

PART_BYTES = 8 * 2**20
"""Larger files are sent in parts of this size; what was sent of a file that fails is taken back."""
_PARTS_AT_ONCE = 4
_KEYS_AT_ONCE = 1000
"""As many as one request deletes."""


class ObjectFacts(NamedTuple):
    """What a server tells of an object without its bytes."""

    size: int
    mtime_ns: int
    etag: str


class NoObjectError(Exception):
    """There is no object of that key; whoever asked knows what that means."""


class ConflictError(Exception):
    """The object is there already, or is not the one that was to be replaced."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket as a recipe; connections are made where it is used.

    All methods raise InfrastructureError where the service fails or refuses: ST-010 to ST-013; and NoObjectError.
    """

    name: str
    access: Access
    scheme: str = "s3"
    """Whose: `s3`, `gs` (Google) or `az` (Azure, where it is a container)."""

    def head(self, key: str) -> ObjectFacts:
        """Size, time and ETag of an object."""
        obstore = _obstore()
        with self._told(key):
            meta = obstore.head(self._store(), key)
        return _facts(meta)

    def get_range(self, key: str, start: int, stop: int, *, etag: str) -> bytes:
        """Bytes `start` to `stop` (excluded), all inside the object.

        Args:
            key: Where.
            start: First byte.
            stop: The one after the last.
            etag: Of the object that they must be of, as `head` told it; empty where the store tells none.

        Raises:
            ConflictError: It is another object by now.
        """
        obstore = _obstore()
        condition = {"if_match": etag} if etag else {}
        with self._told(key):
            answer = obstore.get(self._store(), key, options={"range": (start, stop), **condition})
            if str(answer.meta["e_tag"] or "") != etag:  # a store that knows no conditions
                raise ConflictError(self.where(key))
            return bytes(answer.bytes())

    def get_part(self, key: str, start: int, stop: int) -> tuple[bytes, ObjectFacts]:
        """As `get_range`, with the facts of the object that they are of; one request."""
        obstore = _obstore()
        with self._told(key):
            answer = obstore.get(self._store(), key, options={"range": (start, stop)})
            return bytes(answer.bytes()), _facts(answer.meta)

    def get(self, key: str) -> tuple[bytes, str]:
        """A small object whole, and its ETag."""
        obstore = _obstore()
        with self._told(key):
            answer = obstore.get(self._store(), key)
            return bytes(answer.bytes()), str(answer.meta["e_tag"] or "")

    def put(self, key: str, data: bytes, *, only_new: bool = False, replacing: str | None = None) -> str:
        """Write a small object; returns its ETag.

        Args:
            key: Where.
            data: What.
            only_new: Fail where there is one already.
            replacing: ETag of the object that must still be there.

        Raises:
            ConflictError: The condition did not hold; nothing was written.
        """
        obstore = _obstore()
        mode: Any = "create" if only_new else "overwrite" if replacing is None else {"e_tag": replacing}
        with self._told(key):
            return str(obstore.put(self._store(), key, data, mode=mode, use_multipart=False)["e_tag"] or "")

    def put_file(self, key: str, path: Path) -> None:
        """Send a file; the object appears when all of it is there, or not at all."""
        obstore = _obstore()
        with self._told(key):
            obstore.put(self._store(sending=True), key, path, chunk_size=PART_BYTES, max_concurrency=_PARTS_AT_ONCE)

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is removed already."""
        obstore = _obstore()
        with contextlib.suppress(NoObjectError), self._told(key):
            obstore.delete(self._store(), key)

    def list_keys(self, prefix: str) -> list[str]:
        """Keys that begin so, sorted; some stores list late, so nothing that decides a result may rest on it."""
        return [key for key, _ in self.list_facts(prefix)]

    def list_facts(self, prefix: str) -> Iterator[tuple[str, ObjectFacts]]:
        """Keys that begin so with what is told of them, sorted."""
        obstore = _obstore()
        with self._told(prefix):
            found = [one for batch in obstore.list(self._store(), prefix) for one in batch]
        for one in sorted(found, key=lambda meta: str(meta["path"])):
            yield str(one["path"]), _facts(one)

    def delete_all(self, keys: Sequence[str]) -> None:
        """Remove objects, those that are there."""
        obstore = _obstore()
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            with contextlib.suppress(NoObjectError), self._told(keys[start]):
                obstore.delete(self._store(), list(keys[start : start + _KEYS_AT_ONCE]))

    def under(self, prefix: str) -> Any:
        """Obstore's own store of all that lies under a prefix, for libraries that take one; see `failures`."""
        return self._store(prefix=prefix)

    @contextlib.contextmanager
    def failures(self, key: str) -> Iterator[None]:
        """Turn what such a library lets through, where the service fails, into one of ours; others pass unchanged."""
        from obstore import exceptions  # noqa: PLC0415 - an extra

        try:
            yield
        except PipelineError:
            raise
        except (exceptions.BaseError, OSError) as error:
            if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error):
                raise
            with self._told(key):
                raise

    def where(self, key: str) -> str:
        """The address, for people."""
        return f"{self.scheme}://{self.name}/{key}"

    def _store(self, *, sending: bool = False, prefix: str | None = None) -> Any:
        identity = (self.scheme, self.name, self.access, sending, prefix)
        if identity not in _stores:
            _obstore()
            from obstore.store import AzureStore, GCSStore, S3Store  # noqa: PLC0415 - an extra

            kind: Any = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[self.scheme]
            with self._told(""):
                options = self.access.obstore_options(sending=sending, scheme=self.scheme)
                _stores[identity] = kind(self.name, prefix=prefix, **options)
        return _stores[identity]

    @contextlib.contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """Turn what obstore raises into one of ours, which says what to do and holds no secret."""
        from obstore import exceptions  # noqa: PLC0415 - an extra

        try:
            yield
        except PipelineError:
            raise
        except (exceptions.NotFoundError, FileNotFoundError) as error:
            if "NoSuchBucket" in str(error):
                raise self._refused(key, "there is no such bucket") from None
            raise NoObjectError(self.where(key)) from None
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            raise ConflictError(self.where(key)) from None
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
            raise self._refused(key, "the service refuses access") from None
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise failed(self.where(key), str(error)) from None

    def _refused(self, key: str, what: str) -> PipelineError:
        return no_access(self.where(key), what)


_stores: dict[tuple[str, str, Access, bool, str | None], Any] = {}
"""Of this process."""


def require_obstore() -> None:
    """Refuse before any work where the library is missing.

    Raises:
        UsageError: CF-053.
    """
    _obstore()


def _obstore() -> Any:
    try:
        import obstore  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError(
            "s3:// addresses need the package obstore, which is not installed",
            code="CF-053",
            title="Extra is missing",
            fix='pip install "scenemask[s3]"',
        ) from error
    return obstore


_KEYS = {
    "s3": "check AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_REGION; public buckets: AWS_NO_SIGN_REQUEST=YES; where the "
    "reader pays: AWS_REQUEST_PAYER=requester",
    "gs": "check GOOGLE_APPLICATION_CREDENTIALS; without it requests are unsigned, as for public buckets",
    "az": "check AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_ACCESS_KEY or "
    "AZURE_STORAGE_SAS_TOKEN; without a key requests are unsigned, as for public containers",
}


def no_access(where: str, what: str) -> InfrastructureError:
    """ST-010."""
    signed = where.startswith(("s3://", "gs://", "az://"))
    return InfrastructureError(
        f"{what} ({where})",
        code="ST-010",
        title="No access",
        where=where,
        fix=_KEYS[where[:2]]
        if signed
        else "the address may need a signature, or its signature has expired: get a fresh one; the same command then "
        "continues",
    )


def failed(where: str, reason: str) -> InfrastructureError:
    """ST-012 for time-outs and lost connections, ST-013 for bodies cut short, ST-011 for all else, after retries."""
    told, _, inside = " ".join(reason.split()).partition(" Debug source: ")
    kind = {"code": "ST-011", "title": "Server fails"}
    if "status code" not in told:
        if any(word in inside + told for word in _CUT_SHORT):
            kind = {"code": "ST-013", "title": "Answer is cut short"}
        elif any(word in inside + told for word in _UNREACHED):
            kind = {"code": "ST-012", "title": "Server cannot be reached"}
    return InfrastructureError(
        f"{where} fails, after retries: {told[:300]}",
        where=where,
        fix="set AWS_REGION to the bucket's region"
        if "configured region" in told
        else "run the same command again later: finished tiles are kept; --retries and --read-timeout set the patience",
        **kind,
    )


# What obstore calls them, and we.
_CUT_SHORT = ("kind: Interrupted", "UnexpectedEof", "cut short")
_UNREACHED = (
    "kind: Timeout", "TimedOut", "kind: Connect",
    "error sending request", "timed out", "stood still", "no connection",
)  # fmt: skip


def _facts(meta: Any) -> ObjectFacts:
    return ObjectFacts(int(meta["size"]), int(meta["last_modified"].timestamp() * 1e9), str(meta["e_tag"] or ""))
