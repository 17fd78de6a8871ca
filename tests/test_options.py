"""Every option: checked, listed in errors, free of datasets' own names."""

import dataclasses
import inspect

import datasets
import pytest

from laion_face_builder.errors import OptionError
from laion_face_builder.options import OptionFields, Options, option_names, refuse_unknown

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


def test_every_option_says_what_it_means():
    for field in dataclasses.fields(OptionFields):
        assert len(field.metadata["help"]) > 10
        assert field.metadata["group"] in {"source", "which", "filter", "pictures", "resize", "stream", "transfer"}


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
