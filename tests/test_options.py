"""Every option: checked, listed in errors, free of datasets' own names."""

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

import laion_face
from laion_face_builder.download.download_options import DownloadOptions
from laion_face_builder.errors import OptionError
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.images.geometry import Resizing
from laion_face_builder.index.filters import Filters
from laion_face_builder.options import (
    NSFW_VALUES,
    Ahead,
    FetchOptions,
    OptionFields,
    Options,
    option_names,
    refuse_unknown,
)
from laion_face_builder.options.export_options import ExportOptions
from laion_face_builder.sources.sources import Upstream

#: What datasets takes for itself, in any of the ways to a builder.
TAKEN = {
    "name", "version", "description", "data_files", "data_dir", "features", "hash", "info", "base_path", "repo_id",
    "config_id", "config_name", "dataset_name", "token", "storage_options", "writer_batch_size", "path", "split",
    "revision", "streaming", "num_proc", "cache_dir", "download_config", "download_mode", "verification_mode",
    "keep_in_memory", "save_infos", "trust_remote_code", "decode_num_threads",
}  # fmt: skip


def test_no_option_has_a_name_that_datasets_takes():
    parameters = set()
    for taker in (datasets.load_dataset, datasets.load_dataset_builder, datasets.DatasetBuilder.__init__):
        parameters |= set(inspect.signature(taker).parameters)
    parameters |= {field.name for field in dataclasses.fields(datasets.BuilderConfig)}
    assert not set(option_names()) & (TAKEN | parameters)


GROUPS = {"source", "which", "filter", "join", "pictures", "resize", "stream", "transfer"}


def test_every_option_says_what_it_means():
    for field in dataclasses.fields(OptionFields):
        assert len(field.metadata["help"]) > 10
        assert field.metadata["group"] in GROUPS


@pytest.mark.parametrize("kind", [OptionFields, DownloadOptions, ExportOptions])
def test_a_meaning_names_only_options_that_exist(kind):
    words = {*option_names(), "data_dir", "keep_ratio", "keep_ratio_largest", "center_crop", "sample_id"}
    texts = [field.metadata.get("help", "") for field in dataclasses.fields(kind)]
    assert {word for text in texts for word in re.findall(r"[a-z]+(?:_[a-z]+)+", text)} <= words
    # One line in a table and on a terminal: no sentence, no end of one.
    assert [text for text in texts if text.endswith(".") or "\n" in text or text[:1].isspace()] == []


def of(**given):
    return Options.of("20M", OptionFields(**given))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"images": "fetsh"}, "valid are 'auto'"),
        ({"on_error": "ignore"}, "valid are 'skip', 'null', 'raise'"),
        ({"on_size_change": 1}, "valid are 'rescale', 'drop', 'keep'"),
        ({"mode": "CMYK"}, "valid are 'RGB', 'L'"),
        ({"nsfw": "SAFE"}, "valid are 'UNLIKELY', 'UNSURE', 'NSFW'"),
        ({"parts": 1}, "its parts are 0, 2, 5"),
        ({"min_faces": 1.5}, "a whole number"),
        ({"min_score": float("nan")}, "a number"),
        ({"min_face_size": "64"}, "a number"),
        ({"min_width": -1}, "0 to 100,000,000"),
        ({"min_faces": 3, "max_faces": 2}, "nothing would pass"),
        ({"timeout": 0}, "0.001 to 86,400"),
        ({"shards_per_part": 0}, "1 to 100,000"),
        ({"allow_private_hosts": "no"}, "True or False"),
        ({"exclude": "no/such/file"}, "no such file"),
        ({"resize_mode": "stretch"}, "valid are 'no', 'keep_ratio'"),
        ({"resize_mode": "border", "images": "fetch"}, "keep their size"),
        ({"image_size": 0}, "1 to 16,384"),
        ({"cache_images": "kept", "blur_faces": True}, "faces and all"),
    ],
)
def test_a_wrong_value_is_an_error_that_lists_the_valid_ones(given, said):
    name = next(iter(given))
    with pytest.raises(OptionError, match=name) as caught:
        of(**given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_config_lists_the_configs():
    with pytest.raises(OptionError, match="20M, 50M"):
        Options.of("20m", OptionFields())


def test_an_unknown_option_is_answered_with_the_nearest():
    with pytest.raises(OptionError, match="did you mean min_face_size"):
        refuse_unknown(["min_facesize"])


def test_equal_meanings_are_equal_options(tmp_path):
    assert (
        of(parts="0,2", nsfw="unsure, UNLIKELY").defining() == of(parts=[2, 0], nsfw=["UNLIKELY", "UNSURE"]).defining()
    )
    assert of(timeout=5).defining() == of(timeout=50, per_host=1).defining()
    assert of(min_score=0.9).defining() != of(min_score=0.8).defining()
    assert of(images=str(tmp_path)).defining() == of().defining() != of(images="none").defining()
    assert hash(of()) == hash(of())


def test_every_default_is_that_of_the_options():
    options = of()
    assert (options.fetch, options.ahead, options.filters) == (FetchOptions(), Ahead(), Filters())
    assert (options.resizing, options.upstream) == (Resizing(), Upstream())
    how = DownloadOptions()
    assert (how.fetch, how.resizing, how.blur_faces) == (options.fetch, options.resizing, options.blur_faces)
    assert FetchLimits().options == options.fetch


#: A value of every option that is not its default, and is the same as float32 and float64.
OTHER = {
    "source_repo": "someone/else", "source_revision": "v2", "metadata": "some/where", "index": "some/index",
    "parts": 2, "shards_per_part": 7, "min_score": 0.5, "min_face_size": 64.0, "min_face_area": 0.25, "min_faces": 2,
    "max_faces": 3, "max_faces_in_picture": 4, "keep_faces": "largest",
    "min_width": 100, "min_height": 100, "nsfw": "UNLIKELY", "min_similarity": 0.25, "exclude": 5,
    "images": "none", "on_error": "null", "on_size_change": "drop", "mode": "L", "resize_mode": "border",
    "min_face_share": 0.5, "min_caption_words": 3, "caption_matches": "smil", "caption_excludes": "logo", "include": 5,
    "max_copies": 9, "join": "some/table", "join_how": "inner",
    "image_size": 99, "resize_only_if_bigger": True, "blur_faces": True, "order": "arrival", "concurrency": 3,
    "lookahead": 9, "max_buffer_bytes": 10**7, "cache_images": "kept", "cache_bytes": 10**6, "timeout": 3.5,
    "retries": 3, "max_bytes": 10**6, "max_pixels": 10**6, "isolate_decoder": True, "per_host": 2,
    "outage_patience": 5.0, "user_agent_token": "me", "allow_private_hosts": True, "trust_proxy": True,
    "contact": "me@example.org", "respect": "robots",
}  # fmt: skip


def test_another_value_is_known_of_every_option():
    assert set(OTHER) == set(option_names())
    assert [name for name in OTHER if OTHER[name] == getattr(OptionFields, name)] == []


def as_numpys(value):
    """Give the value as NumPy has it: as a scalar, and as an array without dimensions."""
    kinds = [np.float32, np.float64] if isinstance(value, float) else [type(np.array(value)[()])]
    return [form for kind in kinds for form in (kind(value), np.array(value, kind))]


@pytest.mark.parametrize("name", sorted(set(OTHER) - {"include", "exclude", "join"}))
def test_numpys_scalars_mean_what_they_hold(name):
    for form in as_numpys(OTHER[name]):
        assert of(**{name: form}) == of(**{name: OTHER[name]})
        assert type(dict(flat(of(**{name: form})))[name]) in {int, float, bool, str, tuple}


def flat(options):
    return options.by_name().items()


@pytest.mark.parametrize("name", option_names())
def test_none_is_the_default_of_every_option(name):
    assert of(**{name: None}) == of()


@pytest.mark.parametrize("name", option_names())
def test_options_by_name_are_the_options_again(name):
    options = of(**{name: [OTHER[name]] if name in ("include", "exclude") else OTHER[name]})
    assert options.by_name().keys() == set(option_names())
    assert Options.of("20M", OptionFields(**options.by_name())) == options != of()


@pytest.mark.parametrize("name", ["source_repo", "metadata", "index", "images", "cache_images", "exclude"])
def test_a_place_may_be_a_path_and_is_one_from_the_root(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "list").write_text("5\n")
    path = Path("list" if name == "exclude" else "folder")
    assert of(**{name: path}) == of(**{name: str(path.absolute())}) == of(**{name: f"./{path}"})


#: Ways to have several values, each of which may be read only once.
SEVERAL: dict[str, Callable[[Any], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "dict": dict.fromkeys,
    "keys": lambda values: dict.fromkeys(values).keys(),
    "iterator": iter,
    "generator": lambda values: (value for value in values),
    "array": np.array,
    "objects": lambda values: np.array(values, object),
}


@pytest.mark.parametrize("way", SEVERAL)
@settings(max_examples=20)
@drawn(
    st.lists(st.sampled_from([0, 2, 5, 28]), min_size=1),
    st.lists(st.sampled_from([*NSFW_VALUES, "unsure", " NSFW "]), min_size=1),
    st.lists(st.sampled_from([7, "7.0", "host.example", "http://host.example/a,b.jpg"])),
)
def test_several_values_mean_the_same_in_whatever_holds_them(way, parts, nsfw, exclude):
    several = SEVERAL[way]
    ways = {"parts": several(parts), "nsfw": several(nsfw)}
    if way != "dict":  # which says what of what
        ways["exclude"] = several([str(value) for value in exclude])
    fields, plain = OptionFields(**ways), of(parts=parts, nsfw=nsfw, exclude=exclude if way != "dict" else None)
    # Of the same fields as often as datasets asks, though an iterator is read only once.
    assert Options.of("20M", fields) == Options.of("20M", fields) == plain
    assert hash(Options.of("20M", fields)) == hash(plain)
    config = laion_face.LaionFaceConfig(name="20M")
    for name, value in {"parts": several(parts), "nsfw": several(nsfw)}.items():
        setattr(config, name, value)
    assert config.options() == config.options() == of(parts=parts, nsfw=nsfw)


@pytest.mark.parametrize("nothing", [*SEVERAL, "text", "blank", "comma"])
@pytest.mark.parametrize(("name", "valid"), [("nsfw", "'UNLIKELY', 'UNSURE', 'NSFW'"), ("parts", "0, 2, 5, 8")])
def test_a_choice_of_nothing_is_an_error_that_lists_what_there_is(name, valid, nothing):
    texts = {"text": "", "blank": " ", "comma": ","}
    value = texts[nothing] if nothing in texts else SEVERAL[nothing]([])
    with pytest.raises(OptionError, match=f"{name}=") as caught:
        of(**{name: value})
    assert valid in str(caught.value) or nothing == "comma"


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 0}, {"retries": -1}, {"max_pixels": 1.5}, {"concurrency": 10**9}, {"per_host": float("nan")},
        {"user_agent_token": "two\nlines"}, {"user_agent_token": "Ünicode"},
        {"respect": "robot"}, {"contact": ""}, {"contact": "me"}, {"contact": "me@example.org\r\nX: y"},
        {"contact": "a b@c.org"}, {"contact": "https://example.org/(x)"}, {"contact": "ftp://example.org"},
        {"contact": "me@example.org; x"},
    ],
    ids=str,
)  # fmt: skip
def test_the_objects_check_themselves(wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        FetchOptions(**wrong)
    with pytest.raises(OptionError, match=next(iter(wrong))):
        of(**wrong)
    with pytest.raises(OptionError, match="lookahead"):
        Ahead(lookahead=0)
    with pytest.raises(OptionError, match="order"):
        Ahead(order="random")
    with pytest.raises(OptionError, match="image_size"):
        Resizing("border", 0)


@pytest.mark.parametrize("streaming", [True, False])
def test_arrays_and_generators_reach_the_rows(prepared, streaming, tmp_path):
    how = {"images": "none", "split": "train", "data_dir": prepared.data.root, "cache_dir": str(tmp_path)}
    plain = laion_face.load_dataset("20M", parts=[0], nsfw=["UNLIKELY"], min_faces=1, streaming=True, **how)
    several = {"parts": np.array([0]), "nsfw": (value for value in np.array(["UNLIKELY"])), "min_faces": np.array(1)}
    ds = laion_face.load_dataset("20M", **several, blur_faces=np.bool_(False), streaming=streaming, **how)
    assert [example["sample_id"] for example in ds] == [example["sample_id"] for example in plain] != []
