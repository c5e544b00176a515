"""Adapters on the Hugging Face hub: their files fetched from one commit, and put there in one.

Nothing but an adapter's own files is fetched, nothing of them is run, and every failure is a `HubFailed` in words.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from softmux.errors import SoftmuxError
from softmux.formats.folder import ALLOWED_FILES, LORA_FILES, REQUIRED_FILES, load_folder

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_LARGEST = 256 << 20
_CARD = "README.md"


class HubFailed(SoftmuxError):
    """What was asked of the hub did not happen; nothing was published."""

    status, code = 502, "hub_failed"


@dataclass(frozen=True, slots=True)
class Pulled:
    """An adapter's files as they are at one commit of a repository."""

    repo: str
    commit: str
    files: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Pushed:
    repo: str
    commit: str
    url: str


def pull(repo: str, revision: str | None = None) -> Pulled:
    """The adapter of a repository (`org/name`) at a branch, tag or commit. Raises `HubFailed`, or as `load_folder`."""
    with _in_words(repo, revision), tempfile.TemporaryDirectory(prefix="softmux-pull-") as scratch:
        api = _api()
        info = api.model_info(repo, revision=revision, files_metadata=True)
        sizes = {entry.rfilename: entry.size or 0 for entry in info.siblings or ()}
        wanted = [name for name in ALLOWED_FILES if name in sizes]
        if missing := [name for name in REQUIRED_FILES if name not in sizes]:
            others = sorted(name for name in sizes if name.endswith(REQUIRED_FILES))
            there = f" There are: {', '.join(others)}." if others else ""
            raise HubFailed(f"{repo} is no adapter: it lacks {missing[0]}, as PEFT's save_pretrained writes it.{there}")
        if (whole := sum(sizes[name] for name in wanted)) > _LARGEST:
            raise HubFailed(f"The adapter in {repo} has {whole:,} bytes, and {_LARGEST:,} is the most.")
        for name in wanted:
            api.hf_hub_download(repo, name, revision=info.sha, local_dir=scratch)
        return Pulled(repo, info.sha or "", load_folder(Path(scratch)))


def push(
    repo: str, files: Mapping[str, bytes], card: str, message: str, *, private: bool, revision: str | None
) -> Pushed:
    """Puts the files into a repository, which is made where there is none, as one commit. A `README.md` that is there
    stays as it is. Raises `HubFailed`."""
    from huggingface_hub import CommitOperationAdd

    with _in_words(repo, revision), tempfile.TemporaryDirectory(prefix="softmux-push-") as scratch:
        api = _api()
        api.create_repo(repo, private=private, exist_ok=True)
        there = {entry.rfilename for entry in api.model_info(repo, revision=revision).siblings or ()}
        parts = dict(files) | ({} if _CARD in there else {_CARD: card.encode()})
        for name, data in parts.items():
            (Path(scratch) / name).write_bytes(data)
        operations = [CommitOperationAdd(name, Path(scratch) / name) for name in parts]
        made = api.create_commit(repo, operations, commit_message=message, revision=revision)
        return Pushed(repo, made.oid, str(made.commit_url))


def card(task: str, files: Mapping[str, bytes], method: str, digest: str, base: str | None, notes: str | None) -> str:
    """A short README for a repository that has none."""
    hub_id = base if base and base.count("/") == 1 and not base.startswith((".", "/", "~")) else None
    head = ["---", "library_name: peft", *([f"base_model: {hub_id}"] if hub_id else []), "tags:", "- softmux", "---"]
    lines = [*head, f"# {task}", "", f"A {method} adapter for {base or 'a base model that its config does not name'}."]
    if notes:
        lines += ["", notes]
    lines += ["", f"Served by softmux as `{digest}`: `softmux pull` brings it into a server."]
    if LORA_FILES[0] in files:
        lines += ["", "A soft prompt and a LoRA that were trained together. PEFT loads one of them at a time."]
    return "\n".join(lines) + "\n"


def _api() -> HfApi:
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


@contextmanager
def _in_words(repo: str, revision: str | None) -> Iterator[None]:
    """The hub's errors as what to do."""
    import httpx
    from huggingface_hub import errors

    at = f"{repo}@{revision}" if revision else repo
    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise HubFailed("HF_HUB_OFFLINE is set, so the hub is not asked; unset it, or copy the folder here.") from None
    except errors.HFValidationError as error:
        raise HubFailed(f"{repo} is no repository's name ({str(error).splitlines()[0]}); write ORG/NAME.") from None
    except errors.GatedRepoError:
        raise HubFailed(f"{repo} asks for its terms to be accepted: do so on the hub, then set HF_TOKEN.") from None
    except errors.RepositoryNotFoundError:
        raise HubFailed(f"The hub has no repository {repo}, or not for you: set HF_TOKEN if it is private.") from None
    except errors.RevisionNotFoundError:
        raise HubFailed(f"{at}: there is no such branch, tag or commit.") from None
    except errors.LocalTokenNotFoundError:
        raise HubFailed("Pushing takes a token: set HF_TOKEN, or run `hf auth login`.") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        what = "set HF_TOKEN to one that may write there" if status in (401, 403) else "try again later"
        raise HubFailed(f"The hub refused {at} ({status}: {str(error).splitlines()[0]}); {what}.") from None
    except (httpx.TransportError, OSError) as error:
        where = os.environ.get("HF_ENDPOINT") or "the hub"
        raise HubFailed(f"{where} can't be reached ({error or type(error).__name__}); is there a network?") from None
