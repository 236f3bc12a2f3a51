"""The commands of `python -m train` besides the recipes."""
