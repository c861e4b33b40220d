"""Every arm of the ablation is a run that can be made."""

import pytest

from research.ablation import ARMS, NETWORKS, WHOLE
from splice_ff.training.config import ALL_TERMS, load_config
from splice_ff.utils.config_file import find_config

LAYOUTS = ["data.mined_pairs=layouts.parquet", "data.pairs={mined: 0.5, within: 0.2, across: 0.25, identity: 0.05}"]


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_is_the_recipe_but_for_what_it_leaves_out(name):
    recipe, arm = (load_config(find_config("everyday"), overrides) for overrides in (LAYOUTS, LAYOUTS + ARMS[name]))
    assert (arm != recipe) == (name != WHOLE and name not in NETWORKS)


def test_every_term_of_the_recipe_has_an_arm():
    recipe = load_config(find_config("everyday"))
    assert recipe.loss.terms.keys() == set(ALL_TERMS) and {f"no-{term}" for term in ALL_TERMS} <= ARMS.keys()
