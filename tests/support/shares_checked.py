"""Reads models in shares and splits them, with adapters on them, beside whole ones; run by torchrun.

    torchrun ... shares_checked.py OUT.json MODEL [MODEL ...]

Writes for each model what differs: nothing where all is well.
"""

import json
import os
import sys
from types import SimpleNamespace

import torch
from cpu_fsdp import FSDP2, use_gloo
from fitting import small_recipe


def differences(folder, accelerator):
    """Names of what differs between a model in shares and a whole one."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from transformers import set_seed

    from calibtune.models.loading import load_base
    from calibtune.models.sharding import split_by_fsdp
    from calibtune.models.shares import split, without_weights
    from calibtune.tuning.trainable import add_adapter

    recipe = small_recipe(folder, "cft")
    whole = load_base(recipe.spec)
    set_seed(1)
    whole = add_adapter(whole, recipe)
    read = load_base(recipe.spec, in_shares=True)
    assert split_by_fsdp(read)
    model, shares = without_weights(read)
    set_seed(1)
    model = add_adapter(model, recipe)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    split(SimpleNamespace(model=model, accelerator=accelerator), shares)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        logits = [each.eval()(input_ids=ids, use_cache=False).logits for each in (whole, model)]
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    found = [] if torch.equal(*logits) else ["logits"]
    # A frozen weight that two layers share is two, so that each is gathered on its own.
    mine = dict(model.named_parameters(remove_duplicate=False))
    for name, weight in whole.named_parameters(remove_duplicate=False):
        share = mine.pop(name)
        if not torch.equal(share.full_tensor(), weight) or share.requires_grad != weight.requires_grad:
            found.append(name)
    buffers = dict(model.named_buffers())
    found += [name for name, buffer in whole.named_buffers() if not torch.equal(buffers[name], buffer)]
    return found + list(mine)


if __name__ == "__main__":
    os.environ.update(FSDP2)
    use_gloo()
    from accelerate import Accelerator

    accelerator = Accelerator()
    found = {folder: differences(folder, accelerator) for folder in sys.argv[2:]}
    if accelerator.is_main_process:
        with open(sys.argv[1], "w") as file:
            json.dump(found, file)
    # Or a process that ends first may abort the other.
    accelerator.end_training()
