"""Send a folder to a model hub, through huggingface_hub. The token is its own (HF_TOKEN, or `hf auth login`) and is never shown."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from luthier import files
from luthier.errors import CallError, RunError

REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
ENDPOINT = "https://huggingface.co"


def check_repo(repo: str | None, *, dry_run: bool) -> str:
    """The name of the repository. Raises CallError for what is no name, RunError where nothing can be sent for want of a token."""
    if not repo or not REPO.fullmatch(repo):
        raise CallError(f"is no repository: {repo or 'none was given'}", where="--repo", next_step="--repo NAME/MODEL")
    if dry_run:
        return repo
    from huggingface_hub import get_token

    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        raise RunError("HF_HUB_OFFLINE is set, and a push goes over the network", where="--to hub", next_step="unset it, or --dry-run")
    if not get_token():
        raise RunError("there is no token for the hub", where="--to hub", next_step="hf auth login, or set HF_TOKEN; --dry-run needs none")
    return repo


def listed(folder: Path) -> list[str]:
    """What would be sent: each file with its size."""
    return [f"{path.relative_to(folder).as_posix()}  {path.stat().st_size / 1e6:,.2f} MB" for path in sorted(folder.rglob("*")) if path.is_file()]


def push(folder: Path, repo: str, *, private: bool, say: Callable[[str], None]) -> str:
    """Make the repository where it is missing and send the folder in one commit; gives its address.

    Raises RunError with the hub's own words, without the token.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils.tqdm import disable_progress_bars

    endpoint = os.environ.get("HF_ENDPOINT", ENDPOINT).rstrip("/")
    api = HfApi(endpoint=endpoint)
    disable_progress_bars()
    say(f"{repo}: sending {files.folder_bytes(folder) / 1e6:,.1f} MB to {endpoint}")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Exported by Luthier")
    except Exception as error:  # those of the network, of the hub and of its storage have no common class
        words = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        problem = words.replace(get_token() or "\0", "(the token)")
        next_step = f"check the token's rights, then again; the files lie in {folder}"
        raise RunError(f"the hub refused it: {problem}", where=repo, next_step=next_step) from error
    return str(commit.commit_url)
