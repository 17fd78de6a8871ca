"""Find the place that a user means: a folder, or a dataset repo on the Hub."""

from __future__ import annotations

from laion_face_builder.errors import OptionError
from laion_face_builder.publish.hub_target import HubDestination
from laion_face_builder.publish.targets import Destination, FolderDestination, is_folder
from laion_face_builder.sources.hub import Token, checked_token
from laion_face_builder.sources.metadata_places import is_hub_id
from laion_face_builder.values import absolute


def destination_at(
    target: str,
    *,
    private: bool = False,
    gated: str | None = None,
    revision: str | None = None,
    token: Token = None,
) -> Destination:
    """Give the place that `target` names; nothing is requested or made yet.

    Args:
        target: a folder if it is written like one (begins with "/", "." or "~", or ends with "/") or if such a folder
            is there; else "owner/name", a dataset on the Hub. "./owner/name" is always a folder.
        private: a Hub repo that has to be made is made private.
        gated: a Hub repo is made to ask people "auto" or "manual", or "off"; None leaves it as it is.
        revision: the branch on the Hub, made if need be; None means "main".
        token: None means the one that `hf auth login` or HF_TOKEN gave, False none.

    Raises:
        OptionError: the target can be neither, or the other arguments do not go with a folder.
    """
    if is_folder(target):
        given = {"--private": private, "--gated": gated, "--revision": revision, "--token": token}
        if unfit := [name for name, value in given.items() if value]:
            verb = "goes" if len(unfit) == 1 else "go"
            raise OptionError(f"{target} is a folder: {', '.join(unfit)} {verb} only with a Hub id like owner/name")
        return FolderDestination(absolute(target))
    if not is_hub_id(target):
        raise OptionError(
            f"{target!r} is neither a Hub id (owner/name) nor a folder that is there; a new folder is ./{target}"
        )
    return HubDestination(target, private=private, gated=gated, revision=revision or "main", token=checked_token(token))
