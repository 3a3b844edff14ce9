"""Named runs: YAML, no code. ``forcewell pretrain NAME`` and ``forcewell finetune NAME --from MODEL`` read them."""
