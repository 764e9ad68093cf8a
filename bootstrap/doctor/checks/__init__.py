"""Small pure checks: facts and settings in, findings out. `registry.py` lists them."""
