"""Names that peft gives to the tensors of the modules that it wraps, and their own names.

A saved module's tensor is `connector.0.weight` in most files, and in a saved state dict
`connector.modules_to_save.default.0.weight` ("default" is the adapter's name; users choose it).
"""

from collections.abc import Iterator

PEFT_PREFIX = "base_model.model."
# What a wrapper calls the module that it wraps.
WRAPPED = (".token_adapter.base_layer.", ".base_layer.")
SAVED = ".modules_to_save."
# peft's copy of a saved module from before the training, in files with `bias` "all".
ORIGINAL = ".original_module."


def unwrapped_names(name: str) -> Iterator[str]:
    """What a tensor of an adapter's file may be called in the base, the likeliest first."""
    name = name.removeprefix(PEFT_PREFIX)
    for wrapped in WRAPPED:
        name = name.replace(wrapped, ".")
    module, saved, rest = name.partition(SAVED)
    if not saved:
        yield name
        return
    yield f"{module}.{rest.partition('.')[2]}"
    yield f"{module}.{rest}"  # older versions removed the adapter's name alone
