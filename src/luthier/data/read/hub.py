"""Data sets of a hub, through the `datasets` library (an extra): one split is downloaded and written to a Parquet file of ours.

No code of a data set is run: that library has given it up, and older versions are refused.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from luthier import files
from luthier.config.data import SourceSettings
from luthier.errors import DataError

FIRST_WITHOUT_CODE = 4

LOG_IN = "check its name; where it is private or gated, ask for access on its page, then: hf auth login"
PROBLEMS: dict[str | int, tuple[str, str]] = {
    # what came back             what it means                                           what to do
    "GatedRepoError":           ("is gated: its owners give access on request",          LOG_IN),
    "RevisionNotFoundError":    ("has no such revision",                                 "check revision: a commit, a tag or a branch"),
    "RepositoryNotFoundError":  ("is not on the hub, or is private",                     LOG_IN),
    "DatasetNotFoundError":     ("is not on the hub, or is private",                     LOG_IN),
    401:                        ("is private or gated: the hub asks who is there",       LOG_IN),
    403:                        ("may not be read with this account",                    LOG_IN),
    404:                        ("is not on the hub, or is private",                     LOG_IN),
    429:                        ("cannot be fetched now: the hub is asked too often",    "wait some minutes; hf auth login raises the limit"),
}  # fmt: skip
OFFLINE = ("is not in the cache, and the hub is switched off (HF_HUB_OFFLINE)", "unset HF_HUB_OFFLINE, or name a file")
UNREACHABLE = ("cannot be fetched: the hub does not answer", "check the path, if a file was meant, and the network (HF_ENDPOINT names a mirror)")


def download(source: SourceSettings, spool: Path, said: Callable[[str], None]) -> tuple[str, Path]:
    """The split's name and a Parquet file with its rows, in a folder of `spool` that is made whole or not at all.

    Without `split`, "train" is taken, or the only one. Raises DataError where the data set cannot be had, and says why.
    """
    datasets = _library(source.path)
    try:
        names = datasets.get_dataset_split_names(source.path, source.name, revision=source.revision)
        split = _split(source, names, said)
        rows = datasets.load_dataset(source.path, source.name, split=split, revision=source.revision)
    except DataError:
        raise
    except Exception as error:  # the library's errors have no common class
        raise _explained(source, error) from error
    # The library's fingerprint is that of the data's version, so that the second run finds what the first one wrote.
    folder = spool / f"hub-{rows._fingerprint}"
    if not folder.is_dir():
        files.build_folder(folder, lambda staging: rows.to_parquet(staging / "rows.parquet"))
    return split, folder / "rows.parquet"


def _library(path: str) -> Any:
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            "there is no such file or folder, and to fetch it from a hub, datasets is not installed",
            where=path,
            next_step=f'pip install "luthier[data]" for {sys.executable}, or check the path',
        )
    import datasets

    if int(datasets.__version__.split(".")[0]) < FIRST_WITHOUT_CODE:
        raise DataError(
            f"datasets {datasets.__version__} may run code of the data set", where=path, next_step='pip install --upgrade "luthier[data]"'
        )
    return datasets


def _split(source: SourceSettings, names: list[str], said: Callable[[str], None]) -> str:
    chosen = source.split or ("train" if "train" in names else names[0] if len(names) == 1 else "")
    if chosen not in names:
        problem = f"has no split {chosen}" if chosen else "has several splits"
        raise DataError(problem, where=source.path, next_step=f"split: one of {', '.join(names)}")
    if len(names) > 1 and not source.split:
        said(f"{source.path}: the split {chosen} is read; not read: {', '.join(name for name in names if name != chosen)}")
    return chosen


def _explained(source: SourceSettings, error: Exception) -> DataError:
    where = source.path + (f" at {source.revision}" if source.revision else "")
    chain = list(_chain(error))
    statuses = [status for cause in chain if (status := getattr(getattr(cause, "response", None), "status_code", None))]
    names = {type(cause).__name__ for cause in chain}
    found = next((key for key in PROBLEMS if key in names), None)
    if found == "DatasetNotFoundError" and "gated" in str(error):
        found = "GatedRepoError"
    found = found or next((status for status in statuses if status in PROBLEMS), None)
    if found:
        problem, next_step = PROBLEMS[found]
    elif os.environ.get("HF_HUB_OFFLINE"):
        problem, next_step = OFFLINE
    elif any(status >= 500 for status in statuses) or any(isinstance(cause, OSError) or "Connect" in type(cause).__name__ for cause in chain):
        problem, next_step = UNREACHABLE
    else:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        problem, next_step = f"cannot be loaded ({first})", "check its page on the hub; name: and split: choose a part of it"
    return DataError(problem, where=where, next_step=next_step)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
