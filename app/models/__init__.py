"""Networks: LightningModules, the backbones that they are made of, and where their weights come from."""
