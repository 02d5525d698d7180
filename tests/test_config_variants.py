"""Variants of config files."""
import pytest

from diffusion.config_variants import chosen
from diffusion.errors import ConfigError

KNOWN = {"vp": 1, "ve": 2}


@pytest.mark.parametrize("text, found", [("", ("vp", False)), ("ve", ("ve", False)), ("tiny", ("vp", True)),
                                         ("ve,tiny", ("ve", True)), ("tiny, ve", ("ve", True))])
def test_a_variant_is_a_name_and_whether_it_is_tiny(text, found):
    assert chosen(text, KNOWN) == found


@pytest.mark.parametrize("text, words", [("vpp", "'vpp' is not known. Did you mean 'vp'. It can be one of: vp, ve, "),
                                         ("vp,ve", "names 2: choose one"), ("Tiny", "'Tiny' is not known")])
def test_an_unknown_variant_is_named(text, words):
    with pytest.raises(ConfigError, match=words):
        chosen(text, KNOWN)
