"""Every option of a dataset, once: as it is given (`fields`), made plain (`plain`), as the work takes it (`tree`)."""

from laion_face_builder.options.fields import (
    ALWAYS,
    ARRIVAL_ORDER,
    DEFINES,
    FETCHED,
    IMAGE_MODES,
    INDEX_ORDER,
    NEVER,
    NSFW_VALUES,
    ON_ERROR,
    ON_SIZE_CHANGE,
    ORDERS,
    READ,
    OptionFields,
    option_names,
    refuse_unknown,
)
from laion_face_builder.options.tree import Ahead, FetchOptions, Options

__all__ = [
    "ALWAYS",
    "ARRIVAL_ORDER",
    "DEFINES",
    "FETCHED",
    "IMAGE_MODES",
    "INDEX_ORDER",
    "NEVER",
    "NSFW_VALUES",
    "ON_ERROR",
    "ON_SIZE_CHANGE",
    "ORDERS",
    "READ",
    "Ahead",
    "FetchOptions",
    "OptionFields",
    "Options",
    "option_names",
    "refuse_unknown",
]
