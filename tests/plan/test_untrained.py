"""Warnings of untrained parts."""

from dataclasses import replace

from mod_edge.plan.untrained import untrained_warnings


def test_each_untrained_part_that_the_model_has_gives_one_warning(make_config):
    config = replace(make_config(), untrained_parts=("connector", "router"))
    connector, router = untrained_warnings(config)
    assert "what the model says about pictures is noise" in connector
    assert "which tokens of a frame the MoD layers compute is arbitrary" in router
    assert untrained_warnings(replace(config, mod_config=None)) == [connector]
    assert untrained_warnings(make_config()) == []
