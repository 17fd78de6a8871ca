"""Which tests run where: `core` in every environment of tests/matrix.py, `datasets36` with datasets 3.6 as well.

`brief` is the part of core that every `make test` has time for in every environment.

Core are those that touch what changes from version to version: how `datasets` drives a builder and a stream, how
huggingface_hub fetches and uploads, what pyarrow, Pillow, OpenCV and matplotlib take and give. `test_installed` does
the whole job once, with img2dataset in it.
"""

#: Modules, each with its folder, of which every test is core.
CORE_MODULES = frozenset(
    {
        "house/test_installed",
        "examples/test_collate",
        "examples/test_operations",
        "publish/test_published",
        "examples/test_state",
    }
)

#: Of other modules, the beginnings of the names of those that are.
CORE_TESTS = {
    "examples/test_builder": (
        "test_every_picture",
        "test_examples_say",
        "test_not_streamed",
        "test_several",
        "test_the_public",
        "test_one_example",
    ),
    "examples/test_fetching": ("test_the_same_examples", "test_dataloader", "test_ranks", "test_what_is_fetched"),
    "images/test_pictures": ("test_every_mode", "test_every_orientation"),
    "publish/test_publish_hub": ("test_the_hub_has",),
    "inspect/test_show": ("test_the_page_shows",),
    "sources/test_sources": (
        "test_hub_file",
        "test_a_cut",
        "test_gated",
        "test_missing",
        "test_the_token",
        "test_fsspec",
    ),
    "inspect/test_stats": ("test_the_command_prints",),
    "examples/test_streaming": ("test_a_resumed", "test_dataloader", "test_ranks_share", "test_shards_are"),
    "transforms/test_transforms": ("test_one_example", "test_numpy_and_pillow"),
}

DATASETS36_MODULES = frozenset(
    {
        "examples/test_builder",
        "examples/test_fetching",
        "publish/test_publish_hub",
        "examples/test_ready",
        "examples/test_streaming",
    }
)


def is_core(module: str, name: str) -> bool:
    """Say whether test `name` of `module` runs in every environment. AVIF came with newer Pillow and OpenCV."""
    return "AVIF" not in name and _is_core(module, name)


def _is_core(module: str, name: str) -> bool:
    return module in CORE_MODULES or name.startswith(CORE_TESTS.get(module, ()) or "-")


def is_brief(module: str, name: str) -> bool:
    """Say whether test `name` of `module` is brief: the whole job, and every operation on a stream that fetches."""
    return module == "house/test_installed" or (module == "examples/test_operations" and "fetch" in name)
