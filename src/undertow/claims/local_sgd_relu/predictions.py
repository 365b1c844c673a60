def predictions(knobs): return {}
