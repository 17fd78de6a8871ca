"""Explain why the Hub refuses what is published, and what to do about it."""

from __future__ import annotations

from laion_face_builder.errors import PublishError
from laion_face_builder.upstream.hub_errors import in_our_words, short, status_of
from laion_face_builder.upstream.retrying import TransientError

_GIVE = "`hf auth login`, the variable HF_TOKEN, or --token"


def refused(error: Exception, where: str, repo: str, revision: str) -> Exception:
    """Make a PublishError that says what to do, or a TransientError if the cause may pass.

    Args:
        error: what huggingface_hub raised.
        where: the repo and what was being done.
        repo, revision: "owner/name" and the branch that was to be written.
    """
    error = root_of(error)
    said = short(getattr(error, "server_message", None) or error)
    status = status_of(error)
    if status in (409, 412):
        return TransientError(f"somebody else committed to {revision} in between ({said})")
    way_out = _way_out(error, status, repo.partition("/")[0], revision)
    return PublishError(f"{where}: {said}. {way_out}") if way_out else in_our_words(error, where)


def root_of(error: Exception) -> Exception:
    """Give the cause of the RuntimeError that huggingface_hub raises about one file of several, else the error."""
    cause = error.__cause__
    return cause if isinstance(error, RuntimeError) and isinstance(cause, Exception) else error


def _way_out(error: Exception, status: int | None, owner: str, revision: str) -> str | None:
    from huggingface_hub import errors as hub

    if isinstance(error, hub.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to publish to the Hub"
    if isinstance(error, hub.RevisionNotFoundError):
        return f"There is no branch {revision!r}; --revision has to name a branch"
    if status == 401 or isinstance(error, hub.RepositoryNotFoundError):
        return f"No valid token was given, or it may not see the repo. Give one that may write to {owner}: {_GIVE}"
    if status == 403:
        return f"The token may not write to {owner}, or its storage is full. Make room, or give another: {_GIVE}"
    if status == 413:
        return f"That is too much for the Hub at once, or for {owner}'s storage. Make room, or publish fewer parts"
    return None
